//! Snapshots of two disks while a guest writes both, on a simulated machine whose power goes at any moment.

use super::*;
use crate::{
    base::{GuestOffset, HostOffset},
    chain::Chain,
    disk::Disk as _,
    io::faulty::{Failure, Fault, SimHost, crash_states},
    job::create::{NewImage, create},
    store::Draft,
};

const SIZE: u64 = 8 << 10;

fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

fn opening(host: &SimHost) -> Opening {
    Opening::writing().with_ledger(Ledger::new(arc(host), None)).for_live_use()
}

fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

fn open(host: &SimHost, name: &str) -> Arc<LiveDisk> {
    Arc::new(LiveDisk::new(Chain::open(&arc(host), &path(name), &opening(host)).unwrap()))
}

/// Two disks, `a` and `b`, and the machine's state file, which says which heads they have.
fn machine() -> SimHost {
    let host = SimHost::new();
    host.make_folder(Path::new("/vm")).unwrap();
    for name in ["a", "b"] {
        let options = vec![("cluster_size".into(), "512".into())];
        let new = NewImage { format: crate::format::Format::Qcow2, size: Some(SIZE), parent: None, options };
        create(&arc(&host), &path(name), &new, &opening(&host)).unwrap();
    }
    host.sync_folder(Path::new("/")).unwrap();
    host.sync_folder(Path::new("/vm")).unwrap();
    host.twin()
}

fn say(host: &SimHost, what: u8) -> Result<()> {
    let draft = Draft::new(&arc(host), Path::new("/state"))?;
    draft.file().write_at(HostOffset::new(0), &[what])?;
    draft.publish(Path::new("/state"), Publish::Replace)
}

fn said(host: &SimHost) -> u8 {
    let Ok(file) = host.open(Path::new("/state"), Access::ReadShared) else { return 0 };
    let mut byte = [0];
    file.read_at(HostOffset::new(0), &mut byte).unwrap();
    byte[0]
}

/// Writes one more number to both disks, in turn, at each step.
struct Guest {
    host: SimHost,
    disks: [Arc<LiveDisk>; 2],
    number: u8,
    /// The number before a flush of both disks, and the machine's events after it.
    flushed: Vec<(u8, usize)>,
    /// Events when each number was begun.
    begun: Vec<usize>,
}

impl Guest {
    fn act(&mut self) -> Result<()> {
        self.number += 1;
        self.begun.push(self.host.events());
        self.disks.iter().try_for_each(|disk| disk.write(GuestOffset::new(0), &[self.number; 512]))
    }

    fn flush(&mut self) -> Result<()> {
        let number = self.number;
        self.disks.iter().try_for_each(|disk| disk.flush())?;
        self.flushed.push((number, self.host.events()));
        Ok(())
    }
}

impl Heads for Guest {
    fn intend(&mut self, taken: &[Taken]) -> Result<()> {
        assert_eq!(taken.len(), 2);
        say(&self.host, 1)?;
        self.act()
    }

    fn record(&mut self, _taken: &[Taken]) -> Result<()> {
        self.act()?;
        self.flush()?;
        self.act()?;
        say(&self.host, 2)
    }

    fn take_back(&mut self) -> Result<()> {
        say(&self.host, 0)
    }
}

fn group(guest: &Guest) -> Vec<Disk> {
    let new = |(disk, name): (&Arc<LiveDisk>, &str)| Disk {
        disk: Arc::clone(disk),
        new: path(name),
        format: Format::Qcow2,
        options: vec![("cluster_size".into(), "512".into())],
    };
    guest.disks.iter().zip(["a1", "b1"]).map(new).collect()
}

fn history(host: &SimHost) -> (Guest, Result<LiveTaken>) {
    let disks = [open(host, "a"), open(host, "b")];
    let mut guest = Guest { host: host.clone(), disks, number: 0, flushed: vec![], begun: vec![] };
    let mut run = || {
        guest.act()?;
        guest.flush()?;
        let disks = group(&guest);
        let taken = snapshot_live(&arc(host), &disks, &opening(host), &mut guest)?;
        guest.act()?;
        guest.flush()?;
        Ok(taken)
    };
    let taken = run();
    (guest, taken)
}

fn shown(host: &SimHost, name: &str) -> u8 {
    let reading = Opening::reading().with_ledger(Ledger::new(arc(host), None));
    let chain = Chain::open(&arc(host), &path(name), &reading).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut byte = [0];
    chain.read(GuestOffset::new(0), &mut byte).unwrap();
    byte[0]
}

#[test]
fn a_group_is_frozen_at_one_point_in_time_and_goes_on() {
    let host = machine();
    let (guest, taken) = history(&host);
    let taken = taken.unwrap();
    assert_eq!(taken.taken.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    drop(guest);
    assert_eq!([shown(&host, "a"), shown(&host, "b")], [4, 4]);
    assert_eq!([shown(&host, "a1"), shown(&host, "b1")], [5, 5]);
}

#[test]
fn a_power_cut_leaves_all_disks_of_a_group_on_their_new_heads_or_none() {
    let host = machine();
    let (guest, _) = history(&host);
    let [mut before, mut after] = [0, 0];
    for crash in crash_states(&host.trace(), 3, 2) {
        let story = format!("after {} {:?}", crash.after, crash.landing);
        let host = &crash.host;
        let is_over = said(host) == 2;
        let names = if is_over { ["a1", "b1"] } else { ["a", "b"] };
        *(if is_over { &mut after } else { &mut before }) += 1;
        if said(host) == 1 {
            let taken = ["a", "b"].map(|name| Taken {
                frozen: path(name),
                head: path(&format!("{name}1")),
                name: name.into(),
                size: SIZE,
            });
            forget_intended(&arc(host), &Ledger::new(arc(host), None), &opening(host), &taken).unwrap();
            let left = host.list(Path::new("/vm")).unwrap().into_iter().map(|entry| entry.path);
            let left: Vec<_> = left.filter(|path| !path.ends_with(".dchain")).collect();
            assert_eq!(left, ["a", "b"].map(path), "{story}");
        }
        let safe = guest.flushed.iter().filter(|(_, end)| *end <= crash.after).map(|(n, _)| *n).max();
        let begun = guest.begun.iter().filter(|at| **at <= crash.after).count();
        for name in names {
            let shows = shown(host, name);
            let range = safe.unwrap_or(0)..=u8::try_from(begun).unwrap();
            assert!(range.contains(&shows), "{story}: {name} shows {shows}, not one of {range:?}");
            // It goes on, too.
            open(host, name).write(GuestOffset::new(512), &[1; 512]).unwrap();
        }
    }
    assert!(before > 20 && after > 20, "{before} {after}");
}

#[test]
fn what_fails_before_the_record_leaves_the_disks_as_they_were() {
    let whole = machine();
    history(&whole).1.unwrap();
    let mut undone = 0;
    for at in 0..whole.ios() {
        let host = machine();
        host.fail(Some(Fault { at, is_lasting: false, failure: Failure::NoSpace }));
        let (mut guest, taken) = history(&host);
        host.fail(None);
        if taken.is_ok() || guest.flushed.is_empty() {
            continue;
        }
        let names = if said(&host) == 2 { ["a1", "b1"] } else { ["a", "b"] };
        undone += usize::from(said(&host) == 0);
        guest.act().unwrap_or_default();
        let number = guest.flush().map(|()| guest.number);
        drop(guest);
        for name in names.into_iter().filter(|_| number.is_ok()) {
            assert_eq!(shown(&host, name), *number.as_ref().unwrap(), "{name}: I/O {at}");
        }
    }
    assert!(undone > 5, "{undone}");
}

/// A guest that writes for the first time while its new head is made.
struct Late(Vec<Disk>);

impl Heads for Late {
    fn intend(&mut self, _taken: &[Taken]) -> Result<()> {
        Ok(())
    }

    fn record(&mut self, _taken: &[Taken]) -> Result<()> {
        self.0.iter().try_for_each(|one| one.disk.write(GuestOffset::new(0), &[7; 512]))
    }

    fn take_back(&mut self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_first_write_beside_the_new_head_does_not_cut_it_off() {
    for format in [Format::Vhdx, Format::Vpc, Format::Vmdk, Format::Qcow2] {
        let host = SimHost::new();
        host.make_folder(Path::new("/vm")).unwrap();
        let new = NewImage { format, size: Some(4 << 20), parent: None, options: vec![] };
        create(&arc(&host), &path("a"), &new, &opening(&host)).unwrap();
        let disk = open(&host, "a");
        let of = || Disk { disk: Arc::clone(&disk), new: path("a1"), format, options: vec![] };
        let taken = snapshot_live(&arc(&host), &[of()], &opening(&host), &mut Late(vec![of()]));
        taken.unwrap_or_else(|e| panic!("{format}: {e}"));
        disk.write(GuestOffset::new(512), &[8; 512]).unwrap();
        disk.flush().unwrap();
        drop(disk);
        assert_eq!([shown(&host, "a"), shown(&host, "a1")], [7, 7], "{format}");
        // Programs that do not know our records see it by what the headers say.
        let chain = Chain::open(&arc(&host), &path("a1"), &opening(&host)).unwrap();
        let [head, below] = chain.layers() else { panic!("{format}") };
        let named = head.image.parent().unwrap().identity;
        assert!(named == below.image.identity() || format == Format::Qcow2, "{format}: {named:?}");
    }
}
