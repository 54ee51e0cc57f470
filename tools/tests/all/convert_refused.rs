//! What a conversion or a new image cannot be is said before anything is written, and nothing is left of it.

use super::{
    dchain::{command, dchain, done},
    foreign::{SIZE, Scratch, assert_same, by_us, disk},
};
use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt, fs::symlink},
    path::Path,
};

/// The names in a folder, but for that of our notes.
fn names(folder: &Path) -> Vec<OsString> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.filter(|name| name != ".dchain").collect();
    names.sort();
    names
}

#[test]
fn a_backslash_in_a_parents_name_leads_into_no_folder() {
    let folder = Scratch::in_memory();
    let at = folder.path();
    for (parent, format) in [(r"a\b.vmdk", "vmdk"), (r"a\b.qcow2", "qcow2"), (r"sub/a\b.vmdk", "vmdk")] {
        fs::create_dir_all(folder.file("sub")).unwrap();
        done(&at, &["create", "-q", "-f", format, parent, "4M"]);
        done(&at, &["create", "-q", "-f", "vmdk", "-b", parent, "-F", format, "c.vmdk"]);
        done(&at, &["map", "c.vmdk"]);
        done(&at, &["rebase", "-q", "-b", parent, "-F", format, "c.vmdk"]);
        done(&at, &["map", "c.vmdk"]);
        fs::remove_file(folder.file("c.vmdk")).unwrap();
    }
}

#[test]
fn a_name_that_a_dangling_link_has_is_taken() {
    let folder = Scratch::in_memory();
    let at = folder.path();
    folder.qemu_img("create -q -f qcow2 a.qcow2 4M");
    fs::create_dir(folder.file("new")).unwrap();
    for link in ["x.vmdk", "x.ova", "new/a.vmdk"] {
        symlink("nowhere", folder.file(link)).unwrap();
    }
    let before = (names(&at), names(&folder.file("new")));
    let commands: [&[&str]; 6] = [
        &["create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "x.vmdk", "4M"],
        &["convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", "a.qcow2", "x.vmdk"],
        &["convert", "-O", "ova", "a.qcow2", "x.ova"],
        &["snapshot", "a.qcow2", "x.vmdk"],
        &["convert", "--chain", "-O", "vmdk", "-n", "a.qcow2", "new"],
        &["convert", "--chain", "-O", "vmdk", "a.qcow2", "new"],
    ];
    for arguments in commands {
        let run = dchain(&at, arguments);
        assert_eq!((run.code, run.err.contains("is there already")), (Some(1), true), "{}", run.err);
        assert_eq!((names(&at), names(&folder.file("new"))), before, "{arguments:?}");
    }
}

#[test]
fn an_image_that_is_not_written_all_over_is_not_filled() {
    let folder = Scratch::in_memory();
    let at = folder.path();
    disk(&folder, 1);
    let sectors = SIZE / 512;
    let half = sectors / 2;
    fs::write(folder.file("f.bin"), vec![7; SIZE]).unwrap();
    let filling = ["convert", "-f", "raw", "--no-create", "--yes", "-O", "vmdk", "disk", "mix.vmdk"];
    for (second, is_taken) in [("RW", true), ("RDONLY", false), ("ZERO", false)] {
        let second = match second {
            "ZERO" => format!("RW {half} ZERO"),
            access => format!("{access} {half} FLAT \"f.bin\" {half}"),
        };
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n\
             RW {half} FLAT \"f.bin\" 0\n{second}\n"
        );
        fs::write(folder.file("mix.vmdk"), text).unwrap();
        let before = fs::read(folder.file("f.bin")).unwrap();
        for more in [&["-n"][..], &[]] {
            let run = dchain(&at, &[&filling[..], more].concat());
            let expected = if is_taken { 0 } else { 77 };
            assert_eq!(run.code, Some(expected), "{second} {more:?}: {}", run.err);
            let is_as_before = fs::read(folder.file("f.bin")).unwrap() == before;
            assert_eq!(is_as_before, !is_taken || !more.is_empty(), "{second} {more:?}");
        }
        if is_taken {
            assert_same(&by_us(&folder, "mix.vmdk"), &fs::read(folder.file("disk")).unwrap(), &second);
        }
        fs::write(folder.file("f.bin"), vec![7; SIZE]).unwrap();
    }
}

#[test]
fn what_holds_nothing_compressed_is_no_target_of_c() {
    let folder = Scratch::in_memory();
    let at = folder.path();
    folder.qemu_img("create -q -f qcow2 a.qcow2 4M");
    folder.qemu_io("qcow2", "a.qcow2", &["write -q -P 1 0 2M"]);
    folder.qemu_img("create -q -f qcow2 -o data_file=far.data far.qcow2 4M");
    fs::create_dir(folder.file("new")).unwrap();
    for format in ["vhdx", "vpc", "vmdk"] {
        done(&at, &["create", "-q", "-f", format, &format!("there.{format}"), "4M"]);
    }
    let before = names(&at);
    for format in ["raw", "vhdx", "vpc", "vmdk"] {
        let there = format!("there.{format}");
        for more in [
            &["a.qcow2", "x"][..],
            &["--chain", "-n", "a.qcow2", "new"],
            &["--no-create", "-n", "a.qcow2", &there],
        ] {
            let run = dchain(&at, &[&["convert", "-c", "-O", format], more].concat());
            assert_eq!((run.code, run.err.contains("cannot be compressed")), (Some(64), true), "{}", run.err);
        }
    }
    let onto = ["convert", "-c", "-O", "qcow2", "--no-create", "-n", "a.qcow2", "far.qcow2"];
    let run = dchain(&at, &onto);
    assert_eq!(
        (run.code, run.err.contains("far.qcow2: cannot be compressed")),
        (Some(1), true),
        "{}",
        run.err
    );
    assert_eq!((names(&at), names(&folder.file("new"))), (before, Vec::new()));
    done(&at, &["convert", "-q", "-c", "-O", "vmdk", "-o", "subformat=streamOptimized", "a.qcow2", "s.vmdk"]);
}

/// Each with how the base is made and called, and the options of the conversion.
#[test]
fn the_plan_of_a_chain_refuses_what_its_layers_cannot_become() {
    let utf8 = |name: &str| name.as_bytes().to_vec();
    let long = "x".repeat(251);
    let cases: [(Vec<u8>, &str, &[&str]); 15] = [
        (utf8("base.qcow2"), "subformat", &["vmdk", "-o", "subformat=twoGbMaxExtentSparse"]),
        (utf8("base.qcow2"), "subformat", &["vmdk", "-o", "subformat=vmfsSparse"]),
        (utf8("base.qcow2"), "subformat", &["vmdk", "-o", "subformat=monolithicFlat"]),
        (utf8("base.qcow2"), "subformat", &["vmdk", "-o", "subformat=twoGbMaxExtentFlat"]),
        (utf8("base.qcow2"), "subformat", &["vmdk", "-o", "subformat=streamOptimized"]),
        (b"b\xffse".to_vec(), "name", &["vhdx"]),
        (b"b\xffse".to_vec(), "name", &["vpc"]),
        (b"b\xffse".to_vec(), "name", &["vmdk"]),
        (utf8(r"b\se"), "name", &["vhdx"]),
        (utf8(r"b\se"), "name", &["vpc"]),
        (utf8("b\"se"), "name", &["vmdk"]),
        (utf8("b\tse"), "name", &["vmdk"]),
        (utf8("b\nse"), "name", &["vmdk"]),
        (utf8("b\x7fse"), "name", &["vmdk"]),
        (utf8(&format!("{long}.vpc")), "too long a name", &["qcow2"]),
    ];
    for (name, what, target) in cases {
        let folder = Scratch::in_memory();
        let at = folder.path();
        let name = OsString::from_vec(name);
        fs::create_dir(folder.file("new")).unwrap();
        let format = if what == "too long a name" { "vpc" } else { "qcow2" };
        done(&at, &["create", "-q", "-f", format, "plain", "4M"]);
        fs::rename(folder.file("plain"), at.join(&name)).unwrap();
        let mut child = command(&at, &["create", "-q", "-f", "qcow2", "-F", format, "top.qcow2"]);
        assert!(child.arg("-b").arg(&name).status().unwrap().success(), "{name:?}");
        for more in [&["-n"][..], &[]] {
            let run =
                dchain(&at, &[&["convert", "--chain", "-O"], target, more, &["top.qcow2", "new"]].concat());
            assert_eq!(run.code, Some(64), "{name:?} {target:?} {more:?}: {}{}", run.out, run.err);
            assert!(what == "subformat" || run.err.contains(what), "{name:?} {target:?}: {}", run.err);
            assert_eq!(names(&folder.file("new")), Vec::<OsString>::new(), "{name:?} {target:?}");
        }
    }
    let listed = done(Path::new("/"), &["convert", "--chain", "-O", "vmdk", "-o", "help"]).out;
    assert!(!listed.contains("subformat") && listed.contains("cluster_size"), "{listed}");
    assert!(done(Path::new("/"), &["convert", "-O", "vmdk", "-o", "help"]).out.contains("subformat"));
}

#[test]
fn sectors_of_4096_bytes_go_with_a_layer_whose_size_they_divide() {
    let folder = Scratch::in_memory();
    let at = folder.path();
    fs::create_dir(folder.file("new")).unwrap();
    done(&at, &["create", "-q", "-f", "vhdx", "-o", "logical_sector_size=4096", "base.vhdx", "4M"]);
    done(&at, &["create", "-q", "-f", "qcow2", "-b", "base.vhdx", "-F", "vhdx", "odd.qcow2", "4194816"]);
    done(&at, &["create", "-q", "-f", "qcow2", "-b", "base.vhdx", "-F", "vhdx", "even.qcow2", "4M"]);
    let refused = dchain(&at, &["convert", "--chain", "-n", "-O", "vhdx", "odd.qcow2", "new"]);
    assert_eq!(refused.code, Some(64), "{}", refused.err);
    assert!(refused.err.contains("odd.qcow2") && refused.err.contains("4096"), "{}", refused.err);
    done(&at, &["convert", "--chain", "-O", "vhdx", "even.qcow2", "new"]);
    folder.qemu_img("create -q -f qcow2 plain.qcow2 4M");
    let options = ["convert", "--chain", "-O", "vhdx", "-o", "logical_sector_size=4096"];
    done(&at, &[&options[..], &["plain.qcow2", "new"]].concat());
}

#[test]
fn grains_of_512_bytes_are_for_disks_up_to_512_gib() {
    let folder = Scratch::in_memory();
    let at = folder.path();
    let small = ["-o", "cluster_size=512"];
    for (size, code) in [("512G", 0), ("513G", 64)] {
        let measure = dchain(&at, &[&["measure", "-O", "vmdk", "--size", size], &small[..]].concat());
        assert_eq!(measure.code, Some(code), "{size}: {}", measure.err);
    }
    let create = dchain(&at, &[&["create", "-q", "-f", "vmdk"], &small[..], &["x.vmdk", "513G"]].concat());
    assert_eq!(create.code, Some(64), "{}", create.err);
    assert_eq!(names(&at), Vec::<OsString>::new());
}
