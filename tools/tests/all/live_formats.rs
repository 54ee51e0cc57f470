//! Disks whose layers are of other formats than qcow2, served: folds under a client that writes, snapshots, going back.

use super::{
    control::{MIB, answer, ask, start_fold, wait_for_bytes},
    daemon::Daemon,
    dchain::done,
    foreign::{Scratch, assert_same},
};
use deltachain::{
    base::{seed::Seeded, units::index},
    format::Format,
};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    process::{Child, Command, Stdio},
};

const DISK: usize = 12 * MIB;

/// Draws writes and zeros, as commands of qemu-io; `disk` is what it shows after them.
fn script(seed: u64, count: u64, disk: &mut [u8]) -> String {
    let (mut random, mut script) = (Seeded::new(seed), String::new());
    for _ in 0..count {
        let at = index(random.below(DISK as u64 / 512 - 200)) * 512;
        let length = (1 + index(random.below(199))) * 512;
        let byte = u8::try_from(random.below(4)).unwrap() * 60;
        let how = if byte == 0 { "-z".to_owned() } else { format!("-P {byte}") };
        writeln!(script, "write -q {how} {at} {length}").unwrap();
        disk[at..at + length].fill(byte);
    }
    script
}

/// A client that does all of that, one after the other.
fn client(folder: &Scratch, daemon: &Daemon, script: &str) -> Child {
    let mut command = Command::new("qemu-io");
    command.current_dir(folder.path()).args(["-f", "raw", &daemon.uri("vm")]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    child
}

fn folds_into(base: Format) {
    let folder = Scratch::new();
    let at = folder.path();
    let mut disk = vec![0; DISK];
    Seeded::new(7).fill(&mut disk[MIB..5 * MIB]);
    fs::write(folder.file("disk"), &disk).unwrap();
    done(&at, &["convert", "-q", "-f", "raw", "-O", base.name(), "disk", "base"]);
    done(&at, &["create", "-q", "-f", "qcow2", "-b", "base", "-F", base.name(), "top"]);
    let daemon = Daemon::start_with(&folder, &["vm=top"], &["--control", "unix:c", "--state", "state"]);
    assert!(client(&folder, &daemon, &script(1, 90, &mut disk)).wait().unwrap().success());
    let id = start_fold(&folder);
    wait_for_bytes(&folder, id);
    let mut writer = client(&folder, &daemon, &script(2, 300, &mut disk));
    answer(&folder, &format!("job speed {id} 512K"));
    assert!(writer.wait().unwrap().success());
    // It may be over by now.
    ask(&folder, &format!("job speed {id} 0"));
    let job = answer(&folder, &format!("job wait {id}"));
    assert_eq!((job["state"].as_str(), &job["error"]), (Some("concluded"), &Value::Null), "{base}");
    assert!(job["report"]["mirrored-bytes"].as_u64() > Some(0), "{base}: {job}");
    assert!(client(&folder, &daemon, &script(3, 20, &mut disk)).wait().unwrap().success());
    folder.qemu_img(&format!("convert -f raw -O raw {} served", daemon.uri("vm")));
    assert_same(&fs::read(folder.file("served")).unwrap(), &disk, base.name());
    let shown = answer(&folder, "disk show vm");
    let head = shown["path"].as_str().unwrap().to_owned();
    assert!(daemon.stop().0.success());
    done(&at, &["convert", "-q", "-O", "raw", &head, "folded"]);
    assert_same(&fs::read(folder.file("folded")).unwrap(), &disk, base.name());
    // The base has it all, and what may be above it holds what was written since.
    let layers = shown["layers"].as_array().unwrap();
    assert!(layers.len() == if base == Format::Qcow2 { 1 } else { 2 }, "{shown}");
    for (nth, format) in [(0, Format::Qcow2), (1, base)].into_iter().take(layers.len()) {
        if format != Format::Raw {
            let path = layers[nth]["path"]
                .as_str()
                .or(layers[nth]["filename"].as_str())
                .unwrap_or_else(|| panic!("{shown}"));
            done(&at, &["check", "-f", format.name(), path]);
            // qemu knows no check of a VHD.
            if format != Format::Vpc {
                folder.qemu_img(&format!("check -q -f {format} {path}"));
            }
        }
    }
}

#[test]
fn a_qcow2_head_is_folded_under_a_client_into_a_base_of_every_format() {
    std::thread::scope(|scope| {
        for base in Format::ALL {
            scope.spawn(move || folds_into(base));
        }
    });
}

/// A disk whose layers are all of one format: two snapshots, each followed by writes, a fold, and back to what stands below.
fn has_heads_of(format: Format) {
    let folder = Scratch::new();
    let (at, name) = (folder.path(), format.name());
    let mut disk = vec![0; DISK];
    Seeded::new(9).fill(&mut disk[MIB..3 * MIB]);
    fs::write(folder.file("disk"), &disk).unwrap();
    let suffix = format.suffixes()[0];
    let base = format!("base.{suffix}");
    done(&at, &["convert", "-q", "-f", "raw", "-O", name, "disk", &base]);
    let daemon =
        Daemon::start_with(&folder, &[&format!("vm={base}")], &["--control", "unix:c", "--state", "state"]);
    let head = || answer(&folder, "disk show vm")["path"].as_str().unwrap().to_owned();
    answer(&folder, &format!("snapshot --disk vm=one.{suffix} -O {name}"));
    assert!(client(&folder, &daemon, &script(4, 60, &mut disk)).wait().unwrap().success());
    let one = disk.clone();
    answer(&folder, &format!("snapshot --disk vm -O {name}"));
    assert!(head().ends_with(&format!(".{suffix}")), "{}", head());
    assert!(client(&folder, &daemon, &script(5, 60, &mut disk)).wait().unwrap().success());
    folder.qemu_img(&format!("convert -f raw -O raw {} served", daemon.uri("vm")));
    assert_same(&fs::read(folder.file("served")).unwrap(), &disk, name);
    let layers = answer(&folder, "disk show vm")["layers"].clone();
    let formats: Vec<_> = layers.as_array().unwrap().iter().map(|layer| layer["format"].clone()).collect();
    assert_eq!(formats, [name; 3], "{layers}");
    answer(&folder, &format!("revert --disk vm --force --yes one.{suffix}"));
    folder.qemu_img(&format!("convert -f raw -O raw {} served", daemon.uri("vm")));
    assert_same(&fs::read(folder.file("served")).unwrap(), &one, name);
    let mut disk = one;
    assert!(client(&folder, &daemon, &script(6, 60, &mut disk)).wait().unwrap().success());
    let job = answer(&folder, "consolidate --disk vm --yes");
    assert_eq!(job["state"], "concluded", "{job}");
    folder.qemu_img(&format!("convert -f raw -O raw {} served", daemon.uri("vm")));
    assert_same(&fs::read(folder.file("served")).unwrap(), &disk, name);
    let last = head();
    assert!(daemon.stop().0.success());
    done(&at, &["convert", "-q", "-O", "raw", &last, "left"]);
    assert_same(&fs::read(folder.file("left")).unwrap(), &disk, name);
    done(&at, &["check", "-f", name, &last]);
}

#[test]
fn a_disk_keeps_its_format_through_snapshots_a_revert_and_a_fold() {
    std::thread::scope(|scope| {
        for format in [Format::Qcow2, Format::Vhdx, Format::Vpc, Format::Vmdk] {
            scope.spawn(move || has_heads_of(format));
        }
    });
}
