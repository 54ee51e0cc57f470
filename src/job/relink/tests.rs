//! A thousand images, shuffled: what was one hierarchy is one again.

use super::*;
use crate::{
    base::{GuestOffset, seed::Seeded},
    disk::Disk,
    io::{EntryKind, faulty::SimHost},
    job::{
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
