//! Several at once: who is about to bring what another one brings waits, and links to it. Peers that go without a word: they
//! are not waited for long.

use super::{
    sessions::{push, wires},
    *,
};
use crate::{
    job::copy::{Share, WAIT},
    store::Turn,
};
use std::{
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};
use wire::{BEAT, Input, Line, Output, PATIENCE};

/// Has a machine `act`, and once more at the same time, from some I/O of the first on: each `step`th of them.
fn at_once<T: Send + 'static>(
    (start, step): (&SimHost, usize),
    act: impl Fn(&SimHost) -> Result<T> + Clone + Send + 'static,
    judge: impl Fn(&SimHost, [T; 2], &str),
) {
    let whole = again(start);
    let before = whole.ios();
    act(&whole).unwrap();
    for at in (before..whole.ios()).step_by(step) {
        let (machine, story) = (again(start), format!("at I/O {at} of {}", whole.ios()));
        let running: Arc<Mutex<Option<JoinHandle<Result<T>>>>> = Arc::default();
        let (begun, own, twin) = (Arc::clone(&running), machine.clone(), act.clone());
        machine.before_io(at, move || *begun.lock() = Some(thread::spawn(move || twin(&own))));
        let one = act(&machine).unwrap_or_else(|error| panic!("{story}: the first: {error}"));
        let two = running.lock().take().unwrap().join().unwrap();
        judge(&machine, [one, two.unwrap_or_else(|error| panic!("{story}: the second: {error}"))], &story);
    }
}

/// Each layer was brought by one of both.
fn check_made(mut made: Vec<PathBuf>, story: &str) {
    made.sort();
    assert_eq!(made, NAMES.map(PathBuf::from), "{story}");
}

#[test]
fn cid_5_two_streams_at_once_of_one_missing_parent_end_as_one() {
    let (host, views) = PLAIN.build();
    let stream = send(&host, "/vm/top", &SendRequest::default()).unwrap();
    let act = move |machine: &SimHost| receive(machine, &stream);
    at_once((&again(&host), 9), act, |machine, received, story| {
        let layers = received.iter().flat_map(|received| &received.plan.layers);
        let made = layers.filter(|layer| !layer.is_there).map(|layer| layer.to.file_name().unwrap().into());
        check_made(made.collect(), story);
        check_end(machine, &views, story);
    });
}

#[test]
fn cid_5_two_sessions_at_once_of_one_missing_parent_send_it_once() {
    let (host, views) = PLAIN.build();
    let start = again(&host);
    let once = push(&host, &again(&start), "/vm/top").unwrap().sent_bytes;
    let act = move |machine: &SimHost| push(&again(&host), machine, "/vm/top");
    at_once((&start, 29), act, |machine, pushed, story| {
        let layers = pushed.iter().flat_map(|pushed| &pushed.plan.layers);
        check_made(layers.filter(|layer| !layer.is_there).map(|layer| layer.name.clone()).collect(), story);
        assert_eq!(pushed.iter().map(|pushed| pushed.sent_bytes).sum::<u64>(), once, "{story}");
        check_end(machine, &views, story);
    });
}

#[test]
fn who_has_nothing_to_say_says_that_he_is_there_and_who_hears_it_hears_nothing() {
    let kept = Kept::default();
    let output = Output::on(&Line::new(PATIENCE), Box::new(kept.clone()), Duration::from_millis(1));
    while kept.0.lock().len() < Preamble::SIZE + 2 * Head::SIZE {
        thread::sleep(Duration::from_millis(1));
    }
    output.finish(&Progress::default()).unwrap();
    let mut bytes = kept.0.lock().clone();
    bytes.extend_from_slice(Frame::Go.packet().unwrap().bytes());
    let mut input = Input::new(Box::new(std::io::Cursor::new(bytes)));
    assert_eq!(input.next(&Progress::default()).unwrap(), Frame::Go);
}

/// A way out of a machine: cut, it takes everything and passes on nothing, and nobody is told.
struct Way {
    to: UnixStream,
    left: usize,
    is_cut: Arc<AtomicBool>,
}

impl Write for Way {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let passed = if self.is_cut.load(Ordering::Relaxed) { 0 } else { bytes.len().min(self.left) };
        self.to.write_all(&bytes[..passed])?;
        self.left -= passed;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Two sides that give each other up after a second, and a wire that is cut after `left` bytes from the near side, or with the
/// flag; both of its ends stay open.
fn on_a_wire_that_is_cut(left: usize) -> ([Peer; 2], Arc<AtomicBool>, [UnixStream; 2]) {
    let (wires, is_cut) = (wires(), Arc::new(AtomicBool::new(false)));
    let open = [wires[0].1.try_clone().unwrap(), wires[1].1.try_clone().unwrap()];
    let patience = (Duration::from_millis(20), Duration::from_secs(1));
    let mut left = [left, usize::MAX].into_iter();
    let peers = wires.map(|(from, to)| {
        let way = Way { to, left: left.next().unwrap(), is_cut: Arc::clone(&is_cut) };
        Peer::heard(Box::new(from), Box::new(way), patience)
    });
    (peers, is_cut, open)
}

fn agent(host: &SimHost, peer: Peer) -> JoinHandle<Result<()>> {
    let host = host.clone();
    thread::spawn(move || serve(&arc(&host), &ledger(&host), (Path::new("/store"), true), peer))
}

fn push_by(host: &SimHost, peer: Peer, progress: &Progress) -> Result<RemoteReport> {
    let (near, asked) = ((arc(host), ledger(host)), (Path::new("/vm/large"), Share::Allow));
    Push::prepare((&near.0, &near.1), peer, asked, &opening(host), progress)?.run(progress)
}

#[test]
fn a_peer_that_is_gone_without_a_word_is_given_up_and_what_came_is_gone_on_with() {
    assert!(BEAT * 3 < PATIENCE);
    let (host, _) = PLAIN.build();
    large(&host, 40);
    let there = again(&host);
    let ([near, far], _, open) = on_a_wire_that_is_cut(20 * 60_000);
    let far = agent(&there, far);
    let here = push_by(&host, near, &Progress::default()).unwrap_err();
    for error in [here, far.join().unwrap().unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
        assert!(error.what().contains("said nothing for 1 s"), "{error}");
    }
    drop(open);
    let pushed = push(&host, &there, "/vm/large").unwrap();
    assert!(pushed.plan.layers[0].done_bytes > 10 * LEAF_BYTES, "{pushed:?}");
    let shown = view(&there, Path::new("/store/large")).unwrap();
    assert!(shown == view(&host, Path::new("/vm/large")).unwrap());
}

#[test]
fn who_waits_for_another_copy_says_so_and_does_not_when_its_peer_is_gone() {
    let (host, _) = PLAIN.build();
    let id = large(&host, 4);
    let there = again(&host);
    let held = Turn::take(&arc(&there), Path::new("/store"), &format!("id {}", id.hex())).unwrap().unwrap();
    let ([near, far], is_cut, open) = on_a_wire_that_is_cut(usize::MAX);
    let far = agent(&there, far);
    let progress = Arc::new(Progress::default());
    let told = Arc::clone(&progress);
    let near = thread::spawn(move || push_by(&host, near, &told));
    while progress.state().phase != WAIT {
        thread::sleep(Duration::from_millis(1));
    }
    is_cut.store(true, Ordering::Relaxed);
    assert_eq!(far.join().unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(near.join().unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    drop((held, open));
    assert_eq!(there.list(Path::new("/store/.dchain/turns")).unwrap(), []);
}
