//! Streams on a simulated machine: whole, cut at every place, damaged, forged, and received while the power goes.

mod races;
mod sessions;

use super::*;
use crate::{
    base::{Error, ErrorKind, GuestOffset, Result, name::FileName},
    chain::Chain,
    content::{ContentId, LEAF_BYTES},
    disk::Disk,
    format::{self, Creation, Format, NoParts},
    io::{
        Access,
        faulty::{Failure, Fault, SimHost, crash_states},
    },
    job::{
        Progress,
        copy::tests::{NAMES, PLAIN, Scene, Views, again, arc, is_there, opening, view},
        snapshot::snapshot,
    },
    store::Draft,
};
use frame::{Frame, Head, Preamble};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::{io::Write, path::Path, sync::Arc};

/// Keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn ledger(host: &SimHost) -> Ledger {
    Ledger::new(arc(host), None)
}

fn send(host: &SimHost, top: &str, request: &SendRequest) -> Result<Vec<u8>> {
    let quiet = Progress::default();
    let out = Outgoing::open(&arc(host), &ledger(host), Path::new(top), &opening(host), &quiet)?;
    let kept = Kept::default();
    out.plan(request)?.run(Box::new(kept.clone()), &quiet)?;
    let bytes = std::mem::take(&mut *kept.0.lock());
    Ok(bytes)
}

fn receive(host: &SimHost, stream: &[u8]) -> Result<Received> {
    let (quiet, from) = (Progress::default(), Box::new(std::io::Cursor::new(stream.to_vec())));
    let place = (Path::new("/store"), from as Box<dyn std::io::Read + Send>);
    Incoming::begin(&arc(host), &ledger(host), place, &opening(host), &quiet)?.run(&quiet)
}

/// Where the frames of a stream start, and its end.
fn frames(stream: &[u8]) -> Vec<usize> {
    let (mut at, mut starts) = (Preamble::SIZE, Vec::new());
    while at < stream.len() {
        starts.push(at);
        let head = Head::parse_start(&stream[at..]).unwrap();
        at += Head::SIZE + head.check().unwrap();
    }
    starts.push(at);
    starts
}

/// Whatever has a name is whole, and nothing else has one.
fn check_store(host: &SimHost, views: &Views, story: &str) {
    for (name, expected) in NAMES.iter().zip(views) {
        let place = Path::new("/store").join(name);
        if host.kind(&place).unwrap().is_some() {
            let shown = view(host, &place).unwrap_or_else(|e| panic!("{story}: {name}: {e}"));
            assert!(shown == *expected, "{story}: {name} shows something else");
        }
    }
}

/// All is there, nothing is left over, and each layer says what it shows.
fn check_end(host: &SimHost, views: &Views, story: &str) {
    check_store(host, views, story);
    let names = host.list(Path::new("/store")).unwrap();
    let names: Vec<_> = names.iter().filter(|e| !e.path.ends_with(".dchain")).map(|e| &e.path).collect();
    assert_eq!(names.len(), 3, "{story}: {names:?}");
    assert!(!names.iter().any(|path| Draft::is_left_over(path)), "{story}: {names:?}");
    assert_eq!(arriving(host, Path::new("/store")).unwrap(), [], "{story}");
    let chain = Chain::open(&arc(host), Path::new("/store/top"), &opening(host)).unwrap();
    for layer in chain.layers().iter().filter(|layer| layer.format() == Format::Qcow2) {
        let file = host.open(&layer.path, Access::ReadShared).unwrap();
        let checked = format::check(Format::Qcow2, file, format::Repair::Nothing, &NoParts).unwrap();
        assert_eq!(checked.corruptions + checked.leaks, 0, "{story}: {:?}", checked.findings);
    }
}

/// A disk of some leaves, sealed by nobody.
fn large(host: &SimHost, leaves: u64) -> ContentId {
    let file = host.create(Path::new("/vm/large")).unwrap();
    let creation = Creation { size: leaves * LEAF_BYTES, parent: None, options: vec![] };
    drop(format::create(Format::Qcow2, file, &creation, &NoParts).unwrap());
    let how = opening(host).with_access(Access::Write);
    let disk = Chain::open(&arc(host), Path::new("/vm/large"), &how).unwrap();
    for leaf in (0..leaves).filter(|leaf| leaf % 5 != 3) {
        let bytes = vec![u8::try_from(leaf % 200).unwrap() + 1; 60_000];
        disk.write(GuestOffset::new(leaf * LEAF_BYTES), &bytes).unwrap();
    }
    disk.flush().unwrap();
    crate::job::seal::full_tree(&disk.view(0), &Progress::default()).unwrap().tree.id()
}

#[test]
fn a_chain_arrives_as_it_left_and_arrives_once() {
    for base in [Format::Raw, Format::Qcow2] {
        let (host, views) = Scene { base, ..PLAIN }.build();
        let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
        let received = receive(&host, &stream).unwrap();
        check_end(&host, &views, "whole");
        assert_eq!(received.plan.layers.iter().filter(|layer| layer.is_there).count(), 0);
        let chain = Chain::open(&arc(&host), Path::new("/store/top"), &opening(&host)).unwrap();
        assert_eq!(chain.layers().iter().map(crate::chain::Layer::format).next_back(), Some(base));
        let proven: Vec<_> = chain.standings().iter().rev().map(|s| s.known.proven().unwrap()).collect();
        assert_eq!(proven, received.plan.layers.iter().map(|layer| layer.id).collect::<Vec<_>>());
        drop(chain);
        let again = receive(&host, &stream).unwrap();
        assert!(again.plan.layers.iter().all(|layer| layer.is_there), "{:?}", again.plan);
        check_end(&host, &views, "again");
    }
}

#[test]
fn cid_4_what_the_receiver_has_is_named_and_not_sent() {
    let (host, views) = PLAIN.build();
    let middle = send(&host, "/vm/middle", &SendRequest::default()).unwrap();
    let id = receive(&host, &middle).unwrap().plan.layers[1].id;
    let have = SendRequest { have: vec![id.to_string().parse().unwrap()], resume: None };
    let delta = send(&host, "/vm/top", &have).unwrap();
    assert!(delta.len() < 6000, "{}", delta.len());
    let elsewhere = again(&host);
    receive(&host, &delta).unwrap();
    check_end(&host, &views, "with its parent there");
    // Without the parent it is refused, by its ID.
    elsewhere.remove(Path::new("/store/middle")).unwrap();
    let error = receive(&elsewhere, &delta).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.what().contains(&id.to_string()), "{error}");
    assert!(!is_there(&elsewhere, "/store/top"));
    let none = send(&host, "/vm/middle", &have).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Invalid, "{none}");
}

#[test]
fn a_stream_cut_anywhere_leaves_what_the_whole_one_goes_on_from() {
    let (host, views) = PLAIN.build();
    let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
    let starts = frames(&stream);
    let places = starts.iter().zip([0, 3, 40].into_iter().cycle()).map(|(at, more)| at + more);
    let cuts = places.filter(|at| *at < stream.len());
    let mut resumed = 0;
    for cut in cuts.collect::<Vec<_>>() {
        let (machine, story) = (again(&host), format!("cut at byte {cut}"));
        let error = receive(&machine, &stream[..cut]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{story}: {error}");
        check_store(&machine, &views, &story);
        let left = arriving(&machine, Path::new("/store")).unwrap();
        resumed += left.iter().filter(|layer| layer.done_bytes > 0).count();
        receive(&machine, &stream).unwrap_or_else(|e| panic!("{story}: {e}"));
        check_end(&machine, &views, &story);
    }
    assert!(resumed > 3, "{resumed}");
}

#[test]
fn a_damaged_stream_is_refused_and_names_nothing() {
    let (host, views) = PLAIN.build();
    let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
    for at in (0..stream.len()).step_by(stream.len() / 16) {
        let (machine, mut damaged) = (again(&host), stream.clone());
        damaged[at] ^= 0x10;
        let error = receive(&machine, &damaged).unwrap_err();
        // A length that is larger than it was runs into the end.
        let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::Interrupted];
        assert!(kinds.contains(&error.kind()), "byte {at}: {error}");
        check_store(&machine, &views, &format!("byte {at} damaged"));
        receive(&machine, &stream).unwrap_or_else(|e| panic!("after damage at {at}: {e}"));
        check_end(&machine, &views, &format!("after damage at {at}"));
    }
}

#[test]
fn a_token_has_the_sender_go_on_at_the_leaf() {
    let (host, _) = PLAIN.build();
    let id = large(&host, 40);
    let stream = send(&host, "/vm/large", &SendRequest::default()).unwrap();
    let starts = frames(&stream);
    let cut = starts[starts.len() * 3 / 4] + 5;
    receive(&host, &stream[..cut]).unwrap_err();
    let left = arriving(&host, Path::new("/store")).unwrap();
    let token = left[0].token;
    assert_eq!((left.len(), token.id, token.to_string().parse::<Token>().unwrap()), (1, id, token));
    assert!(token.from >= 20 * LEAF_BYTES, "{token}");
    let rest = SendRequest { have: vec![], resume: Some(token) };
    let rest = send(&host, "/vm/large", &rest).unwrap();
    assert!(rest.len() < stream.len() / 2, "{} of {}", rest.len(), stream.len());
    let elsewhere = again(&host);
    receive(&host, &rest).unwrap();
    assert_eq!(view(&host, Path::new("/store/large")).unwrap(), view(&host, Path::new("/vm/large")).unwrap());
    // Where the start is not there, the rest is nothing.
    for left in arriving(&elsewhere, Path::new("/store")).unwrap() {
        let note = format!("/store/.dchain/arriving-{}.json", &left.id.hex()[..32]);
        elsewhere.remove(Path::new(&note)).unwrap();
    }
    assert_eq!(receive(&elsewhere, &rest).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(!is_there(&elsewhere, "/store/large"));
    let other = Token::new(ContentId::new([7; 32]), 0);
    let request = SendRequest { have: vec![], resume: Some(other) };
    assert_eq!(send(&host, "/vm/large", &request).unwrap_err().kind(), ErrorKind::Invalid);
}

/// The frames of a stream, changed and put together again with the right sums and counts.
fn forged(stream: &[u8], forge: impl Fn(Frame) -> Vec<Frame>) -> Vec<u8> {
    let (mut out, starts) = (stream[..Preamble::SIZE].to_vec(), frames(stream));
    let (mut count, mut data) = (0, 0);
    for pair in starts.windows(2) {
        let bytes = &stream[pair[0] + Head::SIZE..pair[1]];
        for frame in forge(Frame::parse(stream[pair[0]], bytes.to_vec()).unwrap()) {
            let frame = match frame {
                Frame::End { .. } => Frame::End { frames: count, data_bytes: data },
                frame => frame,
            };
            if let Frame::Data(bytes) = &frame {
                data += bytes.bytes().len() as u64;
            }
            count += 1;
            out.extend_from_slice(frame.packet().unwrap().bytes());
        }
    }
    out
}

#[test]
fn cid_6_what_does_not_show_what_was_promised_gets_no_name() {
    let (host, views) = PLAIN.build();
    let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
    let range = GuestOffset::new(512).range(512);
    let lies: [&dyn Fn(Frame) -> Vec<Frame>; 5] = [
        // Other bytes, with the right sum.
        &|frame| match frame {
            Frame::Zero(_) => vec![],
            Frame::Data(data) if data.at() > GuestOffset::new(0) => vec![],
            frame => vec![frame],
        },
        // An extent twice.
        &|frame| match frame {
            Frame::Data(data) => vec![Frame::Data(data.clone()), Frame::Data(data)],
            frame => vec![frame],
        },
        // Past the end.
        &|frame| match frame {
            Frame::Begin { .. } => vec![frame, Frame::Zero(GuestOffset::new(u64::MAX - 511).range(1024))],
            frame => vec![frame],
        },
        // From a relative that nobody spoke of.
        &|frame| match frame {
            Frame::Begin { .. } => vec![frame, Frame::Take(range)],
            frame => vec![frame],
        },
        &|frame| match frame {
            Frame::LayerEnd { .. } => vec![Frame::Go],
            frame => vec![frame],
        },
    ];
    for (nth, lie) in lies.into_iter().enumerate() {
        let machine = again(&host);
        let error = receive(&machine, &forged(&stream, lie)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "lie {nth}: {error}");
        assert!(!is_there(&machine, "/store/top"), "lie {nth}");
        check_store(&machine, &views, &format!("lie {nth}"));
        receive(&machine, &stream).unwrap_or_else(|e| panic!("after lie {nth}: {e}"));
        check_end(&machine, &views, &format!("after lie {nth}"));
    }
}

#[test]
fn a_head_that_leads_elsewhere_is_refused_before_anything_is_written() {
    let (host, _) = PLAIN.build();
    let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
    let lies: [&dyn Fn(&mut LayerHead); 9] = [
        &|head| head.name = FileName("../base".into()),
        &|head| head.name = FileName("/store/base".into()),
        &|head| head.name = FileName("a/b".into()),
        &|head| head.name = FileName(".bashrc".into()),
        &|head| head.name = FileName("..".into()),
        &|head| head.options.push(("data_file".into(), "/etc/passwd".into())),
        &|head| head.options.push(("preallocation".into(), "full".into())),
        &|head| head.size = u64::MAX - 511,
        &|head| head.parent = Some(ContentId::new([1; 32])),
    ];
    for (nth, lie) in lies.into_iter().enumerate() {
        let (machine, before) = (again(&host), host.list(Path::new("/store")).unwrap().len());
        let forge = |frame| match frame {
            Frame::Layer(mut head) => {
                lie(&mut head);
                vec![Frame::Layer(head)]
            }
            frame => vec![frame],
        };
        let error = receive(&machine, &forged(&stream, forge)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "lie {nth}: {error}");
        assert_eq!(machine.list(Path::new("/store")).unwrap().len(), before, "lie {nth}");
    }
}

#[test]
fn a_name_that_is_taken_is_kept_and_a_parent_gets_another() {
    let (host, views) = PLAIN.build();
    let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
    let other = host.create(Path::new("/store/middle")).unwrap();
    other.write_at(crate::base::HostOffset::new(0), &[9; 512]).unwrap();
    drop(other);
    let received = receive(&host, &stream).unwrap();
    assert!(received.plan.layers[1].to.to_str().unwrap().starts_with("/store/middle-"), "{received:?}");
    assert_eq!(view(&host, Path::new("/store/top")).unwrap(), views[2]);
    assert_eq!(view(&host, Path::new("/store/middle")).unwrap(), [9; 512]);
    host.remove(Path::new("/store/top")).unwrap();
    drop(host.create(Path::new("/store/top")).unwrap());
    assert_eq!(receive(&host, &stream).unwrap_err().kind(), ErrorKind::Exists);
}

fn finish(host: &SimHost, stream: &[u8], story: &str) {
    receive(host, stream).unwrap_or_else(|e| panic!("{story}: the same stream again: {e}"));
}

#[test]
fn cid_7_power_cuts_while_a_stream_arrives() {
    let (host, views) = PLAIN.build();
    let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
    let host = again(&host);
    receive(&host, &stream).unwrap();
    // Each tenth of the states that a cut may leave, with some of what was not flushed.
    let mut cuts = 0;
    for crash in crash_states(&host.trace(), 7, 1).step_by(10) {
        let story = format!("power cut after {} {:?}", crash.after, crash.landing);
        check_store(&crash.host, &views, &story);
        finish(&crash.host, &stream, &story);
        check_end(&crash.host, &views, &story);
        cuts += 1;
    }
    println!("{cuts} power cuts");
    assert!(cuts > 20, "{cuts}");
}

#[test]
fn cid_7_each_failing_io_of_an_arrival_is_reported() {
    let (host, views) = PLAIN.build();
    let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
    let whole = again(&host);
    let (before, mut failed) = (whole.ios(), 0);
    receive(&whole, &stream).unwrap();
    for at in (before..whole.ios()).step_by(3) {
        let machine = again(&host);
        let failure = if at % 2 == 0 { Failure::Io } else { Failure::NoSpace };
        machine.fail(Some(Fault { at, is_lasting: at % 3 == 0, failure }));
        let outcome: std::result::Result<_, Error> = receive(&machine, &stream);
        machine.fail(None);
        let story = format!("{failure:?} at I/O {at} of {}", whole.ios());
        check_store(&machine, &views, &story);
        failed += usize::from(outcome.is_err());
        finish(&machine, &stream, &story);
        check_end(&machine, &views, &story);
    }
    println!("{failed} of {} failures stopped it", whole.ios() - before);
    assert!(failed > 15, "{failed}");
}

/// The store is full from some moment on: that is what is said, and with space the same stream again ends.
#[test]
fn cid_7_a_full_store_is_said_to_be_full() {
    let (host, views) = PLAIN.build();
    let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
    let whole = again(&host);
    let (before, mut failed) = (whole.ios(), 0);
    receive(&whole, &stream).unwrap();
    for at in before..whole.ios() {
        let (machine, story) = (again(&host), format!("full from I/O {at} of {} on", whole.ios()));
        machine.fail(Some(Fault { at, is_lasting: true, failure: Failure::NoSpace }));
        let outcome = receive(&machine, &stream);
        machine.fail(None);
        check_store(&machine, &views, &story);
        if let Err(error) = outcome {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{story}: {error}");
            failed += 1;
        }
        finish(&machine, &stream, &story);
        check_end(&machine, &views, &story);
    }
    assert!(failed > 40, "{failed}");
}

#[test]
fn an_empty_delta_arrives_beside_the_parent_that_shows_the_same() {
    let (host, views) = PLAIN.build();
    snapshot(&arc(&host), Path::new("/vm/top"), Path::new("/vm/fresh"), &[], &opening(&host)).unwrap();
    let stream = send(&host, "/vm/fresh", &SendRequest::default()).unwrap();
    receive(&host, &stream).unwrap();
    assert_eq!(view(&host, Path::new("/store/fresh")).unwrap(), views[2]);
    let chain = Chain::open(&arc(&host), Path::new("/store/fresh"), &opening(&host)).unwrap();
    assert_eq!(chain.layers().len(), 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn frames_in_any_order_and_number_harm_nothing(picks in prop::collection::vec((0..40_usize, 0..4_u8), 1..60)) {
        let (host, views) = PLAIN.build();
        let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
        let starts = frames(&stream);
        let mut mixed = stream[..starts[4]].to_vec();
        for (pick, kind) in picks {
            let nth = 4 + pick % (starts.len() - 5);
            match kind {
                0 => mixed.extend_from_slice(&stream[starts[nth]..starts[nth + 1]]),
                1 => mixed.extend_from_slice(Frame::Begin { nth: 1, from: 512 }.packet().unwrap().bytes()),
                2 => {
                    let range = GuestOffset::new(512 * nth as u64).range(1024);
                    mixed.extend_from_slice(Frame::Zero(range).packet().unwrap().bytes());
                }
                _ => mixed.extend_from_slice(Frame::LayerEnd { nth: 0 }.packet().unwrap().bytes()),
            }
        }
        prop_assert!(receive(&host, &mixed).is_err());
        check_store(&host, &views, "mixed frames");
        receive(&host, &stream).unwrap();
        check_end(&host, &views, "after mixed frames");
    }
}
