//! References in VHDX images, VHDs and VMDKs that must not be followed, through the program: parents that are no images, no
//! files, no names, elsewhere, or not what the child was made on; extents and disks of packages that lead out.
//! (Those of qcow2 are in `chain`.)

use crate::{
    bad_input::refused,
    dchain::{dchain, done},
    foreign::Scratch,
};
use deltachain::{
    base::GuestOffset,
    chain::{Chain, Opening},
    disk::Disk,
    format::{self, Creation, Format, NoParts, Nothing, ParentName},
    io::{Access, Host, real::RealHost},
};
use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc};

/// The formats that name parents, beside qcow2.
const FORMATS: [Format; 3] = [Format::Vhdx, Format::Vpc, Format::Vmdk];
const SIZE: u64 = 1 << 20;

/// The name of an image of a format.
fn called(name: &str, format: Format) -> String {
    format!("{name}.{}", format.suffixes()[0])
}

/// Makes a disk with a few bytes of its own; its header names the parent, whatever that is.
fn make(folder: &Scratch, format: Format, name: &str, parent: Option<ParentName>, size: u64) {
    let host = RealHost::new();
    let file = host.create(&folder.file(name)).unwrap();
    let small = match format {
        Format::Vpc => vec![("block_size".to_owned(), "64k".to_owned())],
        _ => Vec::new(),
    };
    let image = format::create(format, file, &Creation { size, parent, options: small }, &NoParts).unwrap();
    image.write(GuestOffset::new(4096), &[7; 512], &Nothing).unwrap();
    image.flush().unwrap();
}

/// A child of a parent of its own format; of one that is there it says what that says of itself.
fn child(folder: &Scratch, format: Format, name: &str, parent: &str) {
    let file = RealHost::new().open(&folder.file(parent), Access::Read).ok();
    let image = file.and_then(|file| format::open(format, file, false, &NoParts).ok());
    let identity = image.and_then(|image| image.identity());
    let parent = ParentName { identity, ..ParentName::new(parent.into(), Some(format.name().to_owned())) };
    make(folder, format, name, Some(parent), SIZE);
}

/// Has the chain of an image be shown and read: it is refused.
fn is_refused(folder: &Scratch, format: Format, image: &str, says: &str) -> i32 {
    let stated = ["-f", format.name()];
    refused(folder, &[&["info", "--backing-chain"], &stated[..], &[image]].concat(), image, says);
    refused(folder, &[&["map"], &stated[..], &[image]].concat(), image, says);
    let convert = [&["convert", "-q", "-O", "raw"], &stated[..], &[image, "never.raw"]].concat();
    refused(folder, &convert, image, says).code
}

#[test]
fn bad_input_c_cycles_and_missing_parents_of_every_format_are_refused() {
    for format in FORMATS {
        let folder = Scratch::in_memory();
        let [own, one, two, lost] = ["own", "one", "two", "lost"].map(|name| called(name, format));
        child(&folder, format, &own, &format!("./{own}"));
        child(&folder, format, &one, &two);
        child(&folder, format, &two, &one);
        child(&folder, format, &lost, "gone");
        assert_eq!(is_refused(&folder, format, &own, "comes back to"), 65);
        // Of two that name each other the one is named that closes the circle.
        for tool in [&["info", "--backing-chain", &one][..], &["map", &one]] {
            refused(&folder, tool, &two, "comes back to");
        }
        assert_eq!(is_refused(&folder, format, &lost, "its parent is missing"), 1);
    }
    // A further name for what is not at the first, beside the child, is its own.
    for format in [Format::Vpc, Format::Vmdk] {
        let folder = Scratch::in_memory();
        let own = called("own", format);
        child(&folder, format, &own, &format!("elsewhere/{own}"));
        assert_eq!(is_refused(&folder, format, &own, "comes back to"), 65);
    }
}

#[test]
fn bad_input_c_parents_that_are_no_files_nearby_are_refused_in_every_format() {
    for format in FORMATS {
        let folder = Scratch::in_memory();
        fs::create_dir(folder.file("folder")).unwrap();
        folder.run("mkfifo", "fifo");
        symlink("/etc/passwd", folder.file("link")).unwrap();
        let names = [
            "/etc/passwd",
            "/etc/shadow",
            "../../../etc/passwd",
            "link",
            "folder",
            "fifo",
            "/dev/zero",
            "/proc/self/environ",
            "json:{}",
            "json:{'driver':'raw'}",
            "nbd://localhost/x",
            "nbd:unix:/x",
            "ssh://h/x",
            "fat:rw:x",
        ];
        for (nth, name) in names.into_iter().enumerate() {
            for parent in [format, Format::Raw] {
                let image = called(&format!("{nth}-{parent}"), format);
                let parent = ParentName::new(name.into(), Some(parent.name().to_owned()));
                make(&folder, format, &image, Some(parent), SIZE);
                let says = if name.starts_with("../") { "parent" } else { name };
                let run = dchain(&folder.path(), &["map", &image]);
                assert!(matches!(run.code, Some(1 | 77)), "{name}: {}", run.err);
                let is_near = run.err.starts_with(&format!("dchain: {}", folder.file(&image).display()));
                assert!(
                    is_near && (run.err.contains(says) || run.err.contains("refers to")),
                    "{name}: {}",
                    run.err
                );
                refused(&folder, &["convert", "-q", "-O", "raw", &image, "never.raw"], &image, "");
            }
        }
    }
}

/// Puts another name in the place of one of as many signs, in whatever notation.
fn rename_in(folder: &Scratch, image: &str, old: &str, new: &str) {
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let mut bytes = fs::read(folder.file(image)).unwrap();
    for (old, new) in [(wide(old), wide(new)), (old.into(), new.into())] {
        if let Some(at) = bytes.windows(old.len()).position(|window| window == old) {
            bytes[at..at + new.len()].copy_from_slice(&new);
        }
    }
    fs::write(folder.file(image), bytes).unwrap();
}

#[test]
fn bad_input_c_names_with_nul_and_names_that_are_too_long_are_refused() {
    let folder = Scratch::in_memory();
    child(&folder, Format::Vhdx, "nul.vhdx", "base.vhdx");
    rename_in(&folder, "nul.vhdx", "base.vhdx", "ba\0e.vhdx");
    is_refused(&folder, Format::Vhdx, "nul.vhdx", "a name with a NUL byte");
    for format in FORMATS {
        let folder = Scratch::in_memory();
        let base = called("base", format);
        make(&folder, format, &base, None, SIZE);
        let long = |bytes: usize| {
            let rest = bytes - base.len();
            format!(
                "{}{}{base}",
                "./".repeat(rest / 2 - 1),
                if rest.is_multiple_of(2) { "./" } else { ".//" }
            )
        };
        assert_eq!(long(1023).len(), 1023);
        for (bytes, is_good) in [(1023, true), (1024, false)] {
            let image = called(&bytes.to_string(), format);
            if format == Format::Vmdk {
                // The descriptors that are made here have no room for one.
                make(&folder, format, &format!("e{bytes}.vmdk"), None, SIZE);
                let cid = fs::read(folder.file(&base)).unwrap();
                let cid = String::from_utf8_lossy(&cid[512..1024]).into_owned();
                let cid = cid.lines().find_map(|line| line.strip_prefix("CID=")).unwrap().to_owned();
                let text = format!(
                    "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID={cid}\nparentFileNameHint=\"{}\"\n\
                     RW {} SPARSE \"e{bytes}.vmdk\"\n",
                    long(bytes),
                    SIZE / 512
                );
                fs::write(folder.file(&image), text).unwrap();
            } else if is_good {
                child(&folder, format, &image, &long(bytes));
            } else {
                let parent = ParentName::new(long(bytes).into(), Some(format.name().to_owned()));
                let file = RealHost::new().create(&folder.file("never")).unwrap();
                let creation = Creation { size: SIZE, parent: Some(parent), options: Vec::new() };
                let error = format::create(format, file, &creation, &NoParts).unwrap_err().to_string();
                assert!(error.contains("too long") || error.contains("1023 bytes"), "{error}");
                continue;
            }
            if is_good {
                done(&folder.path(), &["info", "--backing-chain", &image]);
            } else {
                is_refused(&folder, format, &image, "refers to a name of 1024 bytes, longer than 1023");
            }
        }
    }
}

fn layers_up_to_1024_work(format: Format) {
    let folder = Scratch::in_memory();
    let name = |nth: usize| called(&format!("l{nth}"), format);
    make(&folder, format, &name(0), None, SIZE);
    for nth in 1..=1024 {
        child(&folder, format, &name(nth), &name(nth - 1));
    }
    let host: Arc<dyn Host> = Arc::new(RealHost::with_descriptors(64));
    let chain = Chain::open(&host, &folder.file(&name(1023)), &Opening::reading()).unwrap();
    assert_eq!(chain.layers().len(), 1024);
    let held = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(held < 200, "{held} descriptors are open");
    let mut bytes = [0; 8192];
    chain.read(GuestOffset::new(0), &mut bytes).unwrap();
    assert!(bytes[4096..4608] == [7; 512] && bytes[..4096] == [0; 4096]);
    drop(chain);
    done(&folder.path(), &["map", &name(1023)]);
    refused(&folder, &["map", &name(1024)], &name(1024), "has more than 1024 layers");
}

#[test]
fn bad_input_c_1024_vhdx_layers_work_and_one_more_is_refused() {
    layers_up_to_1024_work(Format::Vhdx);
}

#[test]
fn bad_input_c_1024_vhd_layers_work_and_one_more_is_refused() {
    layers_up_to_1024_work(Format::Vpc);
}

#[test]
fn bad_input_c_1024_vmdk_layers_work_and_one_more_is_refused() {
    layers_up_to_1024_work(Format::Vmdk);
}

#[test]
fn bad_input_c_a_parent_that_is_another_disk_is_refused_in_every_format() {
    for format in FORMATS {
        let folder = Scratch::in_memory();
        let at = folder.path();
        let [base, other, image] = ["base", "other", "child"].map(|name| called(name, format));
        for name in [&base, &other] {
            done(&at, &["create", "-q", "-f", format.name(), name, "1M"]);
        }
        done(&at, &["create", "-q", "-f", format.name(), "-b", &base, "-F", format.name(), &image]);
        done(&at, &["map", &image]);
        // Nothing but what the formats themselves say tells it: unique IDs, CIDs, GUIDs of what was written.
        fs::rename(folder.file(&other), folder.file(&base)).unwrap();
        let _ = fs::remove_dir_all(folder.file(".dchain"));
        for tool in [&["map", &image][..], &["convert", "-q", "-O", "raw", &image, "never.raw"]] {
            assert_eq!(refused(&folder, tool, &image, &base).code, 77, "{format}");
        }
    }
}

#[test]
fn a_parent_of_another_size_shows_zeros_behind_its_end_in_every_format() {
    for format in FORMATS {
        let folder = Scratch::in_memory();
        for (nth, base_bytes) in [SIZE / 2, 2 * SIZE].into_iter().enumerate() {
            let [base, image] = ["base", "child"].map(|name| called(&format!("{name}{nth}"), format));
            make(&folder, format, &base, None, base_bytes);
            child(&folder, format, &image, &base);
            done(&folder.path(), &["convert", "-q", "-O", "raw", &image, "flat"]);
            let shown = fs::read(folder.file("flat")).unwrap();
            assert!(shown.len() as u64 == SIZE && shown[shown.len() / 2..].iter().all(|byte| *byte == 0));
            fs::remove_file(folder.file("flat")).unwrap();
        }
    }
}

#[test]
fn bad_input_d_what_a_guest_writes_into_a_raw_disk_makes_it_no_image() {
    for format in FORMATS {
        let folder = Scratch::in_memory();
        let at = folder.path();
        make(&folder, format, "image", None, SIZE);
        let image = fs::read(folder.file("image")).unwrap();
        done(&at, &["create", "-q", "-f", "raw", "vm", "32M"]);
        let known = fs::OpenOptions::new().write(true).open(folder.file("vm")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&known, &image, 0).unwrap();
        let info = done(&at, &["info", "--output", "json", "vm"]).json();
        assert_eq!((&info["format"], &info["virtual-size"]), (&"raw".into(), &(32 << 20).into()));
        // As a parent it is what its child says, and nothing else is tried.
        for (nth, stated) in Format::ALL.into_iter().enumerate() {
            let name = called(&format!("child{nth}"), format);
            make(
                &folder,
                format,
                &name,
                Some(ParentName::new(b"vm".to_vec(), Some(stated.name().to_owned()))),
                SIZE,
            );
            let run = dchain(&at, &["map", &name]);
            assert_eq!(run.code == Some(0), stated == Format::Raw, "{stated}: {}", run.err);
            assert!(run.code == Some(0) || run.err.contains("vm"), "{}", run.err);
        }
    }
    // A locator of our own kind that does not say the format.
    let folder = Scratch::in_memory();
    make(&folder, Format::Raw, "base.raw", None, SIZE);
    let raw = ParentName::new(b"base.raw".to_vec(), Some("raw".to_owned()));
    make(&folder, Format::Vhdx, "child.vhdx", Some(raw), SIZE);
    rename_in(&folder, "child.vhdx", "deltachain_format", "deltachain_farmet");
    assert_eq!(is_refused(&folder, Format::Vhdx, "child.vhdx", "without stating its format"), 77);
}

#[test]
fn bad_input_d_extents_of_a_vmdk_that_lead_out_of_its_folder_are_refused() {
    let outside = Scratch::in_memory();
    fs::write(outside.file("secret"), [7; 4096]).unwrap();
    let folder = Scratch::in_memory();
    fs::create_dir_all(folder.file("vm/folder")).unwrap();
    fs::write(folder.file("secret"), [7; 4096]).unwrap();
    folder.run("mkfifo", "vm/fifo");
    symlink(outside.file("secret"), folder.file("vm/link")).unwrap();
    let (far, long) = (outside.file("secret"), format!("{}x", "./".repeat(512)));
    let far = far.to_str().unwrap();
    let names = [
        (far, 77),
        ("../secret", 77),
        ("link", 77),
        ("fifo", 77),
        ("folder", 77),
        ("/dev/zero", 77),
        ("/proc/self/environ", 77),
        ("/etc/shadow", 77),
        ("json:{}", 77),
        ("nbd:unix:/x", 77),
        ("nbd://localhost/x", 77),
        (&long, 77),
        ("gone", 1),
    ];
    for (name, code) in names {
        for kind in ["FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"] {
            let text = format!("# Disk DescriptorFile\nversion=1\nCID=1\nRW 1 {kind} \"{name}\"\n");
            fs::write(folder.file("vm/vm.vmdk"), text).unwrap();
            let says = if name == long { "a name of 1025 bytes" } else { name };
            for tool in
                [&["info", "vm/vm.vmdk"][..], &["convert", "-q", "-O", "raw", "vm/vm.vmdk", "never.raw"]]
            {
                let said = refused(&folder, tool, "vm/vm.vmdk", says);
                assert_eq!(said.code, code, "{name}: {}", said.err);
            }
        }
    }
    // A folder that is allowed may be read by who says what it is; the hint says how.
    let text = format!("# Disk DescriptorFile\nversion=1\nCID=1\nRW 1 FLAT \"{far}\" 0\n");
    fs::write(folder.file("vm/vm.vmdk"), text).unwrap();
    let allowed = outside.path();
    let allow = ["--allow-dir", allowed.to_str().unwrap()];
    let run = dchain(&folder.path(), &["map", "vm/vm.vmdk"]);
    assert!(run.err.contains(&format!("hint: -f vmdk --allow-dir {}", allow[1])), "{}", run.err);
    let run = dchain(&folder.path(), &[&["map", "vm/vm.vmdk"], &allow[..]].concat());
    assert!(run.code == Some(77) && run.err.contains("hint: -f vmdk states it"), "{}", run.err);
    done(&folder.path(), &[&["map", "-f", "vmdk", "vm/vm.vmdk"], &allow[..]].concat());
}

#[test]
fn bad_input_d_a_disk_in_an_ova_leads_to_no_other_file() {
    let folder = Scratch::in_memory();
    fs::write(folder.file("secret"), [7; 512]).unwrap();
    let ovf = "<Envelope><References><File id='f' href='disk.vmdk'/></References><DiskSection><Disk diskId='d' \
               fileRef='f' format='http://www.vmware.com/interfaces/specifications/vmdk.html'/></DiskSection></Envelope>";
    fs::write(folder.file("vm.ovf"), ovf).unwrap();
    let text = |name: &str| format!("# Disk DescriptorFile\nversion=1\nCID=1\nRW 1 FLAT \"{name}\" 0\n");
    for name in ["secret", "../secret", "/etc/passwd", "disk.vmdk", "vm.ovf"] {
        fs::write(folder.file("disk.vmdk"), text(name)).unwrap();
        folder.run("tar", "--format=ustar -cf vm.ova vm.ovf disk.vmdk");
        fs::remove_file(folder.file("disk.vmdk")).unwrap();
        let convert = ["convert", "-q", "-O", "raw", "vm.ova", "never.raw"];
        refused(
            &folder,
            &convert,
            "vm.ova",
            &format!("refers to '{name}': a disk in an OVA lies in one file of it"),
        );
    }
    for format in FORMATS {
        make(
            &folder,
            format,
            "disk.vmdk",
            Some(ParentName::new(b"secret".to_vec(), Some("raw".to_owned()))),
            SIZE,
        );
        folder.run("tar", "--format=ustar -cf vm.ova vm.ovf disk.vmdk");
        fs::remove_file(folder.file("disk.vmdk")).unwrap();
        let convert = ["convert", "-q", "-O", "raw", "vm.ova", "never.raw"];
        refused(&folder, &convert, "vm.ova", "names the parent 'secret': a disk in an OVA has none");
    }
    assert!(Path::new(&folder.file("secret")).exists());
}
