//! Sessions of two programs on simulated machines: what came in part and is not right any more, disks that fail, peers that
//! lie or take nothing.

use super::*;
use crate::{base::HostOffset, job::copy::Share, store::Arrival};
use std::{
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
};
use terms::{Answer, Ask, Lacking, Report};
use wire::{Input, Output};

/// A wire for each direction: what one of both lets go of, the other sees end.
pub(super) fn wires() -> [(UnixStream, UnixStream); 2] {
    let ((near, far_in), (far, near_in)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    [(near_in, near), (far_in, far)]
}

fn peer((from, to): (UnixStream, UnixStream)) -> Peer {
    Peer::new(Box::new(from), Box::new(to))
}

/// The far side, on a machine of its own.
fn agent(host: &SimHost, wires: (UnixStream, UnixStream)) -> JoinHandle<Result<()>> {
    let host = host.clone();
    thread::spawn(move || serve(&arc(&host), &ledger(&host), (Path::new("/store"), true), peer(wires)))
}

fn prepare(host: &SimHost, top: &str, wires: (UnixStream, UnixStream)) -> Result<Push> {
    let (near, quiet) = ((arc(host), ledger(host)), Progress::default());
    let asked = (Path::new(top), Share::Allow);
    Push::prepare((&near.0, &near.1), peer(wires), asked, &opening(host), &quiet)
}

/// Brings a chain from one machine to the store of another.
pub(super) fn push(from: &SimHost, to: &SimHost, top: &str) -> Result<RemoteReport> {
    let [near, far] = wires();
    let agent = agent(to, far);
    let pushed = prepare(from, top, near).and_then(|push| push.run(&Progress::default()));
    assert_eq!(agent.join().unwrap().is_ok(), pushed.is_ok());
    pushed
}

/// `/vm/large` of 40 leaves here, and a part of it in the store of another machine.
fn cut_off() -> (SimHost, SimHost, Arrival) {
    let (host, _) = PLAIN.build();
    large(&host, 40);
    let there = again(&host);
    let stream = send(&host, "/vm/large", &SendRequest::default()).unwrap();
    let starts = frames(&stream);
    receive(&there, &stream[..starts[starts.len() * 3 / 4]]).unwrap_err();
    let note = Arrival::all(&there, Path::new("/store")).unwrap().remove(0);
    assert!(note.done_bytes >= 20 * LEAF_BYTES, "{note:?}");
    (host, there, note)
}

#[test]
fn a_copy_that_was_cut_off_goes_on_in_the_next_session() {
    let (host, there, note) = cut_off();
    let pushed = push(&host, &there, "/vm/large").unwrap();
    assert_eq!(pushed.plan.layers[0].done_bytes, note.done_bytes);
    assert!(pushed.sent_bytes < 16 * LEAF_BYTES, "{pushed:?}");
    assert_eq!(
        view(&there, Path::new("/store/large")).unwrap(),
        view(&host, Path::new("/vm/large")).unwrap()
    );
}

/// What becomes of a draft.
type Damage = fn(&SimHost, &Path);

/// What may happen to a draft, by what is damaged.
fn damages() -> [(&'static str, Damage); 5] {
    [
        ("a byte of the guest's", |host, draft| {
            let file = host.open(draft, Access::Write).unwrap();
            file.write_at(HostOffset::new(file.bytes().unwrap() - 3 * LEAF_BYTES), &[0xaa; 512]).unwrap();
        }),
        ("its header", |host, draft| {
            host.open(draft, Access::Write).unwrap().write_at(HostOffset::new(0), &[0xaa; 512]).unwrap();
        }),
        ("its version", |host, draft| {
            host.open(draft, Access::Write).unwrap().write_at(HostOffset::new(4), &[0, 0, 0, 77]).unwrap();
        }),
        ("all of it", |host, draft| host.open(draft, Access::Write).unwrap().set_bytes(0).unwrap()),
        ("its name", |host, draft| host.remove(draft).unwrap()),
    ]
}

#[test]
fn what_came_in_part_and_is_damaged_comes_anew_in_the_same_session() {
    for (what, damage) in damages() {
        let (host, there, note) = cut_off();
        damage(&there, &Path::new("/store").join(&note.temporary.0));
        let told = arriving(&there, Path::new("/store")).unwrap()[0].done_bytes;
        assert_eq!(told == 0, what == "its name", "{what}: {told}");
        let pushed = push(&host, &there, "/vm/large").unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(pushed.sent_bytes >= 32 * 60_000, "{what}: {pushed:?}");
        let shown = view(&there, Path::new("/store/large")).unwrap();
        assert!(shown == view(&host, Path::new("/vm/large")).unwrap(), "{what}");
        assert_eq!(arriving(&there, Path::new("/store")).unwrap(), [], "{what}");
        assert_eq!(
            there.list(Path::new("/store")).unwrap().len(),
            2,
            "{what}: the image and what is known of it"
        );
    }
}

#[test]
fn what_came_in_part_and_is_damaged_is_mended_by_the_whole_stream_again() {
    for (what, damage) in damages() {
        let (host, there, note) = cut_off();
        damage(&there, &Path::new("/store").join(&note.temporary.0));
        let stream = send(&host, "/vm/large", &SendRequest::default()).unwrap();
        receive(&there, &stream).unwrap_or_else(|e| panic!("{what}: {e}"));
        let shown = view(&there, Path::new("/store/large")).unwrap();
        assert!(shown == view(&host, Path::new("/vm/large")).unwrap(), "{what}");
        assert_eq!(arriving(&there, Path::new("/store")).unwrap(), [], "{what}");
    }
}

#[test]
fn a_disk_that_fails_on_either_side_is_no_lost_connection() {
    for (is_here, failure, kind) in [
        (true, Failure::Io, ErrorKind::Io),
        (false, Failure::Io, ErrorKind::Io),
        (false, Failure::NoSpace, ErrorKind::NoSpace),
    ] {
        let (host, ..) = cut_off();
        let there = again(&host);
        let ([near, far], story) = (wires(), format!("{failure:?}, here: {is_here}"));
        let agent = agent(&there, far);
        let push_on = prepare(&host, "/vm/large", near).unwrap();
        let broken = if is_here { &host } else { &there };
        broken.fail(Some(Fault { at: broken.ios() + 2, is_lasting: true, failure }));
        let error = push_on.run(&Progress::default()).unwrap_err();
        agent.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), kind, "{story}: {error}");
        assert_eq!(error.what().starts_with("the other side says"), !is_here, "{story}: {error}");
        broken.fail(None);
        assert!(!is_there(&there, "/store/large"), "{story}");
        push(&host, &there, "/vm/large").unwrap_or_else(|e| panic!("{story}, then: {e}"));
    }
}

/// A far side that says what it likes.
fn liar(
    wires: (UnixStream, UnixStream),
    lie: impl FnOnce(&mut Input, &mut Output) + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let Peer { mut input, mut output } = peer(wires);
        let quiet = Progress::default();
        while !matches!(input.next(&quiet).unwrap(), Frame::Start { .. }) {}
        lie(&mut input, &mut output);
        let _ = output.finish(&quiet);
    })
}

#[test]
fn a_receiver_that_tells_of_another_disk_is_not_believed() {
    let (host, _) = PLAIN.build();
    for (name, kind) in
        [("top", None), ("other", Some(ErrorKind::Corrupt)), ("/etc/passwd", Some(ErrorKind::Corrupt))]
    {
        let [near, far] = wires();
        let far = liar(far, move |input, output| {
            let quiet = Progress::default();
            let answer = Answer { first: 3, link: None, lacking: vec![], free_bytes: 1 << 30 };
            output.put(&Frame::Answer(answer), &quiet).unwrap();
            assert!(matches!(input.next(&quiet).unwrap(), Frame::Plan(_)));
            output.put(&Frame::Go, &quiet).unwrap();
            assert!(matches!(input.next(&quiet).unwrap(), Frame::End { .. }));
            let report = Report { head: FileName(name.into()), received_bytes: 0, taken_bytes: 0 };
            output.put(&Frame::Report(report), &quiet).unwrap();
        });
        let pushed = prepare(&host, "/vm/top", near).unwrap().run(&Progress::default());
        far.join().unwrap();
        assert_eq!(pushed.err().map(|e| e.kind()), kind, "{name}");
    }
}

#[test]
fn a_receiver_has_the_sender_hold_no_more_hashes_than_it_would_tell() {
    let (host, _) = PLAIN.build();
    let creation = Creation { size: 1 << 40, parent: None, options: vec![] };
    let file = host.create(Path::new("/vm/huge")).unwrap();
    drop(format::create(Format::Qcow2, file, &creation, &NoParts).unwrap());
    let [near, far] = wires();
    let far = liar(far, |_, output| {
        let lacking = vec![Lacking { name: FileName("huge".into()), from: 0, leaves: (4 << 20) + 1 }];
        let answer = Answer { first: 0, link: None, lacking, free_bytes: 1 << 40 };
        output.put(&Frame::Answer(answer), &Progress::default()).unwrap();
    });
    let error = prepare(&host, "/vm/huge", near).unwrap_err();
    far.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

/// Takes nothing, for ever.
struct Stuck(crossbeam_channel::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.recv();
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn who_is_asked_to_stop_does_while_the_peer_takes_nothing() {
    let (give, take) = crossbeam_channel::bounded(0);
    let progress = Arc::new(Progress::default());
    let mut output = Output::new(Box::new(Stuck(take)));
    let asked = Arc::clone(&progress);
    let whoever = thread::spawn(move || {
        thread::sleep(std::time::Duration::from_millis(120));
        asked.cancel();
    });
    let large = Frame::Ask(Ask::Send { top: FileName("x".repeat(60_000).into()), format: None });
    let stopped = (0..40).try_for_each(|_| output.put(&large, &progress)).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Interrupted, "{stopped}");
    // It is told why, if it hears it.
    output.say_last(&Frame::Go);
    whoever.join().unwrap();
    drop(give);
}

/// After the host was started anew what a store has is only claimed, and is hashed before anything is taken from it.
#[test]
fn only_what_is_like_a_missing_layer_is_hashed_for_it() {
    let (host, _) = PLAIN.build();
    large(&host, 500);
    let there = again(&host);
    let stream = send(&host, "/vm/large", &SendRequest::default()).unwrap();
    receive(&there, &stream).unwrap();
    let there = again(&there);
    let other = host.create(Path::new("/vm/other")).unwrap();
    let creation = Creation { size: 4 * LEAF_BYTES, parent: None, options: vec![] };
    let image = format::create(Format::Qcow2, other, &creation, &NoParts).unwrap();
    image.write(GuestOffset::new(0), &[200; 1000], &format::Nothing).unwrap();
    image.flush().unwrap();
    drop(image);
    let before = there.ios();
    push(&host, &there, "/vm/other").unwrap();
    let with = there.ios() - before;
    println!("{with} I/Os");
    // Hashing five hundred leaves takes more than that.
    assert!(with < 150, "{with}");
}
