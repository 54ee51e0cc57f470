//! Images that nobody needs go; those that somebody needs do not, wherever that is.

use crate::{
    daemon::Daemon,
    dchain::{dchain, done},
    foreign::Scratch,
};
use std::fs;

fn chain() -> Scratch {
    let folder = Scratch::in_memory();
    folder.qemu_img("create -q -f qcow2 base 1M");
    for (below, above) in [("base", "top"), ("base", "other")] {
        done(&folder.path(), &["snapshot", below, above]);
    }
    folder
}

fn why_not(folder: &Scratch, images: &[&str]) -> String {
    let run = dchain(&folder.path(), &[&["rm", "--yes"], images].concat());
    assert_eq!(run.code, Some(69), "{}{}", run.out, run.err);
    run.err
}

#[test]
fn images_go_with_what_is_known_of_them_and_their_parent_once_nobody_lies_on_it() {
    let folder = chain();
    let here = folder.path();
    assert!(why_not(&folder, &["base"]).contains("lies on it"));
    let plan = done(&here, &["rm", "-n", "--output", "json", "top", "base", "other"]).json();
    assert_eq!(plan["removed"].as_array().unwrap().len(), 3);
    assert_eq!(plan["removed"][2], folder.file("base").to_str().unwrap());
    // Without a terminal nobody can be asked.
    assert_eq!(dchain(&here, &["rm", "top"]).code, Some(64));
    assert!(folder.file("top").exists());
    done(&here, &["rm", "--yes", "top"]);
    done(&here, &["rm", "--yes", "base", "other"]);
    let left: Vec<_> = fs::read_dir(&here).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".dchain"]);
    assert_eq!(fs::read_dir(here.join(".dchain/notes")).unwrap().count(), 0);
}

#[test]
fn what_is_needed_elsewhere_or_in_use_stays() {
    let folder = chain();
    let here = folder.path();
    fs::create_dir(here.join("clones")).unwrap();
    done(&here, &["--quiet", "rm", "--yes", "top", "other"]);
    done(&here, &["create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "--allow-dir", ".", "clones/far"]);
    assert!(why_not(&folder, &["base"]).contains("clones/far lies on it"));
    std::os::unix::fs::symlink("clones/far", here.join("link")).unwrap();
    let linked = dchain(&here, &["rm", "--yes", "link"]);
    assert!(linked.code == Some(64) && linked.err.contains("is a link"), "{}", linked.err);
    done(&here, &["rm", "--yes", "clones/far"]);
    done(&here, &["snapshot", "base", "top"]);
    let daemon = Daemon::start(&folder, &["vm=top"]);
    assert!(why_not(&folder, &["top"]).contains("dchaind (pid "));
    let tree = done(&here, &["tree"]).out;
    let base = tree.lines().find(|line| line.starts_with("base")).unwrap();
    assert!(base.contains(", in use by dchaind (pid ") && base.contains(": disk 'vm'"), "{tree}");
    drop(daemon);
    // Its owner was killed: the lease holds nobody up.
    done(&here, &["rm", "--yes", "base", "top"]);
}
