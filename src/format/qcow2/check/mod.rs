//! Checking and repairing an image's metadata, with qemu's verdicts (`qcow2.rst` says what must hold).
//!
//! A repair keeps to an order in which a power cut leaves nothing worse than before: flags that claim a sole
//! owner wrongly go first, then refcounts rise, then they fall, then missing flags are set. Refcounts that
//! cannot be put right in place are written anew into free clusters, and one write of the header's first
//! sector makes them the image's.

mod counts;
mod mend;
mod reached;
mod survey;

use super::{change, feature, header::Header};
use crate::{
    base::{Error, Result, error::InFile},
    format::{Checked, Parts, Repair},
    io::File,
};
use mend::Flags;
use survey::Survey;

/// Looks at the image, mends what `repair` allows, and looks again.
pub(super) fn check(file: &dyn File, repair: Repair, parts: &dyn Parts) -> Result<Checked> {
    let header = Header::read_for_check(file)?;
    if let Some(name) = header.data_file_name().filter(|_| header.has_data_file()) {
        parts.open_part(name).in_file(file.path())?;
    }
    check_header(file, header, repair).in_file(file.path())
}

/// Repairs an image that was not closed cleanly, and returns its header; `Corrupt` if something is left.
pub(super) fn clean_up(file: &dyn File, header: Header) -> Result<Header> {
    let left = check_header(file, header, Repair::All)?;
    if left.corruptions > 0 || left.errors > 0 {
        let first = left.findings.first().map_or("", String::as_str);
        return Err(Error::corrupt(format!("was not closed cleanly, and a repair leaves: {first}")));
    }
    Header::read(file)
}

/// Looks at the image in `file`, whose header is known to be the one given, and mends nothing.
pub(super) fn look(file: &dyn File, header: &Header) -> Result<Checked> {
    Ok(Survey::take(file, header, true)?.checked)
}

fn check_header(file: &dyn File, mut header: Header, repair: Repair) -> Result<Checked> {
    let first = Survey::take(file, &header, true)?;
    let found = first.checked.clone();
    // A repair frees what nothing refers to: not before every reference was seen.
    if repair == Repair::Nothing || first.is_blind || repair == Repair::Leaks && first.must_rebuild {
        return Ok(found);
    }
    let is_clean = found.corruptions == 0 && found.leaks == 0;
    if !is_clean {
        if repair == Repair::All {
            mend::flags(&first, Flags::Clear)?;
            if first.must_rebuild {
                mend::rebuild(file, &mut header)?;
            } else {
                mend::refcounts(&first, mend::Direction::Up)?;
                mend::refcounts(&first, mend::Direction::Down)?;
            }
        } else {
            mend::refcounts(&first, mend::Direction::Down)?;
        }
        if repair == Repair::All || found.corruptions == 0 {
            let second = Survey::take(file, &header, true)?;
            mend::flags(&second, Flags::Set)?;
        }
    }
    let mut left = Survey::take(file, &header, true)?.checked;
    left.corruptions_fixed = found.corruptions.saturating_sub(left.corruptions);
    left.leaks_fixed = found.leaks.saturating_sub(left.leaks);
    if repair == Repair::All && left.corruptions == 0 && left.errors == 0 {
        let stale = feature::DIRTY | feature::CORRUPT;
        if header.has(stale) {
            change::set_fields(file, &mut header, |h| h.incompatible &= !stale)?;
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests;
