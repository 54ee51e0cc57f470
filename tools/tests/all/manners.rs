//! The manners that all commands share: exit codes, JSON, stdout and stderr, references, locks, plans.

use super::dchain::{Run, command, dchain, done, qemu};
use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
};
use tempfile::{TempDir, tempdir};

/// A folder with `base.qcow2`, a delta `head.qcow2` on it, and `disk.raw`.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    let at = folder.path();
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]);
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 64k", "base.qcow2"]);
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "head.qcow2"]);
    fs::write(at.join("disk.raw"), vec![7; 4096]).unwrap();
    folder
}

fn breaks_with(run: &Run, code: i32, text: &[&str]) {
    assert_eq!(run.code, Some(code), "{}{}", run.out, run.err);
    assert_eq!(run.out, "", "nothing but the answer on stdout");
    for part in text {
        assert!(run.err.contains(part), "'{part}' is not in: {}", run.err);
    }
}

#[test]
fn usage_errors_end_with_64_and_help_with_0() {
    let here = Path::new(".");
    for arguments in [&["info"][..], &["nonsense"], &[], &["info", "--no-such-option", "x"], &["-f"]] {
        assert_eq!(dchain(here, arguments).code, Some(64), "{arguments:?}");
    }
    for arguments in
        [&["--help"][..], &["--version"], &["help", "info"], &["create", "-o", "help", "-f", "qcow2"]]
    {
        let run = done(here, arguments);
        assert!(!run.out.is_empty() && run.err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn an_error_names_the_file_and_what_is_wrong() {
    let folder = folder();
    breaks_with(&dchain(folder.path(), &["info", "nowhere.qcow2"]), 1, &["dchain: nowhere.qcow2: "]);
    let mut bytes = fs::read(folder.path().join("base.qcow2")).unwrap();
    bytes[20..24].copy_from_slice(&63_u32.to_be_bytes());
    fs::write(folder.path().join("bad.qcow2"), bytes).unwrap();
    let run = dchain(folder.path(), &["info", "bad.qcow2"]);
    breaks_with(&run, 65, &["dchain: bad.qcow2: ", "cluster", "63", "\nhint: dchain check bad.qcow2"]);
}

#[test]
fn qemu_m14_without_its_parent_an_image_is_described_and_checked_but_nothing_is_made_of_it() {
    let folder = folder();
    let at = folder.path();
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "other.qcow2", "1M"]);
    fs::remove_file(at.join("base.qcow2")).unwrap();
    let before = fs::read(at.join("head.qcow2")).unwrap();
    // Its own metadata can be judged without the parent.
    for arguments in [&["info", "head.qcow2"][..], &["check", "head.qcow2"]] {
        done(at, arguments);
    }
    let missing = ["head.qcow2: ", "its parent is missing", "base.qcow2", "hint: dchain relink"];
    let cases: [(&[&str], i32); 6] = [
        (&["info", "--backing-chain", "head.qcow2"], 1),
        (&["map", "head.qcow2"], 1),
        (&["compare", "head.qcow2", "other.qcow2"], 2),
        (&["compare", "other.qcow2", "head.qcow2"], 2),
        (&["rebase", "-b", "other.qcow2", "-F", "qcow2", "head.qcow2"], 1),
        (&["convert", "-O", "raw", "head.qcow2", "flat.raw"], 1),
    ];
    for (arguments, code) in cases {
        breaks_with(&dchain(at, arguments), code, &missing);
    }
    let guessed = dchain(at, &["rebase", "-b", "other.qcow2", "head.qcow2"]);
    breaks_with(&guessed, 64, &["a parent's format is never guessed", "hint: -F"]);
    breaks_with(&dchain(at, &["check", "-f", "raw", "head.qcow2"]), 63, &["no metadata to check"]);
    assert!(fs::read(at.join("head.qcow2")).unwrap() == before && !at.join("flat.raw").exists());
}

#[test]
fn a_missing_parent_is_named_with_what_helps() {
    let folder = folder();
    fs::remove_file(folder.path().join("base.qcow2")).unwrap();
    // The image itself is there: info shows it, as qemu-img does.
    done(folder.path(), &["info", "head.qcow2"]);
    let run = dchain(folder.path(), &["info", "--backing-chain", "head.qcow2"]);
    breaks_with(&run, 1, &["head.qcow2: ", "base.qcow2", "parent", "hint: dchain relink"]);
}

#[test]
fn every_command_answers_in_json_with_its_schema() {
    let folder = folder();
    let answers: &[&[&str]] = &[
        &["info", "head.qcow2"],
        &["info", "--backing-chain", "head.qcow2"],
        &["map", "head.qcow2"],
        &["map", "disk.raw"],
        &["compare", "-f", "qcow2", "head.qcow2", "base.qcow2"],
        &["check", "head.qcow2"],
        &["measure", "-O", "qcow2", "head.qcow2"],
        &["diff", "head.qcow2", "disk.raw"],
        &["id", "show", "head.qcow2"],
        &["convert", "-O", "qcow2", "head.qcow2", "flat.qcow2"],
        &["create", "-f", "raw", "new.raw", "1M"],
        &["create", "-o", "help"],
        &["resize", "-n", "disk.raw", "+1M"],
        &["completions", "bash"],
        &["man", "pages"],
    ];
    for arguments in answers {
        let run = done(folder.path(), &[arguments, &["--output", "json"][..]].concat());
        let json = run.json();
        let entries = json.as_array().cloned().unwrap_or_else(|| vec![json]);
        assert!(!entries.is_empty(), "{arguments:?}");
        for entry in entries {
            assert_eq!(entry["schema"], 1, "{arguments:?}: {entry}");
        }
        assert_eq!(run.err, "", "{arguments:?}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let folder = folder();
    for arguments in [&["info", "head.qcow2"][..], &["map", "--output", "json", "head.qcow2"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let run = Run::from(command(folder.path(), arguments).stdout(writer).output().unwrap());
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn a_full_stdout_is_a_failure() {
    let folder = folder();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(folder.path(), &["info", "head.qcow2"]).stdout(full).output().unwrap();
    assert_eq!(Run::from(output).code, Some(73));
}

#[test]
fn a_reference_that_leads_out_is_refused_with_the_flag_that_helps() {
    let folder = folder();
    let at = folder.path();
    fs::create_dir(at.join("vm")).unwrap();
    let make = ["create", "-q", "-f", "qcow2", "-b", "../base.qcow2", "-F", "qcow2", "vm/out.qcow2"];
    qemu(at, "qemu-img", &make);
    let run = dchain(at, &["map", "-f", "qcow2", "vm/out.qcow2"]);
    breaks_with(&run, 77, &["out.qcow2: ", "../base.qcow2", "hint: --allow-dir "]);
    let place = fs::canonicalize(at).unwrap();
    done(at, &["map", "-f", "qcow2", "--allow-dir", place.to_str().unwrap(), "vm/out.qcow2"]);
    // The environment allows it, too, but only for an image whose format was stated.
    let allowed = |arguments: &[&str]| {
        Run::from(command(at, arguments).env("DCHAIN_ALLOW_DIRS", &place).output().unwrap())
    };
    assert_eq!(allowed(&["map", "-f", "qcow2", "vm/out.qcow2"]).code, Some(0));
    assert_eq!(allowed(&["map", "vm/out.qcow2"]).code, Some(77));
}

#[test]
fn a_chain_deeper_than_allowed_is_refused() {
    let folder = folder();
    let run = dchain(folder.path(), &["map", "--max-depth", "1", "head.qcow2"]);
    breaks_with(&run, 77, &["head.qcow2: ", "more than 1"]);
}

#[test]
fn an_image_in_use_is_refused_unless_shared() {
    let folder = folder();
    let mut writer = Command::new("qemu-io")
        .args(["-f", "qcow2", "head.qcow2"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The prompt shows that the image is open.
    writer.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    let run = dchain(folder.path(), &["info", "head.qcow2"]);
    let shared = dchain(folder.path(), &["info", "-U", "head.qcow2"]);
    drop(writer.stdin.take());
    writer.wait().unwrap();
    breaks_with(&run, 69, &["head.qcow2: ", "hint: "]);
    assert_eq!(shared.code, Some(0), "{}", shared.err);
}

#[test]
fn what_cannot_be_taken_back_wants_a_yes() {
    let folder = folder();
    let size = || fs::metadata(folder.path().join("disk.raw")).unwrap().len();
    let run = dchain(folder.path(), &["resize", "-f", "raw", "disk.raw", "1K"]);
    assert_eq!(run.code, Some(64), "{}", run.err);
    assert!(run.err.contains("are lost") && run.err.contains("--yes"), "{}", run.err);
    assert_eq!(size(), 4096);
    let plan =
        done(folder.path(), &["resize", "-f", "raw", "-n", "--output", "json", "disk.raw", "1K"]).json();
    assert_eq!((&plan["from"], &plan["to"], &plan["lost-bytes"]), (&4096.into(), &1024.into(), &3072.into()));
    assert_eq!(size(), 4096, "a dry run changes nothing");
    done(folder.path(), &["resize", "-f", "raw", "--yes", "disk.raw", "1K"]);
    assert_eq!(size(), 1024);
}

#[test]
fn quiet_says_nothing() {
    let folder = folder();
    let run = done(folder.path(), &["-q", "create", "-f", "raw", "quiet.raw", "1M"]);
    assert_eq!((run.out.as_str(), run.err.as_str()), ("", ""));
}

#[test]
fn compare_and_check_have_qemu_imgs_codes() {
    let folder = folder();
    let at = folder.path();
    assert_eq!(dchain(at, &["compare", "head.qcow2", "base.qcow2"]).code, Some(0));
    let run = dchain(at, &["compare", "-f", "raw", "disk.raw", "base.qcow2"]);
    assert_eq!((run.code, run.out.contains("Content mismatch at offset 0!")), (Some(1), true));
    assert_eq!(dchain(at, &["compare", "head.qcow2", "nowhere"]).code, Some(2));
    let run = dchain(at, &["check", "-f", "raw", "disk.raw", "--output", "json"]);
    assert_eq!((run.code, run.json()["format"].as_str()), (Some(63), Some("raw")), "{}", run.err);
    breaks_with(&dchain(at, &["check", "-f", "raw", "disk.raw"]), 63, &["no metadata to check"]);
    assert_eq!(dchain(at, &["check", "nowhere"]).code, Some(1));
}

#[test]
fn manual_pages_and_completions_cover_every_command() {
    let folder = tempdir().unwrap();
    done(folder.path(), &["man", "pages"]);
    assert!(folder.path().join("pages/dchain.1").exists());
    let page = fs::read_to_string(folder.path().join("pages/dchain-map.1")).unwrap();
    assert!(page.contains("start\\-offset"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(done(folder.path(), &["completions", shell]).out.contains("backing-chain"), "{shell}");
    }
}

/// Names come from inside images and from folders: a terminal must not act on them, nor a line of ours be forged.
#[test]
fn control_characters_of_names_reach_no_terminal() {
    const EVIL: &str = "a\u{1b}[31m\nimage= forged\u{202e}";
    let folder = folder();
    let at = folder.path();
    let layer = format!("{EVIL}.qcow2");
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", &layer]);
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", &layer, "-F", "qcow2", "top.qcow2"]);
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -P 3 0 64k", &layer]);
    qemu(at, "qemu-img", &["snapshot", "-c", EVIL, "top.qcow2"]);
    qemu(at, "qemu-img", &["bitmap", "--add", "top.qcow2", EVIL]);
    let is_shown = |run: &Run| {
        let said = format!("{}{}", run.out, run.err);
        let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!said.contains(acts) && said.contains(r"a\u{1b}[31m\nimage= forged\u{202e}"), "{said}");
        assert!(!said.lines().any(|line| line.starts_with("image= forged")), "{said}");
    };
    for arguments in [
        &["info", "top.qcow2"][..],
        &["info", "--backing-chain", "top.qcow2"],
        &["map", "top.qcow2"],
        &["tree", "."],
        &["consolidate", "--dry-run", "top.qcow2"],
    ] {
        is_shown(&done(at, arguments));
    }
    let exact = done(at, &["info", "--output", "json", "top.qcow2"]).json();
    assert_eq!(exact["backing-filename"], layer.as_str());
    assert_eq!(exact["snapshots"][0]["name"], EVIL);
    fs::remove_file(at.join(&layer)).unwrap();
    for arguments in [&["map", "top.qcow2"][..], &["lint", "."], &["tree", "."]] {
        is_shown(&dchain(at, arguments));
    }
    let missing = dchain(at, &["info", &layer]);
    is_shown(&missing);
    assert_eq!(missing.err.lines().count(), 1, "{}", missing.err);
}

#[test]
fn a_colon_in_a_name_is_no_protocol() {
    let folder = tempdir().unwrap();
    let at = folder.path();
    done(at, &["create", "-f", "qcow2", "vm-19:30.qcow2", "1M"]);
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 7 0 64k", "./vm-19:30.qcow2"]);
    done(at, &["create", "-b", "vm-19:30.qcow2", "-F", "qcow2", "delta:1"]);
    done(at, &["snapshot", "delta:1", "head:2"]);
    let opens = |head: &str, parent: &str| {
        let said = done(at, &["info", "--output", "json", head]).json();
        assert_eq!(said["backing-filename"], parent, "{head}");
        done(at, &["compare", head, "vm-19:30.qcow2"]);
        qemu(at, "qemu-img", &["compare", &format!("./{head}"), "./vm-19:30.qcow2"]);
    };
    opens("delta:1", "./vm-19:30.qcow2");
    opens("head:2", "./delta:1");
    done(at, &["rebase", "-b", "vm-19:30.qcow2", "-F", "qcow2", "head:2"]);
    opens("head:2", "./vm-19:30.qcow2");
    done(at, &["consolidate", "--yes", "--new", "new:3", "--into", "vm-19:30.qcow2", "head:2"]);
    opens("new:3", "./vm-19:30.qcow2");
    std::fs::create_dir(at.join("there:1")).unwrap();
    done(at, &["copy", "--yes", "head:2", "there:1"]);
    done(at, &["compare", "there:1/head:2", "head:2"]);
    qemu(at, "qemu-img", &["compare", "./there:1/head:2", "./head:2"]);
    std::fs::create_dir(at.join("packed")).unwrap();
    done(at, &["convert", "--chain", "-c", "-O", "qcow2", "head:2", "packed"]);
    qemu(at, "qemu-img", &["compare", "packed/head:2", "./head:2"]);
    let run = dchain(at, &["create", "-f", "qcow2", "-o", "data_file=a:b.data", "x.qcow2", "1M"]);
    breaks_with(&run, 64, &["a:b.data", "write ./a:b.data"]);
    assert!(!at.join("x.qcow2").exists() && !at.join("a:b.data").exists());
    done(at, &["create", "-f", "qcow2", "-o", "data_file=./a:b.data", "x.qcow2", "1M"]);
    qemu(at, "qemu-io", &["-c", "read 0 64k", "x.qcow2"]);
}

#[test]
fn a_link_that_reads_as_a_protocol_is_mended() {
    let folder = tempdir().unwrap();
    let at = folder.path();
    for mend in [&["rebase", "-b", "./a:b", "-F", "qcow2", "head"][..], &["relink", "--map", "a:b=a:b", "."]]
    {
        qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "./a:b", "1M"]);
        qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 7 0 64k", "./a:b"]);
        qemu(
            at,
            "qemu-img",
            &["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "a:b", "head", "1M"],
        );
        breaks_with(
            &dchain(at, &["map", "head"]),
            77,
            &["plain file name", "hint: ", "dchain rebase -b ./NAME"],
        );
        done(at, mend);
        qemu(at, "qemu-img", &["compare", "head", "./a:b"]);
        done(at, &["compare", "head", "a:b"]);
    }
}

#[test]
fn options_that_would_be_ignored_are_usage_errors() {
    let folder = folder();
    let at = folder.path();
    let all: &[&[&str]] = &[
        &["consolidate", "head.qcow2", "--detach"],
        &["consolidate", "head.qcow2", "--share", "0.2"],
        &["consolidate", "head.qcow2", "--deadline", "2"],
        &["consolidate", "head.qcow2", "--latency-target", "2"],
        &["consolidate", "head.qcow2", "--socket", "x"],
        &["consolidate", "head.qcow2", "-o", "cluster_size=4k"],
        &["consolidate", "head.qcow2", "--new", "n", "--keep-target-name"],
        &["convert", "-c", "-O", "raw", "head.qcow2", "n"],
        &["convert", "-c", "-O", "qcow2", "-o", "data_file=d", "head.qcow2", "n"],
        &["convert", "-c", "-O", "qcow2", "-o", "preallocation=full", "head.qcow2", "n"],
        &["create", "-f", "raw", "-b", "base.qcow2", "-F", "qcow2", "n"],
        // A raw image over a parent.
        &["consolidate", "-n", "--into", "base.qcow2", "--new", "n", "-O", "raw", "head.qcow2"],
    ];
    for arguments in all {
        let run = dchain(at, arguments);
        assert_eq!(run.code, Some(64), "{arguments:?}: {}{}", run.out, run.err);
    }
    assert_eq!(fs::read_dir(at).unwrap().count(), 3, "nothing was made");
}

#[test]
fn what_a_killed_run_left_goes_with_the_next_one_and_a_flat_copy_is_made_once() {
    let folder = folder();
    let at = folder.path();
    fs::create_dir(at.join("there")).unwrap();
    for left in [".head.qcow2.dchain-draft-t0123456789abcdef", ".head.qcow2.dchain-draft-0123456789abcdef"] {
        fs::write(at.join("there").join(left), "left").unwrap();
    }
    let copy = ["copy", "--yes", "--share", "flatten", "head.qcow2", "there"];
    assert!(done(at, &copy).out.contains("copied"));
    let names: Vec<_> = fs::read_dir(at.join("there")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    assert!(!has(".head.qcow2.dchain-draft-t0123456789abcdef"), "nobody goes on with it: {names:?}");
    assert!(has(".head.qcow2.dchain-draft-0123456789abcdef"), "a noted draft stays: {names:?}");
    assert!(done(at, &copy).out.contains("there already, nothing was moved"));
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 9 0 4k", "there/head.qcow2"]);
    breaks_with(&dchain(at, &copy), 1, &["is there already"]);
}

#[test]
fn a_deep_chain_is_read_with_few_open_files() {
    let folder = tempdir().unwrap();
    let at = folder.path();
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "l000", "1M"]);
    qemu(at, "qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-b", "l000", "-F", "qcow2", "l001", "1M"]);
    let image = fs::read(at.join("l001")).unwrap();
    let name = image.windows(4).position(|bytes| bytes == b"l000").unwrap();
    for n in 2..=100 {
        let mut layer = image.clone();
        layer[name..name + 4].copy_from_slice(format!("l{:03}", n - 1).as_bytes());
        fs::write(at.join(format!("l{n:03}")), layer).unwrap();
    }
    let limited = "ulimit -n 64; exec \"$0\" compare l100 l000";
    let program = env!("CARGO_BIN_EXE_dchain");
    let run: Run = Command::new("sh").current_dir(at).args(["-c", limited, program]).output().unwrap().into();
    assert_eq!(run.code, Some(0), "{}{}", run.out, run.err);
    // The soft limit is for programs that know no better.
    let soft = "ulimit -Sn 6; exec \"$0\" compare l100 l000";
    let run: Run = Command::new("sh").current_dir(at).args(["-c", soft, program]).output().unwrap().into();
    assert_eq!(run.code, Some(0), "{}{}", run.out, run.err);
}

#[test]
fn an_image_that_a_command_names_twice_is_not_said_to_be_in_use_by_a_stranger() {
    let folder = folder();
    for bitmap in ["a", "b"] {
        done(folder.path(), &["bitmap", "--add", "base.qcow2", bitmap]);
    }
    let merge = ["bitmap", "--merge", "b", "--source-file", "base.qcow2", "base.qcow2", "a"];
    let run = dchain(folder.path(), &merge);
    breaks_with(&run, 69, &["), this process itself", "hint: it is named twice, or is a layer"]);
}
