//! Bytes that came in and are not yet understood.

use super::{
    request::{self, Broken, Request, Style},
    socket::Socket,
};
use crate::base::{clock::Stopwatch, units::index};
use std::{
    io::{self, ErrorKind},
    thread,
    time::Duration,
};

/// Room for what one call brings in: 32 writes of 4 KiB and their headers fit, twice.
const ROOM_BYTES: usize = 256 << 10;

/// A client that says something within this time is looked out for so long before the thread sleeps. Being woken
/// takes as long: with one request in flight, replies come half as late. qemu's threads look out for 32 us.
const QUICK: Duration = Duration::from_micros(50);

/// What came in on one connection, in order.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Whether the client said something soon after it was waited for.
    is_quick: bool,
}

impl Input {
    /// The longest request that can be [`Input::waiting`] whole.
    pub(super) const REQUEST_BYTES_MAX: usize = ROOM_BYTES / 2;

    pub(super) fn new() -> Self {
        Self { bytes: vec![0; ROOM_BYTES], start: 0, end: 0, is_quick: false }
    }

    /// Returns what is there.
    pub(super) fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Returns the next request; `None` if its header is not there as a whole.
    pub(super) fn peek(&self, style: Style) -> Result<Option<Request>, Broken> {
        request::parse(self.waiting(), style)
    }

    /// Takes `bytes` bytes away, or as many as there are; returns them.
    pub(super) fn take(&mut self, bytes: usize) -> &[u8] {
        let start = self.start;
        self.start = (start + bytes).min(self.end);
        self.bytes.get(start..self.start).unwrap_or_default()
    }

    /// Waits for more; fails with `UnexpectedEof` where the client has closed its side.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < ROOM_BYTES / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        let watch = Stopwatch::start();
        let received = match self.is_quick.then(|| look(room, socket, watch)).transpose()?.flatten() {
            Some(received) => received,
            None => socket.receive(room)?,
        };
        self.is_quick = watch.elapsed() < QUICK;
        match received {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            received => {
                self.end += received;
                Ok(())
            }
        }
    }

    /// Fills `payload` with what comes next, waiting for it.
    pub(super) fn receive_into(&mut self, payload: &mut [u8], socket: &Socket) -> io::Result<()> {
        let here = self.take(payload.len());
        let (first, rest) = payload.split_at_mut(here.len());
        first.copy_from_slice(here);
        socket.receive_exact(rest)
    }

    /// Throws away the next `bytes` bytes, waiting for them.
    pub(super) fn skip(&mut self, bytes: u64, socket: &Socket) -> io::Result<()> {
        let mut left = index(bytes);
        loop {
            left -= self.take(left).len();
            if left == 0 {
                return Ok(());
            }
            self.receive(socket)?;
        }
    }
}

/// Looks for bytes for as long as a quick client takes, giving way to whoever else wants the processor.
fn look(room: &mut [u8], socket: &Socket, watch: Stopwatch) -> io::Result<Option<usize>> {
    while watch.elapsed() < QUICK {
        if let Some(received) = socket.receive_now(room)? {
            return Ok(Some(received));
        }
        thread::yield_now();
    }
    Ok(None)
}
