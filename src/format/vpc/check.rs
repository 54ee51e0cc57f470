//! Checking and repairing: footers, header, BAT.
//!
//! What a repair mends: a footer that is damaged, missing or another than the one that counts; checksums that leave the
//! identity out. Blocks that share a place, or lie nowhere, stay as they are: which of them is right nobody knows.

use super::{
    bat::{self, Bat},
    footer::{Footers, Found, Kind},
    header::Header,
    image::SparseImage,
    resize::write_footers,
};
use crate::{
    base::{HostOffset, Result},
    format::{Checked, NoParts, Repair},
    io::File,
};
use std::{fmt, sync::Arc};

/// Looks at the image, mends what `repair` allows, and looks again.
pub(super) fn check(file: &Arc<dyn File>, repair: Repair) -> Result<Checked> {
    let (found, footers) = look(&**file)?;
    let (mends_all, is_sound) = (repair == Repair::All, found.corruptions == 0);
    if mends_all && !is_sound {
        mend(&**file, &footers)?;
    }
    let releases = repair != Repair::Nothing && found.leaks > 0;
    if releases && (is_sound || look(&**file)?.0.corruptions == 0) {
        let footers = Footers::read(&**file)?;
        SparseImage::open(file.clone(), &footers, true, &NoParts)?.release_unused()?;
    }
    let (mut left, _) = look(&**file)?;
    left.corruptions_fixed = found.corruptions.saturating_sub(left.corruptions);
    left.leaks_fixed = found.leaks.saturating_sub(left.leaks);
    Ok(left)
}

fn look(file: &dyn File) -> Result<(Checked, Footers)> {
    let footers = Footers::read(file)?;
    let mut checked = Checked { end: HostOffset::new(file.bytes()?), ..Checked::default() };
    let kind = footers.footer.kind()?;
    if footers.is_unsigned {
        checked.wrong("footer: the checksum leaves the unique ID out");
    } else {
        let copy = (footers.front, HostOffset::new(0));
        let copies = [Some((footers.end, footers.end_at)), Some(copy).filter(|_| kind != Kind::Fixed)];
        for (found, at) in copies.into_iter().flatten().filter(|(f, _)| *f != Found::Sound(footers.footer)) {
            let what = match found {
                Found::Nothing => "is missing",
                Found::Damaged(_) => "is damaged: its checksum is not that of its bytes",
                Found::Sound(_) => "is not the same as that at the end",
            };
            checked.wrong(format_args!("footer at {at:#x} {what}"));
        }
    }
    if footers.is_stranded {
        let what = "only a hole follows it: the disk was growing when it was cut off";
        checked.wrong(format_args!("footer at {:#x}: {what}", footers.end_at));
    }
    let size = footers.footer.disk_bytes()?;
    if kind == Kind::Fixed {
        super::fixed::check_size(size, &footers)?;
        return Ok((checked, footers));
    }
    let at = HostOffset::new(footers.footer.data_offset);
    let header = Header::read(file, (at, size), kind, footers.is_unsigned)?;
    if header.is_unsigned {
        checked.wrong("dynamic header: the checksum leaves the parent out");
    }
    look_at_blocks(file, &header, (&mut checked, &footers))?;
    Ok((checked, footers))
}

fn look_at_blocks(
    file: &dyn File,
    header: &Header,
    (checked, footers): (&mut Checked, &Footers),
) -> Result<()> {
    let shape = header.shape;
    let entries = shape.entries(footers.footer.disk_bytes()?);
    let bat = Bat::unchecked(header, entries);
    let mut used = bat.survey(file, (header, footers.end_at), &mut |what| {
        checked.wrong(what);
        Ok(())
    })?;
    checked.end = bat::used_end(&used, header, entries);
    checked.leaks = footers.end_at.since(checked.end) / shape.both();
    checked.total_units = entries;
    checked.allocated_units = crate::base::units::count(used.len());
    used.sort_unstable_by_key(|(_, nth)| *nth);
    let apart = |pair: &[(HostOffset, u64)]| match pair {
        [(at, _), (next, _)] => *next != at.plus(shape.both()) && *next != at.plus(shape.stride()),
        _ => false,
    };
    checked.fragmented_units = used.windows(2).map(|pair| u64::from(apart(pair))).sum();
    Ok(())
}

/// Puts footers and checksums right.
fn mend(file: &dyn File, footers: &Footers) -> Result<()> {
    if !footers.is_unsigned {
        return footers.mend(file);
    }
    let size = footers.footer.disk_bytes()?;
    let at = HostOffset::new(footers.footer.data_offset);
    let header = Header::read(file, (at, size), footers.footer.kind()?, true)?;
    // The header first: with a right one and footers as they were the image reads as before.
    file.write_at(header.at, &header.fields.signed())?;
    file.flush()?;
    write_footers(file, footers.end_at, &footers.footer)
}

impl Checked {
    /// Notes what is wrong; it is put into words only where there is room for them.
    fn wrong(&mut self, what: impl fmt::Display) {
        self.corruptions += 1;
        if self.findings.len() < Self::FINDINGS_MAX {
            self.findings.push(what.to_string());
        }
    }
}
