//! Clients of NBD that mean no good, or do not know better: each is refused, and a normal client is served. All of it
//! in the clear, and again by clients that TLS lets in (`nbd_tls.rs` has what they try in front of it).

use super::{
    daemon::{Daemon, Hand, Line},
    foreign::Scratch,
};
use std::{io::Write, time::Duration};

const INVAL: u32 = 22;
const NOSPC: u32 = 28;
const UNKNOWN: u32 = (1 << 31) + 6;
const INVALID: u32 = (1 << 31) + 3;
const TOO_BIG: u32 = (1 << 31) + 9;

/// Memory that nothing that clients do may pass, in bytes.
const MEMORY: u64 = 96 << 20;

/// Has clients try `attack` on a daemon in the clear, and on one with TLS.
fn everywhere(attack: impl Fn(&Scratch, &Daemon)) {
    for start in [Daemon::start_with, Daemon::start_tls] {
        let folder = Scratch::new();
        folder.qemu_img("create -q -f qcow2 disk 8M");
        folder.qemu_io("qcow2", "disk", &["write -q -P 1 0 1M"]);
        attack(&folder, &start(&folder, &["vm=disk"], &["--max-handshake", "1"]));
    }
}

/// A normal client is served.
fn is_well(daemon: &Daemon) {
    let mut hand = Hand::enter(daemon, "vm");
    hand.request(0, 4096, 512);
    assert_eq!((hand.error(), hand.take(512)), (0, vec![1; 512]));
    assert!(daemon.peak_bytes() < MEMORY, "{} bytes", daemon.peak_bytes());
}

fn named(name: &[u8]) -> Vec<u8> {
    [&u32::try_from(name.len()).unwrap().to_be_bytes(), name, &[0; 2]].concat()
}

#[test]
fn names_of_4096_bytes_are_unknown_and_longer_ones_no_names() {
    everywhere(|_, daemon| {
        let mut hand = Hand::greet(daemon);
        for (bytes, kind) in [(4096, UNKNOWN), (4097, INVALID), (60_000, INVALID)] {
            hand.option(6, &named(&vec![b'x'; bytes]));
            assert_eq!(hand.answer().0, kind, "{bytes}");
        }
        is_well(daemon);
    });
}

#[test]
fn an_option_that_claims_4_gib_is_not_waited_for() {
    everywhere(|_, daemon| {
        for option in [3, 6, 7, 10, 99] {
            let mut hand = Hand::greet(daemon);
            hand.option_of(option, u32::MAX, b"some");
            assert_eq!(hand.answer().0, TOO_BIG);
            assert!(hand.is_closed());
        }
        // The one option without a reply.
        let mut hand = Hand::greet(daemon);
        hand.option_of(1, u32::MAX, b"some");
        hand.answer();
        assert!(hand.is_closed());
        is_well(daemon);
    });
}

#[test]
fn a_flood_of_options_ends() {
    everywhere(|_, daemon| {
        let mut hand = Hand::greet(daemon);
        let option = [b"IHAVEOPT", &99_u32.to_be_bytes()[..], &[0; 4]].concat();
        let mut sent = 0;
        // Its answers are not read: the server does not wait for that for ever either.
        hand.0.socket().set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        while sent < 1_000_000 && hand.0.write_all(&option.repeat(100)).is_ok() {
            sent += 100;
        }
        assert!(sent < 1_000_000);
        is_well(daemon);
    });
}

#[test]
fn what_is_no_nbd_is_left() {
    everywhere(|_, daemon| {
        let mut wrong_flags = Hand(Line::Clear(daemon.connect()));
        wrong_flags.take(18);
        wrong_flags.say(&[0xff; 4]);
        assert!(wrong_flags.is_closed());
        let mut wrong_option = Hand::greet(daemon);
        wrong_option.say(&[0x55; 16]);
        assert!(wrong_option.is_closed());
        let mut wrong_request = Hand::enter(daemon, "vm");
        wrong_request.say(&[0x55; 28]);
        assert!(wrong_request.is_closed());
        let mut no_name = Hand::greet(daemon);
        no_name.option(1, b"none");
        assert!(no_name.is_closed());
        is_well(daemon);
    });
}

#[test]
fn requests_past_the_end_and_of_4_gib_are_refused_one_by_one() {
    everywhere(|_, daemon| {
        let mut hand = Hand::enter(daemon, "vm");
        let cases = [
            (0, 8 << 20, 1, INVAL),
            (0, (8 << 20) - 1, 2, INVAL),
            (0, 0, u32::MAX, INVAL),
            (0, u64::MAX, u32::MAX, INVAL),
            (0, u64::MAX - 511, 512, INVAL),
            (4, 0, u32::MAX, INVAL),
            (5, u64::MAX, 1, INVAL),
            (6, 4096, u32::MAX, NOSPC),
            // Nothing was chosen to be told of.
            (7, 0, u32::MAX, INVAL),
            (7, 0, 4096, INVAL),
            (200, 0, 4096, INVAL),
        ];
        for (command, start, bytes, error) in cases {
            hand.request(command, start, bytes);
            assert_eq!(hand.error(), error, "{command} {start} {bytes}");
        }
        hand.request(0, 4096, 512);
        assert_eq!((hand.error(), hand.take(512)), (0, vec![1; 512]));
        is_well(daemon);
    });
}

#[test]
fn a_write_of_4_gib_is_thrown_away_as_it_comes() {
    everywhere(|_, daemon| {
        let mut hand = Hand::enter(daemon, "vm");
        // As many bytes as are not worth a request, past the end as well: read, and never kept.
        let bytes = 40_u32 << 20;
        hand.request(1, 0, bytes);
        let piece = 0x2560_9513_u32.to_be_bytes().repeat(1 << 18);
        for _ in 0..bytes / (1 << 20) {
            hand.say(&piece);
        }
        assert_eq!(hand.error(), NOSPC);
        hand.request(0, 4096, 512);
        assert_eq!((hand.error(), hand.take(512)), (0, vec![1; 512]));
        // And one that claims 4 GiB and goes.
        let mut hand = Hand::enter(daemon, "vm");
        hand.request(1, 0, u32::MAX);
        hand.say(&piece);
        drop(hand);
        is_well(daemon);
    });
}

#[test]
fn a_client_that_asks_for_much_and_takes_nothing_costs_no_more_than_its_share() {
    everywhere(|_, daemon| {
        let mut deaf = Hand::enter(daemon, "vm");
        for _ in 0..64 {
            deaf.request(0, 0, 8 << 20);
        }
        std::thread::sleep(Duration::from_millis(300));
        is_well(daemon);
    });
}

#[test]
fn a_client_that_goes_within_its_payload_has_written_nothing() {
    everywhere(|_, daemon| {
        for sent in [0, 1, 4095, 100_000] {
            let mut hand = Hand::enter(daemon, "vm");
            hand.request(1, 0, 200_000);
            hand.say(&vec![9; sent]);
            drop(hand);
        }
        is_well(daemon);
        let mut hand = Hand::enter(daemon, "vm");
        hand.request(0, 0, 200_000);
        assert_eq!((hand.error(), hand.take(200_000)), (0, vec![1; 200_000]));
    });
}

#[test]
fn a_thousand_idle_connections_leave_room_for_a_normal_client() {
    everywhere(|folder, daemon| {
        // More than may be here at once; half of them say a word and stop.
        let mut idle = Vec::new();
        for nth in 0..1100 {
            let mut stream = daemon.connect();
            if nth % 2 == 1 {
                let _ = stream.write_all(&3_u32.to_be_bytes());
            }
            idle.push(stream);
        }
        is_well(daemon);
        folder.run("nbdinfo", &format!("--size {}", daemon.uri("vm")));
        assert!(daemon.threads() < 700, "{} threads", daemon.threads());
    });
}
