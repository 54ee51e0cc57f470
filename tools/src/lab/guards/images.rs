//! Scenes about single images.

use crate::{History, crash, errors, jobs::world::arc};
use deltachain::{
    base::{Error, GuestOffset, HostOffset, Result},
    chain::{Chain, Opening},
    disk::Disk,
    format::{self, Creation, Format, Image, NoParts, Nothing, ParentName},
    io::{Access, File, Host, faulty::SimHost},
};
use std::{path::Path, sync::Arc};

const IMAGE: &str = "/image";

/// Whether power cuts find nothing wrong with a few histories.
pub(super) fn history_holds(name: &str) -> bool {
    History::find(name).and_then(|history| crash::search(history, 1, 250)).is_ok()
}

/// Whether failing I/Os find nothing wrong with one history.
pub(super) fn errors_are_survived(name: &str) -> bool {
    History::find(name).and_then(|history| errors::search(history, 1, 200)).is_ok()
}

/// An image with one cluster of data, closed.
fn small() -> Result<(SimHost, Arc<dyn File>)> {
    let host = SimHost::new();
    let options = vec![("cluster_size".to_owned(), "1024".to_owned())];
    let creation = Creation { size: 65536, parent: None, options };
    let image = format::create(Format::Qcow2, host.create(Path::new(IMAGE))?, &creation, &NoParts)?;
    image.write(GuestOffset::new(0), &[1; 1024], &Nothing)?;
    image.flush()?;
    drop(image);
    let file = host.open(Path::new(IMAGE), Access::Write)?;
    Ok((host, file))
}

fn word(file: &dyn File, at: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_at(HostOffset::new(at), &mut bytes)?;
    Ok(u64::from_be_bytes(bytes) & 0x00ff_ffff_ffff_fe00)
}

/// Sets the refcount of a cluster to 0.
fn uncount(file: &dyn File, cluster: u64) -> Result<()> {
    let block = word(file, word(file, 48)?)?;
    file.write_at(HostOffset::new(block + cluster * 2), &[0; 2])
}

fn open(file: Arc<dyn File>) -> Result<Arc<dyn Image>> {
    format::open(Format::Qcow2, file, true, &NoParts)
}

pub(super) fn refuses_to_give_the_header_away() -> Result<bool> {
    let (_host, file) = small()?;
    uncount(&*file, 0)?;
    Ok(open(file)?.write(GuestOffset::new(4096), &[2; 1024], &Nothing).is_err())
}

pub(super) fn fills_what_a_first_write_leaves() -> Result<bool> {
    let (_host, file) = small()?;
    // The cluster is free, and holds what it held.
    let table = word(&*file, word(&*file, 40)?)?;
    uncount(&*file, word(&*file, table)? / 1024)?;
    file.write_at(HostOffset::new(table), &[0; 8])?;
    let (image, mut rest) = (open(file)?, [9; 512]);
    image.write(GuestOffset::new(4096), &[2; 512], &Nothing)?;
    image.read(GuestOffset::new(4608), &mut rest, &Nothing)?;
    Ok(rest == [0; 512])
}

pub(super) fn refuses_an_entry_past_the_end() -> Result<bool> {
    let (_host, file) = small()?;
    let table = word(&*file, word(&*file, 40)?)?;
    file.write_at(HostOffset::new(table), &(1_u64 << 63 | 1 << 30).to_be_bytes())?;
    Ok(open(file)?.read(GuestOffset::new(0), &mut [0; 512], &Nothing).is_err())
}

pub(super) fn releases_nothing_of_a_contradiction() -> Result<bool> {
    let (_host, file) = small()?;
    let data = word(&*file, word(&*file, word(&*file, 40)?)?)?;
    uncount(&*file, data / 1024)?;
    Ok(open(file)?.release().is_err())
}

pub(super) fn hides_what_lies_below_a_short_layer() -> Result<bool> {
    let host = SimHost::new();
    let mut below: Option<&str> = None;
    for (name, size, byte) in [("base", 8192, 5), ("short", 2048, 0), ("top", 8192, 0)] {
        let parent = below.map(|name| ParentName::new(name.as_bytes().to_vec(), Some("qcow2".to_owned())));
        let options = vec![("cluster_size".to_owned(), "1024".to_owned())];
        let creation = Creation { size, parent, options };
        let file = host.create(&Path::new("/").join(name))?;
        let image = format::create(Format::Qcow2, file, &creation, &NoParts)?;
        if byte > 0 {
            image.write(GuestOffset::new(0), &[byte; 8192], &Nothing)?;
        }
        image.flush()?;
        below = Some(name);
    }
    let chain = Chain::open(&arc(&host), Path::new("/top"), &Opening::reading())?;
    let mut bytes = [9; 8192];
    chain.read(GuestOffset::new(0), &mut bytes)?;
    let (shown, hidden) = bytes.split_at_checked(2048).ok_or_else(|| Error::invalid("no such place"))?;
    Ok(shown.iter().all(|byte| *byte == 5) && hidden.iter().all(|byte| *byte == 0))
}
