use super::*;
use crate::{
    base::{ErrorKind, seed::Seeded},
    chain::Layer,
    format::{self, NoParts},
    io::memory::MemoryFile,
};
use proptest::prelude::*;

fn layer(image: Arc<dyn Image>) -> Layer {
    Layer { path: "layer".into(), is_stated: true, image }
}

fn view(image: &Arc<dyn Image>) -> View {
    View::new(&[layer(Arc::clone(image))])
}

fn new_image(format: Format, size: u64, options: &[(&str, &str)]) -> Arc<dyn Image> {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let creation = Creation { size, parent: None, options };
    format::create(format, Arc::new(MemoryFile::new("new")), &creation, &NoParts).unwrap()
}

fn bytes_of(image: &Arc<dyn Image>) -> Vec<u8> {
    let mut bytes = vec![0; index(image.size())];
    view(image).read(GuestOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// Writes of random places and lengths, some of zeros.
fn scribble(image: &Arc<dyn Image>, seed: u64, writes: u64) {
    let mut seed = Seeded::new(seed);
    for _ in 0..writes {
        let at = seed.below(image.size());
        let length = (1 << seed.below(20)).min(image.size() - at);
        let range = GuestOffset::new(at).range(length);
        if seed.chance(1, 4) {
            image.zero(range, Kept::Nothing, &Nothing).unwrap();
        } else {
            let mut bytes = vec![0; index(length)];
            seed.fill(&mut bytes);
            image.write(range.start, &bytes, &Nothing).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_new_disk_shows_what_the_old_one_shows(
        seed: u64,
        sectors in 1_u64..6000,
        cluster in prop::sample::select(vec!["512", "4096", "65536", "2097152"]),
        is_raw: [bool; 2],
        is_packed: bool,
        is_blank: bool,
    ) {
        let size = sectors * 512;
        let options = [("cluster_size", cluster)];
        let of = |is_raw| if is_raw { new_image(Format::Raw, size, &[]) } else { new_image(Format::Qcow2, size, &options) };
        let (source, target) = (of(is_raw[0]), of(is_raw[1]));
        scribble(&source, seed, 12);
        if !is_blank {
            scribble(&target, !seed, 12);
        }
        let filling = Filling { is_blank, is_packed: is_packed && !is_raw[1] };
        fill(&view(&source), target.as_ref(), filling, &Progress::default()).unwrap();
        prop_assert!(bytes_of(&source) == bytes_of(&target));
    }
}

#[test]
fn a_hole_in_the_source_is_not_written() {
    let source = new_image(Format::Raw, 64 << 20, &[]);
    source.write(GuestOffset::new(8 << 20), &[7; 4096], &Nothing).unwrap();
    let target = new_image(Format::Qcow2, 64 << 20, &[]);
    let filling = Filling { is_blank: true, is_packed: false };
    let written = fill(&view(&source), target.as_ref(), filling, &Progress::default()).unwrap();
    assert_eq!(written, 65536);
    assert!(target.data_file().bytes().unwrap() < 1 << 20);
}

#[test]
fn a_larger_target_shows_zeros_behind_and_a_smaller_one_is_refused() {
    let source = new_image(Format::Raw, 1 << 20, &[]);
    let target = new_image(Format::Raw, 2 << 20, &[]);
    target.write(GuestOffset::new((1 << 20) + 77), &[1; 5000], &Nothing).unwrap();
    fill(&view(&source), target.as_ref(), Filling::default(), &Progress::default()).unwrap();
    assert!(bytes_of(&target).iter().all(|byte| *byte == 0));
    let error = fill(&view(&target), source.as_ref(), Filling::default(), &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn a_cancelled_conversion_stops() {
    let source = new_image(Format::Raw, 1 << 20, &[]);
    scribble(&source, 1, 5);
    let progress = Progress::default();
    progress.cancel();
    let target = new_image(Format::Raw, 1 << 20, &[]);
    let error = fill(&view(&source), target.as_ref(), Filling::default(), &progress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

#[test]
fn a_conversion_of_nothing_but_zeros_can_be_cancelled() {
    let [source, target] = [1_u64 << 40; 2].map(|size| new_image(Format::Qcow2, size, &[]));
    let progress = Progress::default();
    progress.cancel();
    let filling = Filling { is_blank: true, is_packed: false };
    let error = fill(&view(&source), target.as_ref(), filling, &progress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

#[test]
fn what_cannot_be_compressed_is_not_written_to() {
    let source = new_image(Format::Raw, 1 << 20, &[]);
    scribble(&source, 1, 5);
    let filling = Filling { is_blank: true, is_packed: true };
    for format in [Format::Raw, Format::Vhdx, Format::Vpc, Format::Vmdk] {
        let target = new_image(format, 1 << 20, &[]);
        let error = fill(&view(&source), target.as_ref(), filling, &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{format}");
        assert!(bytes_of(&target).iter().all(|byte| *byte == 0), "{format}");
    }
}

#[test]
fn every_unit_of_the_target_is_in_one_step() {
    let source = new_image(Format::Raw, 16 << 20, &[]);
    scribble(&source, 3, 40);
    let target = new_image(Format::Qcow2, 16 << 20, &[]);
    for is_blank in [false, true] {
        let source = view(&source);
        let job = Fill {
            source: &source,
            target: target.as_ref(),
            filling: Filling { is_blank, is_packed: false },
            unit: 65536,
            is_shared: AtomicBool::new(false),
            unflushed: AtomicU64::new(0),
            progress: &Progress::default(),
        };
        let steps = job.plan(GuestOffset::new(0).range(16 << 20)).unwrap();
        let mut at = GuestOffset::new(0);
        for step in &steps {
            let range = step.range();
            assert!(range.start >= at && range.start == range.start.floor(65536), "{step:?}");
            assert!(is_blank || range.start == at, "{step:?} leaves a gap");
            at = range.end();
        }
    }
}
