//! VHDX, with others' tools: what qemu wrote we read and write on; what we write qemu finds clean and equal, and a log
//! that a power cut left it replays.

use crate::{
    dchain::{dchain, done},
    foreign::{Scratch, assert_same},
};
use deltachain::{
    base::{GuestOffset, GuestRange, HostOffset, seed::Seeded, units::index},
    chain::{Chain, Opening},
    disk::Disk,
    format::{self, Creation, Format, Image, NoParts, Nothing},
    io::{
        Access, Host, Kept,
        faulty::{SimHost, crash_states},
        real::RealHost,
    },
};
use std::{fs, path::Path, sync::Arc};

fn sized(size: u64, options: &[(&str, &str)]) -> Creation {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Creation { size, parent: None, options }
}

fn open(path: &Path, access: Access) -> Arc<dyn Image> {
    let file = RealHost::new().open(path, access).unwrap();
    format::open(Format::Vhdx, file, access.writes(), &NoParts).unwrap()
}

/// Writes and zeroes here and there; `disk` is what the image shows.
fn scribble(image: &dyn Image, disk: &mut [u8], seed: u64) {
    let mut seeded = Seeded::new(seed);
    let size = disk.len() as u64;
    for nth in 0..40 {
        let at = seeded.below(size);
        let most = [600, 70_000, 3_000_000][index(seeded.below(3))];
        let bytes = (1 + seeded.below(most)).min(size - at);
        let part = &mut disk[index(at)..index(at + bytes)];
        if seeded.chance(1, 4) {
            part.fill(0);
            let kept = if nth % 2 == 0 { Kept::Space } else { Kept::Nothing };
            image.zero(GuestOffset::new(at).range(bytes), kept, &Nothing).unwrap();
        } else {
            seeded.fill(part);
            image.write(GuestOffset::new(at), part, &Nothing).unwrap();
        }
    }
}

#[test]
fn qemu_finds_what_we_write_clean_and_equal() {
    let shapes: [(&[(&str, &str)], u64); 4] = [
        (&[], 40 << 20),
        (&[("block_size", "1M"), ("log_size", "2M")], (21 << 20) + 512),
        (&[("subformat", "fixed"), ("block_size", "2M")], 20 << 20),
        (&[("block_size", "1M"), ("block_state_zero", "off")], 16 << 20),
    ];
    for (nth, (options, size)) in shapes.into_iter().enumerate() {
        let scratch = Scratch::new();
        let file = RealHost::new().create(&scratch.file("image")).unwrap();
        let image = format::create(Format::Vhdx, file, &sized(size, options), &NoParts).unwrap();
        let mut disk = vec![0; index(size)];
        for round in 0..2 {
            scribble(image.as_ref(), &mut disk, nth as u64 * 2 + round);
            image.flush().unwrap();
        }
        drop(image);
        scratch.qemu_img("check -q -f vhdx image");
        assert_same(&scratch.flat("vhdx", "image"), &disk, &format!("{options:?}"));
    }
}

#[test]
fn what_qemu_writes_we_read_and_write_on() {
    for options in [
        "block_size=1M",
        "block_size=2M,subformat=fixed",
        "block_size=1M,block_state_zero=off",
        "log_size=3M",
    ] {
        let scratch = Scratch::new();
        scratch.qemu_img(&format!("create -q -f vhdx -o {options} image 24M"));
        let writes = ["write -P 7 3M 5M", "write -P 9 1000k 64k", "write -P 11 20M 512"];
        scratch.qemu_io("vhdx", "image", &writes);
        let mut disk = vec![9; 24 << 20];
        let image = open(&scratch.file("image"), Access::Write);
        image.read(GuestOffset::new(0), &mut disk, &Nothing).unwrap();
        assert_same(&disk, &scratch.flat("vhdx", "image"), options);
        scribble(image.as_ref(), &mut disk, 5);
        image.flush().unwrap();
        drop(image);
        scratch.qemu_img("check -q -f vhdx image");
        assert_same(&scratch.flat("vhdx", "image"), &disk, options);
    }
}

/// Power cuts while blocks come and go: qemu replays our log, and finds what was flushed.
#[test]
fn qemu_replays_the_log_that_a_power_cut_left() {
    let host = SimHost::new();
    let file = host.create(Path::new("/disk")).unwrap();
    let image =
        format::create(Format::Vhdx, file, &sized(12 << 20, &[("block_size", "1M")]), &NoParts).unwrap();
    image.flush().unwrap();
    host.sync_folder(Path::new("/")).unwrap();
    // Each round is whole before the next begins: a sector shows its round's number or that of the round under way.
    let mut flushed = vec![host.events()];
    let place = |round: u8, nth: u64| GuestOffset::new(((u64::from(round) * 5 + nth * 7) % 12) << 20);
    for round in 1..=6 {
        (0..3).for_each(|nth| image.write(place(round, nth), &[round; 4096], &Nothing).unwrap());
        if round == 4 {
            image.zero(place(1, 0).range(1 << 20), Kept::Nothing, &Nothing).unwrap();
        }
        image.flush().unwrap();
        flushed.push(host.events());
    }
    let trace = host.trace();
    drop(image);
    let mut replayed = 0;
    for crash in crash_states(&trace, 3, 1).filter(|crash| crash.after >= flushed[0]).step_by(11) {
        let scratch = Scratch::in_memory();
        let left = crash.host.open(Path::new("/disk"), Access::Read).unwrap();
        let mut bytes = vec![0; index(left.bytes().unwrap())];
        left.read_at(HostOffset::new(0), &mut bytes).unwrap();
        fs::write(scratch.file("image"), &bytes).unwrap();
        let ours = format::open(Format::Vhdx, left, false, &NoParts).unwrap();
        let is_dirty = ours.details().unwrap().is_dirty;
        let mut disk = vec![9; 12 << 20];
        ours.read(GuestOffset::new(0), &mut disk, &Nothing).unwrap();
        let done = flushed.iter().rposition(|events| *events <= crash.after).unwrap();
        for round in 1..=u8::try_from(done).unwrap() {
            for at in (0..3).map(|nth| place(round, nth)) {
                let now = disk[index(at.bytes())];
                let is_gone = done >= 3 && at == place(1, 0);
                assert!(now >= round || is_gone && now == 0, "{now} at {at:?} after {done}: {crash:?}");
            }
        }
        let check = scratch.try_run("qemu-img", ["check", "-q", "-r", "all", "-f", "vhdx", "image"]);
        assert!(check.status.success(), "{crash:?}: {}", String::from_utf8_lossy(&check.stderr));
        assert_same(&scratch.flat("vhdx", "image"), &disk, "qemu replays as we do");
        replayed += u32::from(is_dirty);
    }
    println!("{replayed} logs replayed");
    assert!(replayed >= 3, "{replayed}");
}

#[test]
fn a_disk_of_the_largest_size_is_made_and_shown() {
    let scratch = Scratch::new();
    let folder = scratch.path();
    done(&folder, &["create", "-q", "-f", "vhdx", "big.vhdx", "64T"]);
    let info = done(&folder, &["info", "--output", "json", "big.vhdx"]).json();
    assert_eq!(info["virtual-size"], 64_u64 << 40);
    scratch.qemu_img("check -q -f vhdx big.vhdx");
    let image = open(&scratch.file("big.vhdx"), Access::Write);
    let last = GuestOffset::new((64 << 40) - 4096);
    image.write(last, &[7; 4096], &Nothing).unwrap();
    image.flush().unwrap();
    let mut extents = Vec::new();
    image.map(GuestRange::between(GuestOffset::new(0), last.plus(4096)), &mut extents).unwrap();
    assert!(extents.len() <= 3, "{extents:?}");
    drop(image);
    let larger = dchain(&folder, &["create", "-f", "vhdx", "larger.vhdx", "65T"]);
    assert!(larger.code != Some(0) && larger.err.contains("64 TiB"), "{}", larger.err);
}

/// Writes 5000 bytes at each place through the chain at `top`, and into what it is to show.
fn write_through(top: &Path, disk: &mut [u8], places: &[u64], byte: u8) {
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let chain = Chain::open(&host, top, &Opening::writing()).unwrap();
    for at in places {
        chain.write(GuestOffset::new(*at), &[byte; 5000]).unwrap();
        disk[index(*at)..index(*at) + 5000].fill(byte);
    }
    chain.flush().unwrap();
}

#[test]
fn children_of_hyper_v_s_kind_are_read_written_and_folded_into_their_base() {
    let scratch = Scratch::in_memory();
    let folder = scratch.path();
    scratch.qemu_img("create -q -f vhdx -o block_size=1M base.vhdx 12M");
    scratch.qemu_io("vhdx", "base.vhdx", &["write -P 7 0 3M", "write -P 9 9M 1M"]);
    let mut disk = scratch.flat("vhdx", "base.vhdx");
    done(&folder, &["create", "-q", "-f", "vhdx", "-b", "base.vhdx", "-F", "vhdx", "monday.vhdx"]);
    write_through(&scratch.file("monday.vhdx"), &mut disk, &[700, 2 << 20, (9 << 20) - 2000], 1);
    done(&folder, &["create", "-q", "-f", "vhdx", "-b", "monday.vhdx", "-F", "vhdx", "tuesday.vhdx"]);
    write_through(&scratch.file("tuesday.vhdx"), &mut disk, &[3000, 6 << 20], 2);
    done(&folder, &["convert", "-q", "-O", "raw", "tuesday.vhdx", "flat"]);
    assert_same(&fs::read(scratch.file("flat")).unwrap(), &disk, "the chain");
    let refused = scratch.try_run("qemu-img", ["info", "-f", "vhdx", "tuesday.vhdx"]);
    assert!(!refused.status.success(), "qemu reads no children");
    for name in ["monday.vhdx", "tuesday.vhdx"] {
        done(&folder, &["check", name]);
    }
    done(&folder, &["consolidate", "-q", "--yes", "tuesday.vhdx"]);
    scratch.qemu_img("check -q -f vhdx tuesday.vhdx");
    assert_same(&scratch.flat("vhdx", "tuesday.vhdx"), &disk, "folded");
}

#[test]
fn libvhdi_reads_our_children() {
    let scratch = Scratch::in_memory();
    let folder = scratch.path();
    let mut disk = vec![0; 12 << 20];
    let chain = ["head.vhdx", "mid.vhdx", "base.vhdx"];
    done(&folder, &["create", "-q", "-f", "vhdx", "-o", "block_size=1M", "base.vhdx", "12M"]);
    write_through(&scratch.file("base.vhdx"), &mut disk, &[0, 3 << 20, (9 << 20) - 2000], 1);
    for (nth, byte) in [(1, 2), (0, 3)] {
        done(&folder, &["snapshot", "-q", "-O", "vhdx", chain[nth + 1], chain[nth]]);
        let places = [u64::from(byte) << 20, 700, (9 << 20) + 70_000 * u64::from(byte)];
        write_through(&scratch.file(chain[nth]), &mut disk, &places, byte);
    }
    assert_same(&scratch.by_libvhdi(&chain), &disk, "libvhdi");
}

#[test]
fn the_crate_vhdx_reads_what_we_write() {
    for options in [&[("block_size", "1M")][..], &[], &[("subformat", "fixed"), ("block_size", "4M")]] {
        let scratch = Scratch::in_memory();
        let file = RealHost::new().create(&scratch.file("image")).unwrap();
        let image = format::create(Format::Vhdx, file, &sized(30 << 20, options), &NoParts).unwrap();
        let mut disk = vec![0; 30 << 20];
        scribble(image.as_ref(), &mut disk, 11);
        image.flush().unwrap();
        drop(image);
        let each = &mut |at, piece: &[u8]| {
            let ours = &disk[index(at)..index(at) + piece.len()];
            assert_same(piece, ours, &format!("{options:?} from {at:#x}"));
        };
        dchain_oracles::vhdx(&scratch.file("image"), disk.len() as u64, each).unwrap();
    }
}

/// As large as it reads them right.
#[test]
fn the_crate_vhdx_reads_what_we_write_up_to_4_gib() {
    const SIZE: u64 = 4 << 30;
    for options in [&[("block_size", "1M")][..], &[], &[("subformat", "fixed")]] {
        let scratch = Scratch::in_memory();
        let file = RealHost::new().create(&scratch.file("image")).unwrap();
        let image = format::create(Format::Vhdx, file, &sized(SIZE, options), &NoParts).unwrap();
        let places = [0, 5000, (1 << 30) - 700, (2 << 30) - 2500, (3 << 30) + 4096, SIZE - 9000, SIZE - 512];
        let written = |at: u64| GuestOffset::new(at).range((SIZE - at).min(5000));
        for (byte, at) in (1..).zip(places) {
            let bytes = vec![byte; index(written(at).bytes)];
            image.write(GuestOffset::new(at), &bytes, &Nothing).unwrap();
        }
        image.flush().unwrap();
        drop(image);
        let zeros = vec![0; 1 << 20];
        let each = &mut |start, piece: &[u8]| {
            let range = GuestOffset::new(start).range(piece.len() as u64);
            let mut disk = zeros.clone();
            for (byte, at) in (1..).zip(places) {
                let here = written(at).clip(range);
                let from = index(here.start.since(range.start));
                disk.iter_mut().skip(from).take(index(here.bytes)).for_each(|place| *place = byte);
            }
            assert_same(piece, &disk[..piece.len()], &format!("{options:?} from {start:#x}"));
        };
        dchain_oracles::vhdx(&scratch.file("image"), SIZE, each).unwrap();
    }
}

/// A guest goes by the sectors that it was set up with, whatever format its head has.
#[test]
fn a_disk_of_large_sectors_keeps_them_where_its_format_can_say_so() {
    let scratch = Scratch::in_memory();
    let folder = scratch.path();
    let large = ["create", "-q", "-f", "vhdx", "-o", "block_size=1M,logical_sector_size=4096"];
    done(&folder, &[&large[..], &["base.vhdx", "8M"]].concat());
    done(&folder, &["snapshot", "-q", "base.vhdx", "head.qcow2"]);
    done(&folder, &["snapshot", "-q", "-O", "vhdx", "head.qcow2", "top.vhdx"]);
    done(&folder, &["convert", "-q", "-O", "vhdx", "top.vhdx", "flat.vhdx"]);
    done(&folder, &["convert", "-q", "-O", "raw", "top.vhdx", "flat.raw"]);
    done(&folder, &["resize", "-q", "flat.vhdx", "+1000"]);
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let sectors = |name: &str| {
        let chain = Chain::open(&host, &scratch.file(name), &Opening::reading()).unwrap();
        (chain.sector_bytes(), chain.size() % 4096)
    };
    for name in ["base.vhdx", "head.qcow2", "top.vhdx", "flat.vhdx"] {
        assert_eq!(sectors(name), (4096, 0), "{name}");
    }
    assert_eq!(sectors("flat.raw").0, 512);
    fs::create_dir(scratch.file("new")).unwrap();
    for (format, times) in [("qcow2", 2), ("vhdx", 0)] {
        let plan = done(&folder, &["convert", "--chain", "-n", "-O", format, "top.vhdx", "new"]);
        assert_eq!(plan.out.matches("vhdx: sectors of 4096 bytes").count(), times, "{}", plan.out);
    }
}

#[test]
fn a_parent_that_another_program_wrote_is_refused() {
    let scratch = Scratch::in_memory();
    let folder = scratch.path();
    scratch.qemu_img("create -q -f vhdx -o block_size=1M base.vhdx 4M");
    done(&folder, &["create", "-q", "-f", "vhdx", "-b", "base.vhdx", "-F", "vhdx", "child.vhdx"]);
    done(&folder, &["convert", "-q", "-O", "raw", "child.vhdx", "before"]);
    scratch.qemu_io("vhdx", "base.vhdx", &["write -P 7 0 64k"]);
    let refused = dchain(&folder, &["convert", "-q", "-O", "raw", "child.vhdx", "after"]);
    assert!(refused.code != Some(0) && refused.err.contains("base.vhdx"), "{}", refused.err);
    // The same where nothing but the format's own GUIDs tells it.
    fs::remove_dir_all(scratch.file(".dchain")).unwrap();
    let refused = dchain(&folder, &["convert", "-q", "-O", "raw", "child.vhdx", "after"]);
    assert!(refused.code != Some(0) && refused.err.contains("base.vhdx"), "{}", refused.err);
}

#[test]
fn a_file_that_was_cut_within_its_last_block_is_not_read_as_zeros_there() {
    let scratch = Scratch::in_memory();
    let here = scratch.path();
    let mut disk = vec![0; (15 << 20) + 512];
    Seeded::new(11).fill(&mut disk);
    fs::write(scratch.file("disk"), &disk).unwrap();
    done(&here, &["convert", "-q", "-f", "raw", "-O", "vhdx", "-o", "block_size=8M", "disk", "a.vhdx"]);
    let file = fs::File::options().write(true).open(scratch.file("a.vhdx")).unwrap();
    let bytes = file.metadata().unwrap().len();
    // The rest of the last block is not the disk's.
    let needed = bytes - (1 << 20) + 512;
    file.set_len(needed).unwrap();
    done(&here, &["compare", "-q", "-f", "raw", "-F", "vhdx", "disk", "a.vhdx"]);
    file.set_len(needed - 512).unwrap();
    for command in [&["convert", "-O", "raw", "a.vhdx", "b"][..], &["check", "a.vhdx"]] {
        let refused = dchain(&here, command);
        let said = format!("{}{}", refused.out, refused.err);
        assert!(refused.code != Some(0) && said.contains("the file was cut"), "{command:?}: {said}");
    }
    // What is left of the block stays.
    let repaired = dchain(&here, &["check", "--repair", "all", "a.vhdx"]);
    assert_eq!(repaired.code, Some(2), "{}{}", repaired.out, repaired.err);
    file.set_len(bytes).unwrap();
    disk.truncate(disk.len() - 512);
    assert_same(&scratch.flat("vhdx", "a.vhdx")[..disk.len()], &disk, "the rest");
}
