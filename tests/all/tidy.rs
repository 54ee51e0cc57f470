//! The house's rules about the code itself, as tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The rooms, lowest first: a room may name itself and those before it, nothing after.
const ROOMS: &[&str] =
    &["base", "map", "content", "io", "store", "format", "disk", "chain", "job", "export", "service"];
/// Most lines of a source file: what is read in one sitting.
const LINES_MAX: usize = 600;
/// Endings of type names that say nothing.
const EMPTY_NAMES: &[&str] = &["Manager", "Helper", "Util", "Utils", "Handler", "Info"];
/// Words of one format that the other rooms do not use: a layer has a parent.
const FORMAT_WORDS: &[&str] = &["backing", "overlay"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Every file below `folder` that ends in one of `endings`, sorted.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, endings: &[&str], out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, endings, out);
            } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e)) {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    walk(&root().join(folder), endings, &mut out);
    out.sort();
    out
}

/// All Rust files of the project.
fn sources() -> Vec<PathBuf> {
    ["src", "tests", "benches", "tools"].iter().flat_map(|f| files(f, &["rs"])).collect()
}

fn is_test_file(path: &Path) -> bool {
    path.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests" | "tests.rs" | "benches")))
}

/// The code without comments and without an inner test module (which stands at the end).
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

/// The rooms that `text` reaches by `crate::room` or `crate::{room, ...}`.
fn rooms_used(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for after in text.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => used.extend(words(after).next().map(str::to_owned)),
            Some(group) => {
                let (mut depth, mut at_name) = (0, true);
                for (place, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => at_name = true,
                        c if at_name && c.is_alphabetic() => {
                            used.extend(words(&group[place..]).next().map(str::to_owned));
                            at_name = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    used
}

#[test]
fn rooms_are_found_in_every_kind_of_use() {
    assert_eq!(rooms_used("use crate::io::File;"), ["io"]);
    assert_eq!(
        rooms_used("use crate::{\n    base::{Error, Result},\n    map, job::x,\n};"),
        ["base", "map", "job"]
    );
}

#[test]
fn a_room_uses_only_the_rooms_above_it() {
    let mut wrong = Vec::new();
    for file in files("src", &["rs"]).into_iter().filter(|f| !is_test_file(f)) {
        let inside = file.strip_prefix(root().join("src")).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let Some(own) = ROOMS.iter().position(|r| *r == first.trim_end_matches(".rs")) else {
            assert_eq!(first, "lib.rs", "{} stands in no room", shown(&file));
            continue;
        };
        for used in rooms_used(&code(&read(&file))) {
            if ROOMS.iter().position(|r| *r == used).is_some_and(|used| used > own) {
                wrong.push(format!("{}: {} may not use {used}", shown(&file), ROOMS[own]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_is_read_in_one_sitting() {
    for file in sources() {
        let lines = read(&file).lines().count();
        assert!(lines <= LINES_MAX, "{}: {lines} lines, at most {LINES_MAX}", shown(&file));
    }
}

#[test]
fn a_file_opens_with_its_purpose() {
    for file in sources().into_iter().filter(|f| !f.ends_with("tests.rs")) {
        assert!(read(&file).starts_with("//! "), "{} does not say what it is for", shown(&file));
    }
}

/// A file that no `mod` names is not compiled, and its tests never run.
#[test]
fn no_file_is_forgotten() {
    for file in sources() {
        let (name, folder) = (file.file_stem().unwrap().to_str().unwrap(), file.parent().unwrap());
        let manifests =
            ["Cargo.toml", "tools/Cargo.toml", "tools/oracles/Cargo.toml", "tools/fuzz/Cargo.toml"];
        let is_named = manifests
            .iter()
            .filter_map(|m| fs::read_to_string(root().join(m)).ok())
            .any(|m| m.contains(&format!("/{name}.rs\"")) || m.contains(&format!("name = \"{name}\"")));
        if matches!(name, "main" | "lib" | "build") || is_named {
            continue;
        }
        let (module, over) = match name {
            "mod" => (folder.file_name().unwrap().to_str().unwrap(), folder.parent().unwrap()),
            _ => (name, folder),
        };
        let beside = over.with_extension("rs");
        let places = [over.join("mod.rs"), over.join("lib.rs"), over.join("main.rs"), beside];
        let texts: String = places.iter().filter_map(|p| fs::read_to_string(p).ok()).collect();
        assert!(texts.contains(&format!("mod {module};")), "{} is in no module", shown(&file));
    }
}

#[test]
fn unsafe_code_stays_in_io() {
    for file in files("src", &["rs"]).into_iter().filter(|f| !f.starts_with(root().join("src/io"))) {
        let text = code(&read(&file)).replace("#![forbid(unsafe_code)]", "");
        assert!(!words(&text).any(|w| w == "unsafe"), "{}: unsafe code outside io", shown(&file));
    }
}

#[test]
fn the_library_neither_prints_nor_reads_the_environment() {
    const FORBIDDEN: &[&str] =
        &["println!", "eprintln!", "print!", "dbg!", "env::var", "SystemTime", "Instant::now"];
    for file in
        files("src", &["rs"]).into_iter().filter(|f| !is_test_file(f) && !f.ends_with("base/clock.rs"))
    {
        let text = code(&read(&file));
        for word in FORBIDDEN {
            assert!(!text.contains(word), "{}: {word} in the library", shown(&file));
        }
    }
}

#[test]
fn names_say_what_a_thing_is() {
    for file in sources() {
        let text = code(&read(&file));
        let defined = ["struct ", "enum ", "trait "].iter().flat_map(|key| text.split(key).skip(1));
        for name in defined.filter_map(|rest| words(rest).next()) {
            assert!(!EMPTY_NAMES.iter().any(|w| name.ends_with(w)), "{}: the name {name}", shown(&file));
        }
        let is_library = file.starts_with(root().join("src"));
        if is_library && !file.starts_with(root().join("src/format/qcow2")) && !is_test_file(&file) {
            let names = text.split('"').step_by(2).flat_map(words);
            for name in names.map(str::to_lowercase) {
                let word = FORMAT_WORDS.iter().find(|w| name.contains(**w));
                assert!(word.is_none(), "{}: {name} (a layer has a parent)", shown(&file));
            }
        }
    }
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let mut texts = sources();
    texts.extend(
        ["tools", "testdata", ".ci"].iter().flat_map(|f| files(f, &["sh", "toml", "md", "tsv", "txt"])),
    );
    texts.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md", ".ci/run"].map(|f| root().join(f)));
    // Put together here, so that this file does not hold them.
    let places =
        [concat!("/wo", "rk/"), concat!("/tmp/", "wt"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    for file in texts {
        let text = read(&file);
        for place in places {
            assert!(!text.contains(place), "{} names {place}", shown(&file));
        }
    }
}

#[test]
fn every_format_has_golden_images_with_birth_certificates() {
    for format in deltachain::format::Format::ALL {
        let folder = root().join("testdata").join(format.name());
        let births = read(&folder.join("births.tsv"));
        let mut images = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name != "births.tsv" {
                let born = births.lines().any(|line| line.split('\t').next() == Some(&name));
                assert!(born, "testdata/{format}/{name} has no line in births.tsv");
                images += 1;
            }
        }
        assert!(images > 0, "testdata/{format} holds no image");
    }
}

#[test]
fn every_command_has_a_help_snapshot() {
    for file in files("tools/src/command", &["rs"]) {
        let name = file.file_stem().unwrap().to_str().unwrap().replace('_', "-");
        if name != "mod" {
            let snapshot = root().join(format!("testdata/help/{name}.txt"));
            assert!(snapshot.exists(), "{} is not there", shown(&snapshot));
        }
    }
}

#[test]
fn the_readme_is_short() {
    let lines = read(&root().join("README.md")).lines().count();
    assert!(lines < 120, "README.md has {lines} lines, fewer than 120 are allowed");
}
