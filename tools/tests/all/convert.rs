//! `dchain convert`: what it makes is what qemu-img sees in the source.

use super::{
    dchain::{command, dchain, done, qemu},
    foreign::{Scratch, assert_same},
};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::{TempDir, tempdir};

/// A chain of three layers with small and large writes, zeros and compressed clusters.
fn chain() -> TempDir {
    let folder = tempdir().unwrap();
    let at = folder.path();
    qemu(at, "qemu-img", &["create", "-q", "-f", "raw", "base.raw", "4M"]);
    let write = |format: &str, image: &str, commands: &[&str]| {
        let commands = commands.iter().flat_map(|c| ["-c", c]);
        qemu(at, "qemu-io", &["-f", format].into_iter().chain(commands).chain([image]).collect::<Vec<_>>());
    };
    write("raw", "base.raw", &["write -P 1 0 3M", "write -P 2 3500k 4k"]);
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2", "6M"]);
    write("qcow2", "mid.qcow2", &["write -P 3 100k 700k", "write -z 1M 300k", "write -c -P 4 2M 64k"]);
    qemu(
        at,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", "5M"],
    );
    write(
        "qcow2",
        "top.qcow2",
        &["write -P 5 1k 1k", "write -P 6 1100k 3k", "write -z 2M 32k", "write -P 7 4900k 64k"],
    );
    folder
}

fn check(folder: &Path, format: &str, image: &str) {
    qemu(folder, "qemu-img", &["compare", "-f", "qcow2", "-F", format, "top.qcow2", image]);
    if format == "qcow2" {
        qemu(folder, "qemu-img", &["check", "-q", "-f", "qcow2", image]);
    }
}

#[test]
fn a_chain_becomes_one_image_in_any_shape() {
    let folder = chain();
    let at = folder.path();
    let shapes: &[&[&str]] = &[
        &["-O", "raw"],
        &["-O", "qcow2"],
        &["-O", "qcow2", "-o", "compat=0.10"],
        &["-O", "qcow2", "-o", "cluster_size=512,refcount_bits=1"],
        &["-O", "qcow2", "-o", "cluster_size=2M"],
        &["-O", "qcow2", "-o", "extended_l2=on"],
        &["-O", "qcow2", "-o", "preallocation=metadata"],
        &["-O", "qcow2", "-o", "lazy_refcounts=on"],
        &["-O", "qcow2", "-c"],
        &["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
        &["-O", "qcow2", "-c", "-o", "cluster_size=4k"],
    ];
    for (n, shape) in shapes.iter().enumerate() {
        let name = format!("new{n}");
        let json =
            done(at, &[&["convert", "--output", "json"], *shape, &["top.qcow2", &name]].concat()).json();
        assert_eq!((&json["size"], &json["schema"]), (&(5 << 20).into(), &1.into()), "{shape:?}");
        check(at, shape[1], &name);
    }
    let names = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.filter(|name| name != ".dchain").count(), 3 + shapes.len(), "no drafts are left");
}

#[test]
fn an_image_that_is_there_is_filled_only_when_asked() {
    let folder = chain();
    let at = folder.path();
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "old.qcow2", "5M"]);
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -P 9 0 5M", "old.qcow2"]);
    let run = dchain(at, &["convert", "-O", "qcow2", "top.qcow2", "old.qcow2"]);
    assert_eq!((run.code, run.err.contains("old.qcow2: is there already")), (Some(1), true), "{}", run.err);
    let filling = ["convert", "-O", "qcow2", "--no-create", "top.qcow2", "old.qcow2"];
    let run = dchain(at, &filling);
    assert_eq!((run.code, run.err.contains("5 MiB that it holds are lost")), (Some(64), true), "{}", run.err);
    let plan = done(at, &[&filling[..], &["-n", "--output", "json"]].concat()).json();
    assert_eq!(plan["given-up-bytes"], 5 << 20);
    // A person who says no has not had it done.
    let shell = format!("{} {}", env!("CARGO_BIN_EXE_dchain"), filling.join(" "));
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &shell, "/dev/null"]).current_dir(at).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut person = terminal.spawn().unwrap();
    person.stdin.take().unwrap().write_all(b"n\n").unwrap();
    let declined = person.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&declined.stdout);
    assert_eq!((declined.status.code(), shown.contains("dchain: not done")), (Some(1), true), "{shown}");
    done(at, &[&filling[..], &["--yes"]].concat());
    check(at, "qcow2", "old.qcow2");
}

#[test]
fn what_others_need_and_what_is_something_else_is_never_filled() {
    let folder = chain();
    let at = folder.path();
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "new.qcow2", "5M"]);
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "far.qcow2", "5M"]);
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "parent.qcow2", "5M"]);
    done(at, &["snapshot", "parent.qcow2", "child.qcow2"]);
    let cases = [
        ("qcow2", "parent.qcow2", 69, "child.qcow2 lies on it"),
        ("raw", "data.raw", 69, "far.qcow2 keeps its bytes in it"),
        ("raw", "base.raw", 69, "is what this command reads"),
        ("raw", "new.qcow2", 64, "is a qcow2 image"),
        ("qcow2", "data.raw", 64, "is a raw image"),
    ];
    for (format, target, code, why) in cases {
        let before = fs::read(at.join(target)).unwrap();
        let run = dchain(at, &["convert", "-O", format, "--no-create", "--yes", "top.qcow2", target]);
        assert_eq!((run.code, run.err.contains(why)), (Some(code), true), "{target}: {}", run.err);
        assert!(fs::read(at.join(target)).unwrap() == before, "{target}");
    }
    // Its bytes are in another file, and others may need those.
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "data.raw", "-F", "raw", "on-data.qcow2"]);
    let on = |source, more: &[&str]| {
        let run = dchain(
            at,
            &[&["convert", "-O", "qcow2", "--no-create", "--yes"], more, &[source, "far.qcow2"]].concat(),
        );
        assert_eq!(run.code, Some(69), "{}", run.err);
        run.err
    };
    assert!(on("top.qcow2", &[]).contains("on-data.qcow2 lies on its data"));
    assert_eq!(dchain(at, &["resize", "--yes", "far.qcow2", "1M"]).code, Some(69));
    assert!(on("data.raw", &["-U", "-f", "raw"]).contains("is what this command reads"));
    // Where nothing is lost, nothing is asked.
    done(at, &["bitmap", "--add", "new.qcow2", "b"]);
    let run = done(at, &["convert", "-O", "qcow2", "--no-create", "top.qcow2", "new.qcow2"]);
    assert!(run.err.contains("'b' is marked as in use"), "{}", run.err);
    check(at, "qcow2", "new.qcow2");
}

#[test]
fn a_data_file_that_is_there_stays_as_it_is_and_one_that_was_made_goes_with_a_failure() {
    let folder = chain();
    let at = folder.path();
    fs::write(at.join("precious"), b"precious").unwrap();
    std::os::unix::fs::symlink("elsewhere", at.join("link")).unwrap();
    for data in ["precious", "link"] {
        let option = format!("data_file={data}");
        for command in [
            &["create", "-f", "qcow2", "-o", &option, "new.qcow2", "1M"][..],
            &["convert", "-O", "qcow2", "-o", &option, "top.qcow2", "new.qcow2"],
        ] {
            let run = dchain(at, command);
            let why = format!("{data}: is there already");
            assert_eq!((run.code, run.err.contains(&why)), (Some(1), true), "{}", run.err);
        }
    }
    assert_eq!(fs::read(at.join("precious")).unwrap(), b"precious");
    assert!(!at.join("elsewhere").exists() && !at.join("new.qcow2").exists());
    // Its own name for its data: that file was made, and goes.
    let run = dchain(at, &["create", "-f", "qcow2", "-o", "data_file=new.qcow2", "new.qcow2", "1M"]);
    assert_eq!((run.code, at.join("new.qcow2").exists()), (Some(1), false), "{}", run.err);
    done(at, &["create", "-f", "qcow2", "-o", "data_file=data", "new.qcow2", "1M"]);
    assert_eq!(fs::metadata(at.join("data")).unwrap().len(), 1 << 20);
}

#[test]
fn golden_images_come_out_as_their_birth_certificates_say() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let folder = tempdir().unwrap();
    let mut images = 0;
    for format in ["raw", "qcow2", "vhdx", "vpc", "vmdk"] {
        fs::create_dir(folder.path().join(format)).unwrap();
        for entry in fs::read_dir(testdata.join(format)).unwrap() {
            let name = PathBuf::from(format).join(entry.unwrap().file_name());
            fs::copy(testdata.join(&name), folder.path().join(&name)).unwrap();
        }
    }
    for format in ["raw", "qcow2", "vhdx", "vpc", "vmdk"] {
        for birth in fs::read_to_string(testdata.join(format).join("births.tsv")).unwrap().lines() {
            let fields: Vec<&str> = birth.split('\t').collect();
            let image = folder.path().join(format).join(fields[0]);
            let suffix = image.extension().and_then(|e| e.to_str());
            let kind = suffix.filter(|e| ["qcow2", "vhdx", "vhd", "vmdk"].contains(e)).unwrap_or("raw");
            let view = folder.path().join("view");
            let arguments = ["convert", "-f", kind, "-O", "raw", "--allow-dir", "."];
            let places = [image.to_str().unwrap(), view.to_str().unwrap()];
            done(folder.path(), &[&arguments[..], &places].concat());
            let bytes = fs::read(&view).unwrap();
            assert_eq!(bytes.len().to_string(), fields[4], "{}", fields[0]);
            assert_eq!(blake3::hash(&bytes).to_string(), fields[5], "{}", fields[0]);
            fs::remove_file(view).unwrap();
            images += 1;
        }
    }
    assert!(images > 15);
}

#[test]
fn progress_is_told_in_json_lines_and_a_stopped_conversion_leaves_nothing() {
    let folder = chain();
    let at = folder.path();
    let run = done(at, &["convert", "-O", "raw", "--progress=json", "top.qcow2", "new.raw"]);
    let lines: Vec<serde_json::Value> = run.err.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["phase"], &last["transferred"], &last["size"]),
        (&"convert".into(), &(5 << 20).into(), &(5 << 20).into())
    );
    let arguments = ["convert", "-O", "raw", "--rate", "100K", "--progress=json", "top.qcow2", "slow.raw"];
    let mut child = command(at, &arguments).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    // It listens to signals by then.
    assert!(lines.next().unwrap().starts_with('{'));
    let id = child.id().to_string();
    let send = |signal: &str| {
        assert!(std::process::Command::new("kill").args([signal, id.as_str()]).status().unwrap().success());
    };
    send("-USR1");
    let said = lines.find(|line| !line.starts_with('{')).unwrap();
    assert!(said.contains("convert ") && said.contains(" MiB), "), "a line on SIGUSR1: {said}");
    send("-INT");
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!fs::read_dir(at).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().contains("slow")));
}

/// A raw base, a delta with other clusters and zeros, a shorter one on it.
fn layered(folder: &Scratch) {
    folder.qemu_img("create -q -f raw base.raw 6M");
    folder.qemu_io("raw", "base.raw", &["write -q -P 1 0 5M"]);
    folder.qemu_img("create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw one.img 6M");
    folder.qemu_io(
        "qcow2",
        "one.img",
        &["write -q -P 2 1M 1000k", "write -q -z 3M 333k", "write -q -P 3 5k 3k"],
    );
    folder.qemu_img("create -q -f qcow2 -o cluster_size=64k -b one.img -F qcow2 two.qcow2 5M");
    folder.qemu_io("qcow2", "two.qcow2", &["write -q -P 4 1500k 100k", "write -q -z 100k 30k"]);
}

#[test]
fn a_chain_in_another_format_shows_the_same_at_each_layer() {
    let shapes: [&[&'static str]; 6] = [
        &[],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M,refcount_bits=1"],
        &["-o", "compat=0.10,cluster_size=4k"],
        &["-o", "extended_l2=on,cluster_size=64k"],
        &["-c", "-o", "compression_type=zstd"],
    ];
    for shape in shapes {
        let folder = Scratch::in_memory();
        let here = folder.path();
        layered(&folder);
        std::fs::create_dir(folder.file("new")).unwrap();
        let command = [&["convert", "--chain", "-O", "qcow2"], shape].concat();
        let with = |more: &[&'static str]| [&command[..], more, &["two.qcow2", "new"]].concat();
        let plan = done(&here, &with(&["--dry-run", "--output", "json"])).json();
        let to =
            |at: usize| plan["layers"][at]["to"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        assert_eq!([to(0), to(1), to(2)], ["two.qcow2", "one.img", "base.qcow2"]);
        assert!(std::fs::read_dir(folder.file("new")).unwrap().next().is_none());
        let ids = done(&here, &with(&["--output", "json"])).json()["proved"].clone();
        let old = [("raw", "base.raw"), ("qcow2", "one.img"), ("qcow2", "two.qcow2")];
        for (at, (format, name)) in old.into_iter().enumerate() {
            let new = ["new/base.qcow2", "new/one.img", "new/two.qcow2"][at];
            folder.qemu_img(&format!("check -q {new}"));
            assert_same(&folder.flat("qcow2", new), &folder.flat(format, name), &format!("{new} {shape:?}"));
            let shown = done(&here, &["id", "seal", "--output", "json", "-f", format, name]).json();
            assert!(shown.to_string().contains(ids[at]["id"].as_str().unwrap()), "{shown} {ids}");
        }
        let info = folder.qemu_img("info --output json --backing-chain new/two.qcow2");
        assert_eq!(info.matches("\"format\": \"qcow2\"").count(), 3, "{info}");
    }
}

#[test]
fn layers_that_cannot_be_raw_are_named_and_a_whole_disk_can() {
    let folder = Scratch::in_memory();
    let here = folder.path();
    layered(&folder);
    std::fs::create_dir(folder.file("new")).unwrap();
    let refused = dchain(&here, &["convert", "--chain", "-O", "raw", "two.qcow2", "new"]);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains("one.img") && refused.err.contains("raw"), "{}", refused.err);
    folder.qemu_img("create -q -f qcow2 whole.qcow2 3M");
    folder.qemu_io("qcow2", "whole.qcow2", &["write -q -P 9 1M 100k"]);
    done(&here, &["convert", "--chain", "-O", "raw", "whole.qcow2", "new"]);
    assert_same(&folder.flat("raw", "new/whole.raw"), &folder.flat("qcow2", "whole.qcow2"), "raw");
    let again = dchain(&here, &["convert", "--chain", "-O", "raw", "whole.qcow2", "new"]);
    assert!(again.code == Some(0) && again.err.contains("there already"), "{}", again.err);
}
