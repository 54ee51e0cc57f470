//! Disks over TLS: other projects' clients, clients that have no business here, and what is said in front of it.

use super::{
    certificates,
    daemon::{Daemon, Hand, Line},
    foreign::{Scratch, assert_same},
};
use std::{
    fs::Permissions,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
    time::{Duration, Instant},
};

const TLS_REQUIRED: u32 = (1 << 31) + 5;
const INVALID: u32 = (1 << 31) + 3;
const MIB: u32 = 1 << 20;

/// 12 MiB, of which some are not zero.
fn disk() -> Scratch {
    disk_of(12)
}

fn disk_of(mib: u64) -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img(&format!("create -q -f qcow2 disk {mib}M"));
    let last = format!("write -q -P 3 {}M 1M", mib - 1);
    folder.qemu_io("qcow2", "disk", &["write -q -P 1 0 1M", "write -q -P 2 3M 1M", &last]);
    folder
}

/// Has qemu's tools use the served disk, as the client in `who`.
fn qemu(folder: &Scratch, who: &str, tool: &str, arguments: &[&str]) -> Output {
    let object = format!("tls-creds-x509,id=t,endpoint=client,dir={}", folder.file(who).display());
    let place = format!("server.type=unix,server.path={}", folder.file("s").display());
    let image = format!("driver=nbd,{place},export=vm,tls-creds=t,tls-hostname=localhost");
    let (command, rest) = arguments.split_at(usize::from(tool == "qemu-img"));
    let all = [command, &["--object", &object, "--image-opts"], rest].concat();
    let all = all.into_iter().map(|one| if one == "IMAGE" { image.as_str() } else { one });
    folder.try_run(tool, all)
}

fn assert_done(output: &Output) {
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("failed"), "{said}");
}

/// The address of a disk for libnbd, at the unix socket.
fn uri(folder: &Scratch, who: &str) -> String {
    let (socket, who) = (folder.file("s"), folder.file(who));
    format!("nbds+unix:///vm?socket={}&tls-certificates={}", socket.display(), who.display())
}

#[test]
fn what_clients_of_others_write_over_tls_is_what_others_read_and_what_is_in_the_file() {
    let folder = disk();
    folder.qemu_img("create -q -f qcow2 copy 12M");
    let disks = ["vm=disk,format=qcow2", "copy=copy,format=qcow2"];
    let daemon = Daemon::start_tls(&folder, &disks, &["--nbd", "tcp:127.0.0.1:0"]);
    let commands =
        ["-c", "write -P 9 100k 4M", "-c", "write -f -P 8 5000k 4k", "-c", "aio_write -P 6 9M 64k"];
    assert_done(&qemu(&folder, "client", "qemu-io", &[&commands[..], &["IMAGE"]].concat()));
    assert_done(&qemu(&folder, "client", "qemu-img", &["convert", "-O", "raw", "IMAGE", "seen.raw"]));
    folder.run("nbdcopy", &format!("--connections=4 {} {}", daemon.uri("vm"), daemon.uri("copy")));
    let port = daemon.said.iter().find_map(|line| line.strip_prefix("listening tcp:127.0.0.1:")).unwrap();
    let over_tcp =
        format!("nbds://localhost:{port}/copy?tls-certificates={}", folder.file("client").display());
    folder.run("nbdcopy", &format!("{over_tcp} back.raw"));
    let told = folder.run("nbdinfo", &format!("--json {}", daemon.uri("vm")));
    assert!(told.contains("\"TLS\": true"), "{told}");
    assert!(daemon.stop().0.success());
    let expected = folder.flat("qcow2", "disk");
    assert_eq!((expected[200 << 10], expected[5000 << 10], expected[9 << 20]), (9, 8, 6));
    for file in ["seen.raw", "back.raw"] {
        assert_same(&std::fs::read(folder.file(file)).unwrap(), &expected, file);
    }
}

#[test]
fn who_cannot_prove_who_he_is_gets_nothing() {
    let folder = disk();
    let daemon = Daemon::start_tls(&folder, &["vm=disk"], &[]);
    let size = |who: &str| folder.try_run("nbdinfo", ["--size", &uri(&folder, who)]).status.success();
    assert!(size("client"));
    for who in ["nobody", "stranger", "fooled"] {
        assert!(!size(who), "{who}");
        assert!(!qemu(&folder, who, "qemu-img", &["info", "IMAGE"]).status.success(), "{who}");
    }
    let clear = format!("nbd+unix:///vm?socket={}", folder.file("s").display());
    let refused = folder.try_run("qemu-img", ["info", &clear]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("TLS"), "{said}");
    assert!(!folder.try_run("nbdinfo", ["--list", &clear]).status.success(), "names of disks are told");
    drop(daemon);
    certificates::revoke(&folder);
    let daemon = Daemon::start_with(&folder, &["vm=disk"], &["--tls-certificates", "server"]);
    assert!(!size("client"), "taken back");
    drop(daemon);
    let anybody = ["--tls-certificates", "server", "--tls-verify-peer", "off"];
    let _daemon = Daemon::start_with(&folder, &["vm=disk"], &anybody);
    assert!(size("nobody"));
    // libnbd asks a unix socket for no name, and then for no authority either; qemu does.
    let info = |who: &str| qemu(&folder, who, "qemu-img", &["info", "IMAGE"]).status.success();
    assert!(info("nobody") && !info("fooled"));
}

#[test]
fn where_tls_is_allowed_both_ways_are_open() {
    let folder = disk();
    certificates::make(&folder);
    std::fs::write(folder.file("d.toml"), "tls = 'allowed'\ntls-certificates = 'server'\n").unwrap();
    let daemon = Daemon::start_with(&folder, &["vm=disk"], &["--config", "d.toml"]);
    folder.run("nbdinfo", &format!("--size {}", daemon.uri("vm")));
    folder.run("nbdinfo", &format!("--size {}", uri(&folder, "client")));
    // What was agreed on before TLS is forgotten.
    let mut hand = Hand::greet_in_the_clear(&daemon);
    hand.option(8, &[]);
    assert_eq!(hand.answer().0, 1);
    hand.option(5, &[]);
    assert_eq!(hand.answer().0, 1);
    let mut hand = hand.secure(&certificates::client(&folder));
    hand.option(5, &[]);
    assert_eq!(hand.answer().0, INVALID, "TLS within TLS");
    hand.option(1, b"vm");
    hand.take(10);
    hand.request(0, 0, 512);
    assert_eq!((hand.error(), hand.take(512)), (0, vec![1; 512]), "a reply without a shape");
}

#[test]
fn in_front_of_tls_nothing_is_told_and_nothing_is_taken_over() {
    let folder = disk();
    let daemon = Daemon::start_tls(&folder, &["vm=disk"], &["--max-handshake", "1"]);
    let mut hand = Hand::greet_in_the_clear(&daemon);
    for (option, data) in
        [(3, &b""[..]), (6, b"\0\0\0\x02vm\0\0"), (7, b"\0\0\0\x02vm\0\0"), (8, b""), (99, b"")]
    {
        hand.option(option, data);
        assert_eq!(hand.answer().0, TLS_REQUIRED, "{option}");
    }
    hand.option_of(7, u32::MAX, b"some");
    assert_eq!(hand.answer().0, TLS_REQUIRED);
    assert!(hand.is_closed());
    let mut hand = Hand::greet_in_the_clear(&daemon);
    hand.option(1, b"vm");
    assert!(hand.is_closed());
    let mut hand = Hand::greet_in_the_clear(&daemon);
    hand.option(2, &[]);
    assert_eq!(hand.answer().0, 1, "to leave is allowed");
    assert!(hand.is_closed());
    // An option in the clear behind STARTTLS, in the same breath.
    let mut hand = Hand::greet_in_the_clear(&daemon);
    let starts = [b"IHAVEOPT", &5_u32.to_be_bytes()[..], &[0; 4]].concat();
    let lists = [b"IHAVEOPT", &3_u32.to_be_bytes()[..], &[0; 4]].concat();
    hand.say(&[starts, lists].concat());
    assert_eq!(hand.answer().0, 1);
    let mut said = Vec::new();
    let _ = hand.0.read_to_end(&mut said);
    assert!(said.len() < 16 && said.first().is_none_or(|byte| *byte == 21), "an alert at most: {said:x?}");
    let mut well = Hand::enter(&daemon, "vm");
    well.request(0, 0, 512);
    assert_eq!((well.error(), well.take(512)), (0, vec![1; 512]));
}

#[test]
fn a_tls_handshake_ends_in_time_however_it_is_drawn_out() {
    let folder = disk();
    let daemon = Daemon::start_tls(&folder, &["vm=disk"], &["--max-handshake", "1"]);
    let starts = || {
        let mut hand = Hand::greet_in_the_clear(&daemon);
        hand.option(5, &[]);
        assert_eq!(hand.answer().0, 1);
        hand
    };
    let began = Instant::now();
    let mut silent: Vec<_> = (0..100).map(|_| starts()).collect();
    let mut slow = starts();
    // A record of 16 KiB that comes byte by byte, and garbage.
    let _ = slow.0.write_all(&[22, 3, 1, 0x40, 0]);
    let mut broken = starts();
    broken.say(&[0x55; 64]);
    let _ = broken.0.read_to_end(&mut Vec::new());
    while slow.0.write_all(&[1]).is_ok() {
        assert!(began.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(silent.iter_mut().all(Hand::is_closed));
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    assert!(daemon.peak_bytes() < 96 << 20, "{} bytes", daemon.peak_bytes());
}

#[test]
fn large_and_many_requests_go_both_ways_at_once() {
    let folder = disk_of(40);
    let daemon = Daemon::start_tls(&folder, &["vm=disk"], &[]);
    let expected = folder.flat("qcow2", "disk");
    let mut hand = Hand::enter(&daemon, "vm");
    hand.request(0, 0, 32 * MIB);
    assert_eq!(hand.error(), 0);
    assert!(hand.take(32 << 20) == expected[..32 << 20], "32 MiB");
    // New keys come in between, as anyone may ask for them.
    let place = |round: u64| 8 << 20 | round << 16;
    for batch in 0..10 {
        let rounds = batch * 4..batch * 4 + 4;
        for round in rounds.clone() {
            hand.request_as(round, 0, (39 << 20, 16 << 10));
            hand.request_as(100 + round, 1, (place(round), 64 << 10));
            hand.say(&vec![u8::try_from(round).unwrap(); 64 << 10]);
            if let Line::Tls(stream) = &mut hand.0 {
                stream.conn.refresh_traffic_keys().unwrap();
            }
            hand.request_as(200 + round, 0, (4096, 512));
        }
        let mut answered: Vec<_> = (0..12).map(|_| take_reply(&mut hand)).collect();
        answered.sort_unstable();
        let all = [0, 100, 200].into_iter().flat_map(|kind| rounds.clone().map(move |round| kind + round));
        assert_eq!(answered, all.collect::<Vec<_>>());
    }
    for round in 0..40 {
        hand.request(0, place(round), 64 << 10);
        assert_eq!((hand.error(), hand.take(64 << 10)), (0, vec![u8::try_from(round).unwrap(); 64 << 10]));
    }
}

/// Takes a reply, with the bytes that belong to requests of its kind; returns its cookie.
fn take_reply(hand: &mut Hand) -> u64 {
    let (cookie, error) = hand.reply();
    assert_eq!(error, 0);
    match cookie {
        0..100 => assert_same(&hand.take(16 << 10), &[3; 16 << 10], "a long read"),
        200.. => assert_eq!(hand.take(512), [1; 512]),
        _ => {}
    }
    cookie
}

#[test]
fn what_qemu_has_in_flight_at_once_over_tls_lands_where_it_belongs() {
    let folder = disk();
    let daemon = Daemon::start_tls(&folder, &["vm=disk"], &[]);
    let writes =
        (0..64).map(|nth| format!("aio_write -q -P {} {}k {}k", nth + 10, 4096 + nth * 100, 4 + nth));
    let reads = (0..64).map(|nth| format!("aio_read -q -P {} {}k {}k", nth + 10, 4096 + nth * 100, 4 + nth));
    let between = ["aio_flush".to_owned()];
    let all: Vec<_> = writes.chain(between.clone()).chain(reads).chain(between).collect();
    let mut arguments: Vec<_> = all.iter().flat_map(|command| ["-c", command]).collect();
    arguments.push("IMAGE");
    assert_done(&qemu(&folder, "client", "qemu-io", &arguments));
    assert!(daemon.stop().0.success());
    folder.qemu_img("check -q -f qcow2 disk");
    let bytes = folder.flat("qcow2", "disk");
    for nth in 0..64_u8 {
        let at = (4096 + usize::from(nth) * 100) << 10;
        assert!(bytes[at..at + 4096].iter().all(|byte| *byte == nth + 10), "write {nth}");
    }
}

#[test]
fn a_client_that_says_it_is_done_is_answered_first_and_one_that_vanishes_harms_nobody() {
    let folder = disk();
    let daemon = Daemon::start_tls(&folder, &["vm=disk"], &[]);
    let mut hand = Hand::enter(&daemon, "vm");
    hand.request(0, 0, 512);
    let Line::Tls(stream) = &mut hand.0 else { panic!() };
    stream.conn.send_close_notify();
    let _ = stream.flush();
    assert_eq!((hand.error(), hand.take(512)), (0, vec![1; 512]));
    assert_eq!(hand.0.read(&mut [0; 8]).unwrap(), 0, "an end that is said, not one that is cut");
    // Half a record, then nothing.
    let hand = Hand::enter(&daemon, "vm");
    hand.0.socket().write_all(&[23, 3, 3, 0x10, 0, 1, 2, 3]).unwrap();
    drop(hand);
    // A record that is not what was ciphered.
    let mut hand = Hand::enter(&daemon, "vm");
    hand.0.socket().write_all(&[&[23, 3, 3, 0, 64][..], &[7; 64]].concat()).unwrap();
    assert!(hand.is_closed());
    let mut well = Hand::enter(&daemon, "vm");
    well.request(0, 0, 512);
    assert_eq!((well.error(), well.take(512)), (0, vec![1; 512]));
}

#[test]
fn a_stop_waits_for_no_client_that_takes_nothing() {
    let folder = disk();
    let daemon = Daemon::start_tls(&folder, &["vm=disk"], &[]);
    let mut writer = Hand::enter(&daemon, "vm");
    let mut deaf = Hand::enter(&daemon, "vm");
    for _ in 0..16 {
        deaf.request(0, 0, 4 * MIB);
    }
    let mut idle = Hand::enter(&daemon, "vm");
    for at in 0..16 {
        writer.request(1, at * 4096, 4096);
        writer.say(&[0xab; 4096]);
        assert_eq!(writer.error(), 0);
    }
    let (status, took) = daemon.stop();
    assert!(status.success() && took < Duration::from_mins(1), "{status} {took:?}");
    assert!(writer.is_closed() && idle.is_closed());
    assert_eq!(folder.flat("qcow2", "disk")[..16 * 4096], vec![0xab; 16 * 4096]);
}

#[test]
fn a_folder_of_certificates_that_is_no_good_is_refused_and_an_open_key_is_told_of() {
    let folder = disk();
    certificates::make(&folder);
    let start = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dchaind"));
        command.current_dir(folder.path()).args(["--nbd", "unix:s", "--disk", "vm=nothing"]);
        let output = command.args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let given = ["--tls-certificates", "server"];
    assert_eq!(start(&["--tls", "required"]).0, Some(64));
    let (_, said) = start(&given);
    assert!(said.contains("nothing") && !said.contains("warning"), "{said}");
    let key = folder.file("server/server-key.pem");
    std::fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    let (_, said) = start(&given);
    assert!(said.contains("server-key.pem can be read by others"), "{said}");
    std::fs::copy(folder.file("client/client-key.pem"), &key).unwrap();
    let (code, said) = start(&given);
    assert!(code == Some(64) && said.contains("server-cert.pem"), "{code:?} {said}");
    std::fs::write(&key, "no key").unwrap();
    let (code, said) = start(&given);
    assert!(code == Some(64) && said.contains("server-key.pem"), "{code:?} {said}");
    std::fs::remove_file(folder.file("server/ca-cert.pem")).unwrap();
    let (code, said) = start(&given);
    assert!(code == Some(1) && said.contains("ca-cert.pem"), "{code:?} {said}");
}
