use super::*;
use crate::base::seed::Seeded;

const TERMS: Terms = Terms { style: Style::Structured, size: 1 << 30, is_writable: true, has_contexts: true };

fn request(command: u16, start: u64, bytes: u64) -> Request {
    Request { flags: 0, command, cookie: 7, start, bytes, payload_bytes: 0 }
}

fn errno_of(request: &Request, terms: &Terms) -> Option<u32> {
    check(request, terms).err().map(|refusal| refusal.errno)
}

#[test]
fn a_range_past_the_end_is_refused_as_the_protocol_asks() {
    let cases = [
        (command::READ, errno::INVAL),
        (command::WRITE, errno::NOSPC),
        (command::TRIM, errno::INVAL),
        (command::CACHE, errno::INVAL),
        (command::WRITE_ZEROES, errno::NOSPC),
        (command::BLOCK_STATUS, errno::INVAL),
    ];
    for (command, errno) in cases {
        for (start, bytes) in [((1 << 30) - 1, 2), (1 << 30, 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(
                errno_of(&request(command, start, bytes), &TERMS),
                Some(errno),
                "{command} {start} {bytes}"
            );
        }
        assert_eq!(errno_of(&request(command, (1 << 30) - 1, 1), &TERMS), None, "{command}: the last byte");
    }
}

#[test]
fn what_would_write_is_refused_where_writing_is_not_allowed() {
    let terms = Terms { is_writable: false, ..TERMS };
    for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(errno_of(&request(command, 0, 512), &terms), Some(errno::PERM), "{command}");
    }
    assert_eq!(check(&request(command::FLUSH, 0, 0), &terms), Ok(Task::Flush));
}

#[test]
fn flags_that_a_request_does_not_have_are_refused() {
    let flagged = |command, flags| Request { flags, ..request(command, 0, 512) };
    assert_eq!(errno_of(&flagged(command::READ, flag::NO_HOLE), &TERMS), Some(errno::INVAL));
    assert_eq!(errno_of(&flagged(command::WRITE, 1 << 9), &TERMS), Some(errno::INVAL));
    // DF means something only where replies have a shape; FUA is harmless everywhere.
    let simple = Terms { style: Style::Simple, ..TERMS };
    assert_eq!(errno_of(&flagged(command::READ, flag::DF), &simple), Some(errno::INVAL));
    assert_eq!(errno_of(&flagged(command::READ, flag::DF | flag::FUA), &TERMS), None);
    let zero = check(&flagged(command::WRITE_ZEROES, flag::NO_HOLE | flag::FAST_ZERO | flag::FUA), &TERMS);
    let range = GuestOffset::new(0).range(512);
    assert_eq!(zero, Ok(Task::Zero { range, kept: Kept::Space, is_fast: true, is_durable: true }));
}

#[test]
fn more_than_a_payload_may_have_is_refused_and_its_bytes_are_known() {
    let most = u64::from(PAYLOAD_BYTES_MAX);
    assert_eq!(errno_of(&request(command::READ, 0, most), &TERMS), None);
    assert_eq!(errno_of(&request(command::READ, 0, most + 1), &TERMS), Some(errno::INVAL));
    let header = CompactRequest {
        magic: REQUEST_MAGIC,
        flags: 0,
        command: command::WRITE,
        cookie: 1,
        start: 0,
        bytes: u32::MAX,
    };
    let parsed = parse(&header.to_bytes(), Style::Simple).unwrap().unwrap();
    assert_eq!(parsed.payload_bytes, u64::from(u32::MAX));
}

#[test]
fn extended_requests_say_themselves_whether_a_payload_follows() {
    let header = |command, flags, bytes| ExtendedRequest {
        magic: EXTENDED_REQUEST_MAGIC,
        flags,
        command,
        cookie: 1,
        start: 0,
        bytes,
    };
    let payload = |header: ExtendedRequest| {
        parse(&header.to_bytes(), Style::Extended).map(|request| request.unwrap().payload_bytes)
    };
    assert_eq!(payload(header(command::WRITE, 0, 512)), Ok(512));
    assert_eq!(payload(header(command::TRIM, 0, 1 << 40)), Ok(0));
    assert_eq!(payload(header(command::BLOCK_STATUS, flag::PAYLOAD_LEN, 24)), Ok(24));
    assert_eq!(payload(header(command::WRITE, flag::PAYLOAD_LEN, 1 << 40)), Err(Broken));
}

#[test]
fn any_bytes_are_a_request_or_too_few_or_no_request() {
    let mut seeded = Seeded::new(1);
    let (mut whole, mut broken) = (0, 0);
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        for round in 0..20_000_u64 {
            let mut bytes: Vec<u8> = (0..round % 40).map(|_| (seeded.next() >> 56) as u8).collect();
            let magic = if style == Style::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
            if round % 5 > 0 && bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&magic.to_be_bytes());
                bytes[6] = 0;
                bytes[7] &= 15;
            }
            let is_enough = bytes.len() >= style.request_bytes();
            match parse(&bytes, style) {
                Ok(None) => assert!(!is_enough),
                Err(Broken) => broken += usize::from(is_enough),
                Ok(Some(request)) => {
                    whole += 1;
                    let terms = Terms { style, ..TERMS };
                    if let Ok(Task::Read { range, .. } | Task::Write { range, .. }) = check(&request, &terms)
                    {
                        assert!(
                            range.end().bytes() <= terms.size && range.bytes <= u64::from(PAYLOAD_BYTES_MAX)
                        );
                    }
                }
            }
        }
    }
    assert!(whole > 1000 && broken > 1000, "{whole} {broken}");
}
