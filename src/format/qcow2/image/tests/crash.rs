//! Power cuts and failing I/Os at every point: at worst leaks, and never bytes that nobody wrote.

use super::{super::super::audit::audit, *};
use crate::{
    base::{seed::Seeded, units::index},
    format::conformance::Bytes,
    io::{
        Access, Host,
        faulty::{Failure, Fault, SimHost, crash_states},
    },
};
use std::path::Path;

const SECTOR: u64 = 512;
const DISK: u64 = 24 * 4096;

/// A machine with one image, and what each sector has been.
struct Lab {
    host: SimHost,
    image: Option<Arc<dyn Image>>,
    below: Bytes,
    /// For each sector, which is filled with one byte: what it was to become, in order.
    past: Vec<Vec<Value>>,
    /// The number of events when a flush had returned, and the step that it was.
    flushes: Vec<(usize, usize)>,
    steps: usize,
}

struct Value {
    byte: u8,
    step: usize,
    /// The number of events when the step began.
    events: usize,
    /// Whether the step said that it was done.
    is_sure: bool,
}

fn name() -> &'static Path {
    Path::new("/image")
}

impl Lab {
    fn new(options: &[(&str, &str)]) -> Self {
        let host = SimHost::new();
        let file = host.create(name()).unwrap();
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let image = create(file, &Creation { size: DISK, parent: None, options }, &NoParts).unwrap();
        image.flush().unwrap();
        host.sync_folder(Path::new("/")).unwrap();
        // A parent that is shorter than its child, whose sectors are each of one byte.
        let below: Vec<u8> =
            (0..DISK / SECTOR * 3 / 4).flat_map(|n| [n.to_le_bytes()[0] | 0x80; 512]).collect();
        let past = (0..DISK / SECTOR).map(|n| below.get(index(n * SECTOR)).copied().unwrap_or(0));
        let past = past.map(|byte| vec![Value { byte, step: 0, events: 0, is_sure: true }]).collect();
        let flushes = vec![(host.events(), 0)];
        Self { host, image: Some(image), below: Bytes(below), past, flushes, steps: 0 }
    }

    fn note(&mut self, range: GuestRange, byte: u8) {
        let (events, step) = (self.host.events(), self.steps);
        for nth in range.start.bytes() / SECTOR..range.end().bytes() / SECTOR {
            self.past[index(nth)].push(Value { byte, step, events, is_sure: false });
        }
    }

    /// Takes one seeded step; an error is what the caller asks for.
    fn step(&mut self, seed: &mut Seeded) -> Result<()> {
        self.try_step(seed)?;
        let values = self.past.iter_mut().flatten().filter(|value| value.step == self.steps);
        values.for_each(|value| value.is_sure = true);
        Ok(())
    }

    fn try_step(&mut self, seed: &mut Seeded) -> Result<()> {
        let image = self.image.clone().unwrap();
        self.steps += 1;
        let byte = u8::try_from(seed.below(127)).unwrap() + 1;
        let start = seed.below(DISK / SECTOR);
        let most = [3, 20, 60][index(seed.below(3))];
        let sectors = 1 + seed.below(most);
        let range = GuestOffset::new(start * SECTOR).range(sectors.min(DISK / SECTOR - start) * SECTOR);
        match seed.below(15) {
            0..5 => {
                self.note(range, byte);
                image.write(range.start, &vec![byte; index(range.bytes)], &self.below)
            }
            kind @ 5..8 => {
                self.note(range, 0);
                let kept = if kind == 5 { Kept::Space } else { Kept::Nothing };
                image.zero(range, kept, &self.below)
            }
            8..10 => {
                let cluster = image.details().unwrap().cluster_bytes.unwrap();
                let range = range.start.floor(cluster).range(cluster);
                let Some(packed) = image.pack(&vec![byte; index(cluster)]) else { return Ok(()) };
                self.note(range, byte);
                image.write_packed(range.start, &packed)
            }
            kind @ 13.. => self.adopt(&*image, range, byte, kind == 14),
            kind => {
                if kind == 12 {
                    image.release()?;
                } else {
                    image.flush()?;
                }
                self.flushes.push((self.host.events(), self.steps));
                Ok(())
            }
        }
    }

    /// Adopts whole clusters around a range, and points to them from the last one on.
    fn adopt(&mut self, image: &dyn Image, range: GuestRange, byte: u8, is_flushed: bool) -> Result<()> {
        let cluster = image.details()?.cluster_bytes.unwrap();
        let range = range.outer(cluster);
        let source = MemoryFile::new("source");
        source.write_at(HostOffset::new(0), &vec![byte; index(range.bytes)])?;
        let adopted = image.adopt(&source, HostOffset::new(0).range(range.bytes))?;
        if is_flushed {
            image.flush()?;
        }
        let Some(place) = adopted.map(|adopted| adopted.place) else { return Ok(()) };
        let range = range.start.range(place.bytes);
        self.note(range, byte);
        let pieces: Vec<GuestRange> = range.pieces(cluster).collect();
        for piece in pieces.into_iter().rev() {
            assert!(image.point(piece, place.start.plus(piece.start.since(range.start)))?);
        }
        Ok(())
    }

    /// The values that a sector may have after a cut behind `after` events.
    fn may_be(&self, sector: usize, after: usize) -> Vec<u8> {
        let durable = self.flushes.iter().filter(|(done, _)| *done <= after).map(|(_, step)| *step).max();
        let past = &self.past[sector];
        let last = past.iter().rposition(|v| v.is_sure && Some(v.step) <= durable).unwrap_or(0);
        past[last..].iter().filter(|value| value.events <= after).map(|value| value.byte).collect()
    }

    /// Every sector of an image is one that was written, whole.
    fn check(&self, image: &dyn Image, after: usize, what: &str) {
        let mut disk = vec![0; index(DISK)];
        image.read(GuestOffset::new(0), &mut disk, &self.below).unwrap();
        for (nth, sector) in disk.chunks(512).enumerate() {
            let allowed = self.may_be(nth, after);
            let is_whole = sector.iter().all(|byte| *byte == sector[0]);
            assert!(is_whole && allowed.contains(&sector[0]), "{what}: sector {nth} is {:?}", &sector[..4]);
        }
    }
}

/// Writes all of an image and looks whether two guest clusters share a host cluster.
fn write_again(host: &SimHost, lab: &Lab, what: &str) {
    let file = host.open(name(), Access::Write).unwrap();
    let image = open(file.clone(), true, &NoParts).unwrap();
    let mut disk = Vec::new();
    for nth in 0..DISK / 1024 {
        let bytes = noise(nth, 1024);
        image.write(GuestOffset::new(nth * 1024), &bytes, &lab.below).unwrap();
        disk.extend(bytes);
    }
    image.flush().unwrap();
    let mut found = vec![0; disk.len()];
    image.read(GuestOffset::new(0), &mut found, &lab.below).unwrap();
    assert!(found == disk, "{what}: written again, and read otherwise");
    assert_eq!(audit(&*file).unwrap().corruptions, Vec::<String>::new(), "{what}, written again");
}

const CRASHED: &[&[(&str, &str)]] = &[
    &[("cluster_size", "512")],
    &[("cluster_size", "512"), ("refcount_bits", "64"), ("compat", "v3")],
    &[("cluster_size", "4K"), ("compat", "v2")],
    &[("cluster_size", "4K"), ("compression_type", "zstd"), ("refcount_bits", "2")],
    &[("cluster_size", "16K"), ("extended_l2", "on")],
];

#[test]
fn a_cut_at_any_point_leaves_leaks_at_worst() {
    for (nth, options) in (0_u64..).zip(CRASHED) {
        let (mut lab, mut seed) = (Lab::new(options), Seeded::new(40 + nth));
        for _ in 0..18 {
            lab.step(&mut seed).unwrap();
        }
        let trace = lab.host.trace();
        let made = lab.flushes[0].0;
        for (count, crash) in crash_states(&trace, nth, 3).filter(|c| c.after >= made).enumerate() {
            let what = format!("{options:?}, cut behind event {} with {:?}", crash.after, crash.landing);
            let file = crash.host.open(name(), Access::Write).unwrap();
            assert_eq!(audit(&*file).unwrap().corruptions, Vec::<String>::new(), "{what}");
            let image = open(file, true, &NoParts).unwrap();
            lab.check(&*image, crash.after, &what);
            drop(image);
            if count % 37 == 0 {
                write_again(&crash.host, &lab, &what);
            }
        }
    }
}

#[test]
fn a_failed_io_at_any_point_allocates_nothing_twice() {
    for (nth, options) in (0_u64..).zip(CRASHED) {
        for failure in [Failure::Io, Failure::NoSpace] {
            for is_lasting in [false, true] {
                for io in (0..200).step_by(13) {
                    let (mut lab, mut seed) = (Lab::new(options), Seeded::new(90 + nth));
                    lab.host.fail(Some(Fault { at: lab.host.ios() + io, is_lasting, failure }));
                    for _ in 0..18 {
                        // What fails may be there in part: the past allows both.
                        drop(lab.step(&mut seed));
                    }
                    lab.host.fail(None);
                    lab.image = None;
                    let what = format!("{options:?}, {failure:?} (lasting: {is_lasting}) at {io}");
                    let file = lab.host.open(name(), Access::Write).unwrap();
                    assert_eq!(audit(&*file).unwrap().corruptions, Vec::<String>::new(), "{what}");
                    lab.check(&*open(file, true, &NoParts).unwrap(), lab.host.events(), &what);
                    write_again(&lab.host.clone(), &lab, &what);
                }
            }
        }
    }
}

#[test]
fn after_a_failed_table_write_nothing_more_is_written() {
    let lab = Lab::new(&[("cluster_size", "4K")]);
    let image = lab.image.clone().unwrap();
    image.write(GuestOffset::new(0), &[1; 512], &lab.below).unwrap();
    lab.host.fail(Some(Fault { at: lab.host.ios(), is_lasting: false, failure: Failure::Io }));
    image.flush().unwrap_err();
    for answer in [image.flush(), image.write(GuestOffset::new(0), &[2; 512], &lab.below)] {
        let error = answer.unwrap_err();
        assert!(error.to_string().contains("not written to since"), "{error}");
    }
    let mut seen = [0; 512];
    image.read(GuestOffset::new(0), &mut seen, &lab.below).unwrap();
    assert_eq!(seen, [1; 512]);
}
