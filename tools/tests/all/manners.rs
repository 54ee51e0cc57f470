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
    assert_eq!(dchain(at, &["check", "-f", "raw", "disk.raw"]).code, Some(63));
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
