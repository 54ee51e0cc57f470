//! Hierarchies in another format by the program: a folder, a machine's file; what is said before, and afterwards.

use crate::{
    dchain::{dchain, done},
    foreign::{Scratch, assert_same},
};
use std::fs;

/// base <- snapshot <- head, and a second head on the snapshot.
fn build() -> Scratch {
    let folder = Scratch::in_memory();
    folder.qemu_img("create -q -f qcow2 base.qcow2 3M");
    folder.qemu_io("qcow2", "base.qcow2", &["write -q -P 1 100k 2M"]);
    for (parent, child, write) in [
        ("base.qcow2", "snapshot.qcow2", "write -q -P 2 1M 70000"),
        ("snapshot.qcow2", "head.qcow2", "write -q -z 1500k 300k"),
        ("snapshot.qcow2", "test.qcow2", "write -q -P 3 0 1k"),
    ] {
        folder.qemu_img(&format!("create -q -f qcow2 -F qcow2 -b {parent} {child}"));
        folder.qemu_io("qcow2", child, &[write]);
    }
    let named = |name: &str| format!(".encoding = \"UTF-8\"\nscsi0:0.fileName = \"{name}\"\n");
    fs::write(folder.file("vm.vmx"), named("head.qcow2")).unwrap();
    fs::write(folder.file("far.vmx"), named("/etc/hostname")).unwrap();
    fs::create_dir(folder.file("new")).unwrap();
    folder
}

#[test]
fn a_folder_leaves_for_another_format_with_its_snapshots_and_each_keeps_its_id() {
    for from in [".", "vm.vmx"] {
        let folder = build();
        let at = folder.path();
        let arguments = ["convert", "--chain", "-O", "vhdx", from, "new"];
        let plan = done(&at, &[&arguments[..], &["-n", "--output", "json"]].concat()).json();
        let layers =
            plan["chains"].as_array().unwrap().iter().flat_map(|chain| chain["layers"].as_array().unwrap());
        let names: Vec<_> =
            layers.map(|layer| (layer["from"].as_str().unwrap(), layer["to"].as_str().unwrap())).collect();
        assert_eq!(names.len(), 4, "{plan}");
        assert!(names.iter().all(|(from, to)| {
            to.ends_with(&from.rsplit('/').next().unwrap().replace("qcow2", "vhdx")) && to.contains("/new/")
        }));
        assert_eq!(fs::read_dir(folder.file("new")).unwrap().count(), 0);
        let said = done(&at, &arguments);
        assert_eq!(said.err.matches("convert ").count(), 4, "{}", said.err);
        assert_eq!(said.out.lines().filter(|line| line.ends_with(", as before")).count(), 4, "{}", said.out);
        for name in ["base", "snapshot", "head", "test"] {
            let shown = |path: &str| {
                let all = done(&at, &["id", "seal", "--output", "json", path]).json();
                all.as_array().map_or(all.clone(), |list| list[0].clone())["id"].clone()
            };
            let (old, new) = (format!("{name}.qcow2"), format!("new/{name}.vhdx"));
            assert_eq!(shown(&old), shown(&new), "{name}");
            done(&at, &["convert", "-q", "-O", "raw", &new, "flat"]);
            assert_same(&fs::read(folder.file("flat")).unwrap(), &folder.flat("qcow2", &old), name);
            fs::remove_file(folder.file("flat")).unwrap();
        }
    }
}

#[test]
fn what_cannot_become_hierarchies_is_refused_with_what_helps() {
    let folder = build();
    let at = folder.path();
    let refused = |arguments: &[&str], code: i32, what: &str| {
        let run = dchain(&at, &[&["convert", "--chain"], arguments].concat());
        assert!(run.code == Some(code) && run.err.contains(what), "{:?} {}", run.code, run.err);
    };
    refused(&["-O", "vhdx", "far.vmx", "new"], 77, "--allow-dir");
    refused(&["-O", "vhdx", ".", "."], 64, "a folder of their own");
    refused(&["-O", "raw", ".", "new"], 1, "only a whole disk can become raw");
    refused(&["-O", "vhdx", ".", "nowhere"], 1, "mkdir nowhere");
    refused(&["-O", "vhdx", "new", "."], 1, "no image that is known as one");
    fs::write(folder.file("new/head.vhdx"), "somebody else's").unwrap();
    refused(&["-O", "vhdx", ".", "new"], 1, "choose another folder");
    assert_eq!(
        fs::read_dir(folder.file("new"))
            .unwrap()
            .filter(|entry| { entry.as_ref().unwrap().file_name() != ".dchain" })
            .count(),
        1
    );
}

/// VMware's linked clone: its first disk lies on a snapshot of another machine's.
#[test]
fn a_linked_clone_is_taken_by_its_vmx_with_what_it_lies_on() {
    let folder = Scratch::in_memory();
    let at = folder.path();
    for name in ["base", "clone", "new", "stated"] {
        fs::create_dir(folder.file(name)).unwrap();
    }
    done(&at, &["create", "-q", "-f", "vmdk", "base/base.vmdk", "4M"]);
    let child = ["create", "-q", "-f", "vmdk", "-b", "base/base.vmdk", "-F", "vmdk", "clone/clone.vmdk"];
    done(&at, &[&child[..], &["--allow-dir", "base"]].concat());
    fs::write(folder.file("clone/clone.vmx"), "scsi0:0.fileName = \"clone.vmdk\"\n").unwrap();
    let arguments = ["convert", "--chain", "-O", "qcow2"];
    let run = dchain(&at, &[&arguments[..], &["clone/clone.vmx", "new"]].concat());
    assert!(run.code == Some(77) && run.err.contains("--allow-dir"), "{}", run.err);
    let arguments = [&arguments[..], &["--allow-dir", "base"]].concat();
    done(&at, &[&arguments[..], &["clone/clone.vmx", "new"]].concat());
    done(&at, &[&arguments[..], &["-f", "vmdk", "clone/clone.vmx", "stated"]].concat());
    for made in ["new", "stated"] {
        let info = done(&at, &["info", "--output", "json", &format!("{made}/clone.qcow2")]);
        assert!(info.out.contains("base.qcow2"), "{}", info.out);
    }
}

#[test]
fn a_machine_s_file_is_no_disk_unless_it_is_stated_to_be_one() {
    let folder = build();
    let at = folder.path();
    fs::write(folder.file("vm.vmsd"), "snapshot0.disk0.fileName = \"head.qcow2\"\n").unwrap();
    for source in ["vm.vmx", "vm.vmsd"] {
        for (format, target) in [("qcow2", "x.qcow2"), ("ova", "x.ova")] {
            let run = dchain(&at, &["convert", "-O", format, source, target]);
            assert!(run.code == Some(64) && run.err.contains("--chain"), "{}", run.err);
            assert!(!folder.file(target).exists());
        }
    }
    done(&at, &["convert", "-q", "-f", "raw", "-O", "qcow2", "vm.vmx", "x.qcow2"]);
    fs::rename(folder.file("head.qcow2"), folder.file("odd.vmx")).unwrap();
    done(&at, &["convert", "-q", "-O", "qcow2", "odd.vmx", "y.qcow2"]);
}

#[test]
fn a_link_out_of_a_folder_is_followed_only_where_that_is_allowed() {
    let folder = build();
    let at = folder.path();
    fs::create_dir(folder.file("few")).unwrap();
    std::os::unix::fs::symlink("../base.qcow2", folder.file("few/linked.qcow2")).unwrap();
    let arguments = ["convert", "--chain", "-O", "vhdx", "few", "new"];
    let run = dchain(&at, &arguments);
    assert!(run.code == Some(77) && run.err.contains("--allow-dir"), "{:?} {}", run.code, run.err);
    done(&at, &[&arguments[..], &["--allow-dir", "."]].concat());
}
