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
    disk::{Disk, Status},
    io::Kept,
};

/// Reads of this many bytes and more ask first where zeros are, which need not be sent then.
const SPARSE_BYTES: u64 = 128 << 10;
/// Zeros of fewer bytes are sent as they are: a piece of their own costs more.
const HOLE_BYTES: u64 = 16 << 10;

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

fn read(disk: &dyn Disk, range: GuestRange, is_whole: bool, to: To, out: &mut Buffer) -> Result<()> {
    if range.bytes < SPARSE_BYTES || is_whole || to.style == Style::Simple {
        return disk.read(range.start, to.data(index(range.bytes), out));
    }
    let mut runs = Vec::new();
    disk.status(range, &mut runs)?;
    let is_hole = |run: &Status| run.is_zero && run.range.bytes >= HOLE_BYTES;
    if !runs.iter().any(is_hole) {
        return disk.read(range.start, to.data(index(range.bytes), out));
    }
    let mut data = range.start.range(0);
    let flush = |data: GuestRange, out: &mut Buffer| match data.bytes {
        0 => Ok(()),
        bytes => disk.read(data.start, to.piece(data.start.bytes(), index(bytes), out)),
    };
    for run in &runs {
        if !is_hole(run) {
            data.bytes += run.range.bytes;
            continue;
        }
        flush(data, out)?;
        to.hole(run.range.start.bytes(), u32::try_from(run.range.bytes).unwrap_or(u32::MAX), out);
        data = run.range.end().range(0);
    }
    flush(data, out)?;
    to.end(out);
    Ok(())
}

fn tell(agreed: &Agreed, range: GuestRange, is_one: bool, to: To, out: &mut Buffer) -> Result<()> {
    let last = agreed.contexts.len().saturating_sub(1);
    for (nth, (id, context)) in agreed.contexts.iter().enumerate() {
        let stretches = status::gather(context.as_ref(), range, is_one)?;
        to.status(*id, &stretches, nth == last, out);
    }
    Ok(())
}
