//! Backups of disks in use by the programs that people have: qemu-img and nbdcopy pull one point in time of two disks,
//! and what changed since the last one, while a client goes on writing.

use super::{
    daemon::{Daemon, Hand},
    dchain::{Run, dchain},
    foreign::{Scratch, assert_same},
};
use serde_json::Value;
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

const DISK: usize = 8 << 20;
const BLOCK: usize = 4096;
/// Blocks that are written at random; they lie apart, so that each is a cluster of its own.
const BLOCKS: u64 = 60;
const APART: u64 = 128 << 10;

/// Which block round `n` of the writer writes.
fn block_of(n: u64) -> u64 {
    1 + (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % BLOCKS
}

/// Writes round after round: its number at the start of `a`, then of `b`, then into a block of each.
struct Writer {
    begun: Arc<AtomicU64>,
    acked: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(daemon: &Daemon, from: u64) -> Self {
        let (begun, acked) = (Arc::new(AtomicU64::new(from)), Arc::new(AtomicU64::new(from)));
        let is_over = Arc::new(AtomicBool::new(false));
        let mut disks = [Hand::enter(daemon, "a"), Hand::enter(daemon, "b")];
        let seen = (Arc::clone(&begun), Arc::clone(&acked), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let (begun, acked, is_over) = seen;
            while !is_over.load(SeqCst) {
                let n = begun.fetch_add(1, SeqCst) + 1;
                let bytes = n.to_le_bytes().repeat(BLOCK / 8);
                for at in [0, block_of(n)] {
                    for disk in &mut disks {
                        disk.request(1, at * APART, u32::try_from(BLOCK).unwrap());
                        disk.say(&bytes);
                        assert_eq!(disk.error(), 0);
                    }
                }
                acked.store(n, SeqCst);
            }
            for disk in &mut disks {
                disk.request(3, 0, 0);
                assert_eq!(disk.error(), 0);
            }
        });
        Self { begun, acked, is_over, thread: Some(thread) }
    }

    /// Lets it go on for some rounds.
    fn wait(&self, rounds: u64) {
        let until = self.acked.load(SeqCst) + rounds;
        while self.acked.load(SeqCst) < until {
            assert!(!self.thread.as_ref().unwrap().is_finished());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops it, flushed; returns its last round.
    fn stop(mut self) -> u64 {
        self.is_over.store(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.acked.load(SeqCst)
    }
}

fn number(disk: &[u8], block: u64) -> u64 {
    let at = usize::try_from(block * APART).unwrap();
    let bytes = &disk[at..at + BLOCK];
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes.chunks(8).all(|eight| eight == n.to_le_bytes()), "a block of two writes");
    n
}

/// Both disks show what the writer had written at one moment, after `acked` and not after `begun`.
fn check_point(a: &[u8], b: &[u8], (acked, begun): (u64, u64)) {
    let last = number(a, 0);
    assert!(acked <= last && last <= begun, "{acked} <= {last} <= {begun}");
    let of_b = number(b, 0);
    assert!(of_b == last || of_b + 1 == last, "a is at {last}, b at {of_b}");
    for (disk, last) in [(a, last), (b, of_b)] {
        for block in 1..=BLOCKS {
            let before = (1..last).rev().find(|n| block_of(*n) == block).unwrap_or(0);
            let found = number(disk, block);
            let is_last = found == last && block_of(last) == block;
            assert!(found == before || is_last, "block {block}: {found}, not {before}");
        }
    }
}

fn ask(folder: &Scratch, arguments: &str) -> Run {
    let arguments: Vec<_> = arguments.split_whitespace().chain(["--socket", "c"]).collect();
    dchain(&folder.path(), &arguments)
}

fn answer(folder: &Scratch, arguments: &str) -> Value {
    let run = ask(folder, &format!("{arguments} --output json"));
    assert_eq!(run.code, Some(0), "{arguments}: {}{}", run.out, run.err);
    run.json()
}

fn serve(folder: &Scratch) -> Daemon {
    Daemon::start_with(folder, &["a=a", "b=b,format=raw"], &["--control", "unix:c", "--state", "state"])
}

/// What an export shows, as nbdcopy copies it.
fn pull(folder: &Scratch, uri: &str) -> Vec<u8> {
    folder.run("nbdcopy", &format!("{uri} pulled"));
    let bytes = fs::read(folder.file("pulled")).unwrap();
    fs::remove_file(folder.file("pulled")).unwrap();
    bytes
}

/// The ranges that qemu-img calls dirty, by the trick that its users know: dirty is what is no data.
fn dirty(folder: &Scratch, export: &str) -> Vec<(usize, usize)> {
    let socket = folder.file("s");
    let options = format!(
        "driver=nbd,export={export},server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:backup",
        socket.display()
    );
    let map = folder.qemu_img(&format!("map --output=json --image-opts {options}"));
    let map: Value = serde_json::from_str(&map).unwrap();
    let runs = map.as_array().unwrap().iter().filter(|run| run["data"] == false);
    let bytes = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    runs.map(|run| (bytes(&run["start"]), bytes(&run["length"]))).collect()
}

struct Taken {
    id: String,
    full: Vec<bool>,
    exports: Vec<String>,
    uris: Vec<String>,
}

fn begin(folder: &Scratch, since: &str) -> Taken {
    let view = answer(folder, &format!("backup begin --disk a --disk b{since}"));
    let each =
        |key: &str| view["disks"].as_array().unwrap().iter().map(|d| d[key].clone()).collect::<Vec<_>>();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Taken {
        id: text(&view["id"]),
        full: each("is-full").iter().map(|full| full.as_bool().unwrap()).collect(),
        exports: each("export").iter().map(text).collect(),
        uris: each("uris").iter().map(|uris| text(&uris[0])).collect(),
    }
}

fn end(folder: &Scratch, id: &str) -> Value {
    let ended = answer(folder, &format!("backup end {id}"));
    assert_eq!(ended["left"], Value::Array(vec![]), "{ended}");
    for job in ended["jobs"].as_array().unwrap() {
        let job = answer(folder, &format!("job wait {job}"));
        assert_eq!(job["error"], Value::Null, "{job}");
    }
    ended
}

fn disks() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 a 8M");
    folder.qemu_img("create -q -f raw b 8M");
    folder
}

#[test]
fn increments_of_disks_under_a_writer_make_copies_of_each_point_also_over_a_kill() {
    let folder = disks();
    let mut daemon = serve(&folder);
    let mut writer = Writer::start(&daemon, 0);
    writer.wait(200);
    let acked = writer.acked.load(SeqCst);
    let first = begin(&folder, "");
    let window = (acked, writer.begun.load(SeqCst));
    assert_eq!(first.full, [true, true]);
    assert_eq!(dirty(&folder, &first.exports[0]), [(0, DISK)]);
    let mut copies: Vec<_> = first.uris.iter().map(|uri| pull(&folder, uri)).collect();
    check_point(&copies[0], &copies[1], window);
    assert_eq!(end(&folder, &first.id)["jobs"], Value::Array(vec![]));
    let mut since = first.id;
    for round in 0..4 {
        writer.wait(20);
        let acked = writer.acked.load(SeqCst);
        let taken = begin(&folder, &format!(" --since {since}"));
        let window = (acked, writer.begun.load(SeqCst));
        assert_eq!(taken.full, [false, false]);
        let shown: Vec<_> = taken.uris.iter().map(|uri| pull(&folder, uri)).collect();
        check_point(&shown[0], &shown[1], window);
        if round == 1 {
            let last = writer.stop();
            // SIGKILL.
            drop(daemon);
            daemon = serve(&folder);
            writer = Writer::start(&daemon, last);
            writer.wait(20);
            assert_eq!(answer(&folder, "backup list")[0]["id"], taken.id);
        }
        for ((copy, shown), (export, uri)) in
            copies.iter_mut().zip(&shown).zip(taken.exports.iter().zip(&taken.uris))
        {
            let dirty = dirty(&folder, export);
            assert!(dirty.iter().map(|(_, length)| length).sum::<usize>() < DISK, "{dirty:?}");
            let again = pull(&folder, uri);
            for (at, length) in dirty {
                copy[at..at + length].copy_from_slice(&again[at..at + length]);
            }
            assert_same(copy, shown, "the copy with its increment");
        }
        assert_eq!(end(&folder, &taken.id)["jobs"].as_array().unwrap().len(), 2);
        let layers =
            |disk: &str| answer(&folder, &format!("disk show {disk}"))["layers"].as_array().unwrap().len();
        // A raw base stays what it is: an empty delta takes the name of what was folded into it.
        assert!(layers("a") == 2 && layers("b") == 3, "{} {}", layers("a"), layers("b"));
        since = taken.id;
    }
    let last = writer.stop();
    for disk in ["a", "b"] {
        assert_eq!(number(&pull(&folder, &daemon.uri(disk)), 0), last);
    }
    assert!(daemon.stop().0.success());
}

#[test]
fn a_backup_whose_point_is_not_known_is_of_everything_and_says_why() {
    let folder = disks();
    let daemon = serve(&folder);
    let why = |since: &str| {
        let view = answer(&folder, &format!("backup begin --disk a --since {since}"));
        let part = &view["disks"][0];
        assert_eq!(part["is-full"], true, "{view}");
        (view["id"].as_str().unwrap().to_owned(), part["why-full"].as_str().unwrap().to_owned())
    };
    let (id, said) = why("b77");
    assert!(said.contains("no backup 'b77'"), "{said}");
    // What it reads stays.
    for change in ["consolidate --disk a --yes", "disk detach a"] {
        let refused = ask(&folder, change);
        assert!(refused.code == Some(69) && refused.err.contains("backup b1"), "{}", refused.err);
    }
    let info = folder.run("nbdinfo", &format!("--map=qemu:dirty-bitmap:backup {}", daemon.uri("a.b1")));
    assert!(info.contains("8388608") && info.contains("dirty"), "{info}");
    let said = ask(&folder, "backup end b1").out;
    assert!(said.contains(&id), "{said}");
    assert_eq!(ask(&folder, "backup end b1").code, Some(1));
    folder.qemu_io("raw", &daemon.uri("a"), &["write -q -P 1 0 64k"]);
    assert_eq!(ask(&folder, "consolidate --disk a --yes").code, Some(0));
    let (_, said) = why(&id);
    assert!(said.contains("not one of the disk's any more"), "{said}");
    assert!(daemon.stop().0.success());
}

#[test]
fn a_disk_in_use_tells_what_changed_and_goes_back_to_a_layer() {
    let folder = disks();
    let daemon = serve(&folder);
    let write = |commands: &[&str]| folder.qemu_io("raw", &daemon.uri("a"), commands);
    let ranges = |arguments: &str| {
        let found = answer(&folder, &format!("diff --disk a {arguments}"));
        let text = |range: &Value| format!("{} {} {}", range["offset"], range["length"], range["kind"]);
        found.as_array().unwrap().iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(ask(&folder, "diff --disk a").code, Some(64));
    write(&["write -q -P 1 0 1M"]);
    answer(&folder, "snapshot --disk a=monday");
    assert_eq!(ranges(""), [""; 0]);
    // The same bytes again are no difference, though the head holds them.
    write(&["write -q -P 1 0 64k", "write -q -P 2 2M 8k", "write -q -z 512k 64k"]);
    assert_eq!(ranges(""), ["524288 65536 \"zero\"", "2097152 8192 \"data\""]);
    answer(&folder, "snapshot --disk a=tuesday");
    write(&["write -q -P 3 4M 4k"]);
    assert_eq!(ranges("monday"), ["4194304 4096 \"data\""]);
    assert_eq!(ranges("--granularity 1M a monday"), ["0 1048576 \"data\"", "2097152 1048576 \"data\""]);
    assert_eq!(ranges("a").len(), 3);
    assert!(ask(&folder, "diff --disk a wednesday").err.contains("not one of the disk's layers"));

    let mut guest = Hand::enter(&daemon, "a");
    let refused = ask(&folder, "revert --disk a --yes monday");
    assert!(refused.code == Some(69) && refused.err.contains("1 client uses it"), "{}", refused.err);
    assert_ne!(ask(&folder, "revert --disk a --force monday").code, Some(0));
    let plan = answer(&folder, "revert --disk a --dry-run a");
    assert!(plan["left"][0].as_str().unwrap().ends_with("monday"), "{plan}");
    answer(&folder, "revert --disk a --force --yes monday");
    guest.request(0, 4 << 20, 512);
    assert_eq!((guest.error(), guest.take(512)), (0, vec![0; 512]));
    drop(guest);
    assert_eq!(ranges("monday"), [""; 0]);
    write(&["write -q -P 4 5M 4k"]);
    assert!(daemon.stop().0.success());
    let daemon = serve(&folder);
    let shown = pull(&folder, &daemon.uri("a"));
    assert_eq!((shown[2 << 20], shown[4 << 20], shown[5 << 20]), (2, 0, 4));
    answer(&folder, "revert --disk a --yes a");
    let shown = pull(&folder, &daemon.uri("a"));
    assert_eq!((shown[512 << 10], shown[2 << 20], shown[5 << 20]), (1, 0, 0));
    assert!(daemon.stop().0.success());
}

/// A program that notes what for it is run, and does that besides.
fn hook(folder: &Scratch, name: &str, besides: &str) {
    use std::os::unix::fs::PermissionsExt;
    let text = format!(
        "#!/bin/sh\necho $DCHAIN_PHASE $DCHAIN_DISK $* >> {}\n{besides}\n",
        folder.file("log").display()
    );
    fs::write(folder.file(name), text).unwrap();
    fs::set_permissions(folder.file(name), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn guests_are_frozen_and_thawed_by_programs_around_snapshots_and_backups() {
    let folder = disks();
    hook(&folder, "freeze", "test ! -e refuse || { echo it is busy; exit 3; }");
    hook(&folder, "thaw", "");
    hook(&folder, "hang", "sleep 60");
    let path = |name: &str| folder.file(name).display().to_string();
    let config = format!(
        "[disks.a]\npath = 'a'\nfreeze = ['{}', 'now']\nthaw = ['{}']\nhook-timeout = 20\n",
        path("freeze"),
        path("thaw")
    );
    fs::write(folder.file("d.toml"), config).unwrap();
    let start = || {
        Daemon::start_with(&folder, &[], &["--control", "unix:c", "--state", "state", "--config", "d.toml"])
    };
    let log = || {
        fs::read_to_string(folder.file("log")).map(|text| fs::remove_file(folder.file("log")).map(|()| text))
    };
    let daemon = start();
    answer(
        &folder,
        "disk attach b=b,format=raw --freeze hang --freeze -f --freeze /mnt --thaw thaw --hook-timeout 1",
    );
    answer(&folder, "backup begin --disk a");
    assert_eq!(log().unwrap().unwrap(), "freeze a now\nthaw a\n");
    fs::write(folder.file("refuse"), "").unwrap();
    let refused = ask(&folder, "snapshot --disk a");
    assert!(refused.code == Some(1) && refused.err.contains("it is busy"), "{}", refused.err);
    assert_eq!(log().unwrap().unwrap(), "freeze a now\nthaw a\n");
    // A restart knows what it was told of the other disk.
    assert!(daemon.stop().0.success());
    let daemon = start();
    let refused = ask(&folder, "snapshot --disk b");
    assert!(refused.code == Some(1) && refused.err.contains("took more than 1 s"), "{}", refused.err);
    assert_eq!(log().unwrap().unwrap(), "freeze b -f /mnt\nthaw b\n");
    assert_eq!(answer(&folder, "disk show b")["layers"].as_array().unwrap().len(), 1);
    assert!(daemon.stop().0.success());
}
