//! The table of trust, every row of it, and who may stand on whom.
use super::*;
use crate::{io::Witness, store::LayerRecord};

const EPOCH: Epoch = Epoch::new(1);
const OTHER: Epoch = Epoch::new(2);

const THEN: Witness =
    Witness { file_system: 5, inode: 6, bytes: 4096, modified_ns: 1_000_000_000_007, boot: 9 };

fn id(byte: u8) -> ContentId {
    ContentId::new([byte; 32])
}

/// Every way in which a file can look now when it looked like `THEN` before.
fn looks() -> Vec<Witness> {
    let mut all = Vec::new();
    for changed in 0_u64..16 {
        let bit = |i: u64| changed >> i & 1;
        all.push(Witness {
            inode: THEN.inode + bit(0),
            bytes: THEN.bytes + bit(1),
            modified_ns: THEN.modified_ns + i128::from(bit(2)),
            boot: THEN.boot + u128::from(bit(3)),
            ..THEN
        });
    }
    all
}

/// The specification's table, row by row.
fn expected(
    record: Option<&Record>,
    is_untouched: bool,
    seen: Option<&Seen>,
    now: &[Witness],
) -> &'static str {
    let Some(record) = record else { return "unknown" };
    let seen = seen.filter(|s| s.epoch == record.epoch);
    let is_here = |a: &Witness, b: &Witness| a.inode == b.inode;
    let doubted = !is_untouched
        || seen.is_some_and(|seen| {
            seen.files.iter().zip(now).any(|(a, b)| {
                let differs = (a.bytes, a.modified_ns) != (b.bytes, b.modified_ns);
                if is_here(a, b) { differs } else { a.boot == b.boot }
            })
        });
    let is_proved = seen.is_some_and(|seen| {
        seen.noted_ns > THEN.modified_ns && seen.files.iter().zip(now).all(|(a, b)| a == b)
    });
    match (doubted, is_proved) {
        (true, _) => "doubted",
        (false, true) => "trusted",
        (false, false) => "claimed",
    }
}

#[test]
fn every_row_of_the_table_is_decided_as_written() {
    let (mut rows, mut counts) = (0, std::collections::BTreeMap::new());
    let records = [
        None,
        Some(Record { epoch: EPOCH, sealed: None }),
        Some(Record { epoch: EPOCH, sealed: Some(id(1)) }),
    ];
    let mut notes = vec![None];
    for epoch in [EPOCH, OTHER] {
        for late in [0, 1, 5_000_000_000] {
            notes.push(Some(Seen { epoch, files: vec![THEN, THEN], noted_ns: THEN.modified_ns + late }));
        }
    }
    for record in &records {
        for (is_untouched, seen) in [true, false].into_iter().flat_map(|u| notes.iter().map(move |n| (u, n)))
        {
            for (a, b) in looks().into_iter().flat_map(|a| looks().into_iter().map(move |b| (a, b))) {
                let (record, seen, now) = (record.as_ref(), seen.as_ref(), [a, b]);
                let found = match trust(&Evidence { record, is_untouched, seen, now: &now }) {
                    Trust::Trusted => "trusted",
                    Trust::Claimed => "claimed",
                    Trust::Doubted(_) => "doubted",
                    Trust::Unknown => "unknown",
                };
                assert_eq!(found, expected(record, is_untouched, seen, &now), "{record:?} {seen:?} {now:?}");
                *counts.entry(found).or_insert(0) += 1;
                rows += 1;
            }
        }
    }
    assert_eq!(rows, 3 * 2 * 7 * 256);
    assert_eq!(counts.len(), 4, "{counts:?}");
}

#[test]
fn a_witness_within_the_tick_of_a_write_proves_nothing() {
    let record = Record { epoch: EPOCH, sealed: None };
    let judge = |modified_ns, noted_ns| {
        let now = [Witness { modified_ns, ..THEN }];
        let seen = Seen { epoch: EPOCH, files: now.to_vec(), noted_ns };
        trust(&Evidence { record: Some(&record), is_untouched: true, seen: Some(&seen), now: &now })
    };
    assert_eq!(judge(7, 7), Trust::Claimed);
    assert_eq!(judge(7, 8), Trust::Trusted);
    // A file system that keeps whole seconds.
    assert_eq!(judge(3 * SECOND_NS, 3 * SECOND_NS + 5), Trust::Claimed);
    assert_eq!(judge(3 * SECOND_NS, 4 * SECOND_NS), Trust::Trusted);
}

#[test]
fn a_layer_is_trusted_no_further_than_what_lies_below() {
    let doubted = Trust::Doubted(Doubt::Replaced);
    let below = Trust::Doubted(Doubt::Below);
    let table = [
        (Trust::Trusted, [Trust::Trusted, Trust::Claimed, below, Trust::Claimed]),
        (Trust::Claimed, [Trust::Claimed, Trust::Claimed, below, Trust::Claimed]),
        (doubted, [doubted; 4]),
        (Trust::Unknown, [Trust::Unknown; 4]),
    ];
    for (own, row) in table {
        for (parent, expected) in
            [Trust::Trusted, Trust::Claimed, doubted, Trust::Unknown].into_iter().zip(row)
        {
            assert_eq!(own.over(parent), expected, "{own:?} over {parent:?}");
        }
    }
}

fn parent(record: Option<Record>, trust: Trust) -> Known {
    Known { layer: LayerRecord { frozen: record, claim: None }, trust, now: vec![THEN], identity: None }
}

fn claim(parent_id: Option<ContentId>) -> Claim {
    Claim { parent_epoch: EPOCH, parent_id, name: b"base.raw".to_vec(), format: Some("raw".to_owned()) }
}

fn ask(claim: Option<&Claim>, parent: &Known, proven: Option<ContentId>) -> Result<Lineage, Differs> {
    let child = Child { claim, name: b"base.raw", format: Some("raw"), identity: None };
    accept(&child, parent, proven).map_err(|refusal| refusal.differs)
}

#[test]
fn a_child_stands_on_the_epoch_it_was_made_on_unless_that_is_in_doubt() {
    let record = Some(Record { epoch: EPOCH, sealed: Some(id(1)) });
    let claim = claim(None);
    for trust in [Trust::Trusted, Trust::Claimed] {
        assert_eq!(ask(Some(&claim), &parent(record, trust), None), Ok(Lineage::Kept));
    }
    let doubted = parent(record, Trust::Doubted(Doubt::Opened));
    assert_eq!(ask(Some(&claim), &doubted, None), Err(Differs::Doubted(Doubt::Opened)));
    let moved = parent(Some(Record { epoch: OTHER, sealed: None }), Trust::Trusted);
    assert_eq!(ask(Some(&claim), &moved, None), Err(Differs::Epoch { claimed: EPOCH, found: OTHER }));
    assert_eq!(ask(Some(&claim), &parent(None, Trust::Unknown), None), Err(Differs::NoRecord));
}

#[test]
fn a_child_stands_on_any_parent_that_proves_its_id() {
    let claim = claim(Some(id(1)));
    let other_epoch = |trust| parent(Some(Record { epoch: OTHER, sealed: Some(id(1)) }), trust);
    assert_eq!(ask(Some(&claim), &other_epoch(Trust::Trusted), None), Ok(Lineage::Proven));
    // A seal that is not trusted proves nothing, a hash just computed does.
    assert!(ask(Some(&claim), &other_epoch(Trust::Claimed), None).is_err());
    assert_eq!(ask(Some(&claim), &other_epoch(Trust::Claimed), Some(id(1))), Ok(Lineage::Proven));
    let doubted = parent(Some(Record { epoch: EPOCH, sealed: Some(id(1)) }), Trust::Doubted(Doubt::Replaced));
    assert!(ask(Some(&claim), &doubted, None).is_err());
    assert!(ask(Some(&claim), &doubted, Some(id(2))).is_err());
    assert_eq!(ask(Some(&claim), &doubted, Some(id(1))), Ok(Lineage::Proven));
    assert_eq!(ask(Some(&claim), &parent(None, Trust::Unknown), Some(id(1))), Ok(Lineage::Proven));
}

#[test]
fn a_foreign_rebase_voids_the_claim() {
    let (claim, nobody) = (claim(None), parent(None, Trust::Unknown));
    let mut child = Child { claim: Some(&claim), name: b"other.raw", format: Some("raw"), identity: None };
    assert_eq!(accept(&child, &nobody, None), Ok(Lineage::Unknown));
    child = Child { name: b"base.raw", format: None, ..child };
    assert_eq!(accept(&child, &nobody, None), Ok(Lineage::Unknown));
    assert_eq!(ask(None, &nobody, None), Ok(Lineage::Unknown));
}

#[test]
fn what_the_formats_say_of_a_parent_counts_where_there_is_no_claim() {
    let (here, there) = (Identity::Cid(7), Identity::Cid(8));
    let record = Some(Record { epoch: EPOCH, sealed: None });
    let parent = Known { identity: Some(here), ..parent(record, Trust::Trusted) };
    let on = |claim: Option<&Claim>, identity| {
        let child = Child { claim, name: b"base.raw", format: Some("raw"), identity };
        accept(&child, &parent, None).map_err(|refusal| refusal.differs)
    };
    assert_eq!(on(None, Some(there)), Err(Differs::Identity { claimed: there, found: here }));
    assert_eq!(on(None, Some(here)), Ok(Lineage::Unknown));
    assert_eq!(on(None, None), Ok(Lineage::Unknown));
    assert_eq!(on(Some(&claim(None)), Some(there)), Ok(Lineage::Kept));
}

#[test]
fn a_refusal_says_what_differs_since_when_and_what_to_do() {
    let doubt = Doubt::Written { file: 0, was_ns: 0, is_ns: THEN.modified_ns };
    let record = Some(Record { epoch: EPOCH, sealed: None });
    let claim = claim(Some(id(0xab)));
    let child = Child { claim: Some(&claim), name: b"base.raw", format: Some("raw"), identity: None };
    let refusal = accept(&child, &parent(record, Trust::Doubted(doubt)), None).unwrap_err();
    let error = refusal.error(Path::new("/vm/vm.qcow2"), Path::new("/vm/base.raw"));
    assert_eq!(error.kind(), crate::base::ErrorKind::Policy);
    assert_eq!(
        error.to_string(),
        "/vm/vm.qcow2: its parent /vm/base.raw is not what it was: it was written after 1970-01-01 00:00:00 UTC (last \
         written 1970-01-01 00:16:40 UTC); wanted is content ID c1:abababababab; `dchain relink /vm` \
         proves it if nothing differs, or finds another one, `dchain repair /vm/base.raw --from COPY` puts back what \
         differs, `dchain relink --accept /vm/vm.qcow2` takes it as it is"
    );
}
