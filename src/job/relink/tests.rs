//! A thousand images, shuffled: what was one hierarchy is one again. Files that pass for the right parent, and jobs in the way.

use super::*;
use crate::{
    base::HostOffset,
    base::{GuestOffset, seed::Seeded},
    disk::Disk,
    io::{
        EntryKind,
        faulty::{SimHost, kill_states},
    },
    job::{
        consolidate::{self, Consolidation},
        create::{NewImage, create},
        snapshot::snapshot,
    },
    store::FOLDER,
};

const SIZE: u64 = 8 << 10;

fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

fn opening(host: &SimHost) -> Opening {
    Opening::reading().with_ledger(Ledger::new(arc(host), None))
}

fn put(host: &SimHost, path: &Path, format: Format, seed: &mut Seeded) {
    let how = opening(host).with_access(Access::Write).with_format(Some(format));
    let chain = Chain::open(&arc(host), path, &how).unwrap();
    let mut bytes = [0; 300];
    seed.fill(&mut bytes);
    chain.write(GuestOffset::new(seed.below(SIZE - 300)), &bytes).unwrap();
    chain.flush().unwrap();
}

fn view(host: &SimHost, path: &Path, format: Format) -> Result<Vec<u8>> {
    let chain = Chain::open(&arc(host), path, &opening(host).with_format(Some(format)))?;
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    chain.read(GuestOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

struct Made {
    path: PathBuf,
    format: Format,
    depth: usize,
}

/// Makes `count` images in `/vm`: raw, version 2 and version 3, each on none or any of those before; some are sealed.
fn make(host: &SimHost, count: usize, seed: &mut Seeded) -> Vec<Made> {
    host.make_folder(Path::new("/vm")).unwrap();
    let options = |version: &str| {
        [("cluster_size", "512"), ("compat", version)].map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec()
    };
    let mut made: Vec<Made> = Vec::new();
    for number in 0..count {
        let version = if seed.chance(1, 4) { "0.10" } else { "1.1" };
        let parent = usize::try_from(seed.below(number as u64 + 1)).unwrap();
        let parent = made.get(parent).filter(|parent| number % 10 > 0 && parent.depth < 24);
        let (format, depth) = match parent {
            None if seed.chance(1, 2) => (Format::Raw, 0),
            None => (Format::Qcow2, 0),
            Some(parent) => (Format::Qcow2, parent.depth + 1),
        };
        let path = Path::new("/vm").join(format!("image{number}.{format}"));
        match parent {
            None => {
                let options = if format == Format::Raw { vec![] } else { options(version) };
                let new = NewImage { format, size: Some(SIZE), parent: None, options };
                create(&arc(host), &path, &new, &opening(host)).unwrap();
            }
            Some(parent) => {
                let how = opening(host).with_format(Some(parent.format));
                snapshot(&arc(host), &parent.path, &path, &options(version), &how).unwrap();
            }
        }
        put(host, &path, format, seed);
        made.push(Made { path, format, depth });
    }
    made
}

/// Moves all images to `/bag`, under names that say nothing; what is known of them goes with them.
fn shuffle(host: &SimHost, made: &mut [Made], seed: &mut Seeded) {
    let known = Path::new(FOLDER).join("notes");
    host.make_folder(&Path::new("/bag").join(&known)).unwrap();
    for note in host.list(&Path::new("/vm").join(&known)).unwrap() {
        assert_eq!(note.kind, EntryKind::File);
        host.rename(&note.path, &Path::new("/bag").join(&known).join(note.path.file_name().unwrap()))
            .unwrap();
    }
    for image in made {
        let path = Path::new("/bag").join(format!("{:016x}", seed.next()));
        host.rename(&image.path, &path).unwrap();
        image.path = path;
    }
}

fn mend(host: &SimHost, is_dry: bool) -> Report {
    let request = Request { folders: vec!["/bag".into()], map: Vec::new() };
    let ledger = Ledger::new(arc(host), None);
    relink(&arc(host), &ledger, &request, (&opening(host), is_dry), &Progress::default()).unwrap()
}

#[test]
fn cid_8_a_bag_of_a_thousand_images_becomes_hierarchies_again() {
    let (host, mut seed) = (SimHost::new(), Seeded::new(8));
    let mut made = make(&host, 1000, &mut seed);
    let before: Vec<Vec<u8>> = made.iter().map(|m| view(&host, &m.path, m.format).unwrap()).collect();
    let children = made.iter().filter(|image| image.depth > 0).count();
    assert!(children > 700 && made.iter().any(|image| image.depth > 8));
    shuffle(&host, &mut made, &mut seed);
    assert!(made.iter().filter(|m| view(&host, &m.path, m.format).is_err()).count() == children);
    let plan = mend(&host, true);
    assert_eq!((plan.mended.len(), plan.lost.len()), (children, 0), "{:?}", plan.lost);
    let done = mend(&host, false);
    assert_eq!((done.mended.len(), done.lost.len()), (children, 0), "{:?}", done.lost);
    let links = |report: &Report| {
        let mut links: Vec<_> =
            report.mended.iter().map(|m| (m.child.clone(), m.name.clone(), m.why)).collect();
        links.sort_by(|a, b| a.0.cmp(&b.0));
        links
    };
    assert_eq!(links(&plan), links(&done));
    for (image, before) in made.iter().zip(before) {
        let shown = view(&host, &image.path, image.format).unwrap();
        assert!(shown == before, "{} shows something else", image.path.display());
    }
    assert_eq!(mend(&host, false), Report::default());
}

/// Twice as many images are about twice the work.
#[test]
fn the_work_grows_with_the_number_of_images() {
    let work = |count: usize| {
        let (host, mut seed) = (SimHost::new(), Seeded::new(2));
        let mut made = make(&host, count, &mut seed);
        shuffle(&host, &mut made, &mut seed);
        let before = host.ios();
        assert_eq!(mend(&host, false).lost, Vec::new());
        host.ios() - before
    };
    let (some, more) = (work(60), work(120));
    assert!(more < some * 3, "{some}, then {more}");
}

fn path(name: &str) -> PathBuf {
    Path::new("/bag").join(name)
}

fn new_image(host: &SimHost, name: &str) {
    let options = vec![("cluster_size".to_owned(), "512".to_owned())];
    let new = NewImage { format: Format::Qcow2, size: Some(SIZE), parent: None, options };
    create(&arc(host), &path(name), &new, &opening(host)).unwrap();
}

fn on(host: &SimHost, below: &str, above: &str) {
    let options = vec![("cluster_size".to_owned(), "512".to_owned())];
    snapshot(&arc(host), &path(below), &path(above), &options, &opening(host)).unwrap();
}

fn write(host: &SimHost, name: &str, bytes: &[u8]) {
    let chain = Chain::open(&arc(host), &path(name), &opening(host).with_access(Access::Write)).unwrap();
    chain.write(GuestOffset::new(0), bytes).unwrap();
    chain.flush().unwrap();
}

fn shown(host: &SimHost, name: &str) -> Result<Vec<u8>> {
    view(host, &path(name), Format::Qcow2)
}

fn seal_it(host: &SimHost, name: &str) {
    let layers = seal::open_layers(&arc(host), &path(name), &opening(host)).unwrap();
    seal::seal(&Ledger::new(arc(host), None), &layers, &Progress::default()).unwrap();
}

fn copy_file(host: &SimHost, from: &str, to: &str, change: impl Fn(&mut [u8])) {
    let source = host.open(&path(from), Access::ReadShared).unwrap();
    let mut bytes = vec![0; usize::try_from(source.bytes().unwrap()).unwrap()];
    source.read_at(HostOffset::new(0), &mut bytes).unwrap();
    change(&mut bytes);
    host.create(&path(to)).unwrap().write_at(HostOffset::new(0), &bytes).unwrap();
}

fn links(report: &Report) -> Vec<(PathBuf, String, Why)> {
    let mut links: Vec<_> = report.mended.iter().map(|m| (m.child.clone(), m.name.clone(), m.why)).collect();
    links.sort_by(|a, b| a.0.cmp(&b.0));
    links
}

fn bag() -> SimHost {
    let host = SimHost::new();
    host.make_folder(Path::new("/bag")).unwrap();
    host
}

/// `twin` shows what `right` shows, and is whole when the child is looked at; `right` becomes so in that round.
#[test]
fn one_that_shows_the_same_is_not_taken_while_the_right_parent_can_become_whole() {
    let host = bag();
    new_image(&host, "base");
    on(&host, "base", "right");
    write(&host, "right", &[5; 3000]);
    seal_it(&host, "right");
    on(&host, "right", "child");
    new_image(&host, "twin");
    write(&host, "twin", &shown(&host, "right").unwrap());
    seal_it(&host, "twin");
    let before = shown(&host, "child").unwrap();
    for (from, to) in [("base", "z-base"), ("right", "y-right"), ("child", "a-child")] {
        host.rename(&path(from), &path(to)).unwrap();
    }
    let plan = mend(&host, true);
    let done = mend(&host, false);
    let right = [("a-child", "y-right"), ("y-right", "z-base")];
    assert_eq!(links(&done), right.map(|(child, parent)| (path(child), parent.to_owned(), Why::Epoch)));
    assert_eq!(links(&plan), links(&done));
    assert!(shown(&host, "a-child").unwrap() == before);
    // One that cannot become whole is not waited for.
    host.remove(&path("z-base")).unwrap();
    host.rename(&path("y-right"), &path("x-right")).unwrap();
    let done = mend(&host, false);
    assert_eq!(links(&done), [(path("a-child"), "twin".to_owned(), Why::Content)]);
    assert_eq!(done.lost.iter().map(|(child, _)| child.clone()).collect::<Vec<_>>(), [path("x-right")]);
    assert!(shown(&host, "a-child").unwrap() == before);
}

/// A program that writes a base without opening it as a disk leaves its record as it is.
#[test]
fn of_two_files_with_the_claimed_epoch_the_one_that_was_written_is_not_taken() {
    for is_vouched_for in [true, false] {
        let host = bag();
        new_image(&host, "base");
        write(&host, "base", &[7; 4096]);
        seal_it(&host, "base");
        on(&host, "base", "top");
        let before = shown(&host, "top").unwrap();
        copy_file(&host, "base", "a-copy", |bytes| {
            let at = bytes.windows(512).position(|bytes| bytes == [7; 512]).unwrap();
            bytes[at] = 8;
        });
        host.rename(&path("base"), &path("z-base")).unwrap();
        if !is_vouched_for {
            for note in host.list(&path(FOLDER).join("notes")).unwrap() {
                host.remove(&note.path).unwrap();
            }
        }
        let done = mend(&host, false);
        assert_eq!(links(&done), [(path("top"), "z-base".to_owned(), Why::Epoch)], "{is_vouched_for}");
        assert!(shown(&host, "top").unwrap() == before);
    }
}

#[test]
fn of_two_files_with_the_claimed_epoch_the_one_in_the_childs_folder_is_taken() {
    let host = bag();
    for folder in ["a", "b"] {
        host.make_folder(&path(folder)).unwrap();
    }
    new_image(&host, "b/base");
    on(&host, "b/base", "b/top");
    copy_file(&host, "b/base", "a/base", |_| {});
    host.rename(&path("b/base"), &path("b/renamed")).unwrap();
    let request = Request { folders: vec![path("a"), path("b")], map: Vec::new() };
    let (ledger, how) = (Ledger::new(arc(&host), None), opening(&host));
    let done = relink(&arc(&host), &ledger, &request, (&how, false), &Progress::default()).unwrap();
    assert_eq!(links(&done), [(path("b/top"), "renamed".to_owned(), Why::Epoch)]);
}

#[test]
fn an_image_that_somebody_uses_does_not_keep_the_others_from_being_mended() {
    let host = bag();
    for (base, top) in [("base1", "top1"), ("base2", "top2"), ("base3", "top3")] {
        new_image(&host, base);
        on(&host, base, top);
        host.rename(&path(base), &path(&format!("{base}-renamed"))).unwrap();
    }
    let used = host.open(&path("top2"), Access::Read).unwrap();
    let done = mend(&host, false);
    let of = |number| (path(&format!("top{number}")), format!("base{number}-renamed"), Why::Epoch);
    assert_eq!(links(&done), [of(1), of(3)]);
    assert!(matches!(&done.lost[..], [(image, why)] if *image == path("top2") && why.contains("top2")));
    drop(used);
    assert_eq!(links(&mend(&host, false)), [of(2)]);
}

/// Its middle layer does not open by itself, and a copy of the base from before has the epoch that it claims.
#[test]
fn nothing_is_mended_around_a_consolidation_that_was_cut_off() {
    let host = bag();
    new_image(&host, "base");
    write(&host, "base", &[1; 6000]);
    for (below, above) in [("base", "middle"), ("middle", "top")] {
        on(&host, below, above);
        write(&host, above, &[2; 3000]);
    }
    copy_file(&host, "base", "backup", |_| {});
    let before = shown(&host, "top").unwrap();
    let fold = |host: &SimHost| {
        let request = consolidate::Request::default();
        let job = Consolidation::prepare(&arc(host), &path("top"), &opening(host), &request)?;
        job.run(consolidate::Pace::USUAL, &Progress::default())
    };
    let machine = host.twin();
    fold(&machine).unwrap();
    let mut refused = 0;
    for killed in kill_states(&machine.trace()) {
        let host = killed.host;
        let is_cut_off = Ledger::new(arc(&host), None).journal(&path("top")).unwrap().is_some();
        let is_claimed = shown(&host, "middle").is_err_and(|error| error.kind() == ErrorKind::Policy);
        if !is_cut_off || !is_claimed {
            continue;
        }
        let done = mend(&host, false);
        assert_eq!(done.mended, []);
        assert!(done.lost.iter().any(|(image, why)| *image == path("middle") && why.contains("cut off")));
        let (ledger, how) = (Ledger::new(arc(&host), None), opening(&host));
        let taken = accept(&arc(&host), &ledger, &path("middle"), (&how, false), &Progress::default());
        assert_eq!(taken.unwrap_err().kind(), ErrorKind::Busy);
        fold(&host).unwrap();
        assert!(shown(&host, "top").unwrap() == before);
        refused += 1;
    }
    assert!(refused > 5, "{refused}");
}
