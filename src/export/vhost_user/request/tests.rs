use super::*;
use crate::export::vhost_user::wire::{UNMAP, status};

const TERMS: Terms = Terms { size: 1 << 20, is_writable: true };

fn says(at: u64, bytes: u32) -> Segment {
    Segment { at: GuestAddress(at), bytes, is_writable: false }
}

fn hears(at: u64, bytes: u32) -> Segment {
    Segment { at: GuestAddress(at), bytes, is_writable: true }
}

fn ask(kind: u32, sector: u64, payload_bytes: u64, room_bytes: u64) -> Result<Task, Refusal> {
    let shape = Shape { payload_bytes, room_bytes, status_at: GuestAddress(9) };
    check(&RequestHeader { kind, reserved: 0, sector }, &shape, &TERMS)
}

#[test]
fn the_parts_of_a_request_are_found_however_it_is_cut() {
    let read = [says(0, 16), hears(4096, 512), hears(8192, 512), hears(100, 1)];
    let shape_of_read = shape(&read, true).unwrap();
    let wanted = Shape { payload_bytes: 0, room_bytes: 1024, status_at: GuestAddress(100) };
    assert_eq!(shape_of_read, wanted);
    // Header in two, payload behind it in the same segment; the status in one segment with the data.
    let write = [says(0, 10), says(50, 6 + 512), hears(100, 1)];
    assert_eq!(shape(&write, true).unwrap().payload_bytes, 512);
    let header: Vec<_> = pieces(&write, false, 0, 16).collect();
    assert_eq!(header, [(GuestAddress(0), 10), (GuestAddress(50), 6)]);
    let payload: Vec<_> = pieces(&write, false, 16, 512).collect();
    assert_eq!(payload, [(GuestAddress(56), 512)]);
    let together = shape(&[says(0, 16), hears(4096, 513)], true).unwrap();
    assert_eq!((together.room_bytes, together.status_at), (512, GuestAddress(4096 + 512)));
}

#[test]
fn a_chain_that_is_no_request_is_refused_where_that_can_be_said() {
    let end = u64::MAX;
    let many: Vec<_> = (0..SEGMENTS_MAX).map(|_| says(0, 16)).chain([hears(7, 1)]).collect();
    for (chain, is_whole, status_at) in [
        (vec![], true, None),
        (vec![says(0, 16)], true, None),
        (vec![says(0, 15), hears(7, 1)], true, Some(7)),
        (vec![hears(7, 1)], true, Some(7)),
        (vec![says(0, 16), hears(7, 0)], true, None),
        (vec![says(0, 16), hears(end, 2)], true, None),
        (vec![hears(7, 512), says(0, 16)], true, None),
        (vec![hears(7, 512), says(0, 16), hears(9, 1)], true, Some(9)),
        (vec![says(0, 16), hears(7, 1)], false, Some(7)),
        (many, true, Some(7)),
    ] {
        let misshapen = shape(&chain, is_whole).unwrap_err();
        assert_eq!(misshapen.status_at, status_at.map(GuestAddress), "{} segments", chain.len());
    }
}

#[test]
fn lengths_and_addresses_at_the_ends_of_what_a_number_holds_do_not_overflow() {
    let longest: Vec<_> = (0..1000).map(|_| says(u64::MAX, u32::MAX)).chain([hears(u64::MAX, 1)]).collect();
    let found = shape(&longest, true).unwrap();
    assert_eq!(found.payload_bytes, 1000 * u64::from(u32::MAX) - 16);
    assert_eq!(pieces(&longest, false, 16, u64::MAX).count(), 1000);
    assert!(pieces(&longest, false, u64::MAX, u64::MAX).next().is_none());
    for sector in [u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1] {
        assert_eq!(ask(kind::IN, sector, 0, 512), Err(Refusal::Wrong));
        assert_eq!(ask(kind::OUT, sector, 512, 0), Err(Refusal::Wrong));
        let stretch = Stretch { sector, sectors: STRETCH_SECTORS_MAX, flags: 0 };
        assert_eq!(check_stretch(&stretch, true, &TERMS), Err(Refusal::Wrong));
    }
}

#[test]
fn a_request_is_whole_sectors_within_the_disk_and_has_its_data_on_its_own_side() {
    let range = |start, bytes| GuestOffset::new(start).range(bytes);
    assert_eq!(ask(kind::IN, 2, 0, 4096), Ok(Task::Read(range(1024, 4096))));
    assert_eq!(ask(kind::OUT, 2047, 512, 0), Ok(Task::Write(range((1 << 20) - 512, 512))));
    assert_eq!(ask(kind::FLUSH, 77, 0, 0), Ok(Task::Flush));
    assert_eq!(ask(kind::GET_ID, 0, 0, 20), Ok(Task::Name));
    assert_eq!(ask(kind::DISCARD, 0, 32, 0), Ok(Task::Zero { stretches: 2, is_discard: true }));
    for (kind, sector, payload, room) in [
        (kind::IN, 0, 0, 513),
        (kind::IN, 2048, 0, 512),
        (kind::IN, 2047, 0, 1024),
        (kind::IN, 0, 512, 512),
        (kind::OUT, 0, 511, 0),
        (kind::OUT, 2048, 512, 0),
        (kind::OUT, 0, 512, 512),
        (kind::FLUSH, 0, 1, 0),
        (kind::GET_ID, 0, 0, 19),
        (kind::DISCARD, 0, 0, 0),
        (kind::DISCARD, 0, 17, 0),
        (kind::WRITE_ZEROES, 0, 16 * (u64::from(STRETCHES_MAX) + 1), 0),
        (kind::WRITE_ZEROES, 0, 16, 512),
    ] {
        assert_eq!(ask(kind, sector, payload, room), Err(Refusal::Wrong), "{kind} {sector} {payload} {room}");
    }
    for kind in [2, 3, 9, 12, 14, u32::MAX] {
        assert_eq!(ask(kind, 0, 0, 0), Err(Refusal::Unknown));
    }
    assert_eq!((u8::from(Refusal::Wrong), u8::from(Refusal::Unknown)), (status::IOERR, status::UNSUPP));
}

#[test]
fn a_disk_for_reading_takes_no_change() {
    let terms = Terms { is_writable: false, ..TERMS };
    let ask = |kind, payload_bytes, room_bytes| {
        let shape = Shape { payload_bytes, room_bytes, status_at: GuestAddress(9) };
        check(&RequestHeader { kind, reserved: 0, sector: 0 }, &shape, &terms)
    };
    assert!(ask(kind::IN, 0, 512).is_ok() && ask(kind::FLUSH, 0, 0).is_ok());
    for (kind, payload) in [(kind::OUT, 512), (kind::DISCARD, 16), (kind::WRITE_ZEROES, 16)] {
        assert_eq!(ask(kind, payload, 0), Err(Refusal::Wrong));
    }
}

#[test]
fn a_stretch_keeps_its_space_unless_it_may_go() {
    let check = |flags, is_discard, sectors| {
        check_stretch(&Stretch { sector: 8, sectors, flags }, is_discard, &TERMS)
    };
    let range = GuestOffset::new(4096).range(512);
    assert_eq!(check(0, false, 1), Ok((range, Kept::Space)));
    assert_eq!(check(UNMAP, false, 1), Ok((range, Kept::Nothing)));
    assert_eq!(check(0, true, 1), Ok((range, Kept::Nothing)));
    // A discard has no flag, and nobody knows others.
    assert_eq!(check(UNMAP, true, 1), Err(Refusal::Unknown));
    assert_eq!(check(2, false, 1), Err(Refusal::Unknown));
    let end = u32::try_from(TERMS.size / SECTOR_BYTES).unwrap() - 8;
    assert!(check(0, true, end).is_ok());
    assert_eq!(check(0, true, end + 1), Err(Refusal::Wrong));
    assert_eq!(check(0, true, STRETCH_SECTORS_MAX + 1), Err(Refusal::Wrong));
}
