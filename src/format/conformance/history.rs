//! Whatever is done to a disk, in whatever order: it is the disk that was written.

use super::{Kind, Pair, named, told};
use crate::{
    base::{GuestOffset, GuestRange, units::count},
    format::Format,
    io::Kept,
};
use proptest::prelude::*;

/// What places and lengths of steps are parts of: a disk.
const PARTS: u64 = 1 << 16;

/// A range of whatever disk there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    at: u64,
    bytes: u64,
    edges: Edges,
}

/// Where a range begins and ends.
#[derive(Clone, Copy, Debug)]
enum Edges {
    Bytes,
    Sectors,
    Clusters,
}

/// One step of a disk's past.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Write(Place),
    WriteFrom(Place),
    Zero(Place, Kept),
    Adopt(Place, bool),
    Pack(Place),
    Read(Place),
    Resize(u64),
    /// Names another parent of the same bytes.
    Parent(usize),
    Flush,
    Release,
    Reopen,
    Cut,
}

fn place(most: u64) -> impl Strategy<Value = Place> {
    let edges = prop_oneof![2 => Just(Edges::Bytes), 1 => Just(Edges::Sectors), 1 => Just(Edges::Clusters)];
    (0..PARTS, 0..PARTS * most / 100, edges).prop_map(|(at, bytes, edges)| Place { at, bytes, edges })
}

/// Returns any step.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    let kept = prop_oneof![Just(Kept::Space), Just(Kept::Nothing)];
    prop_oneof![
        5 => place(16).prop_map(Step::Write),
        1 => place(35).prop_map(Step::WriteFrom),
        4 => (place(45), kept).prop_map(|(place, kept)| Step::Zero(place, kept)),
        2 => (place(50), any::<bool>()).prop_map(|(place, is_released)| Step::Adopt(place, is_released)),
        2 => place(1).prop_map(Step::Pack),
        2 => place(50).prop_map(Step::Read),
        1 => (1..PARTS * 3 / 2).prop_map(Step::Resize),
        1 => (0..3_usize).prop_map(Step::Parent),
        1 => Just(Step::Flush),
        1 => Just(Step::Release),
        1 => Just(Step::Reopen),
        1 => Just(Step::Cut),
    ]
}

impl Pair {
    fn place(&self, place: Place) -> GuestRange {
        let (whole, image) = (self.whole(), self.image());
        let part = |part: u64| whole.bytes * part / PARTS;
        let range = GuestOffset::new(part(place.at)).range(part(place.bytes));
        let unit = match place.edges {
            Edges::Bytes => 1,
            Edges::Sectors => image.sector_bytes(),
            Edges::Clusters => image.details().unwrap().cluster_bytes.unwrap_or_else(|| image.unit()),
        };
        range.outer(unit).clip(whole)
    }

    /// Takes those steps, and ends.
    pub(crate) fn live(mut self, steps: Vec<Step>) {
        for step in steps {
            self.take(step);
        }
        self.end();
    }

    /// Takes a step, where the image can be asked for it.
    fn take(&mut self, step: Step) {
        let image = self.image();
        match step {
            Step::Write(place) => self.write(self.place(place)),
            Step::WriteFrom(place) => self.write_from(self.place(place), 0),
            Step::Zero(place, kept) => self.zero(self.place(place), kept),
            Step::Adopt(place, is_released) => self.adopt(self.place(place), is_released),
            Step::Pack(place) => self.pack(self.place(place)),
            Step::Read(place) => self.compare(self.place(place)),
            Step::Resize(part) => {
                let bytes = (count(self.disk.len()) * part / PARTS).next_multiple_of(image.sector_bytes());
                if image.check_size(bytes).is_ok() && bytes < 64 << 20 {
                    self.resize(bytes);
                }
            }
            Step::Parent(nth) => {
                let (format, long) = (image.format(), "golden/".repeat(20) + "base");
                let names = [("other", format), (&long, Format::Raw), ("../base", Format::Qcow2)];
                let new = image.parent().map(|_| named(format, names[nth].0, names[nth].1));
                image.set_parent(new.as_ref()).unwrap();
                assert_eq!(told(image.parent()), new);
            }
            Step::Flush => image.flush().unwrap(),
            Step::Release => drop(image.release().unwrap()),
            Step::Reopen | Step::Cut => {
                drop(image);
                if matches!(step, Step::Cut) { self.cut() } else { self.reopen(true) }
            }
        }
    }
}

pub(super) fn a_disk_of_any_past_is_the_one_that_was_written(kind: &Kind) {
    let cases = if kind.block < 1 << 20 { 24 } else { 6 };
    proptest!(ProptestConfig::with_cases(cases), |(steps in prop::collection::vec(step(), 1..32))| {
        Pair::new(kind).live(steps);
    });
}
