//! The byte of a sparse file's header that says that a writer has not closed it (Virtual Disk Format 5.0,
//! `uncleanShutdown`): VMware looks such a disk over before it uses it.
//!
//! It is set, durably, before the first change of an opening, and taken back when all is durable. One that somebody before us
//! has left stays, until VMware or `check --repair` has looked. A disk that is just made has none: nobody knows it yet.

use super::{
    desk::cid_of,
    image::VmdkImage,
    layout::{Coding, UNCLEAN_AT},
    tables::Extent,
};
use crate::{
    base::{HostOffset, Result, seed},
    io::File,
};
use parking_lot::MutexGuard;
use std::sync::atomic::Ordering;

/// What becomes of the disk's identity with the next change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cid {
    /// It gets another one.
    #[default]
    Old,
    /// It stays: what is written leaves the view as it is.
    Kept,
    /// It is another one than when the disk was opened.
    New,
}

/// What goes before the first change of an opening.
#[derive(Debug, Default)]
pub(super) struct Begun {
    pub(super) cid: Cid,
    /// Whether headers say that the disk was not closed.
    pub(super) is_marked: bool,
    /// Whether that is not ours to take back.
    pub(super) stays: bool,
}

/// Returns where the bytes are, of files that have one, and whether each is set.
pub(super) fn marks(extents: &[Extent]) -> impl Iterator<Item = (HostOffset, bool)> {
    let hosted = extents.iter().filter_map(Extent::grains);
    let hosted = hosted.filter(|grains| matches!(grains.layout.coding, Coding::Hosted { .. }));
    hosted.map(|grains| (grains.base.plus(UNCLEAN_AT.bytes()), grains.layout.is_unclean))
}

impl VmdkImage {
    /// Gives the disk another identity, and marks it, durably.
    pub(super) fn begin(&self) -> Result<()> {
        let mut desk = self.desk.lock();
        let mut begun = self.begun.lock();
        if !begun.is_marked {
            let is_any = self.write_marks(true)?;
            // Else the flush of the identity is that of the same file.
            if is_any && (self.beside.is_some() || begun.cid != Cid::Old) {
                self.space.flush()?;
            }
            begun.is_marked = true;
        }
        if begun.cid == Cid::Kept {
            return Ok(());
        }
        if let Some(desk) = desk.as_mut().filter(|_| begun.cid == Cid::Old) {
            let fresh = seed::fresh();
            desk.change_cid(cid_of(fresh), fresh)?;
        }
        begun.cid = Cid::New;
        self.is_begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes the marks back: all before this is durable, and nobody writes. Not durable.
    pub(super) fn end(&self) -> Result<()> {
        let begun = self.begun.lock();
        if begun.is_marked && !begun.stays { self.end_marked(begun) } else { Ok(()) }
    }

    fn end_marked(&self, mut begun: MutexGuard<'_, Begun>) -> Result<()> {
        self.is_begun.store(false, Ordering::Release);
        begun.is_marked = false;
        self.write_marks(false).map(drop)
    }

    fn write_marks(&self, is_unclean: bool) -> Result<bool> {
        let places: Vec<_> = marks(&self.state.read().tables.extents).collect();
        places.iter().try_for_each(|(at, _)| self.space.write_at(*at, &[u8::from(is_unclean)]))?;
        Ok(!places.is_empty())
    }
}

impl Drop for VmdkImage {
    /// What was not flushed is lost as in a power cut: then the marks stay.
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let is_flushed =
            state.poison.is_none() && !state.tables.pages.is_changed() && state.dropped.is_empty();
        if self.is_writable && is_flushed {
            let _ = self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check, create, open};
    use super::*;
    use crate::{
        base::GuestOffset,
        format::{Creation, Image, NoParts, Nothing, Repair},
        io::memory::MemoryFile,
    };
    use std::sync::Arc;

    #[test]
    fn a_disk_says_that_it_was_not_closed_as_long_as_that_is_so() {
        let file: Arc<dyn File> = Arc::new(MemoryFile::new("disk.vmdk"));
        let is_marked = || {
            let mut byte = [9];
            file.read_at(UNCLEAN_AT, &mut byte).unwrap();
            byte == [1]
        };
        let creation = Creation { size: 1 << 20, ..Creation::default() };
        drop(create(file.clone(), &creation, &NoParts).unwrap());
        let open = || open(file.clone(), true, &NoParts).unwrap();
        let write = |image: &dyn Image, at| image.write(GuestOffset::new(at), &[1; 512], &Nothing).unwrap();
        let image = open();
        assert!(!is_marked());
        write(&*image, 0);
        image.flush().unwrap();
        assert!(is_marked());
        image.flush_with_time().unwrap();
        assert!(!is_marked());
        write(&*image, 0);
        assert!(is_marked());
        drop(image);
        assert!(!is_marked());
        // What was not flushed is lost with its writer.
        let image = open();
        write(&*image, 1 << 19);
        drop(image);
        assert!(is_marked());
        let finds = |repair| {
            let checked = check(&file, repair, &NoParts).unwrap();
            assert_eq!(checked.corruptions, 0);
            checked.findings.iter().any(|finding| finding.contains("was not closed"))
        };
        assert!(finds(Repair::Nothing));
        // Whoever writes then does not say that somebody has looked.
        let image = open();
        write(&*image, 1 << 19);
        image.flush_with_time().unwrap();
        drop(image);
        assert!(is_marked() && finds(Repair::Nothing));
        assert!(!finds(Repair::Leaks) && !is_marked());
    }
}
