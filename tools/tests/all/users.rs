//! What surprised users: each story is a surprise that is none any more.

use super::dchain::{Run, command, dchain, done, qemu};
use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};
use tempfile::{TempDir, tempdir};

/// `base.qcow2`, and `middle.qcow2` and `head.qcow2` over it, with data in each, made by qemu-img; an empty folder
/// `there`.
fn chain() -> TempDir {
    let folder = tempdir().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("there")).unwrap();
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "base.qcow2", "2M"]);
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 1 0 1M", "base.qcow2"]);
    for (parent, child) in [("base.qcow2", "middle.qcow2"), ("middle.qcow2", "head.qcow2")] {
        delta(at, parent, child);
    }
    folder
}

fn delta(at: &Path, parent: &str, child: &str) {
    qemu(at, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", parent, "-F", "qcow2", child]);
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 2 64k 64k", child]);
}

fn says(run: &Run, code: i32, text: &[&str]) {
    assert_eq!(run.code, Some(code), "{}{}", run.out, run.err);
    for part in text {
        assert!(
            run.out.contains(part) || run.err.contains(part),
            "'{part}' is not in: {}{}",
            run.out,
            run.err
        );
    }
}

#[test]
fn a_copy_that_is_asked_for_again_moves_nothing_and_says_so() {
    let folder = chain();
    let at = folder.path();
    done(at, &["copy", "head.qcow2", "there"]);
    says(
        &done(at, &["copy", "head.qcow2", "there"]),
        0,
        &["there already, nothing was moved", "to copy: 0 B"],
    );
    let again = done(at, &["copy", "--output", "json", "head.qcow2", "there"]).json();
    assert_eq!((&again["plan"]["is-there"], &again["copied-bytes"]), (&true.into(), &0.into()));
    says(&done(at, &["lint", "there"]), 0, &["3 images: 0 errors, 0 warnings, 0 notes"]);
    // What was written on either side is not what was copied.
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 9 0 64k", "there/head.qcow2"]);
    says(&dchain(at, &["copy", "head.qcow2", "there"]), 1, &["head.qcow2: is there already", "was changed"]);
}

/// A witness of an earlier boot proves nothing: then it is compared, and still nothing is moved.
#[test]
fn a_copy_that_is_asked_for_again_after_a_restart_is_compared() {
    let folder = chain();
    let at = folder.path();
    done(at, &["copy", "head.qcow2", "there"]);
    let notes = fs::read_dir(at.join("there/.dchain")).unwrap().map(|entry| entry.unwrap().path());
    let mut notes = notes.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("copied-"));
    let note = notes.next().unwrap();
    let text = fs::read_to_string(&note).unwrap();
    let boot = text.split("\"boot\":").nth(1).unwrap().split(['}', ',']).next().unwrap();
    fs::write(&note, text.replace(boot, "7")).unwrap();
    says(
        &done(at, &["copy", "head.qcow2", "there"]),
        0,
        &["there already, nothing was moved; verified: bytes"],
    );
}

#[test]
fn a_chain_on_the_same_base_is_linked_to_the_copy_of_it_though_nobody_sealed_anything() {
    let folder = chain();
    let at = folder.path();
    delta(at, "base.qcow2", "other.qcow2");
    done(at, &["copy", "head.qcow2", "there"]);
    let copied = done(at, &["copy", "other.qcow2", "there"]);
    says(&copied, 0, &["link ", "there/base.qcow2, which shows the same (c1:"]);
    let base_bytes = fs::metadata(at.join("there/base.qcow2")).unwrap().len();
    assert!(base_bytes > 1 << 20 && !copied.err.contains("MiB)"), "{}", copied.err);
    qemu(at, "qemu-img", &["compare", "-q", "other.qcow2", "there/other.qcow2"]);
}

#[test]
fn the_plan_of_a_fold_says_which_name_goes() {
    let folder = chain();
    let at = fs::canonicalize(folder.path()).unwrap();
    let (base, head) = (at.join("base.qcow2"), at.join("head.qcow2"));
    let renamed = format!("{} is renamed to {}, which opens the result", base.display(), head.display());
    says(&done(&at, &["consolidate", "-n", "head.qcow2"]), 0, &[&renamed]);
    let kept = done(&at, &["consolidate", "-n", "--new", "flat.qcow2", "head.qcow2"]);
    says(&kept, 0, &["flat.qcow2 opens the result; all layers stay, with their names"]);
    let help = done(&at, &["consolidate", "--help"]).out;
    assert!(help.contains("its own name goes") && help.contains("with --new both stay"), "{help}");
}

#[test]
fn bitmaps_come_along_into_a_new_image_or_the_plan_names_them() {
    let folder = chain();
    let at = folder.path();
    qemu(at, "qemu-img", &["bitmap", "--add", "middle.qcow2", "backup"]);
    let raw = done(at, &["consolidate", "-n", "--new", "flat.raw", "-O", "raw", "head.qcow2"]);
    says(&raw, 0, &["bitmap lost: ", "middle.qcow2: backup"]);
    let merged = done(at, &["consolidate", "--new", "flat.qcow2", "head.qcow2"]);
    says(&merged, 0, &["bitmap kept: ", "middle.qcow2: backup"]);
    qemu(at, "qemu-img", &["check", "-q", "flat.qcow2"]);
    qemu(at, "qemu-img", &["compare", "-q", "flat.qcow2", "head.qcow2"]);
    let list = done(at, &["bitmap", "--list", "--output", "json", "flat.qcow2"]).out;
    assert!(list.contains("\"backup\""), "{list}");
    // Those of the layers stay with the layers.
    assert!(done(at, &["bitmap", "--list", "middle.qcow2"]).out.contains("backup"));
}

/// A raw base and a head over it, and a copy of both in `copy`, made by another program.
fn copied_by_others(is_sealed: bool) -> TempDir {
    let folder = tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("base.raw"), vec![7; 1 << 20]).unwrap();
    if is_sealed {
        done(at, &["id", "seal", "-f", "raw", "base.raw"]);
    }
    done(at, &["snapshot", "-f", "raw", "base.raw", "head.qcow2"]);
    fs::create_dir(at.join("copy")).unwrap();
    for name in ["base.raw", "head.qcow2"] {
        fs::copy(at.join(name), at.join("copy").join(name)).unwrap();
    }
    folder
}

/// The command between backquotes in a message that starts with `start`.
fn command_in<'a>(message: &'a str, start: &'a str) -> Vec<&'a str> {
    let (_, rest) =
        message.split_once(&format!("`{start}")).unwrap_or_else(|| panic!("no {start} in {message}"));
    let (rest, _) = rest.split_once('`').unwrap();
    start.split(' ').skip(1).filter(|word| !word.is_empty()).chain(rest.split_whitespace()).collect()
}

#[test]
fn a_chain_that_was_copied_by_others_is_proved_by_the_command_that_the_refusal_names() {
    let folder = copied_by_others(true);
    let refused = dchain(folder.path(), &["map", "copy/head.qcow2"]);
    says(&refused, 77, &["proves it by its bytes"]);
    done(folder.path(), &command_in(&refused.err, "dchain relink "));
    done(folder.path(), &["map", "copy/head.qcow2"]);
}

#[test]
fn a_chain_that_was_copied_by_others_and_never_sealed_is_taken_as_it_is_by_the_command_that_is_named() {
    let folder = copied_by_others(false);
    let refused = dchain(folder.path(), &["map", "copy/head.qcow2"]);
    says(&refused, 77, &["leaves the record of a raw parent behind", "no content ID that could prove it"]);
    let accept = command_in(&refused.err, "dchain relink --accept ");
    done(folder.path(), &[&accept[..], &["--yes"]].concat());
    done(folder.path(), &["map", "copy/head.qcow2"]);
}

#[test]
fn a_parent_that_starts_like_another_format_is_not_taken_as_raw_by_a_slip() {
    let folder = chain();
    let at = folder.path();
    let cases: [&[&str]; 3] = [
        &["create", "-b", "base.qcow2", "-F", "raw", "new.qcow2"],
        &["rebase", "-b", "base.qcow2", "-F", "raw", "head.qcow2"],
        &["snapshot", "-f", "raw", "base.qcow2", "new.qcow2"],
    ];
    for arguments in cases {
        says(&dchain(at, arguments), 77, &["base.qcow2: starts like a qcow2 image", "hint: ", "--yes"]);
    }
    done(at, &["map", "head.qcow2"]);
    // A guest may have written that header: who is sure is obeyed, and a slip can be undone.
    done(at, &["create", "-b", "base.qcow2", "-F", "raw", "--yes", "new.qcow2"]);
    let refused = dchain(at, &["map", "head.qcow2"]);
    says(&refused, 77, &["which is known as raw"]);
    done(at, &command_in(&refused.err, "dchain id seal "));
    done(at, &["map", "head.qcow2"]);
}

#[test]
fn help_and_manual_pages_say_what_exit_codes_mean_and_give_examples() {
    let folder = tempdir().unwrap();
    let at = folder.path();
    for help in [&["--help"][..], &["-h"]] {
        says(&done(at, help), 0, &["Exit codes:", "75  stopped at a clean point", "77  refused", "file:"]);
    }
    done(at, &["man", "pages"]);
    for page in ["dchain.1", "dchain-copy.1", "dchain-check.1"] {
        let text = fs::read_to_string(at.join("pages").join(page)).unwrap();
        assert!(text.contains(".SH \"EXIT STATUS\"") && text.contains("\\fB77\\fR"), "{page}: {text}");
    }
    let page = fs::read_to_string(at.join("pages/dchain-copy.1")).unwrap();
    assert!(page.contains(".SH EXAMPLES") && page.contains("dchain copy \\-\\-remove\\-source"), "{page}");
    assert!(done(at, &["snapshot", "-h"]).out.contains("Examples:\n  dchain snapshot "));
}

#[test]
fn all_that_a_delta_outside_its_folder_needs_is_said_at_once() {
    let folder = chain();
    let at = fs::canonicalize(folder.path()).unwrap();
    delta(&at, "../base.qcow2", "there/out.qcow2");
    let refused = dchain(&at, &["map", "there/out.qcow2"]);
    let wanted = format!("-f qcow2 --allow-dir {}", at.display());
    says(&refused, 77, &[&format!("hint: {wanted} ")]);
    let arguments: Vec<&str> = ["map", "there/out.qcow2"].into_iter().chain(wanted.split(' ')).collect();
    done(&at, &arguments);
    let allowed = command(&at, &["map", "there/out.qcow2"]).env("DCHAIN_ALLOW_DIRS", &at).output().unwrap();
    says(&allowed.into(), 77, &["hint: -f qcow2 "]);
}

#[test]
fn what_fingers_know_from_qemu_img_is_taken_or_answered_with_what_does_it_here() {
    let folder = chain();
    let at = folder.path();
    let tuned = [
        "convert",
        "-t",
        "none",
        "-T",
        "none",
        "-m",
        "16",
        "-W",
        "-C",
        "-O",
        "raw",
        "head.qcow2",
        "flat.raw",
    ];
    done(at, &tuned);
    qemu(at, "qemu-img", &["compare", "-q", "flat.raw", "head.qcow2"]);
    let answered: [(&[&str], &str); 8] = [
        (&["convert", "-n", "-O", "raw", "base.qcow2", "flat.raw"], "--no-create"),
        (&["convert", "-S", "0", "-O", "raw", "base.qcow2", "x.raw"], "zeros are left out"),
        (&["rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", "head.qcow2"], "dchain relink"),
        (&["snapshot", "-l", "head.qcow2"], "dchain info"),
        (&["check", "-r", "leaks", "head.qcow2"], "--repair leaks"),
        (&["commit", "head.qcow2"], "dchain consolidate"),
        (&["amend", "-o", "compat=1.1", "head.qcow2"], "dchain convert"),
        (&["info", "--image-opts", "head.qcow2"], "-f"),
    ];
    for (arguments, tip) in answered {
        let run = dchain(at, arguments);
        assert_eq!(run.code, Some(64), "{arguments:?}: {}", run.err);
        let hint = run.err.lines().find_map(|line| line.strip_prefix("hint: ")).unwrap_or_default();
        assert!(hint.contains(tip), "{arguments:?}: {}", run.err);
    }
    qemu(at, "qemu-img", &["compare", "-q", "flat.raw", "head.qcow2"]);
}

#[test]
fn a_name_that_is_not_utf_8_is_told_copied_and_folded() {
    let folder = chain();
    let at = folder.path();
    let name = PathBuf::from(OsStr::from_bytes(b"h\xff d.qcow2"));
    fs::rename(at.join("head.qcow2"), at.join(&name)).unwrap();
    let run = |before: &[&str], after: &[&str]| -> Run {
        command(at, before).arg(&name).args(after).output().unwrap().into()
    };
    let place = format!("file:{}/h%FF%20d.qcow2", fs::canonicalize(at).unwrap().display());
    let info = run(&["info", "--output", "json"], &[]).json();
    assert_eq!((&info["filename"], &info["path"]), (&"file:h%FF%20d.qcow2".into(), &place.as_str().into()));
    let plan = run(&["consolidate", "-n", "--output", "json"], &[]).json();
    assert_eq!(plan["top"], place.as_str());
    for story in ["copied", "there already"] {
        says(&run(&["copy"], &["there"]), 0, &[story]);
    }
    assert!(at.join("there").join(&name).exists());
    says(&run(&["consolidate", "--yes"], &[]), 0, &["verified: tree"]);
}

#[test]
fn lint_says_that_its_times_are_the_least_and_where_its_rate_comes_from() {
    let folder = chain();
    let lint = done(folder.path(), &["lint", "."]);
    says(&lint, 0, &["at least ", "/s at most (", "by the host's cache where they were there", "--rate"]);
}

/// What a frozen layer shows does not change with its bitmaps, nor with space that it gives back.
#[test]
fn bitmaps_and_leaks_of_a_layer_are_mended_under_its_children() {
    let folder = chain();
    let at = folder.path();
    done(at, &["snapshot", "head.qcow2", "top.qcow2"]);
    for edit in [&["--add"][..], &["--disable"], &["--clear"], &["--remove"]] {
        done(at, &[&["bitmap"][..], edit, &["head.qcow2", "backup"]].concat());
        done(at, &["map", "top.qcow2"]);
    }
    // A cluster behind the end that is counted as used.
    let head = at.join("head.qcow2");
    let mut bytes = fs::read(&head).unwrap();
    let table = usize::try_from(u64::from_be_bytes(bytes[48..56].try_into().unwrap())).unwrap();
    let block = usize::try_from(u64::from_be_bytes(bytes[table..table + 8].try_into().unwrap())).unwrap();
    let leak = block + 2 * (bytes.len() / 65536);
    bytes[leak..leak + 2].copy_from_slice(&1_u16.to_be_bytes());
    bytes.resize(bytes.len() + 65536, 0);
    fs::write(&head, bytes).unwrap();
    assert_eq!(dchain(at, &["check", "head.qcow2"]).code, Some(3));
    assert_eq!(dchain(at, &["map", "top.qcow2"]).code, Some(77), "another program wrote it");
    done(at, &["relink", "--accept", "top.qcow2", "--yes"]);
    for repair in ["leaks", "all"] {
        done(at, &["check", "--repair", repair, "head.qcow2"]);
        done(at, &["map", "top.qcow2"]);
    }
    says(
        &done(at, &["check", "--lineage", "top.qcow2"]),
        0,
        &["lineage: nothing speaks against it; what 2 of the"],
    );
    done(at, &["id", "seal", "--chain", "top.qcow2"]);
    says(
        &done(at, &["check", "--lineage", "top.qcow2"]),
        0,
        &["lineage: every layer lies on what it was made on"],
    );
}

#[test]
fn what_makes_no_sense_is_refused_for_what_it_is() {
    let folder = chain();
    let at = folder.path();
    let ring = dchain(at, &["rebase", "-b", "head.qcow2", "-F", "qcow2", "middle.qcow2"]);
    says(&ring, 64, &["middle.qcow2: ", "head.qcow2 lies on it, and cannot be its parent"]);
    says(&dchain(at, &["copy", "head.qcow2", "."]), 64, &["head.qcow2: lies in that folder already"]);
    says(&dchain(at, &["copy", "head.qcow2", "base.qcow2"]), 64, &["base.qcow2: is not a folder"]);
    says(&done(at, &["create", "new.qcow2", "1M"]), 0, &["new.qcow2 is raw: -f qcow2 makes"]);
    says(&done(at, &["tree"]), 0, &["base.qcow2 (qcow2, 2 MiB, "]);
}

/// Restored, or touched: nothing differs, and nobody is linked to another image for it.
#[test]
fn a_parent_that_looks_changed_and_is_not_is_proved_where_it_is() {
    let folder = chain();
    let at = folder.path();
    done(at, &["id", "seal", "head.qcow2"]);
    done(at, &["snapshot", "head.qcow2", "top.qcow2"]);
    fs::copy(at.join("head.qcow2"), at.join("a-twin.qcow2")).unwrap();
    let bytes = fs::read(at.join("head.qcow2")).unwrap();
    fs::write(at.join("head.qcow2"), bytes).unwrap();
    let refused = dchain(at, &["map", "top.qcow2"]);
    says(&refused, 77, &["proves it if nothing differs"]);
    let relink = command_in(&refused.err, "dchain relink ");
    says(&done(at, &[&relink[..], &["-n"]].concat()), 0, &["head.qcow2: shows what its record says"]);
    assert_eq!(dchain(at, &["map", "top.qcow2"]).code, Some(77), "a dry run writes nothing");
    says(&done(at, &relink), 0, &["head.qcow2: shows what its record says: believed again"]);
    assert!(done(at, &["info", "top.qcow2"]).out.contains("backing file: head.qcow2"));
    done(at, &["map", "top.qcow2"]);
    // Where something does differ, it is another matter.
    qemu(at, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 9 0 64k", "head.qcow2"]);
    assert!(dchain(at, &relink).out.contains("a-twin.qcow2"));
}
