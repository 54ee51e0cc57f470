use super::*;
use crate::{
    base::{GuestOffset, Result},
    chain::{Chain, Layer},
    disk::Disk,
    format::{self, Creation, Format, NoParts, ParentName},
    io::{
        Access, Host,
        faulty::{SimHost, Waits, crash_states},
    },
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const SIZE: u64 = 8 << 10;

fn layer(host: &SimHost, name: &str, parent: Option<&str>) -> Layer {
    layer_of(host, name, parent, (SIZE, 512))
}

fn layer_of(host: &SimHost, name: &str, parent: Option<&str>, (size, cluster): (u64, u32)) -> Layer {
    let path = Path::new("/").join(name);
    let parent = parent.map(|name| ParentName::new(name.into(), Some("qcow2".into())));
    let options = vec![("cluster_size".into(), cluster.to_string())];
    let creation = Creation { size, parent, options };
    let image = format::create(Format::Qcow2, host.create(&path).unwrap(), &creation, &NoParts).unwrap();
    image.flush().unwrap();
    host.sync_folder(Path::new("/")).unwrap();
    Layer { path, is_stated: true, image }
}

fn read(disk: &dyn Disk, at: u64) -> u8 {
    let mut byte = [0];
    disk.read(GuestOffset::new(at), &mut byte).unwrap();
    byte[0]
}

#[test]
fn a_flush_after_a_new_head_covers_what_the_old_one_was_given() -> Result<()> {
    let host = SimHost::new();
    let base = layer(&host, "base", None);
    let disk = LiveDisk::new(Chain::of(vec![base.clone()], true));
    disk.write(GuestOffset::new(0), &[1; 512])?;
    let head = layer(&host, "head", Some("base"));
    LiveDisk::swap_all(vec![(&disk, Chain::of(vec![head, base], true))]);
    disk.write(GuestOffset::new(1024), &[2; 512])?;
    disk.flush()?;
    assert_eq!((read(&disk, 0), read(&disk, 1024)), (1, 2));
    let crashed = crash_states(&host.trace(), 0, 0).last().unwrap().host;
    let open = |name: &str| {
        let file = crashed.open(&Path::new("/").join(name), Access::Read)?;
        format::open(Format::Qcow2, file, false, &NoParts)
    };
    let layers =
        [open("head")?, open("base")?].map(|image| Layer { path: "x".into(), is_stated: true, image });
    let chain = Chain::of(layers.into(), false);
    assert_eq!((read(&chain, 0), read(&chain, 1024)), (1, 2));
    Ok(())
}

#[test]
fn disks_of_a_group_go_over_at_one_point_in_time() {
    let host = SimHost::new();
    let disks: Vec<LiveDisk> =
        ["a", "b"].map(|name| LiveDisk::new(Chain::of(vec![layer(&host, name, None)], true))).into();
    let before: Vec<_> = disks.iter().map(LiveDisk::chain).collect();
    // One guest writes the same number to both disks, in turn: at every point in time they are one apart at most.
    std::thread::scope(|scope| {
        let (a, b) = (&disks[0], &disks[1]);
        let guest = scope.spawn(move || {
            for number in 1..=200 {
                a.write(GuestOffset::new(0), &[number; 512]).unwrap();
                b.write(GuestOffset::new(0), &[number; 512]).unwrap();
            }
        });
        std::thread::yield_now();
        let over = |name: &str, chain: &Chain| {
            let head = layer(&host, &format!("{name}1"), Some(name));
            Chain::of([vec![head], chain.layers().to_vec()].concat(), true)
        };
        let chains = vec![(a, over("a", &before[0])), (b, over("b", &before[1]))];
        LiveDisk::swap_all(chains);
        guest.join().unwrap();
    });
    let frozen: Vec<u8> = before.iter().map(|chain| read(chain.as_ref(), 0)).collect();
    assert!(frozen[0] == frozen[1] || frozen[0] == frozen[1] + 1, "{frozen:?}");
    assert_eq!(disks.iter().map(|disk| read(disk, 0)).collect::<Vec<_>>(), [200, 200]);
}

#[test]
fn a_group_does_not_close_its_first_disks_while_it_waits_for_a_slow_one() {
    let host = SimHost::new();
    let [quick, slow] = ["a", "b"].map(|name| LiveDisk::new(Chain::of(vec![layer(&host, name, None)], true)));
    slow.write(GuestOffset::new(0), &[1; 512]).unwrap();
    host.hold(Path::new("/b"), Waits::NextRead).unwrap();
    let (is_over, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let read_meanwhile = std::thread::scope(|scope| {
        scope.spawn(|| read(&slow, 0));
        while host.waiting() == 0 {
            std::thread::yield_now();
        }
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                read(&quick, 0);
                reads.fetch_add(1, Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let over = |name: &str, disk: &LiveDisk| {
            let head = layer(&host, &format!("{name}1"), Some(name));
            Chain::of([vec![head], disk.chain().layers().to_vec()].concat(), true)
        };
        let chains = vec![(&quick, over("a", &quick)), (&slow, over("b", &slow))];
        let releaser = scope.spawn(|| {
            // Time enough for the group to have closed what it would close.
            std::thread::sleep(Duration::from_millis(100));
            let (watch, from) = (Instant::now(), reads.load(Relaxed));
            while reads.load(Relaxed) < from + 20 && watch.elapsed() < Duration::from_secs(30) {
                std::thread::yield_now();
            }
            host.release();
            reads.load(Relaxed) - from
        });
        LiveDisk::swap_all(chains);
        is_over.store(true, Relaxed);
        releaser.join().unwrap()
    });
    assert!(read_meanwhile >= 20, "{read_meanwhile}");
    assert_eq!((read(&quick, 0), read(&slow, 0)), (0, 1));
    assert_eq!(slow.chain().layers().len(), 2);
}

/// Other requests wait while the legs change, and the legs for the requests before them.
#[test]
fn a_look_at_the_map_does_not_hold_the_legs_and_a_large_zero_not_for_long() {
    let host = SimHost::new();
    let size = 3 << 30;
    let base = layer_of(&host, "base", None, (size, 2 << 20));
    base.image.write(GuestOffset::new(0), &[1; 512], &crate::chain::View::new(&[])).unwrap();
    base.image.flush().unwrap();
    drop(base);
    let file = host.open(Path::new("/base"), Access::Write).unwrap();
    let image = format::open(Format::Qcow2, file, true, &NoParts).unwrap();
    let base = Layer { path: "/base".into(), is_stated: true, image };
    let disk = LiveDisk::new(Chain::of(vec![base.clone()], true));
    let target = layer_of(&host, "target", None, (size, 2 << 20)).image;
    let grain = mirror::Grain { block_bytes: 1 << 20, region_bytes: 1 << 20 };
    let mirror = mirror::Mirror::new(size, grain, &mirror::Noted::default());
    let leg = Leg::new(target, crate::chain::View::new(&[]), mirror, Box::new(Unwritten), None);
    let leg = Arc::new(leg);
    std::thread::scope(|scope| {
        host.hold(Path::new("/base"), Waits::NextRead).unwrap();
        scope.spawn(|| disk.status(GuestOffset::new(0).range(size), &mut Vec::new()));
        while host.waiting() == 0 {
            std::thread::yield_now();
        }
        let (told, hears) = std::sync::mpsc::channel();
        scope.spawn(|| disk.take_leg(&leg).pause).join().map(|pause| told.send(pause)).unwrap().unwrap();
        hears.recv_timeout(Duration::from_secs(5)).unwrap();
        host.release();
    });
    disk.zero(GuestOffset::new(0).range(size), crate::io::Kept::Nothing).unwrap();
    assert_eq!((leg.latencies().take(true).unwrap().requests, read(&disk, 0)), (3, 0));
}

#[test]
fn a_leg_is_not_taken_once_a_guest_has_written() {
    let host = SimHost::new();
    let disk = LiveDisk::new(Chain::of(vec![layer(&host, "a", None)], true));
    let grain = mirror::Grain { block_bytes: 512, region_bytes: 512 };
    let leg = || {
        let mirror = mirror::Mirror::new(SIZE, grain, &mirror::Noted::default());
        let below = crate::chain::View::new(&[]);
        Arc::new(Leg::new(layer(&host, "target", None).image, below, mirror, Box::new(Unwritten), None))
    };
    disk.write(GuestOffset::new(0), &[1; 512]).unwrap();
    assert!(!disk.take_leg_unchanged(&leg()) && !disk.is_folding());
}

/// A journal that nobody asks.
#[derive(Debug)]
struct Unwritten;

impl Notes for Unwritten {
    fn note(&mut self, _said: &mirror::Noted) -> Result<()> {
        Ok(())
    }

    fn give_up(&mut self) -> Result<()> {
        Ok(())
    }
}
