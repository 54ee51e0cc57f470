//! The ledger on real files: what it writes where, and what makes it doubt.
use super::*;
use crate::{
    base::{ErrorKind, HostOffset},
    io::real::RealHost,
    store::{Child, Doubt, Lineage, StoredRecord, accept},
};
use std::fs;

mod crash;

/// An image with its record, if it has a place for one, in its first 4 KiB, and data behind that.
struct Image {
    file: Arc<dyn File>,
    has_place: bool,
    /// The longest record that the place takes.
    room: usize,
}

const PLACE: usize = 4096;
const ROOM: usize = PLACE - 3;

impl Carrier for Image {
    fn files(&self) -> Vec<Arc<dyn File>> {
        vec![Arc::clone(&self.file)]
    }

    fn stored(&self) -> Result<Option<StoredRecord>> {
        let mut place = [0; PLACE];
        self.file.read_at(HostOffset::new(0), &mut place)?;
        let bytes = usize::from(u16::from_le_bytes([place[0], place[1]]));
        Ok((bytes > 0)
            .then(|| StoredRecord { bytes: place[3..3 + bytes].to_vec(), is_untouched: place[2] == 1 }))
    }

    fn store(&self, record: Option<&[u8]>) -> Result<bool> {
        if record.is_some_and(|record| record.len() > self.room) {
            return Ok(false);
        }
        let mut place = vec![0; PLACE];
        if let Some(record) = record {
            place[..2].copy_from_slice(&u16::try_from(record.len()).unwrap().to_le_bytes());
            place[2] = 1;
            place[3..3 + record.len()].copy_from_slice(record);
        }
        if self.has_place {
            self.file.write_at(HostOffset::new(0), &place)?;
        }
        Ok(self.has_place)
    }

    fn void(&self) -> Result<()> {
        if self.has_place { self.file.write_at(HostOffset::new(2), &[0]) } else { Ok(()) }
    }

    fn flush_with_time(&self) -> Result<()> {
        self.file.flush_with_time()
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
        self.has_place
    }
}

struct Bench {
    folder: tempfile::TempDir,
    host: Arc<dyn Host>,
    ledger: Ledger,
}

impl Bench {
    fn new() -> Self {
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let ledger = Ledger::new(Arc::clone(&host), None);
        Self { folder: tempfile::tempdir().unwrap(), host, ledger }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self, name: &str, has_place: bool) -> Image {
        let file = self.host.create(&self.path(name)).unwrap();
        file.write_at(HostOffset::new(0), &vec![0; 2 * PLACE]).unwrap();
        Image { file, has_place, room: ROOM }
    }

    /// What a program does that knows nothing of records and goes through the same host file; in the same moment,
    /// so that nothing but the ledger's own care makes it show.
    fn foreign_write(&self, name: &str) {
        use std::os::unix::fs::FileExt;
        let file = fs::OpenOptions::new().write(true).open(self.path(name)).unwrap();
        file.write_all_at(b"foreign", PLACE as u64 + 100).unwrap();
    }

    fn trust(&self, image: &Image) -> Trust {
        self.ledger.look(image).unwrap().trust
    }

    fn notes(&self) -> usize {
        fs::read_dir(self.path(".dchain/notes")).map_or(0, Iterator::count)
    }
}

fn tree() -> Tree {
    Tree::of(b"what the guest sees")
}

#[test]
fn a_frozen_layer_is_trusted_until_somebody_writes_it() {
    for has_place in [true, false] {
        let bench = Bench::new();
        let image = bench.image("base", has_place);
        assert_eq!(bench.trust(&image), Trust::Unknown);
        let frozen = bench.ledger.freeze(&image).unwrap();
        assert_eq!(frozen.trust, Trust::Trusted);
        assert_eq!(bench.ledger.freeze(&image).unwrap(), frozen, "a second child makes no new epoch");
        bench.foreign_write("base");
        assert!(matches!(bench.trust(&image), Trust::Doubted(Doubt::Written { .. })));
        let again = bench.ledger.freeze(&image).unwrap();
        assert_eq!(again.trust, Trust::Trusted);
        assert_ne!(again.layer.frozen, frozen.layer.frozen, "new bytes, new epoch");
    }
}

#[test]
fn owners_modes_and_names_may_change() {
    use std::os::unix::fs::PermissionsExt;
    for has_place in [true, false] {
        let bench = Bench::new();
        let image = bench.image("base", has_place);
        bench.ledger.freeze(&image).unwrap();
        fs::set_permissions(bench.path("base"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::rename(bench.path("base"), bench.path("renamed")).unwrap();
        fs::read(bench.path("renamed")).unwrap();
        assert_eq!(bench.trust(&image), Trust::Trusted);
    }
}

#[test]
fn a_cleared_bit_is_a_doubt_even_in_another_boot() {
    let bench = Bench::new();
    let image = bench.image("base", true);
    bench.ledger.freeze(&image).unwrap();
    fs::remove_dir_all(bench.path(".dchain")).unwrap();
    assert_eq!(bench.trust(&image), Trust::Claimed);
    image.file.write_at(HostOffset::new(2), &[0]).unwrap();
    assert_eq!(bench.trust(&image), Trust::Doubted(Doubt::Opened));
}

#[test]
fn a_seal_outlives_nothing_that_changes_the_bytes() {
    for has_place in [true, false] {
        let bench = Bench::new();
        let image = bench.image("base", has_place);
        let frozen = bench.ledger.freeze(&image).unwrap();
        let sealed = bench.ledger.seal(&image, &tree(), &frozen).unwrap();
        assert_eq!(sealed.proven(), Some(tree().id()));
        assert_eq!(sealed.layer.frozen.unwrap().epoch, frozen.layer.frozen.unwrap().epoch);
        assert_eq!(bench.ledger.tree(&image, &tree().id()).unwrap(), Some(tree()));
        let thawed = bench.ledger.thaw(&image, Epoch::fresh()).unwrap();
        assert_eq!(thawed.layer.frozen.unwrap().sealed, None);
        assert_ne!(thawed.layer.frozen.unwrap().epoch, frozen.layer.frozen.unwrap().epoch);
        assert_eq!(thawed.trust, Trust::Claimed);
        let released = bench.ledger.release(&image).unwrap();
        // What has no place for a record does not tell its format either: that stays known.
        assert_eq!((released.trust, bench.notes()), (Trust::Unknown, usize::from(!has_place)));
    }
}

#[test]
fn a_seal_is_refused_to_what_was_written_meanwhile_or_shows_something_else() {
    let bench = Bench::new();
    let image = bench.image("base", true);
    let head = bench.ledger.look(&image).unwrap();
    let frozen = bench.ledger.freeze(&image).unwrap();
    assert_eq!(bench.ledger.seal(&image, &tree(), &head).unwrap_err().kind(), ErrorKind::Busy);
    bench.foreign_write("base");
    assert_eq!(bench.ledger.seal(&image, &tree(), &frozen).unwrap_err().kind(), ErrorKind::Busy);
    let doubted = bench.ledger.look(&image).unwrap();
    assert_eq!(bench.ledger.seal(&image, &tree(), &doubted).unwrap_err().kind(), ErrorKind::Policy);

    let frozen = bench.ledger.freeze(&image).unwrap();
    bench.ledger.seal(&image, &tree(), &frozen).unwrap();
    bench.foreign_write("base");
    let doubted = bench.ledger.look(&image).unwrap();
    let other = Tree::of(b"something else");
    assert_eq!(bench.ledger.seal(&image, &other, &doubted).unwrap_err().kind(), ErrorKind::Policy);
    // A hash that gives the sealed ID proves that the stranger changed nothing.
    assert_eq!(bench.ledger.seal(&image, &tree(), &doubted).unwrap().proven(), Some(tree().id()));
}

#[test]
fn a_head_is_frozen_by_its_seal() {
    for has_place in [true, false] {
        let bench = Bench::new();
        let image = bench.image("base", has_place);
        let head = bench.ledger.look(&image).unwrap();
        let sealed = bench.ledger.seal(&image, &tree(), &head).unwrap();
        assert_eq!((sealed.trust, sealed.proven()), (Trust::Trusted, Some(tree().id())));
        assert_eq!(bench.ledger.freeze(&image).unwrap(), sealed, "it needs no other epoch");
        bench.ledger.release(&image).unwrap();
        let head = bench.ledger.look(&image).unwrap();
        io::settle(&image.files(), &head.now);
        bench.foreign_write("base");
        assert_eq!(bench.ledger.seal(&image, &tree(), &head).unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(bench.trust(&image), Trust::Unknown, "it stays a head");
    }
}

#[test]
fn a_claim_never_wipes_out_a_doubt() {
    let claim = Claim { parent_epoch: Epoch::new(3), parent_id: None, name: b"p".to_vec(), format: None };
    for has_place in [true, false] {
        let bench = Bench::new();
        let image = bench.image("middle", has_place);
        bench.ledger.freeze(&image).unwrap();
        let known = bench.ledger.claim(&image, Some(claim.clone())).unwrap();
        assert_eq!((known.trust, known.layer.claim.as_ref()), (Trust::Trusted, Some(&claim)));
        bench.foreign_write("middle");
        assert_eq!(bench.ledger.claim(&image, None).unwrap_err().kind(), ErrorKind::Policy);
        assert!(matches!(bench.trust(&image), Trust::Doubted(_)));
    }
}

#[test]
fn a_child_knows_its_parent_again_and_notices_its_change() {
    for has_place in [true, false] {
        let bench = Bench::new();
        let (base, child) = (bench.image("base", has_place), bench.image("child", has_place));
        let frozen = bench.ledger.freeze(&base).unwrap();
        let claim = Claim {
            parent_epoch: frozen.layer.frozen.unwrap().epoch,
            parent_id: frozen.proven(),
            name: b"base".to_vec(),
            format: None,
        };
        bench.ledger.claim(&child, Some(claim)).unwrap();
        // Whatever is written to the head itself leaves its claim alone.
        bench.foreign_write("child");
        let known = bench.ledger.look(&child).unwrap();
        let child = Child { claim: known.layer.claim.as_ref(), name: b"base", format: None, identity: None };
        let ask = || accept(&child, &bench.ledger.look(&base).unwrap(), None);
        assert_eq!(ask().unwrap(), Lineage::Kept);
        bench.foreign_write("base");
        assert!(ask().is_err());
        bench.ledger.thaw(&base, Epoch::fresh()).unwrap();
        assert!(ask().is_err());
    }
}

#[test]
fn what_is_inside_the_image_counts_once_it_changes() {
    let bench = Bench::new();
    let mut image = bench.image("base", true);
    let inside = bench.ledger.freeze(&image).unwrap();
    // Read-only for a while: the new record goes beside it.
    image.has_place = false;
    let beside = bench.ledger.seal(&image, &tree(), &inside).unwrap();
    assert_eq!(beside.proven(), Some(tree().id()));
    // The autoclear bit still speaks, and so does a later record inside.
    image.file.write_at(HostOffset::new(2), &[0]).unwrap();
    assert_eq!(bench.trust(&image), Trust::Doubted(Doubt::Opened));
    image.has_place = true;
    let epoch = Epoch::new(77);
    let later = LayerRecord { frozen: Some(Record { epoch, sealed: None }), claim: None };
    image.store(Some(&later.encode())).unwrap();
    assert_eq!(bench.ledger.look(&image).unwrap().layer, later);
}

#[test]
fn a_torn_note_is_no_note() {
    let bench = Bench::new();
    let image = bench.image("base", false);
    bench.ledger.freeze(&image).unwrap();
    let note = fs::read_dir(bench.path(".dchain/notes")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&note).unwrap();
    for cut in 0..bytes.len() {
        fs::write(&note, &bytes[..cut]).unwrap();
        assert_eq!(bench.trust(&image), Trust::Unknown, "cut at {cut}");
    }
}

#[test]
fn a_damaged_tree_is_no_tree() {
    let bench = Bench::new();
    let image = bench.image("base", false);
    let frozen = bench.ledger.freeze(&image).unwrap();
    bench.ledger.seal(&image, &tree(), &frozen).unwrap();
    fs::write(bench.path(".dchain/trees").join(tree().id().hex()), b"dchntree").unwrap();
    assert_eq!(bench.ledger.tree(&image, &tree().id()).unwrap(), None);
}

#[test]
fn what_is_forgotten_leaves_no_note() {
    let bench = Bench::new();
    let image = bench.image("base", false);
    bench.ledger.freeze(&image).unwrap();
    assert_eq!(bench.notes(), 1);
    bench.ledger.forget(&image).unwrap();
    bench.ledger.forget(&image).unwrap();
    assert_eq!((bench.notes(), bench.trust(&image)), (0, Trust::Unknown));
}

#[test]
fn a_layer_that_is_tended_stays_trusted_and_one_in_doubt_stays_in_doubt() {
    for has_place in [true, false] {
        let bench = Bench::new();
        let image = bench.image("base", has_place);
        bench.ledger.freeze(&image).unwrap();
        let change = || image.file.write_at(HostOffset::new(PLACE as u64 - 1), &[1]);
        bench.ledger.tend(&image, change).unwrap();
        assert_eq!(bench.trust(&image), Trust::Trusted);
        bench.foreign_write("base");
        bench.ledger.tend(&image, change).unwrap();
        assert!(matches!(bench.trust(&image), Trust::Doubted(_)));
    }
}

#[test]
fn a_layer_that_is_tended_after_a_restart_of_the_host_is_not_in_doubt() {
    for has_place in [true, false] {
        let bench = Bench::new();
        let image = bench.image("base", has_place);
        bench.ledger.freeze(&image).unwrap();
        for note in fs::read_dir(bench.path(".dchain/notes")).unwrap() {
            let path = note.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let (front, rest) = text.split_once("\"boot\":").unwrap();
            let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            fs::write(path, format!("{front}\"boot\":1{rest}")).unwrap();
        }
        assert_eq!(bench.trust(&image), Trust::Claimed);
        let change = || image.file.write_at(HostOffset::new(PLACE as u64 - 1), &[1]);
        bench.ledger.tend(&image, change).unwrap();
        assert_eq!(bench.trust(&image), Trust::Claimed);
    }
}

#[test]
fn cid_1_the_format_of_a_raw_disk_is_known_from_its_making_on_whatever_becomes_of_its_record() {
    let bench = Bench::new();
    let image = bench.image("disk", false);
    let format = || bench.ledger.format_of(image.file.as_ref()).unwrap();
    assert_eq!(format(), None);
    bench.ledger.know(&image).unwrap();
    assert_eq!(format().as_deref(), Some("raw"));
    bench.ledger.freeze(&image).unwrap();
    bench.ledger.release(&image).unwrap();
    assert_eq!(bench.ledger.look(&image).unwrap().trust, Trust::Unknown);
    assert_eq!(format().as_deref(), Some("raw"), "it is a head again, and raw still");
    bench.ledger.forget(&image).unwrap();
    assert_eq!(format(), None);
}

#[test]
fn what_was_noted_of_a_file_is_not_believed_of_the_next_one_with_its_number() {
    let bench = Bench::new();
    let image = bench.image("disk", false);
    bench.ledger.freeze(&image).unwrap();
    let notes = bench.path(".dchain/notes");
    let note = fs::read_dir(&notes).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&note).unwrap();
    let born = crate::io::born_ns(image.file.as_ref());
    let Some(born) = born else { return };
    assert!(text.contains(&born.to_string()), "{text}");
    fs::write(&note, text.replace(&born.to_string(), &(born - 1).to_string())).unwrap();
    assert_eq!(bench.ledger.format_of(image.file.as_ref()).unwrap(), None);
    assert_eq!(bench.ledger.look(&image).unwrap().trust, Trust::Unknown);
}
