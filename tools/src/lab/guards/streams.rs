//! Scenes about chains that arrive from elsewhere.

use crate::jobs::world::ledger;
use deltachain::{
    base::{GuestOffset, Result},
    chain::Opening,
    format::{self, Creation, Format, NoParts, Nothing},
    io::{Host, faulty::SimHost},
    job::{
        Progress,
        stream::{Incoming, Outgoing, SendRequest},
    },
};
use std::{
    io::{Cursor, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The stream of a disk full of one byte, cut where its bytes begin.
fn stream(host: &SimHost, byte: u8) -> Result<(Vec<u8>, Vec<u8>)> {
    let arc: Arc<dyn Host> = Arc::new(host.clone());
    let place = Path::new("/disks").join(byte.to_string());
    host.make_folder(&place)?;
    let place = place.join("disk");
    let creation = Creation { size: 65536, parent: None, options: Vec::new() };
    let image = format::create(Format::Qcow2, host.create(&place)?, &creation, &NoParts)?;
    image.write(GuestOffset::new(0), &vec![byte; 65536], &Nothing)?;
    image.flush()?;
    drop(image);
    let (kept, quiet) = (Kept::default(), Progress::default());
    let sent = Outgoing::open(&arc, &ledger(host), &place, &Opening::reading(), &quiet)?;
    sent.plan(&SendRequest::default())?.run(Box::new(kept.clone()), &quiet)?;
    let bytes = kept.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // After the preamble come two frames, a layer's head and how many there are: 12 bytes and a payload each.
    let mut at = 12;
    for _ in 0..2 {
        let length = bytes.get(at + 4..).and_then(<[u8]>::first_chunk).map_or(0, |l| u32::from_le_bytes(*l));
        at += 12 + usize::try_from(length).unwrap_or_default();
    }
    Ok((bytes.get(..at).unwrap_or_default().to_vec(), bytes.get(at..).unwrap_or_default().to_vec()))
}

/// One disk is promised, and another one comes.
pub(super) fn gives_no_name_to_what_was_not_promised() -> Result<bool> {
    let host = SimHost::new();
    let (promise, (_, bytes)) = (stream(&host, 1)?.0, stream(&host, 2)?);
    host.make_folder(Path::new("/store"))?;
    let from = Box::new(Cursor::new([promise, bytes].concat()));
    let (arc, quiet): (Arc<dyn Host>, _) = (Arc::new(host.clone()), Progress::default());
    let place = (Path::new("/store"), from as Box<dyn std::io::Read + Send>);
    let incoming = Incoming::begin(&arc, &ledger(&host), place, &Opening::reading(), &quiet)?;
    Ok(incoming.run(&quiet).is_err() && host.kind(Path::new("/store/disk"))?.is_none())
}
