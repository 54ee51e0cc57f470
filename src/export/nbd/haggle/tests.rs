use super::*;
use crate::{
    base::{Error, Result, seed::Seeded},
    export::nbd::{tests::Plain, wire::OptionReply},
};

/// Serves `disk`, which holds 1 MiB.
struct One;

impl Exports for One {
    fn list(&self) -> Vec<(String, String)> {
        vec![("disk".to_owned(), "a disk".to_owned())]
    }

    fn open(&self, name: &str) -> Result<Export> {
        if name == "disk" { Ok(Plain::export(1 << 20)) } else { Err(Error::new(ErrorKind::NotFound, "none")) }
    }
}

/// What was answered: kind and data.
fn replies(mut out: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while let Some(header) = OptionReply::parse_start(out) {
        let end = OptionReply::SIZE + header.bytes as usize;
        replies.push((header.kind, out[OptionReply::SIZE..end].to_vec()));
        out = &out[end..];
    }
    assert!(out.is_empty());
    replies
}

fn begin(cover: Cover) -> Haggling<'static> {
    Haggling::new(&One, true, cover)
}

fn kinds(haggling: &mut Haggling<'_>, option: u32, data: &[u8]) -> Vec<u32> {
    let mut out = Vec::new();
    haggling.answer(option, data, &mut out);
    replies(&out).into_iter().map(|(kind, _)| kind).collect()
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap().to_be_bytes().to_vec();
    let queries = queries.iter().map(|query| string(query));
    [string(name), count].into_iter().chain(queries).collect::<Vec<_>>().concat()
}

#[test]
fn an_unknown_name_is_no_end_and_a_known_one_is_told_of() {
    let mut haggling = begin(Cover::None);
    let go = |name: &str| [string(name), vec![0, 1, 0, 2]].concat();
    assert_eq!(kinds(&mut haggling, option::GO, &go("none")), [answer::ERR_UNKNOWN]);
    assert_eq!(
        kinds(&mut haggling, option::INFO, &go("disk")),
        [answer::INFO; 3].into_iter().chain([answer::ACK]).collect::<Vec<_>>()
    );
    let mut out = Vec::new();
    let Next::Transmission(agreed) = haggling.answer(option::GO, &go("disk"), &mut out) else { panic!() };
    assert_eq!((agreed.terms.size, agreed.terms.style, agreed.contexts.len()), (1 << 20, Style::Simple, 0));
    let info = &replies(&out)[0].1;
    assert_eq!(info[..10], [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0]);
}

#[test]
fn contexts_are_chosen_for_one_export_and_one_shape_of_replies() {
    let mut haggling = begin(Cover::None);
    let all = queries("disk", &["base:allocation", "qemu:allocation-depth", "none:such"]);
    assert_eq!(
        kinds(&mut haggling, option::SET_META_CONTEXT, &all),
        [answer::ERR_INVALID],
        "replies without a shape"
    );
    assert_eq!(kinds(&mut haggling, option::STRUCTURED_REPLY, &[]), [answer::ACK]);
    let chosen = [answer::META_CONTEXT, answer::META_CONTEXT, answer::ACK];
    assert_eq!(kinds(&mut haggling, option::SET_META_CONTEXT, &all), chosen);
    assert_eq!(kinds(&mut haggling, option::EXTENDED_HEADERS, &[]), [answer::ACK]);
    assert_eq!(kinds(&mut haggling, option::STRUCTURED_REPLY, &[]), [answer::ERR_EXT_HEADER_REQD]);
    let go = |haggling: &mut Haggling<'_>| {
        let Next::Transmission(agreed) = haggling.answer(option::EXPORT_NAME, b"disk", &mut Vec::new())
        else {
            panic!()
        };
        (agreed.terms.style, agreed.contexts.len())
    };
    assert_eq!(go(&mut haggling), (Style::Extended, 0), "chosen before the shape changed");
    assert_eq!(kinds(&mut haggling, option::SET_META_CONTEXT, &all), chosen);
    assert_eq!(go(&mut haggling), (Style::Extended, 2));
}

/// A client has ten seconds to make up its mind: its disk is detached meanwhile.
#[test]
fn a_client_that_only_haggles_holds_no_disk() {
    let disk = Plain::new(1 << 20);
    let exports = crate::export::nbd::tests::One(Arc::clone(&disk));
    let mut haggling = Haggling::new(&exports, true, Cover::None);
    kinds(&mut haggling, option::STRUCTURED_REPLY, &[]);
    let asked = queries("disk", &["base:allocation", "qemu:allocation-depth"]);
    assert_eq!(kinds(&mut haggling, option::SET_META_CONTEXT, &asked).len(), 3);
    // Of the test, and of what it exports.
    assert_eq!(Arc::strong_count(&disk), 2);
    let Next::Transmission(agreed) = haggling.answer(option::EXPORT_NAME, b"disk", &mut Vec::new()) else {
        panic!()
    };
    assert_eq!(agreed.contexts.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_namespace_lists_what_is_in_it_and_chooses_nothing() {
    let mut haggling = begin(Cover::None);
    kinds(&mut haggling, option::STRUCTURED_REPLY, &[]);
    let mut listed =
        |asked: &[&str]| kinds(&mut haggling, option::LIST_META_CONTEXT, &queries("disk", asked)).len() - 1;
    assert_eq!((listed(&[]), listed(&["base:"]), listed(&["qemu:"]), listed(&["other:"])), (2, 1, 1, 0));
    assert_eq!(kinds(&mut haggling, option::SET_META_CONTEXT, &queries("disk", &["base:"])), [answer::ACK]);
}

#[test]
fn names_end_at_4096_bytes_and_strings_where_the_option_ends() {
    let mut haggling = begin(Cover::None);
    let named = |bytes: usize| [string(&"x".repeat(bytes)), vec![0, 0]].concat();
    assert_eq!(kinds(&mut haggling, option::INFO, &named(4096)), [answer::ERR_UNKNOWN]);
    assert_eq!(kinds(&mut haggling, option::INFO, &named(4097)), [answer::ERR_INVALID]);
    for broken in [
        &[][..],
        &[0xff; 4],
        &[0xff; 40],
        &string("disk"),
        &[string("disk"), vec![0xff, 0xff, 0, 1]].concat(),
    ] {
        assert_eq!(kinds(&mut haggling, option::INFO, broken), [answer::ERR_INVALID], "{broken:?}");
    }
    kinds(&mut haggling, option::STRUCTURED_REPLY, &[]);
    let many = [string("disk"), vec![0xff; 4], string("base:")].concat();
    assert_eq!(kinds(&mut haggling, option::LIST_META_CONTEXT, &many), [answer::ERR_INVALID]);
}

#[test]
fn any_bytes_get_one_final_reply() {
    let mut seeded = Seeded::new(3);
    let mut haggling = begin(Cover::None);
    for round in 0..30_000_u64 {
        let option = u32::try_from(round % 14).unwrap();
        let whole = match round % 3 {
            0 => queries("disk", &["base:allocation", "qemu:"]),
            1 => [string("disk"), vec![0, 2, 0, 1, 0, 3]].concat(),
            _ => Vec::new(),
        };
        let mut data = whole;
        for _ in 0..seeded.next() % 3 {
            let at = usize::try_from(seeded.next()).unwrap() % (data.len() + 1);
            match seeded.next() % 3 {
                0 => data.truncate(at),
                1 => data.insert(at, (seeded.next() >> 56) as u8),
                _ => data.iter_mut().skip(at).take(1).for_each(|byte| *byte = (seeded.next() >> 56) as u8),
            }
        }
        let mut out = Vec::new();
        haggling.answer(option, &data, &mut out);
        if option != option::EXPORT_NAME {
            let said = replies(&out);
            let finals = said.iter().filter(|(kind, _)| *kind == answer::ACK || *kind > 1 << 31).count();
            assert_eq!(finals, 1, "option {option}: {data:?}");
        }
    }
}

#[test]
fn where_tls_is_required_nothing_else_is_answered_before_it() {
    let mut haggling = begin(Cover::Required);
    let go = [string("disk"), vec![0, 0]].concat();
    for option in (2..14).chain([99]).filter(|option| ![option::START_TLS, option::ABORT].contains(option)) {
        for data in [&[][..], &go, &queries("disk", &["base:allocation"])] {
            assert_eq!(kinds(&mut haggling, option, data), [answer::ERR_TLS_REQD], "option {option}");
        }
        let mut out = Vec::new();
        haggling.refuse_long(option, &mut out);
        assert_eq!(replies(&out)[0].0, answer::ERR_TLS_REQD);
    }
    let mut out = Vec::new();
    assert!(matches!(haggling.answer(option::EXPORT_NAME, b"disk", &mut out), Next::End) && out.is_empty());
    assert_eq!(kinds(&mut haggling, option::START_TLS, b"x"), [answer::ERR_INVALID]);
    assert!(matches!(haggling.answer(option::START_TLS, &[], &mut out), Next::Tls));
    assert_eq!(replies(&out)[0].0, answer::ACK);
    assert_eq!(kinds(&mut haggling, option::START_TLS, &[]), [answer::ERR_INVALID], "a second time");
    assert!(matches!(haggling.answer(option::GO, &go, &mut Vec::new()), Next::Transmission(_)));
}

#[test]
fn what_was_agreed_on_in_the_clear_is_forgotten_when_tls_begins() {
    let mut haggling = begin(Cover::Offered);
    kinds(&mut haggling, option::STRUCTURED_REPLY, &[]);
    kinds(&mut haggling, option::SET_META_CONTEXT, &queries("disk", &["base:allocation"]));
    assert!(matches!(haggling.answer(option::START_TLS, &[], &mut Vec::new()), Next::Tls));
    let Next::Transmission(agreed) = haggling.answer(option::EXPORT_NAME, b"disk", &mut Vec::new()) else {
        panic!()
    };
    assert_eq!((agreed.terms.style, agreed.contexts.len()), (Style::Simple, 0));
}

#[test]
fn tls_that_is_not_offered_is_refused_and_that_is_no_end() {
    let mut haggling = begin(Cover::None);
    assert_eq!(kinds(&mut haggling, option::START_TLS, &[]), [answer::ERR_POLICY]);
    assert_eq!(kinds(&mut haggling, option::STRUCTURED_REPLY, &[]), [answer::ACK]);
}
