//! A damaged input as it is kept: which sound one, where it is cut, and which bytes are put over it.
//!
//! ```text
//! # seeds from 7
//! qcow2/v3-4k.qcow2
//! cut 28000
//! 0x18 8000000000000000
//! ```
//! Kept so, a found input is a few lines that say what is wrong with it; lines that start with `#` say how it was found.

use deltachain::base::units::index;
use std::fmt;

/// A sound input and its damages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// The sound input's name.
    pub subject: String,
    /// Where the input ends, if it is cut.
    pub cut: Option<u64>,
    /// Bytes that replace others: where, and which. Later ones win; bytes past the end are dropped.
    pub edits: Vec<(u64, Vec<u8>)>,
}

impl Recipe {
    /// Reads the kept form; says which line is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut recipe = Self { subject: lines.next().unwrap_or_default().to_owned(), ..Self::default() };
        for line in lines {
            let wrong = || format!("neither a cut nor an edit: '{line}'");
            let (first, second) = line.split_once(' ').ok_or_else(wrong)?;
            if first == "cut" {
                recipe.cut = Some(second.parse().map_err(|_| wrong())?);
            } else {
                let at = first.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
                recipe.edits.push((at.ok_or_else(wrong)?, bytes(second).ok_or_else(wrong)?));
            }
        }
        Ok(recipe)
    }

    /// Returns the damaged input.
    pub fn apply(&self, sound: &[u8]) -> Vec<u8> {
        let mut input = sound.to_vec();
        for (at, bytes) in &self.edits {
            if let Some(rest) = input.get_mut(index(*at)..) {
                rest.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            }
        }
        if let Some(cut) = self.cut {
            input.truncate(index(cut));
        }
        input
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.subject)?;
        if let Some(cut) = self.cut {
            writeln!(f, "cut {cut}")?;
        }
        for (at, bytes) in &self.edits {
            write!(f, "{at:#x} ")?;
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_read_as_it_was_kept() {
        let recipe =
            Recipe { subject: "a/b".into(), cut: Some(7), edits: vec![(0x10, vec![0, 255]), (3, vec![])] };
        assert_eq!(Recipe::parse(&format!("# how\n{recipe}")), Ok(recipe.clone()));
        assert_eq!(recipe.apply(&[1; 18]), [1; 7]);
        let recipe = Recipe { cut: None, ..recipe };
        assert_eq!(recipe.apply(&[1; 17])[16], 0);
        assert!(Recipe::parse("a\nnonsense").is_err());
    }
}
