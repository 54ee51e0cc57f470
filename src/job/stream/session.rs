//! A conversation between a sender and a receiver: what each tells, and in which order.
//!
//! ```text
//!   sender                                      receiver
//!   layer ... layer, start                 ->
//!                                          <-   answer, leaves ...
//!   plan                                   ->
//!                                          <-   go, or: waits, then go or another answer
//!   begin, extents ..., layer end          ->
//!                                          <-   done, or again       (each layer that is lacking)
//!   end                                    ->
//!                                          <-   report
//! ```
//! Before that, the client says in an `ask` which of both it is. A receiver into whose folder others bring the same layers waits
//! for them before it lets the sender begin; where it lacks something else then, it answers once more, and there is another
//! plan. Either side may end with `failed` at any moment. What one side says while the other writes is so little that neither
//! ever waits for the other to read.

use super::{
    Incoming, Outgoing, Received,
    extents::Sending,
    frame::{Frame, LEAVES_MAX},
    receive::RELATIVES_LEAVES_MAX,
    terms::{Answer, Failed, Lacking, Planned, Report, check_name},
    wire::{BEAT, Input, Line, Output, PATIENCE},
};
use crate::{
    base::{
        Error, ErrorKind, Result,
        name::FileName,
        units::{count, index},
    },
    content::Tree,
    job::{
        Progress,
        copy::{Making, Turns, WAIT},
    },
};
use std::{
    io::{Read, Write},
    path::PathBuf,
    time::Duration,
};

/// A wire to another program of this kind.
#[derive(Debug)]
pub struct Peer {
    pub(super) input: Input,
    pub(super) output: Output,
}

impl Peer {
    /// Talks over a pipe, a socket, or what else carries bytes both ways. A peer that has nothing to say says so each ten seconds:
    /// one that does not for a minute is gone, whatever the wire says.
    pub fn new(from: Box<dyn Read + Send>, to: Box<dyn Write + Send>) -> Self {
        Self::heard(from, to, (BEAT, PATIENCE))
    }

    /// The same, with how long this side is silent at most, and how long the other until it is gone.
    pub(super) fn heard(
        from: Box<dyn Read + Send>,
        to: Box<dyn Write + Send>,
        (beat, patience): (Duration, Duration),
    ) -> Self {
        let line = Line::new(patience);
        Self { input: Input::on(&line, from), output: Output::on(&line, to, beat) }
    }

    /// Returns the error that says most: of a peer that is gone, its last words. Without any, it can be gone on. What a disk
    /// of this side says is not the peer's affair.
    pub(super) fn reason(&mut self, error: Error) -> Error {
        if error.kind() != ErrorKind::Io || !self.output.is_broken() {
            return error;
        }
        self.input.last_words().unwrap_or_else(|| error.with_kind(ErrorKind::Interrupted))
    }

    /// Tells the peer why this side ends.
    pub(super) fn give_up(self, error: &Error) {
        self.output.say_last(&Frame::Failed(Failed::of(error)));
    }
}

/// The sending side, once the receiver has said what it has.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) outgoing: Outgoing,
    pub(super) answer: Answer,
    /// What the receiver's relatives have, of the layers that are lacking.
    relatives: Vec<Option<Tree>>,
    pub(super) planned: Planned,
}

impl Offer {
    /// Offers a chain, and hears what the receiver has of it.
    pub(super) fn make(outgoing: Outgoing, peer: &mut Peer, progress: &Progress) -> Result<Self> {
        let heads = outgoing.heads();
        for head in heads {
            peer.output.put(&Frame::Layer(Box::new(head.clone())), progress)?;
        }
        let layers = u32::try_from(heads.len()).unwrap_or(u32::MAX);
        peer.output.put(&Frame::Start { layers }, progress)?;
        match peer.input.next(progress)? {
            Frame::Answer(answer) => Self::hear(outgoing, answer, peer, progress),
            other => Err(other.misplaced("an answer")),
        }
    }

    /// Hears the rest of what the receiver has, and finds out what has to be sent.
    fn hear(outgoing: Outgoing, answer: Answer, peer: &mut Peer, progress: &Progress) -> Result<Self> {
        let heads = outgoing.heads();
        let first = usize::try_from(answer.first).unwrap_or(usize::MAX);
        let missing = heads.get(first..).filter(|missing| missing.len() == answer.lacking.len());
        let missing = missing.ok_or_else(|| Error::corrupt("the answer speaks of other layers"))?;
        // As many as any receiver tells: they are held in memory.
        let told = answer.lacking.iter().fold(0_u64, |all, lacking| all.saturating_add(lacking.leaves));
        if told > RELATIVES_LEAVES_MAX {
            return Err(Error::corrupt("the answer has more leaves than a receiver tells"));
        }
        let link = answer.link.iter().try_for_each(|link| check_name(link));
        link.map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
        let mut relatives = Vec::new();
        for ((nth, head), lacking) in (answer.first..).zip(missing).zip(&answer.lacking) {
            check_name(&lacking.name).map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
            if lacking.from > head.size || lacking.leaves > head.leaves() {
                return Err(Error::corrupt("the answer has more of a layer than there is"));
            }
            relatives.push(hear_leaves(peer, nth, (head.size, lacking.leaves), progress)?);
        }
        let mut bytes = Vec::new();
        for ((at, lacking), relative) in (first..).zip(&answer.lacking).zip(&relatives) {
            bytes.push(outgoing.sending(at, lacking.from, relative.as_ref(), progress)?.most_bytes()?);
        }
        let planned = Planned { bytes, lost: outgoing.lost().to_vec() };
        Ok(Self { outgoing, answer, relatives, planned })
    }

    /// Says what would be sent, and hears that it may be. A receiver that had to wait for another copy may lack less by then.
    pub(super) fn agree(self, peer: &mut Peer, progress: &Progress) -> Result<Self> {
        let mut this = self;
        for is_first in [true, false] {
            peer.output.put(&Frame::Plan(this.planned.clone()), progress)?;
            let mut said = peer.input.next(progress)?;
            if is_first && said == Frame::Waits {
                progress.begin(WAIT, 0);
                said = peer.input.next(progress)?;
            }
            match said {
                Frame::Go => return Ok(this),
                Frame::Answer(answer) if is_first => {
                    this = Self::hear(this.outgoing, answer, peer, progress)?;
                }
                other => return Err(other.misplaced("an agreement")),
            }
        }
        Err(Error::corrupt("the receiver does not agree"))
    }

    /// Sends what is lacking; returns what the receiver made of it.
    pub(super) fn send(&self, peer: &mut Peer, progress: &Progress) -> Result<Report> {
        progress.begin("send", self.planned.bytes.iter().sum());
        for nth in self.answer.first.. {
            let at = index(u64::from(nth - self.answer.first));
            let Some(lacking) = self.answer.lacking.get(at) else { break };
            self.send_layer((nth, at), lacking.from, peer, progress)?;
            match peer.input.next(progress)? {
                Frame::Done { nth: told } if told == nth => continue,
                Frame::Again { nth: told } if told == nth && lacking.from > 0 => {}
                other => return Err(other.misplaced("the end of a layer")),
            }
            let rest: u64 = self.planned.bytes.iter().skip(at + 1).sum();
            progress.begin("send", self.sending((nth, at), 0, progress)?.most_bytes()?.saturating_add(rest));
            self.send_layer((nth, at), 0, peer, progress)?;
            match peer.input.next(progress)? {
                Frame::Done { nth: told } if told == nth => {}
                other => return Err(other.misplaced("the end of a layer")),
            }
        }
        peer.output.put_end(progress)?;
        match peer.input.next(progress)? {
            Frame::Report(report) if self.is_of_it(&report) => Ok(report),
            Frame::Report(_) => Err(Error::corrupt("the report speaks of another disk")),
            other => Err(other.misplaced("a report")),
        }
    }

    /// Returns what the layer of that number holds, which is that one of those that are lacking.
    fn sending<'a>(
        &'a self,
        (nth, at): (u32, usize),
        from: u64,
        progress: &'a Progress,
    ) -> Result<Sending<'a>> {
        let relative = self.relatives.get(at).and_then(Option::as_ref);
        self.outgoing.sending(usize::try_from(nth).unwrap_or(usize::MAX), from, relative, progress)
    }

    fn send_layer(
        &self,
        (nth, at): (u32, usize),
        from: u64,
        peer: &mut Peer,
        progress: &Progress,
    ) -> Result<()> {
        self.sending((nth, at), from, progress)?.run(nth, &mut peer.output)
    }

    /// Returns whether a report is about the disk that was sent, under the name that the receiver said it would have.
    fn is_of_it(&self, report: &Report) -> bool {
        let told = self.answer.lacking.last().map(|lacking| &lacking.name);
        told.or(self.outgoing.heads().last().map(|head| &head.name)) == Some(&report.head)
    }
}

/// Hears as many hashes as were announced, each of a leaf that the layer has, in order.
fn hear_leaves(
    peer: &mut Peer,
    nth: u32,
    (size, announced): (u64, u64),
    progress: &Progress,
) -> Result<Option<Tree>> {
    let (mut tree, mut heard, mut next) = (Tree::new(size), 0, 0);
    while heard < announced {
        let leaves = match peer.input.next(progress)? {
            Frame::Leaves { nth: told, leaves } if told == nth && !leaves.is_empty() => leaves,
            other => return Err(other.misplaced("a relative's leaves")),
        };
        heard += count(leaves.len());
        for (leaf, digest) in leaves {
            if leaf < next || digest.is_zero() || heard > announced {
                return Err(Error::corrupt("a relative's leaves are out of order"));
            }
            tree.set(leaf, digest).map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
            next = leaf + 1;
        }
    }
    Ok((announced > 0).then_some(tree))
}

impl Incoming {
    /// Tells the sender what is here; returns what it would send then.
    pub(super) fn answer(&mut self, peer: &mut Output, progress: &Progress) -> Result<Planned> {
        self.find_relatives(progress)?;
        let mut lacking = Vec::new();
        for (nth, layer) in self.plan().layers.iter().enumerate().filter(|(_, layer)| !layer.is_there) {
            let leaves = self.relative_leaves(nth).count();
            let name = FileName(PathBuf::from(layer.to.file_name().unwrap_or_default()));
            lacking.push(Lacking { name, from: layer.done_bytes, leaves: count(leaves) });
        }
        let first = u32::try_from(self.plan().layers.len() - lacking.len()).unwrap_or(u32::MAX);
        let link = self.plan().link.as_ref().and_then(|link| link.file_name());
        let link = link.map(|name| FileName(PathBuf::from(name)));
        let free_bytes = self.plan().free_bytes;
        peer.put(&Frame::Answer(Answer { first, link, lacking, free_bytes }), progress)?;
        for (nth, at) in (first..).zip(usize::try_from(first).unwrap_or(usize::MAX)..self.plan().layers.len())
        {
            let mut rest = self.relative_leaves(at);
            loop {
                let leaves: Vec<_> = rest.by_ref().take(LEAVES_MAX).collect();
                if leaves.is_empty() {
                    break;
                }
                peer.put(&Frame::Leaves { nth, leaves }, progress)?;
            }
        }
        self.is_told = true;
        match self.input.next(progress)? {
            Frame::Plan(planned) => Ok(planned),
            other => Err(other.misplaced("a plan")),
        }
    }

    /// Takes the turns for all that is lacking. If another copy has brought some of that since the sender was told, it is told
    /// what is here now; returns what it would send then.
    pub(super) fn take_turns_and_tell(
        self,
        output: &mut Output,
        progress: &Progress,
    ) -> Result<(Self, Turns, Option<Planned>)> {
        let mut is_told = false;
        let mut waits = || {
            let is_again = std::mem::replace(&mut is_told, true);
            if is_again { output.check() } else { output.put(&Frame::Waits, progress) }
        };
        let (mut this, turns) = self.take_turns_telling(&mut waits, progress)?;
        let planned = if this.is_told { None } else { Some(this.answer(output, progress)?) };
        Ok((this, turns, planned))
    }

    /// Takes in what the sender said that it would send, and says what came of it.
    pub(super) fn take_in(self, turns: Turns, output: &mut Output, progress: &Progress) -> Result<Received> {
        output.put(&Frame::Go, progress)?;
        let received = self.run_with(turns, Some(&mut *output), progress)?;
        let head = FileName(PathBuf::from(received.head.file_name().unwrap_or_default()));
        let Received { received_bytes, taken_bytes, .. } = received;
        output.put(&Frame::Report(Report { head, received_bytes, taken_bytes }), progress)?;
        Ok(received)
    }
}
