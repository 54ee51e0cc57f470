//! One layer's extents, read in guest order and cut into frames.

use super::{
    frame::{DATA_BYTES_MAX, Frame, Packet},
    wire::Output,
};
use crate::{
    base::{GuestOffset, GuestRange, Result, units::index},
    chain::View,
    content::{LEAF_BYTES, Tree, leaf},
    job::{Progress, seal},
    map::{Extent, State},
};

/// A layer that is being sent.
pub(super) struct Sending<'a> {
    /// What the layer shows; its topmost image is the layer.
    pub(super) view: View,
    pub(super) has_parent: bool,
    /// What lies before this guest offset is there.
    pub(super) from: u64,
    /// The layer's own tree, where that is kept: what it tells need not be read.
    pub(super) tree: Option<Tree>,
    /// What the receiver may take from something that it has.
    pub(super) relative: Option<&'a Tree>,
    pub(super) progress: &'a Progress,
}

/// How a part of a leaf is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Data,
    Zero,
    Take,
}

/// A stretch of zeros, or to be taken, that may go on.
struct Run {
    way: Way,
    range: GuestRange,
}

impl Sending<'_> {
    /// Returns how many bytes of guests are sent at most.
    pub(super) fn most_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        self.each_extent(&mut |extent| {
            if matches!(extent.state, State::Data { .. } | State::Packed) {
                let parts = extent.range.pieces(LEAF_BYTES);
                bytes += match self.tree {
                    None => extent.range.bytes,
                    Some(_) => parts.filter(|part| self.told(*part).is_none()).map(|part| part.bytes).sum(),
                };
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Sends all that the layer holds.
    pub(super) fn run(&self, nth: u32, out: &mut Output) -> Result<()> {
        out.put(&Frame::Begin { nth, from: self.from }, self.progress)?;
        let mut waiting = None;
        self.each_extent(&mut |extent| match extent.state {
            State::Absent => Ok(()),
            State::Zero { .. } => self.pass(Way::Zero, extent.range, &mut waiting, out),
            State::Data { .. } | State::Packed => extent
                .range
                .pieces(DATA_BYTES_MAX)
                .try_for_each(|window| self.window(window, &mut waiting, out)),
        })?;
        self.put_run(waiting.take().as_ref(), out)?;
        out.put(&Frame::LayerEnd { nth }, self.progress)
    }

    fn each_extent(&self, each: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        let end = GuestOffset::new(self.view.size());
        let all = GuestRange::between(GuestOffset::new(self.from), end);
        for stride in all.pieces(seal::stride_bytes(&self.view)?) {
            let mut extents = Vec::new();
            self.view.own_map(stride, &mut extents)?;
            for extent in extents {
                self.progress.checkpoint()?;
                each(extent)?;
            }
        }
        Ok(())
    }

    /// Returns how a part of a leaf can be sent without being read.
    fn told(&self, part: GuestRange) -> Option<Way> {
        let tree = self.tree.as_ref()?;
        let number = part.start.bytes() / LEAF_BYTES;
        let digest = tree.get(number);
        if digest.is_zero() {
            return Some(Way::Zero);
        }
        (self.relative?.get(number) == digest).then_some(Way::Take)
    }

    /// Sends some leaves, or parts of them.
    fn window(&self, window: GuestRange, waiting: &mut Option<Run>, out: &mut Output) -> Result<()> {
        self.progress.checkpoint()?;
        let parts: Vec<_> = window.pieces(LEAF_BYTES).map(|part| (part, self.told(part))).collect();
        let mut unknown = parts.iter().filter(|(_, way)| way.is_none()).map(|(part, _)| *part);
        let (first, last) = (unknown.clone().next(), unknown.next_back());
        let (Some(first), Some(last)) = (first, last) else {
            return parts
                .iter()
                .try_for_each(|(part, way)| self.pass(way.unwrap_or(Way::Zero), *part, waiting, out));
        };
        let read = GuestRange::between(first.start, last.end());
        let mut packet = Packet::data(read);
        self.view.read(read.start, packet.guest_bytes_mut())?;
        let ways = parts.into_iter().map(|(part, told)| {
            let way = told.map_or_else(|| self.way(part, packet.part(part)), Ok)?;
            Ok((part, way))
        });
        let ways: Vec<(GuestRange, Way)> = ways.collect::<Result<_>>()?;
        if ways.iter().all(|(_, way)| *way == Way::Data) {
            self.put_run(waiting.take().as_ref(), out)?;
            return self.put_data(packet, out);
        }
        for (part, way) in ways {
            if way != Way::Data {
                self.pass(way, part, waiting, out)?;
                continue;
            }
            self.put_run(waiting.take().as_ref(), out)?;
            let mut own = Packet::data(part);
            own.guest_bytes_mut().copy_from_slice(packet.part(part));
            self.put_data(own, out)?;
        }
        Ok(())
    }

    /// Returns how a part of a leaf that holds `bytes` is sent.
    fn way(&self, part: GuestRange, bytes: &[u8]) -> Result<Way> {
        if is_zero(bytes) {
            return Ok(Way::Zero);
        }
        let number = part.start.bytes() / LEAF_BYTES;
        let wanted = match (self.relative, &self.tree) {
            // With a tree, it was told before that the leaf differs.
            (Some(relative), None) => relative.get(number),
            _ => return Ok(Way::Data),
        };
        if wanted.is_zero() {
            return Ok(Way::Data);
        }
        let size = GuestOffset::new(0).range(self.view.size());
        let whole = GuestOffset::new(number * LEAF_BYTES).range(LEAF_BYTES).clip(size);
        let shown = if part == whole {
            leaf(bytes)
        } else {
            let mut all = vec![0; index(whole.bytes)];
            self.view.read(whole.start, &mut all)?;
            leaf(&all)
        };
        Ok(if shown == wanted { Way::Take } else { Way::Data })
    }

    fn put_data(&self, packet: Packet, out: &mut Output) -> Result<()> {
        let bytes = packet.data_bytes;
        out.put_packet(packet.sealed()?, self.progress)?;
        self.progress.moved(bytes);
        Ok(())
    }

    /// Puts off zeros, or what is to be taken: it may go on.
    fn pass(&self, way: Way, range: GuestRange, waiting: &mut Option<Run>, out: &mut Output) -> Result<()> {
        // Without a parent, what is not there reads as zeros.
        if way == Way::Zero && !self.has_parent {
            return Ok(());
        }
        if let Some(run) = waiting.as_mut().filter(|run| run.way == way && run.range.end() == range.start) {
            run.range.bytes += range.bytes;
            return Ok(());
        }
        self.put_run(waiting.replace(Run { way, range }).as_ref(), out)
    }

    fn put_run(&self, run: Option<&Run>, out: &mut Output) -> Result<()> {
        match run {
            Some(Run { way: Way::Take, range }) => out.put(&Frame::Take(*range), self.progress),
            Some(Run { range, .. }) => out.put(&Frame::Zero(*range), self.progress),
            None => Ok(()),
        }
    }
}

/// Returns whether all bytes are zero; what is not mostly differs soon.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
