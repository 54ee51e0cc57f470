//! VMDK beside other programs: what VMware and qemu made is read right, and qemu reads right what is made here, and goes
//! on where we ended.

use super::{
    dchain::{dchain, done},
    foreign::{SIZE, Scratch, assert_same, by_us, disk},
};
use deltachain::{
    base::{GuestOffset, seed::Seeded},
    chain::{Chain, Opening},
    disk::Disk,
    io::{Host, real::RealHost},
};
use std::{fs, os::unix::fs::FileExt, path::Path, sync::Arc};

#[test]
fn images_go_to_qemu_and_back() {
    let folder = Scratch::new();
    let bytes = disk(&folder, 1);
    let kinds = [
        "subformat=monolithicSparse",
        "subformat=monolithicFlat",
        "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat",
        "zeroed_grain=on,adapter_type=lsilogic",
        "cluster_size=8k",
        "subformat=vmfsSparse",
    ];
    for (nth, options) in kinds.iter().enumerate() {
        let ours = format!("ours{nth}.vmdk");
        done(&folder.path(), &["convert", "-f", "raw", "-O", "vmdk", "-o", options, "disk", &ours]);
        assert_same(&folder.flat("vmdk", &ours), &bytes, options);
        assert_same(&by_us(&folder, &ours), &bytes, options);
        assert_same(&dchain_oracles::vmdk_core(&folder.file(&ours)).unwrap(), &bytes, options);
        folder.qemu_img(&format!("check -q -f vmdk {ours}"));
        // qemu goes on where we ended, and we where it did.
        folder.qemu_io("vmdk", &ours, &["write -P 7 100k 3M", "write -P 8 4M 1k"]);
        let written = folder.flat("vmdk", &ours);
        assert_same(&by_us(&folder, &ours), &written, options);
        done(&folder.path(), &["check", &ours]);
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let chain = Chain::open(&host, &folder.file(&ours), &Opening::writing()).unwrap();
        chain.write(GuestOffset::new(SIZE as u64 - 700), &[9; 700]).unwrap();
        chain.flush().unwrap();
        drop(chain);
        let expected = [&written[..SIZE - 700], &[9; 700]].concat();
        assert_same(&folder.flat("vmdk", &ours), &expected, options);
    }
}

#[test]
fn what_qemu_makes_is_read() {
    let folder = Scratch::new();
    let bytes = disk(&folder, 2);
    for kind in [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ] {
        folder.qemu_img(&format!("convert -f raw -O vmdk -o subformat={kind} disk theirs-{kind}.vmdk"));
        let name = format!("theirs-{kind}.vmdk");
        assert_same(&by_us(&folder, &name), &bytes, kind);
        done(&folder.path(), &["check", &name]);
        let info = done(&folder.path(), &["info", "--output", "json", &name]).json();
        assert_eq!((&info["format"], info["virtual-size"].as_u64()), (&"vmdk".into(), Some(SIZE as u64)));
        assert_eq!(info["format-specific"]["data"]["create-type"], kind);
    }
    let refused = dchain(&folder.path(), &["resize", "theirs-streamOptimized.vmdk", "9M"]);
    assert!(refused.err.contains("is a stream (compressed grains)"), "{}", refused.err);
}

/// Returns the sectors that the markers of a stream's grains name, in the file's order.
fn markers(stream: &[u8]) -> Vec<u64> {
    let (mut at, mut found) = (128 * 512, Vec::new());
    loop {
        let sector = u64::from_le_bytes(stream[at..at + 8].try_into().unwrap());
        let bytes = u32::from_le_bytes(stream[at + 8..at + 12].try_into().unwrap());
        let bytes = usize::try_from(bytes).unwrap();
        if bytes == 0 {
            return found;
        }
        found.push(sector);
        at += (12 + bytes).next_multiple_of(512);
    }
}

#[test]
fn a_stream_goes_to_qemu_with_its_grains_in_order() {
    let folder = Scratch::new();
    let bytes = disk(&folder, 6);
    let options = "subformat=streamOptimized";
    done(&folder.path(), &["convert", "-f", "raw", "-O", "vmdk", "-o", options, "disk", "s.vmdk"]);
    assert_same(&folder.flat("vmdk", "s.vmdk"), &bytes, "qemu");
    assert_same(&by_us(&folder, "s.vmdk"), &bytes, "ours");
    assert_same(&dchain_oracles::vmdk_core(&folder.file("s.vmdk")).unwrap(), &bytes, "vmdk-core");
    folder.qemu_img("check -q -f vmdk s.vmdk");
    done(&folder.path(), &["check", "s.vmdk"]);
    let order = markers(&fs::read(folder.file("s.vmdk")).unwrap());
    assert!(order.len() > 5 && order.is_sorted(), "{order:?}");
    // One without anything in it is a disk, too.
    done(&folder.path(), &["create", "-f", "vmdk", "-o", options, "empty.vmdk", "5M"]);
    assert_same(&folder.flat("vmdk", "empty.vmdk"), &vec![0; SIZE], "empty");
    let refused =
        dchain(&folder.path(), &["create", "-f", "vmdk", "-o", options, "-b", "s.vmdk", "-F", "vmdk", "c"]);
    assert!(refused.err.contains("cannot have a parent"), "{}", refused.err);
}

/// More tables than it had, and a digit more in its descriptor.
const GROWN: usize = 70 << 20;

#[test]
fn a_disk_that_grew_is_read_by_others() {
    let folder = Scratch::new();
    let mut bytes = disk(&folder, 7);
    bytes.resize(GROWN, 0);
    bytes[GROWN - 4096..].fill(7);
    for (program, kind) in [
        ("dchain", "monolithicSparse"),
        ("dchain", "monolithicFlat"),
        ("qemu", "monolithicSparse"),
        ("qemu", "monolithicFlat"),
    ] {
        let (name, option) = (format!("{program}-{kind}.vmdk"), format!("subformat={kind}"));
        if program == "qemu" {
            folder.qemu_img(&format!("convert -f raw -O vmdk -o {option} disk {name}"));
        } else {
            done(&folder.path(), &["convert", "-f", "raw", "-O", "vmdk", "-o", &option, "disk", &name]);
        }
        done(&folder.path(), &["resize", &name, "70M"]);
        folder.qemu_img(&format!("check -q -f vmdk {name}"));
        folder.qemu_io("vmdk", &name, &[&format!("write -P 7 {} 4k", GROWN - 4096)]);
        done(&folder.path(), &["check", &name]);
        assert_same(&folder.flat("vmdk", &name), &bytes, &name);
        assert_same(&by_us(&folder, &name), &bytes, &name);
        assert_same(&dchain_oracles::vmdk_core(&folder.file(&name)).unwrap(), &bytes, &name);
    }
    let refused = dchain(&folder.path(), &["resize", "--shrink", "qemu-monolithicFlat.vmdk", "8M"]);
    assert!(refused.err.contains("it only grows"), "{}", refused.err);
}

#[test]
fn qemu_reads_our_children_and_a_parent_that_changed_is_refused() {
    let folder = Scratch::new();
    let mut bytes = disk(&folder, 3);
    let at = folder.path();
    done(&at, &["convert", "-f", "raw", "-O", "vmdk", "disk", "base.vmdk"]);
    for (parent, image, zeroed) in [("base.vmdk", "mid.vmdk", "off"), ("mid.vmdk", "top.vmdk", "on")] {
        let option = format!("zeroed_grain={zeroed}");
        done(&at, &["create", "-f", "vmdk", "-b", parent, "-F", "vmdk", "-o", &option, image]);
        let mut random = Seeded::new(bytes[0].into());
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let chain = Chain::open(&host, &folder.file(image), &Opening::writing()).unwrap();
        for _ in 0..20 {
            let place = usize::try_from(random.below(SIZE as u64 - 70_000)).unwrap();
            let mut new = vec![0; 1 + usize::try_from(random.below(70_000)).unwrap()];
            if random.chance(3, 4) {
                random.fill(&mut new);
            }
            chain.write(GuestOffset::new(place as u64), &new).unwrap();
            bytes[place..place + new.len()].copy_from_slice(&new);
        }
        chain.flush().unwrap();
    }
    assert_same(&by_us(&folder, "top.vmdk"), &bytes, "ours");
    assert_same(&folder.flat("vmdk", "top.vmdk"), &bytes, "qemu");
    assert_same(&dchain_oracles::vmdk_core(&folder.file("top.vmdk")).unwrap(), &bytes, "vmdk-core");
    // A child that qemu made, on ours.
    folder.qemu_img("create -q -f vmdk -b top.vmdk -F vmdk theirs.vmdk");
    folder.qemu_io("vmdk", "theirs.vmdk", &["write -P 3 1M 70k"]);
    assert_same(&by_us(&folder, "theirs.vmdk"), &folder.flat("vmdk", "theirs.vmdk"), "a child of qemu's");
    // Written since: its CID is another one.
    folder.qemu_io("vmdk", "top.vmdk", &["write -P 3 2M 512"]);
    let refused = dchain(&at, &["convert", "-O", "raw", "theirs.vmdk", "out"]);
    assert_eq!(refused.code, Some(77), "{}", refused.err);
    let shown = folder.flat("vmdk", "top.vmdk");
    done(&at, &["consolidate", "top.vmdk", "--yes"]);
    assert_same(&folder.flat("vmdk", "top.vmdk"), &shown, "folded");
}

#[test]
fn a_parent_of_another_format_is_read_here_and_refused_by_qemu() {
    let folder = Scratch::new();
    let bytes = disk(&folder, 4);
    let at = folder.path();
    done(&at, &["convert", "-f", "raw", "-O", "qcow2", "disk", "base.qcow2"]);
    done(&at, &["create", "-f", "vmdk", "-b", "base.qcow2", "-F", "qcow2", "top.vmdk"]);
    let info = done(&at, &["info", "--output", "json", "top.vmdk"]).json();
    assert_eq!(info["backing-filename-format"], "qcow2");
    assert_same(&by_us(&folder, "top.vmdk"), &bytes, "ours");
    let refused = folder.try_run("qemu-img", ["convert", "-f", "vmdk", "-O", "raw", "top.vmdk", "out"]);
    assert!(!refused.status.success());
}

#[test]
fn extents_outside_the_folder_are_not_opened() {
    let folder = Scratch::new();
    let at = folder.path();
    fs::create_dir(at.join("vm")).unwrap();
    fs::write(at.join("secret"), [7; 4096]).unwrap();
    for name in ["../secret", "/etc/passwd", "vm.vmdk"] {
        let text = format!("# Disk DescriptorFile\nversion=1\nCID=1\nRW 1 FLAT \"{name}\" 0\n");
        fs::write(at.join("vm/vm.vmdk"), text).unwrap();
        let refused = dchain(&at, &["convert", "-O", "raw", "vm/vm.vmdk", "out"]);
        let code = if name == "vm.vmdk" { Some(65) } else { Some(77) };
        assert_eq!(refused.code, code, "{name}: {}", refused.err);
        assert!(refused.err.contains("vm.vmdk") && !at.join("out").exists(), "{}", refused.err);
    }
}

#[test]
fn a_raw_disk_that_is_known_as_raw_stays_so_whatever_its_guest_writes_at_its_start() {
    let folder = Scratch::new();
    let at = folder.path();
    done(&at, &["create", "-f", "raw", "vm", "1M"]);
    done(&at, &["create", "-f", "vmdk", "other.vmdk", "1M"]);
    let start = fs::read(folder.file("other.vmdk")).unwrap();
    let known = fs::OpenOptions::new().write(true).open(folder.file("vm")).unwrap();
    known.write_all_at(&start[..10 << 10], 0).unwrap();
    fs::copy(folder.file("vm"), folder.file("unknown")).unwrap();
    let format = |name: &str| done(&at, &["info", "--output", "json", name]).json()["format"].clone();
    assert_eq!((format("vm"), format("unknown")), ("raw".into(), "vmdk".into()));
}

#[test]
fn the_stream_in_an_ova_becomes_an_image() {
    let folder = Scratch::new();
    let bytes = disk(&folder, 5);
    folder.qemu_img("convert -f raw -O vmdk -o subformat=streamOptimized disk disk.vmdk");
    let text = format!(
        "<Envelope xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"><References><File ovf:href=\"disk.vmdk\" ovf:id=\"f\"/>\
         </References><DiskSection><Info/><Disk ovf:capacity=\"{SIZE}\" ovf:diskId=\"d\" ovf:fileRef=\"f\" ovf:format=\
         \"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"/></DiskSection>\
         <VirtualSystem ovf:id=\"vm\"><Info/></VirtualSystem></Envelope>"
    );
    fs::write(folder.file("vm.ovf"), text).unwrap();
    folder.run("tar", "--format=ustar -cf vm.ova vm.ovf disk.vmdk");
    assert_same(&by_us(&folder, "vm.ova"), &bytes, "the disk of the OVA");
    done(&folder.path(), &["convert", "-q", "-O", "qcow2", "vm.ova", "out.qcow2"]);
    assert_same(&folder.flat("qcow2", "out.qcow2"), &bytes, "as qcow2");
    assert!(Path::new(&folder.file("disk.vmdk")).exists());
}

#[test]
fn extents_are_pieces_of_their_image_and_no_images() {
    let folder = Scratch::new();
    let at = folder.path();
    for kind in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let at = at.join(kind);
        fs::create_dir(&at).unwrap();
        let options = format!("subformat={kind}");
        done(&at, &["create", "-f", "vmdk", "-o", &options, "disk.vmdk", "5G"]);
        done(&at, &["create", "-f", "vmdk", "-b", "disk.vmdk", "-F", "vmdk", "child.vmdk"]);
        let tree = done(&at, &["tree", "--output", "json"]).json();
        let [root] = tree.as_array().unwrap().as_slice() else { panic!("{tree}") };
        assert!(root["filename"].as_str().unwrap().ends_with("disk.vmdk"), "{tree}");
        assert_eq!(root["children"].as_array().unwrap().len(), 1);
        let ours = done(&at, &["info", "--output", "json", "disk.vmdk"]).json();
        let theirs = folder.qemu_img(&format!("info --output=json {kind}/disk.vmdk"));
        let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
        assert_eq!(ours["actual-size"], theirs["actual-size"], "{kind}");
        assert_eq!(root["actual-size"], theirs["actual-size"], "{kind}");
        let letter = if kind.ends_with("Flat") { 'f' } else { 's' };
        for nth in 1..=3 {
            let refused = dchain(&at, &["rm", "--yes", &format!("disk-{letter}00{nth}.vmdk")]);
            assert!(refused.err.contains("keeps its bytes in it"), "{kind} {nth}: {}", refused.err);
        }
        fs::create_dir(at.join("moved")).unwrap();
        done(&at, &["convert", "--chain", "-q", "-O", "qcow2", ".", "moved"]);
        let mut moved: Vec<_> =
            fs::read_dir(at.join("moved")).unwrap().map(|e| e.unwrap().file_name()).collect();
        moved.retain(|name| name != ".dchain");
        moved.sort();
        assert_eq!(moved, ["child.qcow2", "disk.qcow2"]);
    }
}

#[test]
fn pieces_of_qemu_s_are_no_images_either_and_who_names_a_child_as_a_piece_does_not_hide_it() {
    let folder = Scratch::in_memory();
    let here = folder.path();
    // It leaves room for a descriptor in each piece.
    folder.qemu_img("create -q -f vmdk -o subformat=twoGbMaxExtentSparse split.vmdk 5G");
    let shown = done(&here, &["tree", "."]).out;
    assert!(shown.starts_with("split.vmdk ") && shown.lines().count() == 1, "{shown}");
    assert!(done(&here, &["lint", "."]).out.starts_with("1 images: 0 errors"));
    done(&here, &["create", "-f", "vmdk", "base.vmdk", "1M"]);
    done(&here, &["create", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "child.vmdk"]);
    let text = "# Disk DescriptorFile\nversion=1\nCID=11111111\nparentCID=ffffffff\ncreateType=\"custom\"\n\
                RW 2048 SPARSE \"child.vmdk\"\n";
    fs::write(folder.file("other.vmdk"), text).unwrap();
    let refused = dchain(&here, &["rm", "--yes", "base.vmdk"]);
    assert!(refused.code == Some(69) && refused.err.contains("child.vmdk lies on it"), "{}", refused.err);
    // A piece that is nobody's might be a damaged image.
    fs::remove_file(folder.file("split.vmdk")).unwrap();
    assert!(done(&here, &["tree", "."]).out.contains("unreadable: "));
}

#[test]
fn names_that_windows_wrote_are_found_and_ours_say_how_they_are_written() {
    let folder = Scratch::in_memory();
    let here = folder.path();
    let by_windows = |text: &str| text.chars().map(|c| u8::try_from(c).unwrap()).collect::<Vec<u8>>();
    let text = "# Disk DescriptorFile\r\nversion=1\r\nencoding=\"windows-1252\"\r\nCID=11111111\r\nparentCID=ffffffff\r\n\
                createType=\"monolithicFlat\"\r\n\r\nRW 8192 FLAT \"Büro-flat.vmdk\" 0\r\n";
    fs::write(folder.file("Büro.vmdk"), by_windows(text)).unwrap();
    let bytes = vec![7; 4 << 20];
    fs::write(folder.file("Büro-flat.vmdk"), &bytes).unwrap();
    let options = ["-o", "subformat=twoGbMaxExtentSparse", "-b", "Büro.vmdk", "-F", "vmdk", "child.vmdk"];
    done(&here, &[&["create", "-f", "vmdk"][..], &options].concat());
    let ours = String::from_utf8(fs::read(folder.file("child.vmdk")).unwrap()).unwrap();
    assert!(ours.contains("\nencoding=\"UTF-8\"\n"), "{ours}");
    let theirs = by_windows(&ours.replace("UTF-8", "windows-1252"));
    fs::write(folder.file("child.vmdk"), theirs).unwrap();
    assert_same(&by_us(&folder, "child.vmdk"), &bytes, "by its name in windows-1252");
    fs::remove_file(folder.file("by-us")).unwrap();
    assert_eq!(done(&here, &["tree", "."]).out.lines().count(), 2);
    fs::write(folder.file("vm.vmx"), "scsi0:0.fileName = \"/vmfs/volumes/ds/vm/child.vmdk\"\n").unwrap();
    fs::create_dir(folder.file("new")).unwrap();
    let plan = done(&here, &["convert", "--chain", "-n", "-O", "qcow2", "vm.vmx", "new"]).out;
    assert_eq!(plan.matches("convert ").count(), 2, "{plan}");
}
