//! Content IDs as people write them: `c1:` and hex digits, shortened where that stays unique.

use crate::base::{Error, ErrorKind, Result};
use std::{fmt, str::FromStr};

const LABEL: &str = "c1:";
const HEX_DIGITS: usize = 64;
const SHORT_DIGITS: usize = 12;
const PREFIX_DIGITS_MIN: usize = 4;

/// The name of what a guest would read: equal for equal views, different for any differing bit or size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ContentId([u8; 32]);

impl ContentId {
    /// Wraps the bytes of an ID.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the ID.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the ID as a person reads it: `c1:` and 12 hex digits.
    pub fn short(&self) -> String {
        format!("{LABEL}{}", self.digits(SHORT_DIGITS))
    }

    /// Returns all 64 hex digits, without the label: a file name.
    pub fn hex(&self) -> String {
        self.digits(HEX_DIGITS)
    }

    fn digits(&self, count: usize) -> String {
        self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(count).map(digit).collect()
    }
}

fn digit(value: u8) -> char {
    char::from_digit(u32::from(value), 16).unwrap_or('?')
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LABEL}{}", self.hex())
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl From<ContentId> for String {
    fn from(id: ContentId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ContentId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for ContentId {
    type Err = Error;

    /// Reads a whole ID: 64 hex digits, with or without `c1:`.
    fn from_str(text: &str) -> Result<Self> {
        let IdPrefix { digits } = text.parse()?;
        let mut bytes = [0; 32];
        if digits.len() != HEX_DIGITS {
            let count = digits.len();
            return Err(Error::invalid(format!("'{text}' has {count} hex digits, a content ID has 64")));
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |high, low| (high << 4) | low);
        }
        Ok(Self(bytes))
    }
}

/// The first digits of a content ID, as a person gives them; good where only one ID starts so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPrefix {
    /// Each 0 to 15.
    digits: Vec<u8>,
}

impl IdPrefix {
    /// Returns the first of all IDs that could start so.
    pub fn first(&self) -> ContentId {
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(self.digits.chunks(2)) {
            *byte = pair.first().map_or(0, |high| high << 4) | pair.get(1).copied().unwrap_or(0);
        }
        ContentId(bytes)
    }

    /// Returns whether `id` starts so.
    pub fn matches(&self, id: &ContentId) -> bool {
        let all = id.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        self.digits.iter().zip(all).all(|(asked, held)| *asked == held)
    }

    /// Returns the one ID among `candidates` that starts so (it may stand there several times).
    ///
    /// `NotFound` if there is none; `Invalid`, naming two, if there are several.
    pub fn resolve(&self, candidates: impl IntoIterator<Item = ContentId>) -> Result<ContentId> {
        let mut found: Option<ContentId> = None;
        for id in candidates.into_iter().filter(|id| self.matches(id)) {
            match found {
                Some(other) if other != id => {
                    return Err(Error::invalid(format!(
                        "content ID {self} is ambiguous: {} and {}",
                        other.short(),
                        id.short()
                    )));
                }
                _ => found = Some(id),
            }
        }
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("nothing here has content ID {self}")))
    }
}

impl fmt::Display for IdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits: String = self.digits.iter().copied().map(digit).collect();
        write!(f, "{LABEL}{digits}")
    }
}

impl FromStr for IdPrefix {
    type Err = Error;

    /// Reads 4 to 64 hex digits, with or without `c1:`.
    fn from_str(text: &str) -> Result<Self> {
        let hex = text.strip_prefix(LABEL).unwrap_or(text);
        let digits: Option<Vec<u8>> =
            hex.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        match digits {
            Some(digits) if (PREFIX_DIGITS_MIN..=HEX_DIGITS).contains(&digits.len()) => Ok(Self { digits }),
            _ => Err(Error::invalid(format!("'{text}' is no content ID: c1: and 4 to 64 hex digits"))),
        }
    }
}
