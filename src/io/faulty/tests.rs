//! What a power cut may leave, and what it may not.
use super::*;
use crate::{
    base::{HostOffset, units::index},
    io::Kept,
};
use std::collections::BTreeSet;

const SAMPLES: u64 = 300;

fn at(bytes: u64) -> HostOffset {
    HostOffset::new(bytes)
}

fn path(name: &str) -> &Path {
    Path::new(name)
}

/// A machine with a durable file `/a` of 8,192 ones.
fn machine() -> (SimHost, Arc<dyn File>) {
    let host = SimHost::new();
    let file = host.create(path("/a")).unwrap();
    file.write_at(at(0), &[1; 8192]).unwrap();
    file.flush().unwrap();
    host.sync_folder(path("/")).unwrap();
    (host, file)
}

/// The bytes of a file; `None` if it is not there.
fn read(host: &SimHost, name: &str) -> Option<Vec<u8>> {
    let file = host.open(path(name), Access::Read).ok()?;
    let mut bytes = vec![9; index(file.bytes().unwrap())];
    file.read_at(at(0), &mut bytes).unwrap();
    Some(bytes)
}

/// What a crash after at least `from` events can leave of a file.
fn outcomes(host: &SimHost, from: usize, name: &str) -> BTreeSet<Option<Vec<u8>>> {
    let trace = host.trace();
    let crashes = crash_states(&trace, 1, SAMPLES).filter(|crash| crash.after >= from);
    crashes.map(|crash| read(&crash.host, name)).collect()
}

#[test]
fn what_was_flushed_stays_and_the_rest_may_be_torn() {
    let (host, file) = machine();
    let acknowledged = host.events();
    file.write_at(at(512), &[2; 1024]).unwrap();
    let seen = outcomes(&host, acknowledged, "/a");
    let sectors: BTreeSet<Vec<u8>> =
        seen.iter().flatten().map(|bytes| bytes.chunks(512).map(|sector| sector[0]).collect()).collect();
    let outside = |sectors: &Vec<u8>| (sectors[0], sectors[3..].to_vec());
    assert!(sectors.iter().all(|sectors| outside(sectors) == (1, vec![1; 13])));
    let inside: BTreeSet<_> = sectors.iter().map(|sectors| (sectors[1], sectors[2])).collect();
    assert_eq!(inside, BTreeSet::from([(1, 1), (1, 2), (2, 1), (2, 2)]));
    file.flush().unwrap();
    assert_eq!(outcomes(&host, host.events(), "/a").len(), 1);
}

#[test]
fn a_length_may_be_there_without_its_bytes_and_the_reverse() {
    let (host, file) = machine();
    let acknowledged = host.events();
    file.write_at(at(8192), &[2; 512]).unwrap();
    let tail = |bytes: &[u8]| bytes.get(8192..).map(<[u8]>::to_vec);
    let seen: BTreeSet<_> =
        outcomes(&host, acknowledged, "/a").into_iter().flatten().filter_map(|b| tail(&b)).collect();
    assert_eq!(seen, BTreeSet::from([vec![], vec![0; 512], vec![2; 512]]));
    // Bytes whose length was lost do not come back when the file grows again.
    file.set_bytes(0).unwrap();
    file.set_bytes(8192).unwrap();
    for crash in crash_states(&host.trace(), 2, SAMPLES).filter(|crash| crash.after > acknowledged) {
        let file = crash.host.open(path("/a"), Access::Write).unwrap();
        let old = file.bytes().unwrap();
        file.set_bytes(20_000).unwrap();
        drop(file);
        assert!(read(&crash.host, "/a").unwrap()[index(old)..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_discard_may_come_late_in_units_but_not_after_a_flush() {
    let (host, file) = machine();
    let acknowledged = host.events();
    file.zero(at(0).range(8192), Kept::Nothing).unwrap();
    let seen = outcomes(&host, acknowledged, "/a");
    let halves: BTreeSet<_> = seen.iter().flatten().map(|bytes| (bytes[0], bytes[8191])).collect();
    assert_eq!(halves, BTreeSet::from([(0, 0), (0, 1), (1, 0), (1, 1)]));
    file.flush().unwrap();
    assert_eq!(outcomes(&host, host.events(), "/a"), BTreeSet::from([Some(vec![0; 8192])]));
}

#[test]
fn names_are_durable_after_their_folder_was_synced() {
    let (host, file) = machine();
    drop(file);
    let acknowledged = host.events();
    let next = host.create(path("/b.new")).unwrap();
    next.write_at(at(0), &[2; 512]).unwrap();
    host.rename(path("/b.new"), path("/a")).unwrap();
    let unsafe_replace = outcomes(&host, acknowledged, "/a");
    let (old, new) = (Some(vec![1; 8192]), Some(vec![2; 512]));
    assert!([&old, &new, &Some(vec![])].iter().all(|outcome| unsafe_replace.contains(*outcome)));
    assert!(!unsafe_replace.contains(&None), "a rename leaves the one or the other");
    next.flush().unwrap();
    assert_eq!(outcomes(&host, host.events(), "/a"), BTreeSet::from([old, new.clone()]));
    host.sync_folder(path("/")).unwrap();
    assert_eq!(outcomes(&host, host.events(), "/a"), BTreeSet::from([new]));
    assert_eq!(outcomes(&host, host.events(), "/b.new"), BTreeSet::from([None]));
}

#[test]
fn a_folder_that_was_not_synced_takes_its_files_with_it() {
    let host = SimHost::new();
    host.make_folder(path("/x/y")).unwrap();
    host.create(path("/x/y/a")).unwrap().flush().unwrap();
    host.sync_folder(path("/x/y")).unwrap();
    assert!(outcomes(&host, host.events(), "/x/y/a").contains(&None));
    host.sync_folder(path("/x")).unwrap();
    host.sync_folder(path("/")).unwrap();
    assert_eq!(outcomes(&host, host.events(), "/x/y/a"), BTreeSet::from([Some(vec![])]));
}

#[test]
fn new_bytes_may_show_under_the_old_time_but_never_under_the_old_boot() {
    let (host, file) = machine();
    let before = file.witness().unwrap();
    file.write_at(at(0), &[2; 512]).unwrap();
    file.flush().unwrap();
    let after = file.witness().unwrap();
    assert_ne!(before, after);
    let crash = crash_states(&host.trace(), 1, SAMPLES).last().unwrap();
    let seen = crash.host.witness(path("/a")).unwrap();
    assert!(seen.same_file(&before) && seen.modified_ns < after.modified_ns && seen.boot != before.boot);
    assert_eq!(read(&crash.host, "/a").unwrap()[0], 2);
}

#[test]
fn a_seed_gives_the_same_crashes() {
    let (host, file) = machine();
    file.write_at(at(100), &[2; 9000]).unwrap();
    let trace = host.trace();
    let all = |seed| -> Vec<_> {
        let crashes = crash_states(&trace, seed, 8).map(|c| (c.after, c.landing, read(&c.host, "/a")));
        crashes.collect()
    };
    assert_eq!(all(1), all(1));
    assert_ne!(all(1), all(2));
}

#[test]
fn a_crash_may_follow_a_crash() {
    let (host, file) = machine();
    file.write_at(at(0), &[2; 512]).unwrap();
    for crash in crash_states(&host.trace(), 1, 8).filter(|crash| crash.after >= 4) {
        let file = crash.host.open(path("/a"), Access::Write).unwrap();
        let found = read_open(&*file);
        file.write_at(at(512), &[3; 512]).unwrap();
        for again in crash_states(&crash.host.trace(), 2, 8) {
            let bytes = read(&again.host, "/a").unwrap();
            assert!(bytes[..512] == found[..512], "what a reboot showed stays");
            assert!([1, 3].contains(&bytes[512]) && bytes[1024] == 1);
        }
    }
}

fn read_open(file: &dyn File) -> Vec<u8> {
    let mut bytes = vec![0; index(file.bytes().unwrap())];
    file.read_at(at(0), &mut bytes).unwrap();
    bytes
}

#[test]
fn an_io_fails_once_or_from_then_on() {
    let (host, file) = machine();
    let kind = |answer: Result<()>| answer.unwrap_err().kind();
    let fault = |failure, is_lasting| Some(Fault { at: host.ios() + 1, is_lasting, failure });
    host.fail(fault(Failure::Io, false));
    file.write_at(at(0), &[2; 512]).unwrap();
    assert_eq!(kind(file.write_at(at(0), &[3; 512])), ErrorKind::Io);
    file.write_at(at(0), &[4; 512]).unwrap();
    host.fail(fault(Failure::NoSpace, true));
    file.read_at(at(0), &mut [0; 512]).unwrap();
    assert_eq!(kind(file.write_at(at(0), &[5; 512])), ErrorKind::NoSpace);
    assert_eq!(kind(host.create(path("/b")).map(drop)), ErrorKind::NoSpace);
    file.read_at(at(0), &mut [0; 512]).unwrap();
    file.flush().unwrap();
    host.fail(fault(Failure::Short, false));
    file.read_at(at(0), &mut [0; 512]).unwrap();
    assert_eq!(kind(file.write_at(at(0), &[6; 1024])), ErrorKind::NoSpace);
    let bytes = read_open(&*file);
    assert!(bytes[..512] == [6; 512] && bytes[512..] == [1; 7680]);
}

#[test]
fn no_flush_succeeds_after_a_failed_one() {
    let (host, file) = machine();
    host.fail(Some(Fault { at: host.ios(), is_lasting: false, failure: Failure::Io }));
    assert!(file.flush().is_err() && file.flush().is_err());
    drop(file);
    host.open(path("/a"), Access::Write).unwrap().flush().unwrap();
}

#[test]
fn a_forgotten_barrier_shows_in_the_crashes() {
    for (dropped, can_be_lost) in [(None, false), (Some(0), true), (Some(1), false)] {
        let (host, file) = machine();
        host.begin_operation(dropped);
        file.write_at(at(0), &[2; 512]).unwrap();
        file.flush().unwrap();
        assert_eq!(host.barriers(), 1);
        let seen = outcomes(&host, host.events(), "/a");
        assert_eq!(seen.iter().flatten().any(|bytes| bytes[0] == 1), can_be_lost);
    }
}

#[test]
fn locks_hold_on_one_machine_and_not_after_a_reboot() {
    let (host, writer) = machine();
    for access in [Access::Read, Access::Write] {
        assert_eq!(host.open(path("/a"), access).unwrap_err().kind(), ErrorKind::Busy);
    }
    host.open(path("/a"), Access::ReadShared).unwrap();
    drop(writer);
    let _reader = host.open(path("a"), Access::Read).unwrap();
    let reader = host.open(path("/x/../a"), Access::Read).unwrap();
    assert_eq!(host.opened_as(&*reader).unwrap(), path("/a"));
    assert_eq!(host.open(path("/a"), Access::Write).unwrap_err().kind(), ErrorKind::Busy);
    assert!(reader.write_at(at(0), &[1]).is_err());
}
