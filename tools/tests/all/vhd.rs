//! VHD beside other programs: what they made is read right, and what is made here they read right, as far as they can: of
//! blocks that are held in part, libvhdi (20210425) takes for the child's whatever comes behind a
//! held sector in the same byte of the bitmap, and long reads across runs come out wrong.

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
use std::{fs, sync::Arc};

#[test]
fn flat_images_go_to_qemu_and_back() {
    let folder = Scratch::new();
    let bytes = disk(&folder, 1);
    for (nth, options) in ["subformat=dynamic", "subformat=fixed", "block_size=512k"].iter().enumerate() {
        let ours = format!("ours{nth}.vhd");
        done(&folder.path(), &["convert", "-f", "raw", "-O", "vpc", "-o", options, "disk", &ours]);
        assert_same(&folder.flat("vpc", &ours), &bytes, options);
        assert_same(&folder.by_libvhdi(&[&ours]), &bytes, options);
        assert_same(&by_us(&folder, &ours), &bytes, options);
        done(&folder.path(), &["check", &ours]);
        // qemu goes on where we ended.
        folder.qemu_io("vpc", &ours, &["write -P 7 100k 3M", "write -P 8 4M 1k"]);
        let written = folder.flat("vpc", &ours);
        assert_same(&by_us(&folder, &ours), &written, options);
        done(&folder.path(), &["check", &ours]);
    }
    for options in ["subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on"] {
        folder.qemu_img(&format!("convert -f raw -O vpc -o {options} disk theirs.vhd"));
        let theirs = folder.flat("vpc", "theirs.vhd");
        assert_same(&by_us(&folder, "theirs.vhd"), &theirs, options);
        done(&folder.path(), &["resize", "theirs.vhd", "12M"]);
        let larger = folder.flat("vpc", "theirs.vhd");
        assert_same(&larger[..SIZE], &bytes, options);
        assert!(larger.len() == 12 << 20 && larger[theirs.len()..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn libvhdi_reads_our_children_and_the_child_of_a_stranger_is_refused() {
    let folder = Scratch::new();
    let mut bytes = disk(&folder, 2);
    let at = folder.path();
    done(&at, &["convert", "-f", "raw", "-O", "vpc", "disk", "base.vhd"]);
    for (parent, image, block, seed) in [("base.vhd", "mid.vhd", "2M", 3), ("mid.vhd", "top.vhd", "512k", 4)]
    {
        let block = format!("block_size={block}");
        done(&at, &["create", "-f", "vhd", "-b", parent, "-F", "vhd", "-o", &block, image]);
        let mut random = Seeded::new(seed);
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let chain = Chain::open(&host, &folder.file(image), &Opening::writing()).unwrap();
        for _ in 0..20 {
            // In runs of eight sectors, which libvhdi gets right.
            let place = usize::try_from(random.below(SIZE as u64 / 4096 - 20)).unwrap() * 4096;
            let mut new = vec![0; (1 + usize::try_from(random.below(15)).unwrap()) * 4096];
            if random.chance(3, 4) {
                random.fill(&mut new);
            }
            chain.write(GuestOffset::new(place as u64), &new).unwrap();
            bytes[place..place + new.len()].copy_from_slice(&new);
        }
        chain.flush().unwrap();
    }
    assert_same(&by_us(&folder, "top.vhd"), &bytes, "ours");
    assert_same(&folder.by_libvhdi(&["top.vhd", "mid.vhd", "base.vhd"]), &bytes, "libvhdi");
    let info = done(&at, &["info", "--output", "json", "top.vhd"]).json();
    assert_eq!(info["format-specific"]["data"]["subformat"], "differencing");
    // Another disk under the parent's name.
    done(&at, &["create", "-f", "vpc", "other.vhd", "5M"]);
    fs::rename(folder.file("other.vhd"), folder.file("base.vhd")).unwrap();
    let refused = dchain(&at, &["convert", "-O", "raw", "top.vhd", "out"]);
    assert_eq!(refused.code, Some(77), "{}", refused.err);
}

#[test]
fn chains_of_vhds_fold_to_what_they_showed() {
    let folder = Scratch::new();
    let bytes = disk(&folder, 5);
    let at = folder.path();
    done(&at, &["convert", "-f", "raw", "-O", "vpc", "disk", "vm.vhd"]);
    done(&at, &["create", "-f", "vpc", "-b", "vm.vhd", "-F", "vpc", "head.vhd"]);
    let info = done(&at, &["info", "--output", "json", "head.vhd"]).json();
    assert_eq!((&info["format"], &info["backing-filename-format"]), (&"vpc".into(), &"vpc".into()));
    let before = done(&at, &["id", "seal", "--output", "json", "head.vhd"]).out;
    done(&at, &["consolidate", "head.vhd", "--yes"]);
    assert_same(&by_us(&folder, "head.vhd"), &bytes, &before);
    assert_same(&folder.flat("vpc", "head.vhd"), &bytes, "qemu");
}

#[test]
fn a_raw_disk_that_is_known_as_raw_stays_so_whatever_its_guest_writes_at_its_end() {
    let folder = Scratch::new();
    let at = folder.path();
    done(&at, &["create", "-f", "raw", "vm", "1M"]);
    done(&at, &["create", "-f", "vpc", "-o", "subformat=fixed", "fixed.vhd", "1048064"]);
    fs::copy(folder.file("fixed.vhd"), folder.file("unknown")).unwrap();
    let footer = fs::read(folder.file("fixed.vhd")).unwrap().split_off(1_048_064);
    let known = fs::OpenOptions::new().write(true).open(folder.file("vm")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&known, &footer, 1_048_064).unwrap();
    let format = |name: &str| done(&at, &["info", "--output", "json", name]).json()["format"].clone();
    assert_eq!((format("vm"), format("unknown")), ("raw".into(), "vpc".into()));
}

#[test]
fn qemu_refuses_what_lies_on_a_vhd_that_it_would_misread() {
    let folder = Scratch::new();
    let at = folder.path();
    for (parent, child) in [("", "base.vhd"), ("base.vhd", "mid.vhd")] {
        let size = if parent.is_empty() { &["5M"][..] } else { &[] };
        let below = if parent.is_empty() { &[][..] } else { &["-b", parent, "-F", "vpc"] };
        done(&at, &[&["create", "-f", "vpc"][..], below, &[child], size].concat());
    }
    for (parent, name) in [("base.vhd", "fine.qcow2"), ("mid.vhd", "kept.qcow2")] {
        done(&at, &["create", "-f", "qcow2", "-b", parent, "-F", "vpc", name]);
        done(&at, &["info", name]);
    }
    folder.qemu_img("info fine.qcow2");
    let refused = folder.try_run("qemu-img", ["info", "kept.qcow2"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("differencing VHD below"), "{said}");
    let v2 = ["create", "-f", "qcow2", "-o", "compat=0.10", "-b", "mid.vhd", "-F", "vpc", "v2.qcow2"];
    assert!(dchain(&at, &v2).err.contains("compat=1.1"));
    // Once it lies on another one, it is qemu's again.
    done(&at, &["rebase", "-b", "base.vhd", "-F", "vpc", "kept.qcow2"]);
    folder.qemu_img("info kept.qcow2");
}
