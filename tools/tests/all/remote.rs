//! Chains to another machine and back: streams, and copies over a real sshd on loopback.

use super::{
    copy::chain,
    dchain::{command, dchain, done},
};
use crate::foreign::{Scratch, assert_same};
use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A sshd of its own: keys, configuration and port are this test's.
struct Sshd {
    folder: Scratch,
    port: u16,
    child: Child,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn keygen(folder: &Scratch, name: &str) {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.file(name));
    assert!(keygen.status().unwrap().success());
}

impl Sshd {
    fn start() -> Self {
        let folder = Scratch::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        keygen(&folder, "host");
        keygen(&folder, "user");
        fs::copy(folder.file("user.pub"), folder.file("authorized")).unwrap();
        let bin = Path::new(env!("CARGO_BIN_EXE_dchain")).parent().unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\n\
             PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n\
             SetEnv PATH={1}:/usr/bin:/bin\n",
            folder.path().display(),
            bin.display()
        );
        fs::write(folder.file("config"), config).unwrap();
        // Where sshd runs as root, it wants this folder of its package.
        let _ = fs::create_dir("/run/sshd");
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(folder.file("config"));
        let log = File::create(folder.file("log")).unwrap();
        let child = sshd.stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let sshd = Self { folder, port, child };
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return sshd;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{}", fs::read_to_string(sshd.folder.file("log")).unwrap());
    }

    /// The command that connects to it.
    fn ssh(&self) -> String {
        let folder = self.folder.path();
        let folder = folder.display();
        format!(
            "ssh -i {folder}/user -o IdentitiesOnly=yes -o BatchMode=yes -o LogLevel=ERROR \
             -o StrictHostKeyChecking=no -o UserKnownHostsFile={folder}/known"
        )
    }

    fn place(&self, path: &Path) -> String {
        format!("ssh://127.0.0.1:{}{}", self.port, path.display())
    }
}

/// Runs `dchain send`, with its stream in a file.
fn send(folder: &Path, arguments: &[&str], to: &Path) {
    let mut send = command(folder, &[&["send"], arguments].concat());
    let output = send.stdout(File::create(to).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn receive(store: &Path, from: &Path) -> (Option<i32>, String) {
    let mut receive = command(store, &["receive", "."]);
    let output = receive.stdin(File::open(from).unwrap()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_stream_in_a_file_makes_the_chain_again_and_a_cut_one_goes_on() {
    let (source, store) = (chain(), Scratch::new());
    let (stream, half) = (source.file("stream"), source.file("half"));
    let before = source.flat("qcow2", "c3");
    send(&source.path(), &["c3"], &stream);
    let bytes = fs::read(&stream).unwrap();
    fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    let (code, error) = receive(&store.path(), &half);
    assert!(code == Some(75) && error.contains("ends too early") && error.contains("--resume"), "{error}");
    let state = done(&store.path(), &["--output", "json", "receive", "--state", "."]).json();
    let token = state[0]["token"].as_str().unwrap();
    let rest = source.file("rest");
    send(&source.path(), &["--resume", token, "c3"], &rest);
    assert!(fs::metadata(&rest).unwrap().len() < fs::metadata(&stream).unwrap().len());
    let (code, error) = receive(&store.path(), &rest);
    assert_eq!(code, Some(0), "{error}");
    assert_same(&store.flat("qcow2", "c3"), &before, "received in two parts");
    assert_eq!(receive(&store.path(), &stream).0, Some(0));
    let id = done(&store.path(), &["--output", "json", "id", "show", "c3"]).json();
    assert!(id.to_string().contains("c1:"), "{id}");
    let refused = dchain(&source.path(), &["send", "--have", "c1:zz", "c3"]);
    assert_eq!(refused.code, Some(64), "{}", refused.err);
}

#[test]
fn cid_3_a_chain_goes_to_a_remote_store_and_back() {
    let (sshd, source, store, back) = (Sshd::start(), chain(), Scratch::new(), Scratch::new());
    let before = source.flat("qcow2", "c3");
    let (ssh, there) = (sshd.ssh(), sshd.place(&store.path()));
    let planned =
        done(&source.path(), &["--output", "json", "copy", "-n", "--ssh", &ssh, "c3", &there]).json();
    let missing: Vec<_> =
        planned["layers"].as_array().unwrap().iter().map(|l| l["is-there"].clone()).collect();
    assert!(missing.iter().all(|is_there| is_there == false), "{planned}");
    assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0, "a dry run writes nothing");
    let sent = done(&source.path(), &["--output", "json", "copy", "--ssh", &ssh, "c3", &there]).json();
    assert!(sent["sent-bytes"].as_u64() <= planned["send-bytes"].as_u64(), "{sent}");
    assert_same(&store.flat("qcow2", "c3"), &before, "at the remote store");
    // Again: nothing is moved.
    let again = done(&source.path(), &["--output", "json", "copy", "--ssh", &ssh, "c3", &there]).json();
    assert_eq!(again["sent-bytes"], 0, "{again}");
    let top = sshd.place(&store.file("c3"));
    done(&source.path(), &["copy", "--ssh", &ssh, &top, back.path().to_str().unwrap()]);
    assert_same(&back.flat("qcow2", "c3"), &before, "back again");
    let ids = |folder: &Scratch| {
        done(&folder.path(), &["--output", "json", "id", "show", "c3"]).json()["id"].clone()
    };
    assert_eq!(ids(&store), ids(&back));
}

#[test]
fn cid_4_a_remote_store_gets_only_what_it_lacks() {
    let (sshd, source, store) = (Sshd::start(), chain(), Scratch::new());
    let (ssh, there) = (sshd.ssh(), sshd.place(&store.path()));
    let copy =
        |top: &str| done(&source.path(), &["--output", "json", "copy", "--ssh", &ssh, top, &there]).json();
    copy("c2");
    let sent = copy("c3");
    let layers = sent["plan"]["layers"].as_array().unwrap();
    let missing = layers.iter().filter(|layer| layer["is-there"] == false).count();
    assert_eq!((missing, layers.len()), (1, 4), "{sent}");
    assert_same(&store.flat("qcow2", "c3"), &source.flat("qcow2", "c3"), "the head alone was sent");
    // A newer base, of which most is in the older one there.
    let old = source.file("old.raw");
    let mut bytes: Vec<u8> = (0..4_u32 << 20).map(|i| u8::try_from(i / 65_536 % 250).unwrap() + 1).collect();
    fs::write(&old, &bytes).unwrap();
    copy("old.raw");
    bytes[1_000_000..1_100_000].fill(0xee);
    fs::write(source.file("new.raw"), &bytes).unwrap();
    let sent = copy("new.raw");
    let (sent, taken) = (sent["sent-bytes"].as_u64().unwrap(), sent["taken-bytes"].as_u64().unwrap());
    assert!(sent <= 3 * 65_536 && sent + taken == 4 << 20, "{sent} sent, {taken} found there");
    assert_same(&fs::read(store.file("new.raw")).unwrap(), &bytes, "from a relative");
}

#[test]
fn a_remote_side_keeps_to_its_folder_and_says_why_it_ends() {
    let (sshd, source, store) = (Sshd::start(), chain(), Scratch::new());
    let ssh = sshd.ssh();
    std::os::unix::fs::symlink(source.file("c3"), store.file("out")).unwrap();
    for (name, code, word) in
        [("out", 77, "outside the folder"), ("none", 1, "No such file"), (".dchain", 77, "dot")]
    {
        let from = sshd.place(&store.file(name));
        let run = dchain(&source.path(), &["copy", "--ssh", &ssh, &from, store.path().to_str().unwrap()]);
        assert!(run.code == Some(code) && run.err.contains(word), "{name}: {:?} {}", run.code, run.err);
    }
    let nowhere = sshd.place(&store.file("missing"));
    let run = dchain(&source.path(), &["copy", "--ssh", &ssh, "c3", &nowhere]);
    assert!(run.code == Some(1) && run.err.contains("the other side says"), "{}", run.err);
    let run = dchain(&source.path(), &["copy", "--ssh", "false", "c3", &nowhere]);
    assert!(run.code == Some(1) && run.err.contains("had said what it has"), "{}", run.err);
    let run = dchain(&source.path(), &["copy", "c3", "ssh://-oProxyCommand=reboot/x"]);
    assert_eq!(run.code, Some(64), "{}", run.err);
}

/// A newer base to a folder that has the older one, without any other machine.
#[test]
fn cid_4_a_folder_gives_what_it_has_of_a_newer_base() {
    let (source, store) = (Scratch::new(), Scratch::new());
    let there = store.path();
    let copy = |options: &[&str]| {
        let end = ["base.raw", there.to_str().unwrap()];
        done(&source.path(), &[&["--output", "json", "copy"], options, &end].concat()).json()
    };
    let mut bytes: Vec<u8> = (0..4_u32 << 20).map(|i| u8::try_from(i / 65_536 % 250).unwrap() + 1).collect();
    fs::write(source.file("base.raw"), &bytes).unwrap();
    let sent = copy(&["--relatives"]);
    assert_eq!(sent["sent-bytes"], 4 << 20, "{sent}");
    fs::rename(store.file("base.raw"), store.file("monday.raw")).unwrap();
    bytes[1_000_000..1_100_000].fill(0xee);
    fs::write(source.file("base.raw"), &bytes).unwrap();
    let planned = copy(&["--relatives", "--dry-run"]);
    assert_eq!(planned["layers"][0]["has-relative"], true, "{planned}");
    let sent = copy(&["--relatives"]);
    let (sent, taken) = (sent["sent-bytes"].as_u64().unwrap(), sent["taken-bytes"].as_u64().unwrap());
    assert!(sent <= 3 * 65_536 && sent + taken == 4 << 20, "{sent} sent, {taken} found there");
    assert_same(&fs::read(store.file("base.raw")).unwrap(), &bytes, "from a relative");
    assert_eq!(fs::read(store.file("monday.raw")).unwrap()[1_000_000], 16);
    let missing = dchain(&source.path(), &["copy", "--relatives", "base.raw", "nowhere"]);
    assert!(
        missing.code == Some(1) && missing.err.contains("No such file"),
        "{:?} {}",
        missing.code,
        missing.err
    );
}

#[test]
fn what_is_in_the_way_of_a_copy_is_said_with_what_helps() {
    let (source, store) = (chain(), Scratch::new());
    let there = format!("ssh://host{}", store.path().display());
    let script = |name: &str, text: &str| {
        fs::write(source.file(name), text).unwrap();
        format!("sh {}", source.file(name).display())
    };
    let bin = Path::new(env!("CARGO_BIN_EXE_dchain")).parent().unwrap().display();
    let no_way = script("no-way", "exit 255");
    let greets = script("greets", &format!("echo Welcome\nPATH={bin}:$PATH\neval \"exec $3\"\n"));
    let stream = source.file("c3");
    let cases: [(&[&str], i32, &str); 4] = [
        // Nothing was begun that could be gone on with.
        (&["copy", "--ssh", &no_way, "c3", &there], 1, " host true` shows whether it gets there"),
        (&["copy", "--ssh", &greets, "c3", &there], 65, " host true` must print nothing"),
        (&["receive", "."], 65, "a stream is what `dchain send TOP` writes"),
        (&["receive", "none"], 1, "mkdir none"),
    ];
    for (arguments, code, word) in cases {
        let output = command(&source.path(), arguments).stdin(File::open(&stream).unwrap()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && error.contains(word), "{arguments:?}: {error}");
    }
    // Where nothing was ever noted.
    let names: Vec<_> = fs::read_dir(source.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    for name in names.iter().filter(|name| !name.to_string_lossy().starts_with('.')) {
        fs::write(store.file(name.to_str().unwrap()), "another").unwrap();
    }
    let taken = dchain(&source.path(), &["copy", "c3", store.path().to_str().unwrap()]);
    assert!(taken.code == Some(1) && taken.err.contains("is there already"), "{}", taken.err);
}
