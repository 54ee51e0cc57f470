//! The work list: what the run holds, each byte once, newest layer first.
//!
//! It comes from the run's layers alone, which do not change while the job runs, so that a resume finds the same
//! list whatever has reached the target. Zeros that a shorter layer in the middle implies are on it: they hide
//! what lies below.

use crate::{
    base::{GuestOffset, GuestRange, Result},
    chain::{Run, View},
    format::Format,
    map::RangeSet,
};

/// Guest bytes whose runs are looked at in one go.
const STRIDE_BYTES: u64 = 512 << 20;

/// What is to be brought to the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Every byte that the run decides.
    pub(super) list: RangeSet,
    /// Those that it holds as data.
    pub(super) copied: RangeSet,
    /// How many it holds as data.
    pub(super) copy_bytes: u64,
    /// How many it says are zero.
    pub(super) zero_bytes: u64,
    /// Digest of all runs; of a raw layer's bytes none tells data from zeros.
    pub(super) digest: [u8; 32],
}

impl Work {
    /// Looks at the first `size` bytes of a run's view.
    pub(super) fn find(run: &View, size: u64) -> Result<Self> {
        let (mut work, mut digest) = (Self::default(), Digest::default());
        digest.hasher.update(&size.to_le_bytes());
        for stride in GuestOffset::new(0).range(size).pieces(STRIDE_BYTES) {
            for part in decided(run, stride)? {
                let image = part.layer.and_then(|layer| run.images().get(layer));
                let is_raw = image.is_some_and(|image| image.format() == Format::Raw);
                digest.take(part.range, (!is_raw).then(|| part.is_zero()));
                work.list.insert(part.range);
                if part.is_zero() {
                    work.zero_bytes += part.range.bytes;
                } else {
                    work.copy_bytes += part.range.bytes;
                    work.copied.insert(part.range);
                }
            }
        }
        work.digest = digest.finish();
        Ok(work)
    }
}

/// Sums up runs. Which bytes of a raw layer are holes is the host's to say, and it may say so of other bytes as soon as
/// they were read or written back: there only the whole is hashed.
#[derive(Default)]
struct Digest {
    hasher: blake3::Hasher,
    /// Bytes of a raw layer that are not hashed yet.
    raw: Option<GuestRange>,
}

impl Digest {
    /// Takes a run; `is_zero` is `None` in a raw layer.
    fn take(&mut self, range: GuestRange, is_zero: Option<bool>) {
        match (&mut self.raw, is_zero) {
            (Some(raw), None) if raw.end() == range.start => raw.bytes += range.bytes,
            (_, None) => {
                self.end_raw();
                self.raw = Some(range);
            }
            (_, Some(is_zero)) => {
                self.end_raw();
                self.hash(range, u8::from(is_zero));
            }
        }
    }

    fn end_raw(&mut self) {
        if let Some(raw) = self.raw.take() {
            self.hash(raw, 2);
        }
    }

    fn hash(&mut self, range: GuestRange, kind: u8) {
        self.hasher.update(&range.start.bytes().to_le_bytes());
        self.hasher.update(&range.bytes.to_le_bytes());
        self.hasher.update(&[kind]);
    }

    fn finish(mut self) -> [u8; 32] {
        self.end_raw();
        *self.hasher.finalize().as_bytes()
    }
}

/// Returns the runs in `range` that a layer of the view decides.
pub(super) fn decided(run: &View, range: GuestRange) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    run.runs(range, &mut runs)?;
    runs.retain(|part| part.layer.is_some());
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::HostOffset,
        chain::Chain,
        format::{self, Creation, NoParts},
        io::{Access, Host, real::RealHost},
    };
    use std::sync::Arc;

    /// What the host says of holes changes when it reads ahead or writes back; here somebody fills one.
    #[test]
    fn the_holes_of_a_raw_layer_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let path = folder.path().join("disk.raw");
        let creation = Creation { size: 4 << 20, parent: None, options: Vec::new() };
        format::create(Format::Raw, host.create(&path).unwrap(), &creation, &NoParts).unwrap();
        let find = || {
            let opening = crate::chain::Opening::reading().with_format(Some(Format::Raw));
            let chain = Chain::open(&host, &path, &opening).unwrap();
            Work::find(&chain.view(0), 4 << 20).unwrap()
        };
        let fill = |at| {
            let file = host.open(&path, Access::Write).unwrap();
            file.write_at(HostOffset::new(at), &[0; 4096]).unwrap();
        };
        fill(1 << 20);
        let before = find();
        fill(2 << 20);
        let after = find();
        assert_ne!(before.copied, after.copied);
        assert_eq!((before.digest, before.list), (after.digest, after.list));
    }
}
