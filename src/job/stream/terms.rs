//! What sender and receiver say to each other, beside the bytes: in JSON, each with bounds.

use crate::{
    base::{Error, ErrorKind, Result, name::FileName, units::SECTOR_BYTES},
    content::{ContentId, LEAF_BYTES},
    format::Format,
    job::copy::Share,
    store::Draft,
};
use serde::{Deserialize, Serialize};
use std::{
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
};

/// Layers in a stream at most: as many as a chain may have.
pub(super) const LAYERS_MAX: usize = 1024;

/// Options of an image's format that a stream may state. Those that name files or ask for space are not among them.
const OPTIONS: [&str; 6] =
    ["cluster_size", "compat", "compression_type", "extended_l2", "lazy_refcounts", "refcount_bits"];

/// Leaves of which a layer tells the hash, so that something like it can be found.
pub(super) const SAMPLES_MAX: usize = 32;

/// A layer that is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerHead {
    /// The name that its file should have.
    pub name: FileName,
    /// Its format.
    pub format: Format,
    /// The options that make an image like it.
    pub options: Vec<(String, String)>,
    /// Size of its disk in bytes.
    pub size: u64,
    /// The content ID of what it shows.
    pub id: ContentId,
    /// What its parent shows.
    pub parent: Option<ContentId>,
    /// Guest bytes that it holds at most.
    pub bytes: u64,
    /// The hashes of some of its leaves, as the first 16 hex digits.
    pub samples: Vec<(u64, String)>,
}

impl LayerHead {
    /// Refuses what no layer can be, and what a stream may not ask for: `Corrupt`, with the field.
    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::corrupt(format!("layer {}: {what}", shown(&self.name))));
        if let Err(why) = check_name(&self.name) {
            return wrong(format!("name: {}", why.what()));
        }
        if !self.size.is_multiple_of(SECTOR_BYTES) || i64::try_from(self.size).is_err() {
            return wrong(format!("size: no disk has {} bytes", self.size));
        }
        if let Some((key, _)) = self.options.iter().find(|(key, _)| !OPTIONS.contains(&key.as_str())) {
            return wrong(format!("options: '{}' is none that a stream may state", key.escape_debug()));
        }
        if self.options.len() > OPTIONS.len() || self.samples.len() > SAMPLES_MAX {
            return wrong("options or samples: too many".to_owned());
        }
        if self.format == Format::Raw && self.parent.is_some() {
            return wrong("parent: a raw image has none".to_owned());
        }
        Ok(())
    }

    /// Returns how the image is made: what was begun in another way is not gone on with.
    pub(super) fn form(&self) -> String {
        format!("{} {:?} {} {:?}", self.format, self.options, self.size, self.parent)
    }

    /// Returns how many leaves what it shows has.
    pub(super) const fn leaves(&self) -> u64 {
        self.size.div_ceil(LEAF_BYTES)
    }
}

/// Refuses names that are no file's in a store: they come from somebody else.
pub(super) fn check_name(name: &Path) -> Result<()> {
    let mut parts = name.components();
    let bytes = name.as_os_str().as_bytes();
    let is_plain =
        matches!((parts.next(), parts.next()), (Some(Component::Normal(own)), None) if own == name);
    if !is_plain || bytes.contains(&0) || bytes.contains(&b'/') || bytes.len() > 255 {
        return Err(Error::policy("is not the name of a file in the folder").path(name));
    }
    // What hides could be something that another program reads.
    if bytes.starts_with(b".") {
        return Err(Error::policy("starts with a dot").path(name));
    }
    Draft::check_name(name).map_err(|e| e.with_kind(ErrorKind::Policy))
}

/// Refuses layers that do not stand on each other, the deepest first.
pub(super) fn check_layers(layers: &[LayerHead]) -> Result<()> {
    layers.iter().try_for_each(LayerHead::check)?;
    for pair in layers.windows(2) {
        if let [parent, child] = pair
            && child.parent != Some(parent.id)
        {
            return Err(Error::corrupt(format!(
                "layer {}: does not stand on the one before",
                shown(&child.name)
            )));
        }
    }
    Ok(())
}

/// What the client of a session wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Ask {
    /// To send layers into the root folder.
    Receive {
        /// What may be linked.
        share: Share,
    },
    /// To get a chain from it.
    Send {
        /// The head's name.
        top: FileName,
        /// Its format, if it is stated.
        format: Option<Format>,
    },
}

/// What the receiver has of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Answer {
    /// The deepest layer that it lacks; as many as there are layers: none.
    pub(super) first: u32,
    /// What that one will stand on.
    pub(super) link: Option<FileName>,
    /// What it has of each layer that it lacks.
    pub(super) lacking: Vec<Lacking>,
    /// Space that is free there, in bytes.
    pub(super) free_bytes: u64,
}

/// What the receiver has of a layer that it lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lacking {
    /// The name that it will have.
    pub(super) name: FileName,
    /// What comes before this guest offset is there.
    pub(super) from: u64,
    /// How many leaves of a relative are told, and may be taken from it.
    pub(super) leaves: u64,
}

/// What a sender would send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Planned {
    /// Bytes at most of each layer that is lacking.
    pub(super) bytes: Vec<u64>,
    /// What streams do not carry, as `FILE: what`.
    pub(super) lost: Vec<String>,
}

/// What a receiver did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    /// The head's name.
    pub(super) head: FileName,
    /// Bytes of guests that came.
    pub(super) received_bytes: u64,
    /// Bytes that a relative had.
    pub(super) taken_bytes: u64,
}

/// Why a peer ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failed {
    kind: ErrorKind,
    what: String,
    file: Option<FileName>,
}

impl Failed {
    pub(super) fn of(error: &Error) -> Self {
        // The words of the operating system come after what was done.
        let what = match error.os() {
            Some(os) => {
                let said = os.to_string();
                format!("{}: {}", error.what(), said.split(" (os error ").next().unwrap_or_default())
            }
            None => error.what().to_owned(),
        };
        let what = what.chars().take(4096).collect();
        Self { kind: error.kind(), what, file: error.file().map(|file| FileName(file.to_path_buf())) }
    }

    /// Returns the error as one of this side; where its file is, only the peer knows.
    pub(super) fn error(&self) -> Error {
        let file = self.file.as_ref().map(|file| format!("{}: ", shown(file))).unwrap_or_default();
        let what: String = self.what.chars().flat_map(char::escape_debug).take(4096).collect();
        Error::new(self.kind, format!("the other side says: {file}{what}"))
    }
}

/// A name from elsewhere, as it can be shown.
pub(super) fn shown(name: &FileName) -> String {
    name.to_string_lossy().chars().flat_map(char::escape_debug).take(512).collect()
}
