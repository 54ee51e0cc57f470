//! What reading a whole disk found, as programs and people read it.

use crate::size;
use deltachain::{
    base::{ErrorKind, GuestRange, name},
    content::ContentId,
    job::{
        seal::Unread,
        verify::{Verdict, Verified},
    },
};
use serde::Serialize;
use std::fmt;

/// A range of the disk.
#[derive(Debug, Serialize)]
pub struct Span {
    offset: u64,
    length: u64,
}

impl From<&GuestRange> for Span {
    fn from(range: &GuestRange) -> Self {
        Self { offset: range.start.bytes(), length: range.bytes }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.length, self.offset)
    }
}

/// A range that cannot be read.
#[derive(Debug, Serialize)]
struct Lost {
    #[serde(flatten)]
    span: Span,
    error: String,
}

impl From<&Unread> for Lost {
    fn from(unread: &Unread) -> Self {
        Self { span: Span::from(&unread.range), error: unread.error.to_string() }
    }
}

/// What the data of a disk is like.
#[derive(Debug, Serialize)]
pub struct Data {
    /// What is shown; null if a part cannot be read.
    id: Option<ContentId>,
    /// What is promised, and by which layer.
    promised: Option<ContentId>,
    promised_by: Option<String>,
    /// Whether what can be read is what is promised; null where nothing is, or where that cannot be told.
    matches: Option<bool>,
    size: u64,
    /// The size that is promised, where the data differs.
    promised_size: Option<u64>,
    read_bytes: u64,
    /// The leaves that differ, where that can be told.
    differing: Vec<Span>,
    unread: Vec<Lost>,
    #[serde(skip)]
    is_corrupt: bool,
    #[serde(skip)]
    is_own: bool,
}

impl From<&Verified> for Data {
    fn from(verified: &Verified) -> Self {
        let promise = verified.promise.as_ref();
        let (leaves, promised_size) = match &verified.verdict {
            Verdict::Broken { leaves, size } => (leaves.as_slice(), Some(*size)),
            _ => (&[][..], None),
        };
        Self {
            id: verified.shown,
            promised: promise.map(|promise| promise.id),
            promised_by: promise.map(|promise| name::text(&promise.layer).into_owned()),
            matches: match verified.verdict {
                Verdict::Kept => Some(true),
                Verdict::Broken { .. } | Verdict::NotLocated { is_broken: true } => Some(false),
                Verdict::Open | Verdict::NotLocated { is_broken: false } => None,
            },
            size: verified.size,
            promised_size,
            read_bytes: verified.read_bytes,
            differing: leaves.iter().map(Span::from).collect(),
            unread: verified.unread.iter().map(Lost::from).collect(),
            is_corrupt: verified.unread.iter().any(|unread| unread.error.kind() == ErrorKind::Corrupt),
            is_own: promise.is_some_and(|promise| promise.is_own),
        }
    }
}

impl Data {
    /// Returns whether the data is not what it should be.
    pub fn is_broken(&self) -> bool {
        self.is_corrupt || self.matches == Some(false)
    }

    /// Returns whether a part cannot be read.
    pub const fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Returns what a person reads.
    pub fn lines(&self) -> Vec<String> {
        let read = size::show(self.read_bytes);
        let promised = match (&self.promised, &self.promised_by) {
            (Some(id), Some(layer)) if self.is_own => format!("{} of {layer}", id.short()),
            (Some(id), Some(layer)) => {
                format!("{} of {layer}, as far as no layer above holds something else,", id.short())
            }
            _ => String::new(),
        };
        let mut lines = vec![match (self.promised, self.matches) {
            (None, _) => format!("data: {read} read; no content ID is recorded to compare it with"),
            (_, Some(true)) => format!("data: {read} read; it is what {promised} promises"),
            (_, Some(false)) => format!("data: {read} read; it is not what {promised} promises"),
            (_, None) => format!("data: {read} read; the tree of {promised} is not kept to compare it with"),
        }];
        if let Some(size) = self.promised_size.filter(|size| self.is_own && *size != self.size) {
            lines.push(format!("the disk has {} bytes, promised are {size}", self.size));
        }
        lines.extend(self.differing.iter().map(|span| format!("differs: {span}")));
        lines.extend(self.unread.iter().map(|lost| format!("cannot be read: {}: {}", lost.span, lost.error)));
        lines
    }
}
