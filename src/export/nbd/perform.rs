//! Does what a request asks for, and puts the reply together.

use super::{
    haggle::Agreed,
    reply::{Buffer, To},
    request::{Refusal, Style, Task},
    status,
    wire::errno,
};
use crate::{
    base::{Error, ErrorKind, GuestRange, Result, units::index},
    disk::Disk,
    io::Kept,
};

/// Returns how an error is called on the wire.
fn refusal(error: &Error) -> Refusal {
    let (errno, why) = match error.kind() {
        ErrorKind::NoSpace => (errno::NOSPC, "no space left"),
        ErrorKind::Invalid => (errno::INVAL, "the disk does not take this request"),
        ErrorKind::Policy => (errno::PERM, "not allowed"),
        ErrorKind::Unsupported => (errno::NOTSUP, "the disk cannot do this"),
        _ => (errno::IO, "the disk failed"),
    };
    Refusal { errno, why }
}

/// Does `task`, whose bytes to write are `payload`, and appends the whole reply.
pub(super) fn perform(agreed: &Agreed, task: &Task, payload: &[u8], to: To, out: &mut Buffer) {
    let start = out.bytes().len();
    let done = match *task {
        Task::Read { range, is_whole } => read(agreed.export.disk.as_ref(), range, is_whole, to, out),
        Task::Status { range, is_one } => tell(agreed, range, is_one, to, out),
        _ => change(agreed.export.disk.as_ref(), task, payload).map(|()| to.done(out)),
    };
    if let Err(error) = done {
        let refusal = refusal(&error);
        let export = &agreed.export.name;
        if refusal.errno == errno::NOTSUP {
            tracing::debug!(%export, %error, "a request is not done");
        } else {
            tracing::warn!(%export, %error, "a request failed");
        }
        out.cut(start);
        to.refused(refusal, out);
    }
}

/// Does what answers with nothing but that it is done.
fn change(disk: &dyn Disk, task: &Task, payload: &[u8]) -> Result<()> {
    let is_durable = match *task {
        Task::Write { range, is_durable } => {
            disk.write(range.start, payload)?;
            is_durable
        }
        Task::Zero { range, kept, is_fast, is_durable } => {
            if is_fast && !disk.zeroes_fast(range, kept) {
                return Err(Error::unsupported("zeros would have to be written"));
            }
            disk.zero(range, kept)?;
            is_durable
        }
        Task::Trim { range, is_durable } => {
            disk.zero(range, Kept::Nothing)?;
            is_durable
        }
        Task::Cache { range } => {
            disk.cache(range)?;
            false
        }
        Task::Flush => true,
        Task::Read { .. } | Task::Status { .. } => false,
    };
    if is_durable { disk.flush() } else { Ok(()) }
}

/// Answers a read with the bytes, or, where the client can take that, with how many zeros they are.
fn read(disk: &dyn Disk, range: GuestRange, is_whole: bool, to: To, out: &mut Buffer) -> Result<()> {
    let start = out.bytes().len();
    let data = to.data(index(range.bytes), out);
    disk.read(range.start, data)?;
    // What is read says more than a map would: zeros that are stored are found, and no write comes in between.
    if to.style != Style::Simple && !is_whole && !range.is_empty() && is_zero(data) {
        out.cut(start);
        to.hole(u32::try_from(range.bytes).unwrap_or(u32::MAX), out);
    }
    Ok(())
}

/// Whether all bytes are zero; other data is told by its first bytes.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|part| part.iter().fold(0, |any, byte| any | byte) == 0)
}

fn tell(agreed: &Agreed, range: GuestRange, is_one: bool, to: To, out: &mut Buffer) -> Result<()> {
    let last = agreed.contexts.len().saturating_sub(1);
    for (nth, (id, context)) in agreed.contexts.iter().enumerate() {
        let stretches = status::gather(context.as_ref(), range, is_one)?;
        to.status(*id, &stretches, nth == last, out);
    }
    Ok(())
}
