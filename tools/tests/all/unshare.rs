//! Disks that stop sharing layers show what they showed, says qemu.

use crate::{
    dchain::{dchain, done},
    foreign::{Scratch, assert_same},
};

#[test]
fn cid_11_clones_of_a_golden_image_stand_alone_one_after_the_other() {
    let folder = Scratch::in_memory();
    let here = folder.path();
    folder.qemu_img("create -q -f qcow2 golden 4M");
    folder.qemu_io("qcow2", "golden", &["write -q -P 1 0 2M", "write -q -z 512k 200k"]);
    for clone in ["one", "two"] {
        done(&here, &["snapshot", "golden", clone]);
        folder.qemu_io("qcow2", clone, &["write -q -P 2 300k 100k", "discard -q 1M 64k"]);
    }
    done(&here, &["snapshot", "one", "head"]);
    folder.qemu_io("qcow2", "head", &["write -q -P 3 3M 50k"]);
    let before = ["one", "head", "two"].map(|image| folder.flat("qcow2", image));
    let plan = done(&here, &["unshare", "-n", "--output", "json", "head"]).json();
    assert_eq!(plan["base"], folder.file("one").to_str().unwrap());
    let said = done(&here, &["unshare", "head"]);
    assert!(said.out.contains("one stands alone; verified: bytes"), "{}", said.out);
    for (image, before) in ["one", "head", "two"].into_iter().zip(&before) {
        assert_same(&folder.flat("qcow2", image), before, image);
        folder.qemu_img(&format!("check -q -f qcow2 {image}"));
    }
    assert!(done(&here, &["unshare", "head"]).out.contains("Nothing of it is shared."));
    // Nobody else lies on the golden image now: it is the other clone's own.
    assert!(done(&here, &["unshare", "two"]).out.contains("Nothing of it is shared."));
    done(&here, &["rm", "--yes", "two", "golden"]);
    assert_same(&folder.flat("qcow2", "head"), &before[1], "without the golden image");
}

/// What a snapshot inside an image lacks it reads from the image's parent.
#[test]
fn an_image_with_internal_snapshots_stays_on_its_parent() {
    let folder = Scratch::in_memory();
    let here = folder.path();
    folder.qemu_img("create -q -f qcow2 golden 4M");
    folder.qemu_io("qcow2", "golden", &["write -q -P 1 0 2M"]);
    for clone in ["one", "two"] {
        done(&here, &["snapshot", "golden", clone]);
    }
    folder.qemu_img("snapshot -q -c before one");
    folder.qemu_io("qcow2", "one", &["write -q -P 2 300k 100k"]);
    for command in [&["unshare", "one"][..], &["rebase", "-b", "", "one"]] {
        let refused = dchain(&here, command);
        assert_eq!(refused.code, Some(1), "{}{}", refused.out, refused.err);
        assert!(refused.err.contains("one: has the internal snapshot 'before'"), "{}", refused.err);
    }
    folder.qemu_img("snapshot -q -a before one");
    assert_same(&folder.flat("qcow2", "one"), &folder.flat("qcow2", "golden"), "the snapshot");
}
