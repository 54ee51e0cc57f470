//! Disks that grow, wherever that is cut off; what does not grow, and why.

use super::super::{check, create, open};
use super::*;
use crate::{
    base::units::count,
    format::{Creation, Identity, Image, NoParts, Nothing, ParentName, Repair, conformance::OnHost},
    io::{
        Access, Host,
        faulty::{SimHost, crash_states},
        memory::MemoryFile,
    },
};
use std::{path::Path, sync::Arc};

const MIB: u64 = 1 << 20;

fn sized(size: u64, options: &[(&str, &str)]) -> Creation {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Creation { size, parent: None, options }
}

fn bytes_at(image: &dyn Image, at: u64) -> u8 {
    let mut found = [0; 1];
    image.read(GuestOffset::new(at), &mut found, &Nothing).unwrap();
    found[0]
}

#[test]
fn a_disk_grows_past_what_its_directory_had_room_for() {
    for twice in [false, true] {
        let file = Arc::new(MemoryFile::new("disk.vmdk"));
        let image = create(file.clone(), &sized(3 * MIB + 512, &[]), &NoParts).unwrap();
        for at in [0, 3 * MIB] {
            image.write(GuestOffset::new(at), &[7; 512], &Nothing).unwrap();
        }
        let sizes = if twice { vec![40 * MIB, 40 * MIB + 512, 5000 * MIB] } else { vec![5000 * MIB] };
        for size in &sizes {
            image.resize(*size, &Nothing).unwrap();
            assert_eq!(image.size(), *size);
            image.write(GuestOffset::new(size - 512), &[9; 512], &Nothing).unwrap();
        }
        image.flush().unwrap();
        drop(image);
        let image = open(file.clone(), false, &NoParts).unwrap();
        assert_eq!(image.size(), 5000 * MIB);
        for at in [0, 3 * MIB] {
            assert_eq!((bytes_at(&*image, at), bytes_at(&*image, at + 512)), (7, 0));
        }
        assert!(sizes.iter().all(|size| bytes_at(&*image, size - 512) == 9));
        let mut text = vec![0; 2048];
        file.read_at(HostOffset::new(512), &mut text).unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("RW 10240000 SPARSE \"disk.vmdk\"\n"), "{text}");
        assert!(text.contains("ddb.geometry.cylinders = \"10158\"\n"), "{text}");
        let file: Arc<dyn File> = file;
        let checked = check(&file, Repair::Nothing, &NoParts).unwrap();
        assert_eq!((checked.corruptions, checked.leaks, checked.findings), (0, 0, Vec::new()));
    }
}

#[test]
fn a_cut_leaves_the_old_size_or_the_new_one() {
    let mut lagging = 0;
    for subformat in ["monolithicSparse", "monolithicFlat"] {
        let host = SimHost::new();
        let file = host.create(Path::new("/disk")).unwrap();
        let image =
            create(file, &sized(MIB, &[("subformat", subformat), ("cluster_size", "4k")]), &OnHost(&host))
                .unwrap();
        image.write(GuestOffset::new(5000), &[7; 512], &Nothing).unwrap();
        image.flush().unwrap();
        host.sync_folder(Path::new("/")).unwrap();
        let before = host.events();
        image.resize(9 * MIB, &Nothing).unwrap();
        let done = host.events();
        drop(image);
        let mut sizes = [0, 0];
        for state in crash_states(&host.trace(), 1, 4).filter(|state| state.after >= before) {
            let (parts, after) = (OnHost(&state.host), state.after);
            let file = state.host.open(Path::new("/disk"), Access::Write).unwrap();
            let image = open(Arc::clone(&file), true, &parts).unwrap();
            let size = image.size();
            assert!(size == 9 * MIB || size == MIB && after < done, "{size} after {after}");
            sizes[usize::from(size > MIB)] += 1;
            assert_eq!((bytes_at(&*image, 5000), bytes_at(&*image, size - 1)), (7, 0));
            drop(image);
            let checked = check(&file, Repair::Nothing, &parts).unwrap();
            assert_eq!(checked.corruptions, 0, "{:?} after {after}", checked.findings);
            lagging += u32::from(checked.findings.iter().any(|finding| finding.contains("it grew")));
            assert_eq!(check(&file, Repair::Leaks, &parts).unwrap().findings, Vec::<String>::new());
            // It goes on from there.
            let image = open(file, true, &parts).unwrap();
            image.resize(10 * MIB, &Nothing).unwrap();
            image.write(GuestOffset::new(10 * MIB - 512), &[8; 512], &Nothing).unwrap();
            assert_eq!((bytes_at(&*image, 5000), bytes_at(&*image, 9 * MIB)), (7, 0));
        }
        assert!(sizes.iter().all(|cuts| *cuts > 2), "{subformat}: {sizes:?}");
    }
    assert!(lagging > 0);
}

#[test]
fn what_lay_behind_the_end_does_not_come_to_light() {
    // The last grain of a sparse disk, and the file of a flat one.
    let file = Arc::new(MemoryFile::new("disk.vmdk"));
    let image = create(file.clone(), &sized(MIB + 512, &[]), &NoParts).unwrap();
    image.write(GuestOffset::new(MIB), &[7; 512], &Nothing).unwrap();
    image.flush().unwrap();
    let end = file.bytes().unwrap();
    file.write_at(HostOffset::new(end - 1000), &[6; 1000]).unwrap();
    image.resize(2 * MIB, &Nothing).unwrap();
    let mut found = vec![9; 65536];
    image.read(GuestOffset::new(MIB), &mut found, &Nothing).unwrap();
    assert!(found[..512] == [7; 512] && found[512..].iter().all(|byte| *byte == 0));

    let host = SimHost::new();
    let file = host.create(Path::new("/disk")).unwrap();
    let image = create(file, &sized(MIB, &[("subformat", "monolithicFlat")]), &OnHost(&host)).unwrap();
    image.data_file().write_at(HostOffset::new(MIB), &[6; 2000]).unwrap();
    image.resize(MIB + 1024, &Nothing).unwrap();
    assert_eq!((bytes_at(&*image, MIB), bytes_at(&*image, MIB + 1023)), (0, 0));

    // An entry for a grain past the end.
    let file = Arc::new(MemoryFile::new("disk.vmdk"));
    let image = create(file.clone(), &sized(MIB, &[]), &NoParts).unwrap();
    let table = (21 + 1 + 4 + 1) << 9;
    file.write_at(HostOffset::new(table + 16 * 4), &128_u32.to_le_bytes()).unwrap();
    let error = image.resize(2 * MIB, &Nothing).unwrap_err();
    assert!(error.to_string().contains("past the disk's end"), "{error}");
    assert_eq!(image.size(), MIB);
}

#[test]
fn what_does_not_grow_says_why() {
    let parent = ParentName {
        identity: Some(Identity::Cid(5)),
        ..ParentName::new(b"base.vmdk".to_vec(), Some("vmdk".to_owned()))
    };
    let child = Creation { parent: Some(parent), ..sized(MIB, &[]) };
    let cases = [
        (sized(MIB, &[]), 512, "only grows"),
        (child, 2 * MIB, "lies on a parent"),
        (sized(MIB, &[("subformat", "twoGbMaxExtentSparse")]), 2 * MIB, "pieces of 2 GB"),
        (sized(5000 * MIB, &[("subformat", "twoGbMaxExtentFlat")]), 6000 * MIB, "several pieces"),
        (sized(MIB, &[("subformat", "vmfsSparse")]), 2 * MIB, "keeps its size"),
        (sized(MIB, &[]), 1 << 60, "too large"),
    ];
    for (creation, size, expected) in cases {
        let host = SimHost::new();
        let image = create(host.create(Path::new("/disk")).unwrap(), &creation, &OnHost(&host)).unwrap();
        image.flush().unwrap();
        let before = host.events();
        let (early, late) = (image.check_size(size).unwrap_err(), image.resize(size, &Nothing).unwrap_err());
        assert!(
            early.to_string().contains(expected) && late.to_string().contains(expected),
            "{early} {late}"
        );
        assert_eq!((image.size(), host.events()), (creation.size, before));
        image.resize(creation.size, &Nothing).unwrap();
    }
}

#[test]
fn a_descriptor_without_room_for_the_size_keeps_it() {
    let host = SimHost::new();
    let file = host.create(Path::new("/disk")).unwrap();
    let flat = sized(MIB, &[("subformat", "monolithicFlat")]);
    drop(create(file.clone(), &flat, &OnHost(&host)).unwrap());
    // No remark to give way, and more behind the sector with the extent's line.
    let mut text = vec![0; index(file.bytes().unwrap())];
    file.read_at(HostOffset::new(0), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let lines =
        text.lines().filter(|line| !line.is_empty() && (!line.starts_with('#') || line.contains("Desc")));
    let facts = (0..30).map(|n| format!("ddb.fact{n:02} = \"{n}\""));
    let full: Vec<String> = lines.map(str::to_owned).chain(facts).collect();
    file.set_bytes(0).unwrap();
    file.write_at(HostOffset::new(0), format!("{}\n", full.join("\n")).as_bytes()).unwrap();
    drop(file);
    let open = || open(host.open(Path::new("/disk"), Access::Write).unwrap(), true, &OnHost(&host)).unwrap();
    let image = open();
    let error = image.resize(900 * MIB, &Nothing).unwrap_err();
    assert!(error.to_string().contains("has no room for its size"), "{error}");
    // As many digits need none.
    image.resize(2 * MIB, &Nothing).unwrap();
    drop(image);
    assert_eq!(open().size(), 2 * MIB);
    let bytes: u64 = full.iter().map(|line| count(line.len()) + 1).sum();
    assert_eq!(host.open(Path::new("/disk"), Access::Read).unwrap().bytes().unwrap(), bytes);
}
