//! Rule 2 of the content IDs: no crash, at any point, leaves a trusted ID on an image whose view differs.
//!
//! One history of a layer's whole life is cut at every event by a power cut, and at every I/O by a kill in the
//! same boot; after each, whatever the ledger believes must be so.
use super::*;
use crate::io::faulty::{Crash, Failure, Fault, SimHost, crash_states};
use std::collections::BTreeMap;

const DATA: usize = 4096;
const SAMPLES: u64 = 8;

/// An image of two files: the record has its place in the header's, the guest's bytes are in the other.
struct Split {
    header: Image,
    data: Arc<dyn File>,
}

impl Split {
    fn open(host: &SimHost, has_place: bool, access: Access) -> Result<Self> {
        let header = Image { file: host.open(Path::new("/disk"), access)?, has_place, room: ROOM };
        Ok(Self { header, data: host.open(Path::new("/data"), access)? })
    }

    fn write(&self, fill: u8) -> Result<()> {
        // In two steps, so that a crash finds it between them.
        self.data.write_at(HostOffset::new(0), &[fill; DATA / 2])?;
        self.data.write_at(HostOffset::new(DATA as u64 / 2), &[fill; DATA / 2])
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; DATA];
        self.data.read_at(HostOffset::new(0), &mut bytes)?;
        Ok(bytes)
    }
}

impl Carrier for Split {
    fn files(&self) -> Vec<Arc<dyn File>> {
        vec![Arc::clone(&self.header.file), Arc::clone(&self.data)]
    }

    fn stored(&self) -> Result<Option<StoredRecord>> {
        self.header.stored()
    }

    fn store(&self, record: Option<&[u8]>) -> Result<bool> {
        self.header.store(record)
    }

    fn void(&self) -> Result<()> {
        self.header.void()
    }

    fn flush_with_time(&self) -> Result<()> {
        self.files().iter().try_for_each(|file| file.flush_with_time())
    }

    fn identity(&self) -> Option<Identity> {
        None
    }

    fn set_identity(&self, _identity: Identity) -> Result<()> {
        Ok(())
    }

    fn keep_identity(&self, _keeps: bool) {}

    fn awaits_recovery(&self) -> bool {
        false
    }

    fn format_name(&self) -> &'static str {
        "raw"
    }

    fn tells_format(&self) -> bool {
        true
    }
}

fn machine() -> SimHost {
    let host = SimHost::new();
    for (name, bytes) in [("/disk", vec![0; PLACE]), ("/data", vec![1; DATA])] {
        let file = host.create(Path::new(name)).unwrap();
        file.write_at(HostOffset::new(0), &bytes).unwrap();
        file.flush().unwrap();
    }
    host.sync_folder(Path::new("/")).unwrap();
    // Switched on anew, so that the files' times are as durable as their bytes.
    crash_states(&host.trace(), 1, 0).last().unwrap().host
}

fn ledger(host: &SimHost) -> Ledger {
    Ledger::new(Arc::new(host.clone()), None)
}

/// What others may rely on: an epoch, the bytes that it stands for, and the event from which on they do.
type Published = BTreeMap<String, (usize, Vec<u8>)>;

/// A step of the history; the number says which barrier of its own it forgets.
type Forgetting = (&'static str, u64);

/// A layer's life: frozen, sealed, changed by a job, sealed again, a head once more, frozen again.
fn live(
    host: &SimHost,
    has_place: bool,
    published: &mut Published,
    forget: Option<Forgetting>,
) -> Result<()> {
    let image = Split::open(host, has_place, Access::Write)?;
    let ledger = ledger(host);
    let begin = |step: &str| host.begin_operation(forget.filter(|f| f.0 == step).map(|f| f.1));
    let mut publish = |known: &Known| -> Result<()> {
        begin("");
        let epoch = known.layer.frozen.unwrap().epoch.to_string();
        published.insert(epoch, (host.events(), image.bytes()?));
        Ok(())
    };
    begin("freeze");
    let frozen = ledger.freeze(&image)?;
    publish(&frozen)?;
    begin("seal");
    ledger.seal(&image, &Tree::of(&image.bytes()?), &frozen)?;
    begin("thaw");
    let thawed = ledger.thaw(&image, Epoch::fresh())?;
    begin("");
    image.write(2)?;
    image.write(3)?;
    begin("refreeze");
    let frozen = ledger.refreeze(&image, &thawed)?;
    publish(&frozen)?;
    let sealed = ledger.seal(&image, &Tree::of(&image.bytes()?), &frozen)?;
    assert_eq!(sealed.trust, Trust::Trusted);
    begin("release");
    ledger.release(&image)?;
    begin("");
    image.write(4)?;
    begin("freeze");
    publish(&ledger.freeze(&image)?)?;
    Ok(())
}

/// Returns what is wrong with what the ledger believes of the machine's image after `events` events.
fn wrong(host: &SimHost, has_place: bool, events: usize, published: &Published) -> Option<String> {
    let image = Split::open(host, has_place, Access::Read).unwrap();
    let known = ledger(host).look(&image).unwrap();
    let (bytes, record) = (image.bytes().unwrap(), known.layer.frozen?);
    if matches!(known.trust, Trust::Doubted(_)) {
        return None;
    }
    if record.sealed.is_some_and(|id| id != Tree::of(&bytes).id()) {
        return Some(format!("{:?} with the ID of other bytes", known.trust));
    }
    let promised = published.get(&record.epoch.to_string()).filter(|(from, _)| *from <= events);
    promised.filter(|(_, then)| *then != bytes).map(|_| "an epoch with other bytes".to_owned())
}

/// Returns how many power cuts there were, and what was wrong after them.
fn cut_everywhere(has_place: bool, forget: Option<Forgetting>) -> (usize, Vec<String>) {
    let (host, mut published) = (machine(), Published::new());
    live(&host, has_place, &mut published, forget).unwrap();
    assert_eq!(published.len(), 3, "three epochs");
    let (mut cuts, mut found, trace) = (0, Vec::new(), host.trace());
    for Crash { host, after, landing } in crash_states(&trace, 7, SAMPLES) {
        cuts += 1;
        found.extend(
            wrong(&host, has_place, after, &published).map(|what| format!("{after} {landing:?}: {what}")),
        );
    }
    (cuts, found)
}

#[test]
fn cid_2_no_power_cut_leaves_an_id_or_an_epoch_on_other_bytes() {
    for has_place in [true, false] {
        let (cuts, found) = cut_everywhere(has_place, None);
        assert!(found.is_empty(), "{found:#?}");
        assert!(cuts > 200, "{cuts}");
    }
}

#[test]
fn a_forgotten_barrier_is_noticed() {
    // Of a thaw, the one that makes the new epoch durable; of a refreeze, that of the guest's bytes.
    for (has_place, step) in [(true, "thaw"), (false, "thaw"), (true, "refreeze"), (false, "refreeze")] {
        let found = (0..8).any(|barrier| !cut_everywhere(has_place, Some((step, barrier))).1.is_empty());
        assert!(found, "{step} with has_place {has_place}");
    }
}

#[test]
fn cid_2_no_kill_leaves_a_trusted_id_on_other_bytes_nor_hides_a_stranger() {
    for has_place in [true, false] {
        let (mut kills, mut trusted) = (0, 0);
        for n in 0.. {
            let (host, mut published) = (machine(), Published::new());
            host.fail(Some(Fault { at: host.ios() + n, is_lasting: true, failure: Failure::Io }));
            let outcome = live(&host, has_place, &mut published, None);
            host.fail(None);
            assert_eq!(wrong(&host, has_place, usize::MAX, &published), None, "killed at {n}");
            let look = || {
                let image = Split::open(&host, has_place, Access::Read).unwrap();
                ledger(&host).look(&image).unwrap().trust
            };
            assert!(!matches!(look(), Trust::Doubted(_)), "our own kill at {n} passes for a stranger");
            trusted += usize::from(look() == Trust::Trusted);
            Split::open(&host, has_place, Access::Write).unwrap().write(9).unwrap();
            assert_ne!(look(), Trust::Trusted, "a stranger after the kill at {n}");
            if outcome.is_ok() {
                break;
            }
            kills += 1;
        }
        assert!(kills > 100 && trusted > 10, "{kills} kills, {trusted} of them left it trusted");
    }
}

/// A layer whose record outgrows its place and comes back, and whose bytes change then; returns what others may rely on.
fn outgrow(host: &SimHost, published: &mut Published) -> Result<()> {
    let mut image = Split::open(host, true, Access::Write)?;
    image.header.room = 64;
    let ledger = ledger(host);
    let name = |name: &[u8]| Claim {
        parent_epoch: Epoch::new(9),
        parent_id: None,
        name: name.to_vec(),
        format: None,
    };
    let mut change = |fill: u8| -> Result<()> {
        let thawed = ledger.thaw(&image, Epoch::fresh())?;
        image.write(fill)?;
        let known = ledger.refreeze(&image, &thawed)?;
        published.insert(known.layer.frozen.unwrap().epoch.to_string(), (host.events(), image.bytes()?));
        ledger.seal(&image, &Tree::of(&image.bytes()?), &known).map(drop)
    };
    change(2)?;
    ledger.claim(&image, Some(name(b"base")))?;
    change(3)?;
    ledger.claim(&image, None)?;
    change(4)
}

/// Returns what is wrong, with what is noted beside the image and without it, as in a copy by other programs.
fn misled(host: &SimHost, events: usize, published: &Published) -> Option<String> {
    let image = Split::open(host, true, Access::Read).unwrap();
    let trust = ledger(host).look(&image).unwrap().trust;
    let doubted = matches!(trust, Trust::Doubted(_)).then(|| format!("{trust:?}"));
    let found = doubted.or_else(|| wrong(host, true, events, published));
    ledger(host).forget(&image).unwrap();
    found.or_else(|| wrong(host, true, events, published).map(|what| format!("copied: {what}")))
}

#[test]
fn a_record_that_outgrows_its_place_is_the_old_one_or_the_new_one_and_never_of_other_bytes() {
    let (host, mut published) = (machine(), Published::new());
    outgrow(&host, &mut published).unwrap();
    let (mut cuts, trace) = (0, host.trace());
    for Crash { host, after, landing } in crash_states(&trace, 7, SAMPLES) {
        cuts += 1;
        assert_eq!(misled(&host, after, &published), None, "cut after {after} {landing:?}");
    }
    assert!(cuts > 200, "{cuts}");
    for n in 0.. {
        let (host, mut published) = (machine(), Published::new());
        host.fail(Some(Fault { at: host.ios() + n, is_lasting: true, failure: Failure::Io }));
        let outcome = outgrow(&host, &mut published);
        host.fail(None);
        if n % 2 == 0 {
            // Whoever goes on from here changes bytes without another word about the record.
            let (image, ledger) = (Split::open(&host, true, Access::Write).unwrap(), ledger(&host));
            ledger.settle(&image).unwrap();
            let (inside, layer) = (image.stored().unwrap(), ledger.look(&image).unwrap().layer);
            let counting = inside.filter(|stored| stored.is_untouched);
            assert!(
                counting.is_none_or(|stored| LayerRecord::decode(&stored.bytes) == layer),
                "killed at {n}"
            );
        }
        assert_eq!(misled(&host, usize::MAX, &published), None, "killed at {n}");
        if outcome.is_ok() {
            break;
        }
        assert!(n < 2000, "it never ends");
    }
}
