//! Other projects' clients on disks that `dchaind` serves.

use super::{
    daemon::{Daemon, Hand},
    foreign::{Scratch, assert_same},
};
use std::{
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    time::Duration,
};

/// A chain of three layers: data, zeros, silence, and a base that is shorter.
fn chain(folder: &Scratch) {
    folder.qemu_img("create -q -f qcow2 base 5M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 1M", "write -q -P 2 3M 1M"]);
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b base middle 8M");
    folder.qemu_io("qcow2", "middle", &["write -q -P 3 512k 300k", "write -q -z 3M 200k"]);
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b middle top 8M");
    folder.qemu_io("qcow2", "top", &["write -q -P 4 768k 64k", "write -q -P 5 6M 4k"]);
}

/// The same disk served by qemu, read-only.
struct QemuNbd(std::process::Child, String);

impl QemuNbd {
    fn start(folder: &Scratch, image: &str) -> Self {
        Self::start_with(folder, image, &["-A"])
    }

    fn start_with(folder: &Scratch, image: &str, more: &[&str]) -> Self {
        let socket = folder.file("qemu.sock");
        // That of one that was killed.
        let _ = std::fs::remove_file(&socket);
        let child = Command::new("qemu-nbd")
            .args(more)
            .args(["-r", "-t", "-f", "qcow2", "-k"])
            .args([socket.as_os_str(), folder.file(image).as_os_str()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        for _ in 0..6000 {
            if UnixStream::connect(&socket).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child, uri)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn qemu_reads_and_maps_a_served_chain_as_the_files() {
    let folder = Scratch::new();
    chain(&folder);
    let expected = folder.flat("qcow2", "top");
    let qemu = QemuNbd::start(&folder, "top");
    let theirs = |context: &str| folder.run("nbdinfo", &format!("--map={context} --json {}", qemu.1));
    let (allocation, depth) = (theirs("base:allocation"), theirs("qemu:allocation-depth"));
    drop(qemu);
    let daemon = Daemon::start(&folder, &["vm=top"]);
    let uri = daemon.uri("vm");
    folder.qemu_img(&format!("convert -f raw -O raw {uri} out.raw"));
    assert_same(&std::fs::read(folder.file("out.raw")).unwrap(), &expected, "converted");
    folder.qemu_img(&format!("compare -f raw -F raw {uri} out.raw"));
    let ours = |context: &str| folder.run("nbdinfo", &format!("--map={context} --json {uri}"));
    assert_eq!((ours("base:allocation"), ours("qemu:allocation-depth")), (allocation, depth));
}

#[test]
fn what_qemu_io_writes_over_the_wire_is_in_the_file_and_the_file_is_sound() {
    let folder = Scratch::new();
    chain(&folder);
    let daemon = Daemon::start(&folder, &["vm=top,format=qcow2"]);
    let uri = daemon.uri("vm");
    folder.qemu_io(
        "raw",
        &uri,
        &[
            "write -q -P 9 100k 200k",
            "write -q -f -P 8 5000k 4k",
            "discard -q 0 64k",
            "write -q -z 1M 70000",
            "write -q -z -u 3M 500k",
            "write -q -z -f 7M 4k",
            "flush",
            "read -q -P 9 100k 200k",
            "read -q -P 0 0 64k",
            "read -q -P 0 1M 70000",
            "read -q -P 0 3M 500k",
            "aio_write -q -P 6 4M 64k",
            "aio_write -q -P 7 4200k 64k",
            "aio_flush",
            "read -q -P 6 4M 64k",
        ],
    );
    folder.qemu_img(&format!("convert -f raw -O raw {uri} seen.raw"));
    let (status, _) = daemon.stop();
    assert!(status.success());
    let seen = std::fs::read(folder.file("seen.raw")).unwrap();
    assert_same(&folder.flat("qcow2", "top"), &seen, "after the daemon");
    assert_eq!((seen[100 << 10], seen[5000 << 10], seen[7 << 20]), (9, 8, 0));
    folder.qemu_img("check -q -f qcow2 top");
}

#[test]
fn nbdinfo_is_told_what_the_disk_is() {
    let folder = Scratch::new();
    chain(&folder);
    let daemon = Daemon::start(&folder, &["vm=top", "old=base,read-only"]);
    let told = folder.run("nbdinfo", &format!("--json {}", daemon.uri("vm")));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let export = &told["exports"][0];
    assert_eq!(told["structured"], true);
    assert_eq!(export["export-size"], 8 << 20);
    for can in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(export[can], true, "{can}");
    }
    assert_eq!((&export["is_read_only"], &export["block_size_minimum"]), (&false.into(), &512.into()));
    let all: serde_json::Value =
        serde_json::from_str(&folder.run("nbdinfo", &format!("--json --list {}", daemon.uri("")))).unwrap();
    let names: Vec<_> =
        all["exports"].as_array().unwrap().iter().map(|e| e["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, ["old", "vm"]);
    assert_eq!(all["exports"][0]["is_read_only"], true);
    let wrote = folder.try_run("qemu-io", ["-f", "raw", "-c", "write 0 4k", &daemon.uri("old")]);
    assert!(!wrote.status.success(), "a read-only disk was opened for writing");
    let missing = folder.try_run("nbdinfo", [daemon.uri("none")]);
    assert!(!missing.status.success());
}

#[test]
fn a_dirty_bitmap_is_told_as_qemu_tells_it() {
    let folder = Scratch::new();
    chain(&folder);
    folder.qemu_img("bitmap --add -g 64k top changes");
    folder.qemu_io("qcow2", "top", &["write -q -P 7 1M 70k", "write -q -P 7 5M 4k"]);
    let qemu = QemuNbd::start_with(&folder, "top", &["-B", "changes"]);
    let map = "--map=qemu:dirty-bitmap:changes --json";
    let theirs = folder.run("nbdinfo", &format!("{map} {}", qemu.1));
    drop(qemu);
    let daemon = Daemon::start(&folder, &["vm=top,read-only"]);
    assert_eq!(folder.run("nbdinfo", &format!("{map} {}", daemon.uri("vm"))), theirs);
    assert!(theirs.matches("dirty").count() == 2, "{theirs}");
    drop(daemon);
    // It goes on recording while guests write, and qemu believes it afterwards.
    let daemon = Daemon::start(&folder, &["vm=top"]);
    folder.qemu_io("raw", &daemon.uri("vm"), &["write -q -P 8 3M 4k"]);
    let ours = folder.run("nbdinfo", &format!("{map} {}", daemon.uri("vm")));
    assert!(ours.matches("dirty").count() == 3, "{ours}");
    assert!(daemon.stop().0.success());
    let qemu = QemuNbd::start_with(&folder, "top", &["-B", "changes"]);
    assert_eq!(folder.run("nbdinfo", &format!("{map} {}", qemu.1)), ours);
    folder.qemu_img("check -q top");
}

#[test]
fn nbdcopy_brings_a_disk_there_and_back_over_several_connections() {
    let folder = Scratch::new();
    chain(&folder);
    folder.qemu_img("create -q -f qcow2 copy 8M");
    let daemon = Daemon::start(&folder, &["vm=top,read-only", "copy=copy"]);
    folder.run("nbdcopy", &format!("--connections=4 {} {}", daemon.uri("vm"), daemon.uri("copy")));
    folder.run("nbdcopy", &format!("{} back.raw", daemon.uri("copy")));
    let (status, _) = daemon.stop();
    assert!(status.success());
    let expected = folder.flat("qcow2", "top");
    assert_same(&std::fs::read(folder.file("back.raw")).unwrap(), &expected, "back");
    assert_same(&folder.flat("qcow2", "copy"), &expected, "there");
}

#[test]
fn fio_finds_all_that_it_wrote() {
    let folder = Scratch::new();
    chain(&folder);
    folder.qemu_img("create -q -f raw disk.raw 8M");
    let daemon = Daemon::start(&folder, &["vm=top", "raw=disk.raw,format=raw"]);
    for disk in ["vm", "raw"] {
        folder.run(
            "fio",
            &format!(
                "--name=x --ioengine=nbd --uri={} --rw=randrw --bssplit=4k/60:64k/30:512/5:256k/5 --iodepth=32 --size=8m \
                 --io_size=32m --verify=crc32c --verify_backlog=64 --verify_fatal=1 --randseed=3",
                daemon.uri(disk)
            ),
        );
    }
    let (status, _) = daemon.stop();
    assert!(status.success());
    folder.qemu_img("check -q -f qcow2 top");
}

#[test]
fn qemu_agrees_on_extended_headers_and_zeroes_more_than_4_gib_at_once() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 large 40G");
    let daemon = Daemon::start(&folder, &["vm=large"]);
    let uri = daemon.uri("vm");
    let arguments = ["-T", "nbd_*", "-f", "raw", "-c", "write -z -n 1G 20G", "-c", "read -P 0 20G 4k", &uri];
    let run = folder.try_run("qemu-io", arguments);
    let said = String::from_utf8_lossy(&run.stderr).into_owned() + &String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}");
    assert!(said.contains("extended"), "{said}");
    // The map of a large hole is one answer.
    let map = folder.qemu_img(&format!("map --output=json -f raw {uri}"));
    assert!(map.lines().count() <= 4, "{map}");
}

#[test]
fn tcp_is_served_beside_a_unix_socket() {
    let folder = Scratch::new();
    chain(&folder);
    let daemon = Daemon::start_with(&folder, &["vm=top"], &["--nbd", "tcp:127.0.0.1:0"]);
    let port = daemon.said.iter().find_map(|line| line.strip_prefix("listening tcp:")).unwrap();
    folder.qemu_img(&format!("convert -f raw -O raw nbd://{port}/vm out.raw"));
    drop(daemon);
    assert_same(&std::fs::read(folder.file("out.raw")).unwrap(), &folder.flat("qcow2", "top"), "over TCP");
}

#[test]
fn a_signal_ends_it_in_time_with_clients_that_are_there() {
    let folder = Scratch::new();
    chain(&folder);
    let daemon = Daemon::start(&folder, &["vm=top"]);
    let mut writer = Hand::enter(&daemon, "vm");
    let mut idle = Hand::enter(&daemon, "vm");
    let mut silent = daemon.connect();
    for at in 0..64 {
        writer.request(1, at * 4096, 4096);
        writer.say(&[0xab; 4096]);
        assert_eq!(writer.error(), 0);
    }
    // One that asks for much and takes nothing.
    let mut deaf = Hand::enter(&daemon, "vm");
    for _ in 0..16 {
        deaf.request(0, 0, 4 << 20);
    }
    let (status, took) = daemon.stop();
    assert!(status.success() && took < Duration::from_mins(1), "{status} {took:?}");
    assert!(writer.is_closed() && idle.is_closed());
    drop(std::io::Read::read_to_end(&mut silent, &mut Vec::new()));
    assert!(!folder.file("s").exists(), "the socket is gone");
    assert_eq!(folder.flat("qcow2", "top")[..64 * 4096], vec![0xab; 64 * 4096]);
}

#[test]
fn a_disk_that_cannot_be_opened_is_named_and_nothing_is_served() {
    let folder = Scratch::new();
    chain(&folder);
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_dchaind"))
            .current_dir(folder.path())
            .args(arguments)
            .args(["--nbd", "unix:s"])
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["--disk", "a=top", "--disk", "b=none"]);
    assert!(code == Some(1) && said.starts_with("dchaind: ") && said.contains("none"), "{code:?} {said}");
    let (code, said) = run(&["--disk", "a=top", "--disk", "a=base,read-only"]);
    assert_eq!(code, Some(64), "{said}");
    // A slip of the pen: what is no socket makes room for none.
    let before = std::fs::read(folder.file("base")).unwrap();
    let (code, said) = run(&["--disk", "a=top", "--control", "unix:base"]);
    assert!(code == Some(1) && said.contains("base"), "{code:?} {said}");
    assert_eq!(std::fs::read(folder.file("base")).unwrap(), before);
    let first = Daemon::start(&folder, &["vm=top"]);
    let (code, said) = run(&["--disk", "a=top"]);
    assert!(code == Some(69) && said.contains("top"), "{code:?} {said}");
    drop(first);
    // A socket that a killed daemon left is taken over.
    let again = Daemon::start(&folder, &["vm=top"]);
    let (code, said) = run(&["--disk", "a=base,read-only"]);
    assert!(code == Some(69) && said.contains("another server"), "{code:?} {said}");
    drop(again);
}
