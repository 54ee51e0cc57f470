//! Chains that qemu made, read as qemu reads them; and references that must not be followed.

use crate::foreign::{Scratch, assert_same};
use deltachain::{
    base::{Error, ErrorKind, GuestOffset, GuestRange},
    chain::{Chain, Opening, Policy},
    disk::Disk,
    format::Format,
    io::{Host, real::RealHost},
};
use std::{path::Path, sync::Arc};

fn host() -> Arc<dyn Host> {
    Arc::new(RealHost::new())
}

fn open(path: &Path) -> Result<Chain, Error> {
    Chain::open(&host(), path, &Opening::reading().with_format(Some(Format::Qcow2)))
}

fn whole(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(chain.size()).unwrap()];
    chain.read(GuestOffset::new(0), &mut bytes).unwrap();
    bytes
}

/// A chain of `depth` deltas of differing cluster sizes over a base, each with its own writes.
fn make_chain(folder: &Scratch, depth: usize) -> String {
    folder.qemu_img("create -q -f qcow2 l0 4M");
    folder.qemu_io("qcow2", "l0", &["write -q -P 1 0 4M"]);
    for n in 1..=depth {
        let cluster = ["64k", "4k", "512", "2M"][n % 4];
        let parent = n - 1;
        folder.qemu_img(&format!("create -q -f qcow2 -o cluster_size={cluster} -F qcow2 -b l{parent} l{n}"));
        let (at, pattern) = (n * 37_000 % 4_000_000 / 512 * 512, n % 250 + 2);
        let zero = n * 91_000 % 3_900_000 / 512 * 512;
        let write = format!("write -q -P {pattern} {at} 9k");
        folder.qemu_io("qcow2", &format!("l{n}"), &[&write, &format!("write -q -z {zero} 70k")]);
    }
    format!("l{depth}")
}

#[test]
fn a_chain_reads_as_qemu_reads_it_at_any_depth() {
    for depth in [1, 8, 64] {
        let folder = Scratch::new();
        let top = make_chain(&folder, depth);
        let chain = open(&folder.file(&top)).unwrap();
        assert_eq!(chain.layers().len(), depth + 1);
        assert_same(&whole(&chain), &folder.flat("qcow2", &top), &format!("depth {depth}"));
    }
}

#[test]
fn what_lies_beyond_a_short_layer_is_zero_even_over_a_long_one() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f raw base 1M");
    folder.qemu_io("raw", "base", &["write -q -P 7 0 1M"]);
    folder.qemu_img("create -q -f qcow2 -F raw -b base short 300k");
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b short top 2M");
    folder.qemu_io("qcow2", "top", &["write -q -P 9 1536k 64k"]);
    let chain = open(&folder.file("top")).unwrap();
    let bytes = whole(&chain);
    assert_same(&bytes, &folder.flat("qcow2", "top"), "short layer");
    assert_eq!((bytes[307_199], bytes[307_200], bytes[1_000_000]), (7, 0, 0));
    let mut runs = Vec::new();
    chain.runs(GuestOffset::new(0).range(chain.size()), &mut runs).unwrap();
    let implied = runs.iter().find(|r| r.range.contains(GuestOffset::new(400_000))).unwrap();
    assert_eq!((implied.layer, implied.is_zero()), (Some(1), true));
}

#[test]
fn the_merged_map_covers_the_disk_once_in_order() {
    let folder = Scratch::new();
    let top = make_chain(&folder, 9);
    let chain = open(&folder.file(&top)).unwrap();
    let mut runs = Vec::new();
    chain.runs(GuestOffset::new(1000).range(3_000_000), &mut runs).unwrap();
    let mut at = GuestOffset::new(1000);
    for run in &runs {
        assert_eq!(run.range.start, at);
        at = run.range.end();
    }
    assert_eq!(at, GuestOffset::new(3_001_000));
}

#[test]
fn a_write_lands_in_the_head_and_nowhere_else() {
    let folder = Scratch::new();
    let top = make_chain(&folder, 3);
    let below: Vec<_> = (0..3).map(|n| std::fs::read(folder.file(&format!("l{n}"))).unwrap()).collect();
    let mut expected = folder.flat("qcow2", &top);
    {
        let opening = Opening::writing().with_format(Some(Format::Qcow2));
        let chain = Chain::open(&host(), &folder.file(&top), &opening).unwrap();
        chain.write(GuestOffset::new(777_777), &vec![5; 100_000]).unwrap();
        chain
            .zero(
                GuestRange { start: GuestOffset::new(2_000_001), bytes: 99_999 },
                deltachain::io::Kept::Nothing,
            )
            .unwrap();
        chain.flush().unwrap();
        expected[777_777..877_777].fill(5);
        expected[2_000_001..2_100_000].fill(0);
        assert_same(&whole(&chain), &expected, "before closing");
        let beyond = chain.write(GuestOffset::new(chain.size() - 1), &[0; 2]).unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::Invalid);
    }
    assert_same(&folder.flat("qcow2", &top), &expected, "as qemu reads it");
    folder.qemu_img(&format!("check -q -f qcow2 {top}"));
    for (n, bytes) in below.iter().enumerate() {
        assert!(*bytes == std::fs::read(folder.file(&format!("l{n}"))).unwrap(), "layer {n} was changed");
    }
}

fn refused(folder: &Scratch, image: &str) -> Error {
    open(&folder.file(image)).map(|_| ()).unwrap_err()
}

/// Makes a child whose header names `parent`, whatever that is.
fn child_naming(folder: &Scratch, child: &str, parent: &str, format: &str) {
    folder.qemu_img(&format!("create -q -u -f qcow2 -F {format} -b {parent} {child} 1M"));
}

#[test]
fn bad_input_c_cycles_are_refused() {
    let folder = Scratch::new();
    child_naming(&folder, "a", "b", "qcow2");
    child_naming(&folder, "b", "a", "qcow2");
    child_naming(&folder, "self", "./self", "qcow2");
    for image in ["a", "self"] {
        let error = refused(&folder, image);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("comes back to"), "{error}");
    }
}

#[test]
fn bad_input_c_references_to_anything_but_files_nearby_are_refused() {
    let folder = Scratch::new();
    std::fs::create_dir(folder.file("folder")).unwrap();
    folder.run("mkfifo", "fifo");
    std::os::unix::fs::symlink("/etc/passwd", folder.file("link")).unwrap();
    let names =
        ["/etc/passwd", "../../etc/passwd", "link", "folder", "fifo", "/dev/zero", "/proc/self/environ"];
    for (n, name) in names.iter().enumerate() {
        let child = format!("c{n}");
        child_naming(&folder, &child, name, "raw");
        let error = refused(&folder, &child);
        assert!(matches!(error.kind(), ErrorKind::Policy | ErrorKind::NotFound), "{name}: {error:?}");
        assert!(error.to_string().contains(&child), "{error}");
    }
    for (n, name) in ["json:{}", "nbd://localhost/x", "ssh://h/x", "nbd:unix:/x"].iter().enumerate() {
        let child = format!("p{n}");
        folder.qemu_img(&format!("create -q -u -f qcow2 -F raw -b aaaaaaaaaaaaaaaaaaaaaaaa {child} 1M"));
        let path = folder.file(&child);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(24).position(|w| w == [b'a'; 24]).unwrap();
        bytes[at..at + 24].fill(b' ');
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(refused(&folder, &child).kind(), ErrorKind::Policy, "{name}");
    }
}

#[test]
fn a_missing_parent_is_named() {
    let folder = Scratch::new();
    child_naming(&folder, "orphan", "gone", "qcow2");
    let error = refused(&folder, "orphan");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let said = error.to_string();
    assert!(said.contains("orphan") && said.contains("gone") && said.contains("missing"), "{said}");
}

#[test]
fn bad_input_d_a_parent_of_unstated_format_is_not_guessed() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 1M");
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b base top");
    folder.qemu_img("amend -f qcow2 -o compat=0.10 top");
    // Version 2 without the extension that states the parent's format.
    let path = folder.file("top");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[at..at + 4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    std::fs::write(&path, bytes).unwrap();
    let error = refused(&folder, "top");
    assert_eq!(error.kind(), ErrorKind::Policy);
    assert!(error.to_string().contains("without stating its format"), "{error}");
    let stated = Opening { parent_format: Some(Format::Qcow2), ..Opening::reading() };
    assert_eq!(Chain::open(&host(), &path, &stated).unwrap().layers().len(), 2);
}

#[test]
fn a_folder_that_the_user_allows_may_be_referred_to() {
    let (golden, folder) = (Scratch::new(), Scratch::new());
    golden.qemu_img("create -q -f qcow2 base 1M");
    let base = golden.file("base");
    folder.qemu_img(&format!("create -q -f qcow2 -F qcow2 -b {} top", base.display()));
    let error = refused(&folder, "top");
    assert_eq!((error.kind(), error.about()), (ErrorKind::Policy, Some(golden.path().as_path())));
    let policy = Policy { allowed: vec![golden.path()], ..Policy::default() };
    let opening = Opening::reading().with_policy(policy);
    let stated = opening.clone().with_format(Some(Format::Qcow2));
    assert!(Chain::open(&host(), &folder.file("top"), &stated).is_ok());
    // What was only recognised may not lead out, whatever is allowed: a guest may have written that header.
    let recognised = Chain::open(&host(), &folder.file("top"), &opening).map(|_| ()).unwrap_err();
    assert_eq!(recognised.kind(), ErrorKind::Policy, "{recognised}");
}

#[test]
fn bad_input_c_1024_layers_work_and_one_more_is_refused() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 -o cluster_size=4k l0 1M");
    folder.qemu_io("qcow2", "l0", &["write -q -P 3 0 1M"]);
    folder.qemu_img("create -q -f qcow2 -o cluster_size=4k -F qcow2 -b llll layer 1M -u");
    let template = std::fs::read(folder.file("layer")).unwrap();
    let at = template.windows(4).position(|w| w == *b"llll").unwrap();
    for n in 1..=1024 {
        let mut bytes = template.clone();
        let name = format!("l{}", n - 1);
        bytes[at..at + 4].fill(0);
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        std::fs::write(folder.file(&format!("l{n}")), bytes).unwrap();
    }
    let host: Arc<dyn Host> = Arc::new(RealHost::with_descriptors(64));
    let opening = Opening::reading().with_format(Some(Format::Qcow2));
    let chain = Chain::open(&host, &folder.file("l1023"), &opening).unwrap();
    assert_eq!(chain.layers().len(), 1024);
    let held = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(held < 200, "{held} descriptors are open");
    assert!(whole(&chain).iter().all(|b| *b == 3));
    let error = Chain::open(&host, &folder.file("l1024"), &opening).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Policy, "{error}");
}
