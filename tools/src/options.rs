//! Options that mean the same in every command.

use crate::{
    config,
    failure::{Exit, Failure},
    output::Answer,
    size,
};
use clap::Args;
use deltachain::{
    base::Budget,
    chain::{Opening, Policy},
    format::Format,
    io::{Access, EntryKind, Host, real::RealHost},
    service::{Hooks, Named},
    store::Ledger,
};
use serde::Serialize;
use std::{
    num::ParseIntError,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

/// Which references inside images are followed.
#[derive(Args, Debug)]
pub struct References {
    /// Let images refer to files in DIR and below (may be repeated)
    #[arg(long, value_name = "DIR")]
    pub allow_dir: Vec<PathBuf>,
    /// Open at most N layers
    #[arg(long, value_name = "N", default_value_t = Policy::default().depth_max, value_parser = positive::<usize>)]
    pub max_depth: usize,
    /// Keep maps of at most SIZE in memory, those of all layers together
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory)]
    pub memory: Budget,
}

impl References {
    /// Returns the policy: these options, the environment and the host's file together.
    fn policy(&self, host: &dyn Host) -> Result<Policy, Failure> {
        let named = self.allow_dir.iter().map(|dir| host.canonical(dir)).collect::<Result<Vec<_>, _>>()?;
        // What the host allows for all commands need not exist everywhere.
        let standing = config::allowed_folders()?.into_iter().filter_map(|dir| host.canonical(&dir).ok());
        Ok(Policy { allowed: named.into_iter().chain(standing).collect(), depth_max: self.max_depth })
    }

    /// Returns how an image is opened as far as these options say.
    pub fn opening(&self, host: &dyn Host, access: Access) -> Result<Opening, Failure> {
        let opening = Opening::reading().with_access(access).with_policy(self.policy(host)?);
        Ok(opening.with_budget(self.memory.clone()))
    }
}

/// Reads a bound on the memory for maps; all chains of the command share it.
fn memory(text: &str) -> Result<Budget, String> {
    Budget::new(size::parse(text)?).map_err(|e| e.to_string())
}

/// How an image that exists is opened.
#[derive(Args, Debug)]
pub struct Source {
    /// Format of the image (recognised by its header if not given)
    #[arg(short, long, value_name = "FMT", value_parser = format)]
    pub format: Option<Format>,
    #[command(flatten)]
    pub references: References,
}

impl Source {
    /// Returns how the chain is opened.
    pub fn opening(&self, host: &Arc<dyn Host>, access: Access) -> Result<Opening, Failure> {
        let opening = self.references.opening(host.as_ref(), access)?;
        Ok(opening.with_format(self.format).with_ledger(ledger(host)))
    }
}

/// How an image is read.
#[derive(Args, Debug)]
pub struct Reading {
    #[command(flatten)]
    pub source: Source,
    /// Read even while another program writes: what is read may be inconsistent
    #[arg(short = 'U', long)]
    pub force_share: bool,
}

impl Reading {
    /// Returns how the chain is opened.
    pub fn opening(&self, host: &Arc<dyn Host>) -> Result<Opening, Failure> {
        self.source.opening(host, self.access())
    }

    /// Returns which locks are taken.
    pub const fn access(&self) -> Access {
        if self.force_share { Access::ReadShared } else { Access::Read }
    }
}

/// Options of the format of a new image.
#[derive(Args, Debug)]
pub struct FormatOptions {
    /// Options of the new image's format (`-o help` lists them)
    #[arg(short = 'o', long = "options", value_name = "KEY=VALUE,...")]
    options: Vec<String>,
}

impl FormatOptions {
    /// Returns whether the list of options is asked for.
    pub fn wants_help(&self) -> bool {
        self.options.iter().flat_map(|list| list.split(',')).any(|o| matches!(o, "help" | "?"))
    }

    /// Returns whether an option is one of an image whose bytes are in one file.
    pub fn is_of_one_file(name: &str) -> bool {
        !matches!(name, "data_file" | "data_file_raw")
    }

    /// Refuses options of an image whose bytes are in two files: what becomes a layer of a chain here keeps its own.
    pub fn refuse_data_file(&self) -> Result<(), Failure> {
        match self.pairs().into_iter().find(|(name, _)| !Self::is_of_one_file(name)) {
            Some((name, _)) => {
                let what = format!("-o {name}: a layer that this command makes keeps its bytes in itself");
                Err(Failure::usage(what).hint("dchain create and convert make images with a data file"))
            }
            None => Ok(()),
        }
    }

    /// Returns keys and values as written. A comma inside a value is written twice, as for qemu-img.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for list in &self.options {
            for part in list.replace(",,", "\0").split(',').filter(|part| !part.is_empty()) {
                let part = part.replace('\0', ",");
                let (key, value) = part.split_once('=').unwrap_or((&part, "on"));
                pairs.push((key.to_owned(), value.to_owned()));
            }
        }
        pairs
    }
}

/// What is wrong with 0 where it could mean nothing, or no end.
pub const NOT_POSITIVE: &str = "at least 1 is wanted";

/// Reads a number above 0.
pub fn positive<T: FromStr<Err = ParseIntError> + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    let number = text.parse::<T>().map_err(|e| e.to_string())?;
    if number < T::from(1) { Err(NOT_POSITIVE.to_owned()) } else { Ok(number) }
}

/// Reads a format's name.
pub fn format(name: &str) -> Result<Format, String> {
    Format::parse(name).map_err(|e| e.to_string())
}

/// Reads a disk: its name, the image on top of its chain, and how it is served.
pub fn disk(text: &str) -> Result<Named, String> {
    let Some((name, rest)) = text.split_once('=') else {
        return Err("a disk is NAME=PATH".to_owned());
    };
    let rest = rest.replace(",,", "\0");
    let mut parts = rest.split(',').map(|part| part.replace('\0', ","));
    let path = parts.next().filter(|path| !path.is_empty()).ok_or("a disk is NAME=PATH")?;
    let mut named = Named {
        name: name.to_owned(),
        path: path.into(),
        format: None,
        is_read_only: false,
        hooks: Hooks::default(),
    };
    for part in parts {
        match part.split_once('=') {
            Some(("format", format)) => named.format = Some(self::format(format)?),
            None if part == "read-only" => named.is_read_only = true,
            _ => return Err(format!("'{part}' is neither format=FMT nor read-only")),
        }
    }
    Ok(named)
}

/// Returns this machine.
pub fn host() -> Arc<dyn Host> {
    Arc::new(RealHost::new())
}

/// Refuses to take a file as raw that starts with the header of another format, unless it is known as raw: from then on
/// it would be, its children would show the bytes of the file and not the disk in it, and those that name it by its
/// format would be refused. A guest may write any header: `is_sure` says that the disk is raw all the same.
pub fn refuse_header(
    host: &Arc<dyn Host>,
    file: &Path,
    stated: Option<Format>,
    is_sure: bool,
) -> Result<(), Failure> {
    if stated != Some(Format::Raw) || is_sure {
        return Ok(());
    }
    let header = host.open(file, Access::ReadShared)?;
    let shown = Format::recognise(header.as_ref())?;
    if shown == Format::Raw || ledger(host).format_of(header.as_ref())?.as_deref() == Some(Format::Raw.name())
    {
        return Ok(());
    }
    let what = format!("{}: starts like a {shown} image, and is stated as raw", file.display());
    let hint = format!(
        "if it is one, state {shown}; if a guest wrote that header into a raw disk, --yes takes it as raw"
    );
    Err(Failure::usage(what).exit(Exit::Refused).hint(hint))
}

/// Returns the folder that is meant by a path: itself, or the one that an image lies in.
pub fn folder(host: &dyn Host, path: &Path) -> Result<PathBuf, Failure> {
    let place = host.canonical(path)?;
    Ok(match host.kind(&place)? {
        Some(EntryKind::Folder) => place,
        _ => place.parent().unwrap_or(Path::new("/")).to_path_buf(),
    })
}

/// Returns what is known of layers: beside them, or in the user's state folder where that cannot be written.
pub fn ledger(host: &Arc<dyn Host>) -> Ledger {
    Ledger::new(Arc::clone(host), config::state_folder())
}

/// Prints the options that new images of `format` know, of those that `is_taken` lets pass.
pub fn list_format_options(
    answer: &Answer,
    format: Format,
    is_taken: impl Fn(&str) -> bool,
) -> Result<(), Failure> {
    let taken = format.options().iter().filter(|(name, _)| is_taken(name));
    let known: Vec<_> = taken.map(|(name, what)| FormatOption { name, what }).collect();
    answer.print_list(&known, |known, out| {
        known.iter().try_for_each(|option| writeln!(out, "{:<18} {}", option.name, option.what))
    })
}

/// An option of a format, for `-o help`.
#[derive(Serialize)]
struct FormatOption {
    name: &'static str,
    what: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_named_with_all_that_belongs_to_it() {
        let plain = Named {
            name: "a".into(),
            path: "x.raw".into(),
            format: None,
            is_read_only: false,
            hooks: Hooks::default(),
        };
        assert_eq!(disk("a=x.raw").unwrap(), plain);
        let all = Named { path: "x,y=1".into(), format: Some(Format::Raw), is_read_only: true, ..plain };
        assert_eq!(disk("a=x,,y=1,format=raw,read-only").unwrap(), all);
        for wrong in ["x.raw", "a=", "a=x,format=tar", "a=x,ro"] {
            assert!(disk(wrong).is_err(), "{wrong}");
        }
    }
}
