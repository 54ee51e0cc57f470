//! File systems and devices of a real machine: what is shared, copied, discarded.
//!
//! Mounting takes root; without it these tests say so and pass.

use crate::foreign::{Scratch, assert_same};
use deltachain::{
    base::{ErrorKind, GuestOffset, HostOffset},
    chain::Opening,
    format::{Creation, Format, NoParts, Nothing, raw},
    io::{Access, Blocks, File, Host, Kept, copy, real::RealHost},
    job::{
        Progress,
        consolidate::{Consolidation, Pace, Request},
    },
};
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// A file system or device made from an image file, until dropped.
struct Loop {
    folder: Scratch,
    /// The mount point or the device.
    place: PathBuf,
    undo: [&'static str; 2],
}

impl Loop {
    /// Mounts an XFS file system that can share blocks; `None`, and a word, where that is not allowed.
    fn xfs() -> Option<Self> {
        let folder = Scratch::new();
        folder.run("truncate", "-s 320M image");
        folder.run("mkfs.xfs", "-q -m reflink=1 image");
        folder.run("mkdir", "place");
        let mounted = folder.try_run("mount", ["-o", "loop", "image", "place"]);
        if !mounted.status.success() {
            println!("skipped: mount: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self { place: folder.file("place"), folder, undo: ["umount", ""] })
    }

    /// Makes a block device of 8 MiB.
    fn device() -> Option<Self> {
        let folder = Scratch::new();
        folder.run("truncate", "-s 8M image");
        let made = folder.try_run("losetup", ["--find", "--show", "image"]);
        if !made.status.success() {
            println!("skipped: losetup: {}", String::from_utf8_lossy(&made.stderr));
            return None;
        }
        let place = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        Some(Self { folder, place, undo: ["losetup", "--detach"] })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let [tool, option] = self.undo;
        let options = (!option.is_empty()).then_some(option);
        Command::new(tool).args(options).arg(&self.place).current_dir(self.folder.path()).status().unwrap();
    }
}

fn filled(folder: &Path, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = RealHost::new().create(&folder.join(name)).unwrap();
    file.write_at(HostOffset::new(0), bytes).unwrap();
    file.flush().unwrap();
    file
}

fn whole(file: &dyn File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.bytes().unwrap()).unwrap()];
    file.read_at(HostOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// Bytes that tell their place.
fn pattern(bytes: u32) -> Vec<u8> {
    (0..bytes / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

const MIB: u64 = 1 << 20;

#[test]
fn whole_blocks_are_shared_where_the_file_system_can_and_the_edges_copied() {
    let Some(xfs) = Loop::xfs() else { return };
    let bytes = pattern(16 << 20);
    let from = filled(&xfs.place, "from", &bytes);
    let to = filled(&xfs.place, "to", &pattern(1 << 20));
    let free = || RealHost::new().free_bytes(&xfs.place).unwrap();
    let before = free();
    let at = HostOffset::new(1000);
    let moved = copy(&*from, at, &*to, at, 12 * MIB).unwrap();
    assert_eq!((moved.shared_bytes, moved.copied_bytes), (12 * MIB - 4096, 4096));
    // What XFS reserves behind the end of a growing file goes when it is closed.
    drop(to);
    let to = RealHost::new().open(&xfs.place.join("to"), Access::Write).unwrap();
    assert!(free() + MIB > before, "{} bytes taken", before - free());
    let length = 1000 + 12 * 1024 * 1024;
    let expected = [&pattern(1000), &bytes[1000..length]].concat();
    assert_same(&whole(&*to), &expected, "shared");
    to.write_at(HostOffset::new(8192), &[1; 4096]).unwrap();
    assert_same(&whole(&*from), &bytes, "the source after a write to the target");
    let shifted = copy(&*from, at, &*to, HostOffset::new(0), 2 * MIB).unwrap();
    assert_eq!((shifted.shared_bytes, shifted.copied_bytes), (0, 2 * MIB));
    assert_same(
        &whole(&*to)[..2 << 20],
        &bytes[1000..1000 + (2 << 20)],
        "copied to another place in a block",
    );
}

#[test]
fn what_was_shared_is_known_to_be_the_same_blocks_until_it_is_written() {
    let Some(xfs) = Loop::xfs() else { return };
    let from = filled(&xfs.place, "from", &pattern(1 << 20));
    let to = filled(&xfs.place, "to", &pattern(4096));
    let shared = |at: u64, bytes| {
        let (mut ours, mut theirs) = (Blocks::new(&*from), Blocks::new(&*to));
        ours.are_shared(HostOffset::new(at), &mut theirs, HostOffset::new(65536 + at), bytes)
    };
    assert!(!shared(0, MIB));
    copy(&*from, HostOffset::new(0), &*to, HostOffset::new(65536), MIB).unwrap();
    to.flush().unwrap();
    assert!(shared(0, MIB));
    to.write_at(HostOffset::new(65536 + 4096), &[1; 4096]).unwrap();
    to.flush().unwrap();
    assert!(!shared(0, MIB) && shared(0, 4096) && !shared(4096, 4096) && shared(8192, MIB - 8192));
    from.write_at(HostOffset::new(8192), &[1; 4096]).unwrap();
    from.flush().unwrap();
    assert!(!shared(8192, 4096) && shared(12288, 4096));
    // More extents than one answer holds, in whole answers.
    for n in (0..16384).rev() {
        let (at, place) = (HostOffset::new(n * 4096 % MIB), HostOffset::new((128 << 20) - (n + 1) * 4096));
        copy(&*from, at, &*to, place, 4096).unwrap();
    }
    to.flush().unwrap();
    let (mut ours, mut theirs) = (Blocks::new(&*from), Blocks::new(&*to));
    for n in 0..16384 {
        let (at, place) = (HostOffset::new(n * 4096 % MIB), HostOffset::new((128 << 20) - (n + 1) * 4096));
        assert!(ours.are_shared(at, &mut theirs, place, 4096), "{n}");
    }
}

#[test]
fn bytes_are_copied_between_file_systems_and_past_the_end() {
    let Some(xfs) = Loop::xfs() else { return };
    let bytes = pattern(3 << 20);
    let from = filled(&xfs.folder.path(), "from", &bytes);
    let to = filled(&xfs.place, "to", &pattern(4096));
    for _ in 0..2 {
        let moved = copy(&*from, HostOffset::new(0), &*to, HostOffset::new(4096), 4 * MIB).unwrap();
        assert_eq!((moved.shared_bytes, moved.copied_bytes), (0, 4 * MIB));
        let expected = [&pattern(4096)[..], &bytes, &vec![0; 1 << 20]].concat();
        assert_same(&whole(&*to), &expected, "between file systems");
    }
}

#[test]
fn a_device_is_a_disk_of_fixed_size() {
    let Some(device) = Loop::device() else { return };
    let host = RealHost::new();
    let file = host.open(&device.place, Access::Write).unwrap();
    assert!(file.is_device() && file.bytes().unwrap() == 8 * MIB);
    assert_eq!(host.open(&device.place, Access::Read).unwrap_err().kind(), ErrorKind::Busy);
    assert_ne!(file.witness().unwrap(), file.witness().unwrap(), "a device's witness proves nothing");
    let image = raw::open(Arc::clone(&file), true, &NoParts).unwrap();
    let mut expected = pattern(8 << 20);
    image.write(GuestOffset::new(0), &expected, &Nothing).unwrap();
    for (kept, start, end) in
        [(Kept::Nothing, 0, 1 << 20), (Kept::Space, 1 << 20, 2 << 20), (Kept::Nothing, 3_000_100, 4_000_100)]
    {
        expected[start..end].fill(0);
        let range = GuestOffset::new(start as u64).range((end - start) as u64);
        image.zero(range, kept, &Nothing).unwrap();
        image.flush().unwrap();
        assert_same(&whole(&*file), &expected, "zeroed");
    }
    let error = image.resize(4 * MIB, &Nothing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    image.resize(8 * MIB, &Nothing).unwrap();
    let creation = |size| Creation { size, ..Creation::default() };
    let create = |size| deltachain::format::create(Format::Raw, Arc::clone(&file), &creation(size), &NoParts);
    assert_eq!(create(9 * MIB).unwrap_err().kind(), ErrorKind::Invalid);
    create(8 * MIB).unwrap();
    let source = filled(&device.folder.path(), "source", &pattern(1 << 20));
    image.write_from(GuestOffset::new(512).range(MIB), &*source, HostOffset::new(0), &Nothing).unwrap();
    expected[512..512 + (1 << 20)].copy_from_slice(&pattern(1 << 20));
    assert_same(&whole(&*file), &expected, "written from a file");
}

/// What the guest wrote from the last place on lies in one run in the delta's file.
#[test]
fn a_delta_that_was_written_here_and_there_is_shared_in_a_run_and_the_old_space_comes_back() {
    let Some(xfs) = Loop::xfs() else { return };
    std::fs::write(xfs.folder.file("disk"), pattern(32 << 20)).unwrap();
    xfs.folder.qemu_img("convert -f raw -O qcow2 disk place/base");
    xfs.folder.qemu_img("create -q -f qcow2 -F qcow2 -b base place/top 48M");
    // Every third cluster: 171 that the base has, 85 past its end.
    let writes: Vec<String> =
        (0..256_u64).rev().map(|nth| format!("write -P {} {} 64k", 1 + nth % 250, (nth * 3) << 16)).collect();
    xfs.folder.qemu_io("qcow2", "place/top", &writes.iter().map(String::as_str).collect::<Vec<_>>());
    let before = xfs.folder.flat("qcow2", "place/top");
    let allocated = || std::fs::metadata(xfs.place.join("top")).unwrap().blocks() * 512;
    let base_bytes = std::fs::metadata(xfs.place.join("base")).unwrap().blocks() * 512;
    let host: Arc<dyn Host> = Arc::new(RealHost::new());
    let top = xfs.place.join("top");
    let fold = Consolidation::prepare(&host, &top, &Opening::reading(), &Request::default()).unwrap();
    let report = fold.run(Pace::USUAL, &Progress::default()).unwrap();
    assert_eq!((report.copied_bytes, report.shared_bytes), (0, 16 * MIB));
    assert_same(&xfs.folder.flat("qcow2", "place/top"), &before, "the result");
    xfs.folder.qemu_img("check -q place/top");
    let map = xfs.folder.qemu_img("map -f qcow2 --output json place/top");
    let places: Vec<u64> = serde_json::from_str::<Vec<serde_json::Value>>(&map)
        .unwrap()
        .iter()
        .filter(|extent| extent["start"].as_u64().unwrap() % (3 << 16) == 0 && extent["data"] == true)
        .map(|extent| extent["offset"].as_u64().unwrap())
        .collect();
    assert!(places.len() == 256 && places.is_sorted_by(|a, b| a - b == 1 << 16), "{places:?}");
    assert!(allocated() <= base_bytes + (85 << 16) + MIB, "{} and {base_bytes} before", allocated());
}
