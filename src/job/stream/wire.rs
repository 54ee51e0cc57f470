//! The two ends of a wire: frames in, frames out, each pumped by a thread of its own, so that disk and wire work at the
//! same time.
//!
//! What stays true: a bounded number of frames waits at either end. Whoever waits for the peer can be asked to stop, and in a
//! session does not wait for one that is gone without a word: both sides say from time to time that they are there, whatever
//! keeps them busy. A thread that waits is left behind when nobody needs it any more: it ends with its end of the wire.

use super::frame::{Frame, Head, Packet, Preamble};
use crate::{
    base::{Error, ErrorKind, Result, clock::Stopwatch},
    job::Progress,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use std::{
    io::{BufReader, BufWriter, Read, Write},
    sync::Arc,
    thread,
    time::Duration,
};

/// Frames that wait at an end, at most.
const WAITING: usize = 16;
/// Small frames share calls of the system; large ones pass by.
const BUFFER_BYTES: usize = 64 << 10;
/// How long a silent wire is waited for before it is asked whether to stop.
const NAP: Duration = Duration::from_millis(50);
/// How long a side of a session has nothing to say before it says that it is there.
pub(super) const BEAT: Duration = Duration::from_secs(10);
/// How long nothing comes from a peer until it is gone. The system finds out as well, but may take hours.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);
/// How long it is waited for what a peer that ends has to say, or for a peer to hear it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is known of whether a peer is there.
#[derive(Debug)]
pub(super) struct Line {
    /// Since when it is waited for its next byte; `None` while that is not read, since there is enough to do.
    quiet: Mutex<Option<Stopwatch>>,
    patience: Duration,
}

impl Line {
    /// One on which a peer is there as long as no more time than that passes between two of its bytes.
    pub(super) fn new(patience: Duration) -> Arc<Self> {
        Arc::new(Self { quiet: Mutex::new(None), patience })
    }

    /// Fails with `Interrupted` if the peer is gone.
    fn check(&self) -> Result<()> {
        let quiet = self.quiet.lock().map_or(Duration::ZERO, Stopwatch::elapsed);
        if quiet <= self.patience {
            return Ok(());
        }
        let what =
            format!("the other side has said nothing for {} s: the connection is lost", quiet.as_secs());
        Err(Error::new(ErrorKind::Interrupted, what))
    }
}

/// What is read, and whether it comes.
struct Heard {
    from: Box<dyn Read + Send>,
    line: Arc<Line>,
}

impl Read for Heard {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        *self.line.quiet.lock() = Some(Stopwatch::start());
        let read = self.from.read(buf);
        *self.line.quiet.lock() = None;
        read
    }
}

/// Where frames come from.
#[derive(Debug)]
pub(super) struct Input {
    frames: Receiver<Result<Frame>>,
    line: Option<Arc<Line>>,
    count: u64,
    data_bytes: u64,
}

impl Input {
    /// Reads frames from `from` as soon as they come.
    pub(super) fn new(from: Box<dyn Read + Send>) -> Self {
        let (give, frames) = bounded(WAITING);
        thread::spawn(move || pump_in(from, &give));
        Self { frames, line: None, count: 0, data_bytes: 0 }
    }

    /// The same from a peer that may be gone.
    pub(super) fn on(line: &Arc<Line>, from: Box<dyn Read + Send>) -> Self {
        let heard = Heard { from, line: Arc::clone(line) };
        Self { line: Some(Arc::clone(line)), ..Self::new(Box::new(heard)) }
    }

    /// Returns one from which nothing comes any more.
    pub(super) fn ended() -> Self {
        Self { frames: bounded(0).1, line: None, count: 0, data_bytes: 0 }
    }

    /// Returns the next frame. `Corrupt` for what is none; `Interrupted` for an end that comes too early, for a peer that is
    /// gone, and when asked to stop.
    pub(super) fn next(&mut self, progress: &Progress) -> Result<Frame> {
        let frame = loop {
            progress.checkpoint()?;
            match self.frames.recv_timeout(NAP) {
                Ok(frame) => break frame?,
                Err(RecvTimeoutError::Timeout) => check(self.line.as_deref())?,
                Err(RecvTimeoutError::Disconnected) => return Err(cut_short()),
            }
        };
        if let Frame::End { frames, data_bytes } = frame
            && (frames, data_bytes) != (self.count, self.data_bytes)
        {
            return Err(Error::corrupt("the stream's end counts other frames than came"));
        }
        if let Frame::Data(data) = &frame {
            self.data_bytes += data.bytes().len() as u64;
        }
        self.count += 1;
        Ok(frame)
    }

    /// Returns how many bytes of guests came.
    pub(super) const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Returns why the peer has ended, if it said so: asked when nothing can be sent to it any more.
    pub(super) fn last_words(&mut self) -> Option<Error> {
        let watch = Stopwatch::start();
        while let Ok(frame) = self.frames.recv_timeout(LAST_WORDS.saturating_sub(watch.elapsed())) {
            if let Ok(Frame::Failed(failed)) = frame {
                return Some(failed.error());
            }
        }
        None
    }
}

fn check(line: Option<&Line>) -> Result<()> {
    line.map_or(Ok(()), Line::check)
}

fn cut_short() -> Error {
    Error::new(ErrorKind::Interrupted, "ends too early: the rest of it is missing")
}

fn pump_in(from: Box<dyn Read + Send>, to: &Sender<Result<Frame>>) {
    let mut from = BufReader::with_capacity(BUFFER_BYTES, from);
    let mut start = [0; Preamble::SIZE];
    let started = read(&mut from, &mut start).and_then(|()| Preamble::parse(&start).check());
    if let Err(error) = started {
        drop(to.send(Err(error)));
        return;
    }
    loop {
        let frame = next(&mut from);
        if matches!(frame, Ok(Frame::Alive)) {
            continue;
        }
        let is_last = matches!(frame, Err(_) | Ok(Frame::Failed(_)));
        if to.send(frame).is_err() || is_last {
            return;
        }
    }
}

fn next(from: &mut dyn Read) -> Result<Frame> {
    let mut head = [0; Head::SIZE];
    read(from, &mut head)?;
    let head = Head::parse(&head);
    let mut payload = vec![0; head.check()?];
    read(from, &mut payload)?;
    head.check_sum(&payload)?;
    Frame::parse(head.kind, payload)
}

fn read(from: &mut dyn Read, buf: &mut [u8]) -> Result<()> {
    from.read_exact(buf).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => cut_short(),
        _ => Error::io("read from the wire", e),
    })
}

/// Where frames go.
#[derive(Debug)]
pub(super) struct Output {
    packets: Option<Sender<Packet>>,
    /// Disconnected as soon as nothing is written any more.
    over: Receiver<()>,
    failure: Arc<Mutex<Option<Error>>>,
    line: Option<Arc<Line>>,
    is_broken: bool,
    count: u64,
    data_bytes: u64,
}

impl Output {
    /// Writes frames to `to`, after the preamble.
    pub(super) fn new(to: Box<dyn Write + Send>) -> Self {
        Self::start(to, None)
    }

    /// The same to a peer that may be gone, and that hears each `beat` that this side is there.
    pub(super) fn on(line: &Arc<Line>, to: Box<dyn Write + Send>, beat: Duration) -> Self {
        Self { line: Some(Arc::clone(line)), ..Self::start(to, Some(beat)) }
    }

    fn start(to: Box<dyn Write + Send>, beat: Option<Duration>) -> Self {
        let ((packets, take), (writes, over)) = (bounded(WAITING), bounded::<()>(0));
        let failure = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&failure);
        thread::spawn(move || {
            if let Err(error) = pump_out(to, &take, beat) {
                *seen.lock() = Some(Error::io("write to the wire", error));
            }
            // Whoever finds one of these gone finds why.
            drop((take, writes));
        });
        let (line, is_broken) = (None, false);
        Self { packets: Some(packets), over, failure, line, is_broken, count: 0, data_bytes: 0 }
    }

    /// Sends a frame, some time; `Interrupted` when asked to stop while the peer takes nothing, and if the peer is gone.
    pub(super) fn put(&mut self, frame: &Frame, progress: &Progress) -> Result<()> {
        self.put_packet(frame.packet()?, progress)
    }

    /// The same of one that was made already.
    pub(super) fn put_packet(&mut self, packet: Packet, progress: &Progress) -> Result<()> {
        self.count += 1;
        self.data_bytes += packet.data_bytes;
        let mut waiting = packet;
        while let Some(packets) = &self.packets {
            match packets.send_timeout(waiting, NAP) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Timeout(packet)) => waiting = packet,
                Err(SendTimeoutError::Disconnected(_)) => break,
            }
            progress.checkpoint()?;
            self.check()?;
        }
        self.is_broken = true;
        Err(self.error())
    }

    /// Fails with `Interrupted` if the peer is gone: for who waits for something else.
    pub(super) fn check(&self) -> Result<()> {
        check(self.line.as_deref())
    }

    /// Returns how many bytes of guests went.
    pub(super) const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Returns whether a frame could not be sent because nobody is there any more.
    pub(super) const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Sends the frame that counts the others.
    pub(super) fn put_end(&mut self, progress: &Progress) -> Result<()> {
        self.put(&Frame::End { frames: self.count, data_bytes: self.data_bytes }, progress)
    }

    /// Returns once all frames have left; `Interrupted` when asked to stop before, and if the peer is gone.
    pub(super) fn finish(mut self, progress: &Progress) -> Result<()> {
        drop(self.packets.take());
        while self.over.recv_timeout(NAP) == Err(RecvTimeoutError::Timeout) {
            progress.checkpoint()?;
            self.check()?;
        }
        self.failure.lock().take().map_or(Ok(()), Err)
    }

    /// Sends a last frame, to a peer that may take none.
    pub(super) fn say_last(mut self, frame: &Frame) {
        let Ok(packet) = frame.packet() else { return };
        if self.packets.take().is_some_and(|packets| packets.send_timeout(packet, LAST_WORDS).is_ok()) {
            // It ends by being disconnected, or late: nobody waits for more.
            let _ = self.over.recv_timeout(LAST_WORDS);
        }
    }

    fn error(&self) -> Error {
        let gone = || Error::new(ErrorKind::Io, "the other side is gone");
        self.failure.lock().take().unwrap_or_else(gone)
    }
}

/// Writes what there is, and each `beat` without anything that this side is there.
fn pump_out(
    to: Box<dyn Write + Send>,
    packets: &Receiver<Packet>,
    beat: Option<Duration>,
) -> std::io::Result<()> {
    let mut to = BufWriter::with_capacity(BUFFER_BYTES, to);
    to.write_all(&Preamble::own().to_bytes())?;
    let alive = Frame::Alive.packet().map(|packet| packet.bytes().to_vec()).unwrap_or_default();
    loop {
        // What waits goes together; who waits for it is not kept waiting.
        if packets.is_empty() {
            to.flush()?;
        }
        let next = match beat {
            Some(beat) => packets.recv_timeout(beat),
            None => packets.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(packet) => to.write_all(packet.bytes())?,
            Err(RecvTimeoutError::Timeout) => to.write_all(&alive)?,
            Err(RecvTimeoutError::Disconnected) => return to.flush(),
        }
    }
}
