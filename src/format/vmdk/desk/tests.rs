//! What a power cut leaves of a record, wherever its line stands.

use super::*;
use crate::{
    content::ContentId,
    format::tape::Tape,
    io::memory::MemoryFile,
    store::{Claim, Epoch, LayerRecord, Record},
};

const CID: &str = "0172e8a4";

/// A descriptor of so many bytes.
fn text(bytes: usize) -> Vec<u8> {
    let mut text =
        format!("# Disk DescriptorFile\nversion=1\nCID={CID}\nparentCID=ffffffff\nRW 8 ZERO\n").into_bytes();
    text.extend(filler(bytes - text.len()));
    text
}

fn layer(epoch: u128, sealed: bool, name_bytes: usize) -> LayerRecord {
    let claim = Claim {
        parent_epoch: Epoch::new(9),
        parent_id: Some(ContentId::new([4; 32])),
        name: vec![b'n'; name_bytes],
        format: Some("vmdk".to_owned()),
    };
    let sealed = sealed.then(|| ContentId::new([5; 32]));
    let frozen = Some(Record { epoch: Epoch::new(epoch), sealed });
    LayerRecord { frozen, claim: (name_bytes > 0).then_some(claim) }
}

/// The descriptor in its file, or in 20 sectors of a sparse one, with a record behind it as another program leaves it.
struct Place {
    bytes: Vec<u8>,
    place: Option<HostRange>,
}

impl Place {
    fn new(text: &[u8], is_inside: bool, record: Option<&LayerRecord>) -> Self {
        let line = record.map(|layer| format!("{RECORD} = \"{CID}{CID}{}\"\n", to_hex(&layer.encode())));
        let mut bytes = [text, line.unwrap_or_default().as_bytes()].concat();
        let place = is_inside.then(|| HostOffset::new(SECTOR_BYTES).range(20 * SECTOR_BYTES));
        if is_inside {
            bytes.resize(20 * 512, 0);
            bytes.splice(0..0, [0; 512]);
        }
        Self { bytes, place }
    }

    fn desk(&self, file: &Arc<dyn File>) -> Desk {
        let text = match self.place {
            Some(place) => read_inside(file.as_ref(), place).unwrap(),
            None => read_beside(file.as_ref()).unwrap(),
        };
        Desk::new(file, self.place, text)
    }

    fn read(&self, bytes: &[u8]) -> Desk {
        let file: Arc<dyn File> = Arc::new(Self::file(bytes));
        self.desk(&file)
    }

    fn file(bytes: &[u8]) -> MemoryFile {
        let file = MemoryFile::new("disk.vmdk");
        file.write_at(HostOffset::new(0), bytes).unwrap();
        file
    }

    /// Runs `change`; returns what the record is before it, after it, and after every cut.
    fn cut(&mut self, change: impl Fn(&mut Desk)) -> Vec<Option<(LayerRecord, bool)>> {
        let tape = Arc::new(Tape::of(Self::file(&self.bytes)));
        let file: Arc<dyn File> = tape.clone();
        let mut desk = self.desk(&file);
        let meaning = |desk: &Desk| desk.record().map(|r| (LayerRecord::decode(&r.bytes), r.is_untouched));
        let mut seen = vec![meaning(&desk)];
        change(&mut desk);
        desk.flush().unwrap();
        seen.push(meaning(&desk));
        let states = tape.torn_states(&self.bytes);
        seen.extend(states.iter().map(|torn| meaning(&self.read(torn))));
        let mut after = vec![0; index(tape.bytes().unwrap())];
        tape.read_at(HostOffset::new(0), &mut after).unwrap();
        assert_eq!(meaning(&self.read(&after)), meaning(&desk));
        self.bytes = after;
        seen
    }
}

#[test]
fn a_cut_leaves_the_old_record_or_the_new_one_wherever_its_line_stands() {
    let records = [None, Some(layer(1, false, 0)), Some(layer(2, true, 12)), Some(layer(3, false, 40))];
    let mut states = 0;
    for is_inside in [true, false] {
        for bytes in (512..1030).step_by(23) {
            for (first, second) in [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 1), (3, 1), (3, 2), (2, 0)] {
                let mut place = Place::new(&text(bytes), is_inside, records[first].as_ref());
                for to in [second, first, second, 0, 3] {
                    let record = records[to].as_ref().map(LayerRecord::encode);
                    let seen = place.cut(|desk| assert!(desk.set_record(record.as_deref()).unwrap()));
                    let (old, new) = (&seen[0], &seen[1]);
                    assert_eq!(new.as_ref().map(|(layer, _)| layer), records[to].as_ref());
                    assert!(seen.iter().all(|got| got == old || got == new), "{bytes}: {seen:#?}");
                    states += seen.len();
                }
            }
        }
    }
    assert!(states > 1000, "{states}");
}

#[test]
fn a_cut_of_a_line_of_several_sectors_loses_no_more_than_the_claim() {
    for bytes in (512..1030).step_by(23) {
        let mut place = Place::new(&text(bytes), true, Some(&layer(1, false, 200)));
        for (epoch, sealed, name_bytes) in [(2, false, 200), (2, true, 200), (3, true, 700), (3, false, 300)]
        {
            let record = layer(epoch, sealed, name_bytes).encode();
            let seen = place.cut(|desk| assert!(desk.set_record(Some(&record)).unwrap()));
            let [old, new] = [&seen[0], &seen[1]].map(|got| got.as_ref().unwrap());
            for (got, is_untouched) in seen.iter().map(|got| got.as_ref().unwrap()) {
                assert!(is_untouched);
                assert!(got.frozen == old.0.frozen || got.frozen == new.0.frozen, "{bytes}: {got:?}");
                let claims = [&None, &old.0.claim, &new.0.claim];
                assert!(claims.contains(&&got.claim), "{bytes}: {got:?}");
            }
        }
    }
}

#[test]
fn a_cut_while_the_identity_changes_leaves_a_record_that_counts() {
    for bytes in 930..1030 {
        let mut place = Place::new(&text(bytes), true, Some(&layer(1, true, 12)));
        for cid in 1..4 {
            let seen = place.cut(|desk| desk.change_cid(cid, 7).unwrap());
            assert!(seen.iter().all(|got| *got == Some((layer(1, true, 12), true))), "{bytes}: {seen:?}");
        }
        let seen = place.cut(|desk| desk.void_record().unwrap());
        assert!(seen.iter().flatten().all(|(got, _)| *got == layer(1, true, 12)), "{bytes}: {seen:?}");
        assert_eq!(seen[1], Some((layer(1, true, 12), false)));
    }
}
