use super::*;
use crate::{
    format::{Creation, NoParts, tape::Tape},
    io::memory::MemoryFile,
};

fn memory(bytes: &[u8]) -> MemoryFile {
    let file = MemoryFile::new("disk.qcow2");
    file.write_at(HostOffset::new(0), bytes).unwrap();
    file
}

fn whole(file: &dyn File) -> Vec<u8> {
    let mut bytes = vec![0; units::index(file.bytes().unwrap())];
    file.read_at(HostOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// What a header means, whatever its layout: a bit without a record means nothing.
fn meaning(header: &Header) -> (Option<ParentName>, Vec<Extension>, Option<StoredRecord>, [u64; 3]) {
    let others = header.extensions.iter().filter(|extension| extension.kind != extension::RECORD);
    let rest = [header.incompatible, header.autoclear & !feature::RECORD, header.disk_bytes];
    (header.parent(), others.cloned().collect(), record(header), rest)
}

/// Runs `change`, then looks at the header after every prefix of its writes, torn at every sector.
///
/// Returns how many states were looked at.
fn survives(start: &[u8], change: impl Fn(&dyn File, &mut Header)) -> usize {
    let file = Tape::of(memory(start));
    let mut header = Header::read(&file).unwrap();
    let old = meaning(&header);
    change(&file, &mut header);
    let new = meaning(&header);
    assert_eq!(Header::read(&file).unwrap(), header, "memory and file agree at the end");
    let states = file.torn_states(start);
    for torn in &states {
        let got = meaning(&Header::read(&memory(torn)).unwrap());
        assert!(got == old || got == new, "neither old nor new: {got:?}\nold {old:?}\nnew {new:?}");
    }
    states.len()
}

fn image(options: &[(&str, &str)], parent: Option<&ParentName>) -> Vec<u8> {
    let file = MemoryFile::new("disk.qcow2");
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let creation = Creation { size: 1 << 20, parent: parent.cloned(), options };
    super::super::create::create(&file, &creation, &NoParts).unwrap();
    whole(&file)
}

fn parent(name: &str, format: &str) -> ParentName {
    ParentName::new(name.into(), Some(format.to_owned()))
}

/// The tight layout of qemu: the parent's name right behind the extensions.
fn tight(bytes: &[u8]) -> Vec<u8> {
    let mut header = Header::read(&memory(bytes)).unwrap();
    header.parent_name_at = HostOffset::new(header.header_bytes + extension::list_bytes(&header.extensions));
    let mut out = bytes.to_vec();
    out[112..4096].fill(0);
    header.lay(&mut out);
    out
}

const SIZES: [&str; 5] = ["512", "1K", "2K", "4K", "64K"];

#[test]
fn a_cut_while_the_parent_changes_leaves_the_old_or_the_new_parent() {
    let long = parent(&"x".repeat(200), "raw");
    let parents = [None, Some(parent("base.qcow2", "qcow2")), Some(parent("b.raw", "raw")), Some(long)];
    let mut seen = 0;
    for version in ["v2", "v3"] {
        for size in SIZES {
            for from in &parents {
                let start = image(&[("compat", version), ("cluster_size", size)], from.as_ref());
                for to in &parents {
                    seen += survives(&start, |file, header| {
                        set_parent(file, header, to.as_ref()).unwrap();
                        assert_eq!(&header.parent(), to);
                        let at_home = header.header_bytes <= 112;
                        assert!(at_home, "the list is back behind the fields: {}", header.header_bytes);
                    });
                }
            }
        }
    }
    assert!(seen > 300, "{seen} states");
}

#[test]
fn a_cut_while_the_record_changes_leaves_the_old_or_the_new_record() {
    let base = parent("base.qcow2", "qcow2");
    let records: [Option<&[u8]>; 4] = [None, Some(b"first record"), Some(b"other record"), Some(&[7; 150])];
    let mut seen = 0;
    for size in SIZES {
        for from in records {
            let roomy = image(&[("cluster_size", size)], Some(&base));
            let starts = if size == "512" { vec![roomy] } else { vec![tight(&roomy), roomy] };
            for start in starts {
                for start in with_record(&start, from) {
                    for to in records {
                        seen += survives(&start, |file, header| set_durably(file, header, to));
                    }
                }
            }
        }
    }
    assert!(seen > 300, "{seen} states");
}

/// The image with a record, and the same where a foreign writer has cleared its bit.
fn with_record(start: &[u8], record: Option<&[u8]>) -> [Vec<u8>; 2] {
    let file = memory(start);
    let mut header = Header::read(&file).unwrap();
    assert!(set_record(&file, &mut header, record).unwrap());
    let ours = whole(&file);
    set_fields(&file, &mut header, |h| h.autoclear &= !feature::RECORD).unwrap();
    [ours, whole(&file)]
}

fn set_durably(file: &dyn File, header: &mut Header, to: Option<&[u8]>) {
    assert!(set_record(file, header, to).unwrap());
    file.flush().unwrap();
}

#[test]
fn a_record_is_kept_and_a_foreign_writer_is_noticed() {
    let file = memory(&image(&[], None));
    let mut header = Header::read(&file).unwrap();
    assert_eq!(record(&header), None);
    assert!(set_record(&file, &mut header, Some(b"abc")).unwrap());
    let stored = StoredRecord { bytes: b"abc".to_vec(), is_untouched: true };
    assert_eq!(record(&Header::read(&file).unwrap()), Some(stored.clone()));
    set_fields(&file, &mut header, |h| h.autoclear &= !feature::RECORD).unwrap();
    assert_eq!(record(&header), Some(StoredRecord { is_untouched: false, ..stored }));
    assert!(set_record(&file, &mut header, None).unwrap());
    assert_eq!(record(&Header::read(&file).unwrap()), None);
}

#[test]
fn version_2_and_a_full_first_cluster_have_no_place_for_a_record() {
    let file = memory(&image(&[("compat", "v2")], None));
    let mut header = Header::read(&file).unwrap();
    assert!(!set_record(&file, &mut header, Some(b"abc")).unwrap());
    let file = memory(&image(&[("cluster_size", "512")], None));
    let mut header = Header::read(&file).unwrap();
    assert!(set_record(&file, &mut header, Some(&[1; 200])).unwrap());
    assert!(!set_record(&file, &mut header, Some(&[2; 500])).unwrap());
    let kept = record(&Header::read(&file).unwrap()).unwrap();
    assert_eq!(kept, StoredRecord { bytes: vec![1; 200], is_untouched: true }, "it is as it was");
    void_record(&file, &mut header).unwrap();
    let stale = record(&Header::read(&file).unwrap()).unwrap();
    assert_eq!(stale, StoredRecord { is_untouched: false, ..kept }, "it is not believed any more");
}

#[test]
fn unknown_autoclear_bits_go_before_the_first_write_and_a_corrupt_image_is_not_written() {
    let file = memory(&image(&[], None));
    let mut header = Header::read(&file).unwrap();
    set_fields(&file, &mut header, |h| h.autoclear = 1 << 40 | feature::RECORD).unwrap();
    begin_writing(&file, &mut header).unwrap();
    assert_eq!(Header::read(&file).unwrap().autoclear, feature::RECORD);
    set_fields(&file, &mut header, |h| h.incompatible |= feature::CORRUPT).unwrap();
    let error = begin_writing(&file, &mut Header::read(&file).unwrap()).unwrap_err();
    assert!(error.to_string().contains("marked as corrupt"), "{error}");
}

#[test]
fn unknown_extensions_and_fields_survive_a_new_parent() {
    let mut bytes = image(&[], None);
    let mut header = Header::read(&memory(&bytes)).unwrap();
    header.header_bytes = 128;
    header.more_fields.resize(24, 0xaa);
    header.extensions.push(Extension { kind: 0x1234_5678, bytes: b"not ours".to_vec() });
    header.lay(&mut bytes);
    let file = memory(&bytes);
    let mut header = Header::read(&file).unwrap();
    set_parent(&file, &mut header, Some(&parent("p", "raw"))).unwrap();
    let again = Header::read(&file).unwrap();
    assert_eq!(again.extension(0x1234_5678), Some(&b"not ours"[..]));
    assert_eq!(again.more_fields.get(8..24), Some(&[0xaa; 16][..]));
    assert_eq!(again.parent(), Some(parent("p", "raw")));
}

#[test]
fn names_that_no_header_holds_are_refused() {
    let file = memory(&image(&[], None));
    let mut header = Header::read(&file).unwrap();
    for (name, is_good) in [(1, true), (1023, true), (1024, false), (0, false)] {
        let got = set_parent(&file, &mut header, Some(&parent(&"n".repeat(name), "raw")));
        assert_eq!(got.is_ok(), is_good, "{name} bytes: {got:?}");
    }
    assert!(set_parent(&file, &mut header, Some(&parent("a\0b", "raw"))).is_err());
    assert_eq!(Header::read(&file).unwrap().parent().unwrap().name.len(), 1023);
}
