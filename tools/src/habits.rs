//! What fingers that know qemu-img type: taken where it means the same, else answered with what does it here.

use crate::failure::Failure;
use clap::{
    Arg, ArgAction,
    builder::PossibleValuesParser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use std::ffi::OsString;

/// Cache modes of qemu-img.
const CACHES: [&str; 5] = ["none", "writeback", "writethrough", "directsync", "unsafe"];

/// Another command of qemu-img's, and what does it here.
const COMMANDS: [(&str, &str); 4] = [
    (
        "commit",
        "dchain consolidate TOP folds layers into an older one (--into BASE as commit -b; --keep-target-name lets it \
         keep its name)",
    ),
    (
        "amend",
        "dchain convert -O qcow2 -o ... makes an image with other options; dchain bitmap changes bitmaps",
    ),
    ("dd", "dchain convert copies a disk"),
    ("bench", "dchain measure and dchain lint say what a job will take"),
];

/// A command, an option of qemu-img's that it has not, and what does it here. An empty command is any.
const OPTIONS: [(&str, &[&str], &str); 13] = [
    (
        "rebase",
        &["-u", "--backing-unsafe"],
        "a rebase keeps what the image shows, always; for a parent that was moved or renamed: dchain relink FOLDER, \
         with --map OLD=NEW where nothing is recorded",
    ),
    ("rebase", &["-c", "--compress"], "dchain convert -c compresses"),
    (
        "snapshot",
        &["-l", "--list"],
        "internal snapshots of an image: dchain info IMAGE; hierarchies of images: dchain tree FOLDER",
    ),
    (
        "snapshot",
        &["-c", "--create", "-a", "--apply", "-d", "--delete"],
        "dchain snapshot TOP NEW makes a new head over TOP, and dchain revert goes back; snapshots inside an image are \
         qemu-img's",
    ),
    ("resize", &["--preallocation"], "dchain create and convert take -o preallocation=..."),
    (
        "create",
        &["-u", "--backing-unsafe"],
        "the parent has to be there: what is recorded of it proves it later",
    ),
    ("convert", &["-S", "--sparse-size"], "zeros are left out in any case, whole clusters of them"),
    (
        "convert",
        &["-B", "--backing", "-b", "-F"],
        "--chain keeps all layers; dchain rebase -b gives another parent",
    ),
    ("convert", &["-l", "--source-snapshot"], "qemu-img convert -l reads snapshots inside an image"),
    (
        "convert",
        &["--bitmaps", "--skip-broken-bitmaps"],
        "--chain takes bitmaps along; dchain bitmap --merge copies one",
    ),
    ("convert", &["--salvage"], "dchain check --data IMAGE names what cannot be read"),
    (
        "convert",
        &["--target-is-zero"],
        "leave it out: with --no-create zeros are written where they are needed",
    ),
    (
        "",
        &["--image-opts", "--object", "--source-image-opts", "--target-image-opts"],
        "name the file, and its format with -f",
    ),
];

/// Adds options of qemu-img's that change how it works, not what comes out: they are taken, and have no effect.
pub fn taken(command: clap::Command) -> clap::Command {
    let cache = |id: &'static str, short| {
        Arg::new(id).long(id).short(short).value_name("MODE").value_parser(PossibleValuesParser::new(CACHES))
    };
    let flag = |id: &'static str, short| Arg::new(id).long(id).short(short).action(ArgAction::SetTrue);
    let of_convert = [
        cache("target-cache", 't'),
        cache("source-cache", 'T'),
        Arg::new("parallel").long("parallel").short('m').value_parser(clap::value_parser!(u16)),
        flag("oob-writes", 'W'),
        flag("copy-range-offloading", 'C'),
    ];
    command.mut_subcommand("convert", |convert| convert.args(of_convert.map(|option| option.hide(true))))
}

/// Returns what to say to whoever typed a command or an option of qemu-img's that is none here.
pub fn failure(error: &clap::Error, arguments: &[OsString]) -> Option<Failure> {
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(name)) => Some(name.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let typed = named(ContextKind::InvalidSubcommand)?;
            let (_, tip) = COMMANDS.iter().find(|(name, _)| *name == typed)?;
            Some(Failure::usage(format!("there is no command {typed}")).hint(*tip))
        }
        ErrorKind::UnknownArgument => {
            let typed = named(ContextKind::InvalidArg)?;
            let is_command =
                |name: &str| name.is_empty() || arguments.iter().skip(1).any(|typed| typed == name);
            let mut known = OPTIONS.iter().filter(|(command, ..)| is_command(command));
            let (command, _, tip) = known.find(|(_, options, _)| options.contains(&typed))?;
            let place = if command.is_empty() { "here".to_owned() } else { format!("in dchain {command}") };
            Some(Failure::usage(format!("there is no {typed} {place}")).hint(*tip))
        }
        ErrorKind::ValueValidation => {
            let is_repair = matches!(named(ContextKind::InvalidValue)?, "leaks" | "all");
            let what = "-r is --rate in every command";
            is_repair.then(|| Failure::usage(what).hint("dchain check --repair leaks, or --repair all"))
        }
        _ => None,
    }
}
