//! Clients that are there when a disk is to go, and sockets that were there before the daemon.

use super::{
    daemon::{Daemon, Hand},
    dchain::{Run, dchain},
    foreign::Scratch,
};
use std::{
    io::Read,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const UNKNOWN: u32 = (1 << 31) + 6;

fn disk() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 disk 8M");
    folder
}

fn ask(folder: &Scratch, arguments: &str) -> Run {
    let arguments: Vec<_> = arguments.split(' ').chain(["--socket", "c"]).collect();
    dchain(&folder.path(), &arguments)
}

#[test]
fn a_disk_with_clients_stays_unless_they_are_forced_to_leave_and_keeps_what_was_acknowledged() {
    let folder = disk();
    let daemon = Daemon::start_with(&folder, &["vm=disk"], &["--control", "unix:c", "--state", "state"]);
    let mut writer = Hand::enter(&daemon, "vm");
    let mut idle = Hand::enter(&daemon, "vm");
    let refused = ask(&folder, "disk detach vm");
    assert!(refused.code == Some(69) && refused.err.contains("2 clients use it"), "{}", refused.err);
    assert!(refused.err.contains("hint: --force"), "{}", refused.err);
    let shown = ask(&folder, "disk show vm").out;
    assert_eq!(shown.matches(&format!("used by process {}", std::process::id())).count(), 2, "{shown}");
    // One that asks for much and takes nothing.
    let mut deaf = Hand::enter(&daemon, "vm");
    for _ in 0..16 {
        deaf.request(0, 0, 4 << 20);
    }
    for at in 0..64 {
        writer.request_as(at, 1, (at * 65536, 65536));
        writer.say(&vec![7; 65536]);
    }
    let began = Instant::now();
    let gone = ask(&folder, "disk detach vm --force");
    assert_eq!(gone.code, Some(0), "{}", gone.err);
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    let mut acknowledged = Vec::new();
    let mut reply = [0; 16];
    while writer.0.read_exact(&mut reply).is_ok() {
        assert_eq!(reply[4..8], [0; 4]);
        acknowledged.push(usize::try_from(u64::from_be_bytes(reply[8..].try_into().unwrap())).unwrap());
    }
    assert!(idle.is_closed());
    let mut late = Hand::greet(&daemon);
    late.option(6, b"\0\0\0\x02vm\0\0");
    assert_eq!(late.answer().0, UNKNOWN);
    // The daemon has let go of the image: others open it for writing.
    folder.qemu_io("qcow2", "disk", &["write -q -P 9 7M 4k"]);
    let bytes = folder.flat("qcow2", "disk");
    for at in acknowledged {
        assert!(bytes[at * 65536..][..65536].iter().all(|byte| *byte == 7), "write {at}");
    }
    assert!(daemon.stop().0.success());
}

/// Killed when this goes.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As systemd starts it: the sockets are there, the first client starts the daemon.
fn activate(folder: &Scratch, names: &str, sockets: &[&str]) -> Started {
    let mut command = Command::new("systemd-socket-activate");
    command.current_dir(folder.path()).arg(format!("--fdname={names}"));
    for socket in sockets {
        command.arg("-l").arg(folder.file(socket));
    }
    command.args([env!("CARGO_BIN_EXE_dchaind"), "--disk", "vm=disk"]);
    let started =
        Started(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let began = Instant::now();
    while !sockets.iter().all(|socket| folder.file(socket).exists()) {
        assert!(began.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(5));
    }
    started
}

#[test]
fn sockets_that_were_opened_for_the_daemon_are_taken_over_by_their_names() {
    let folder = disk();
    let _daemon = activate(&folder, "nbd:control:nbd", &["s", "c", "t"]);
    for socket in ["s", "t"] {
        let size =
            folder.run("nbdinfo", &format!("--size nbd+unix:///vm?socket={}", folder.file(socket).display()));
        assert_eq!(size.trim(), (8 << 20).to_string());
    }
    let shown = ask(&folder, "disk list");
    assert!(shown.out.starts_with("vm: "), "{}{}", shown.out, shown.err);
}

#[test]
fn two_control_sockets_are_one_too_many() {
    let folder = disk();
    let mut daemon = activate(&folder, "control:other", &["c", "d"]);
    let _wakes = std::os::unix::net::UnixStream::connect(folder.file("c")).unwrap();
    assert_eq!(daemon.0.wait().unwrap().code(), Some(64));
    let mut said = String::new();
    daemon.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("'other'"), "{said}");
}
