//! Rule 5 of the content IDs, against the programs that write images behind our back; and sealing, against plain
//! hashing of what qemu reads.

use crate::foreign::{Scratch, assert_same};
use deltachain::{
    base::{ErrorKind, clock},
    chain::{Chain, Layer, Opening, View, check_lineage, lineage},
    content::{ContentId, Tree},
    io::{Host, real::RealHost},
    job::{
        Progress,
        seal::{How, Sealed, full_tree, open_layers, seal},
    },
    store::{Ledger, Trust},
};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    sync::Arc,
};

struct Bench {
    folder: Scratch,
    host: Arc<dyn Host>,
    ledger: Ledger,
}

impl Bench {
    fn new() -> Self {
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let ledger = Ledger::new(Arc::clone(&host), None);
        Self { folder: Scratch::new(), host, ledger }
    }

    fn layers(&self, top: &str) -> Vec<Layer> {
        open_layers(&self.host, &self.folder.file(top), &Opening::reading()).unwrap()
    }

    fn try_seal(&self, top: &str) -> deltachain::base::Result<Vec<Sealed>> {
        seal(&self.ledger, &self.layers(top), &Progress::default())
    }

    fn seal(&self, top: &str) -> Vec<Sealed> {
        self.try_seal(top).unwrap()
    }

    /// How each layer stands as somebody sees it who only reads, the head first.
    fn trust(&self, top: &str) -> Vec<Trust> {
        let chain = Chain::open(&self.host, &self.folder.file(top), &Opening::reading()).unwrap();
        let standings = lineage(&self.ledger, chain.layers()).unwrap();
        standings.iter().map(|standing| standing.known.trust).collect()
    }

    /// Returns why the chain is refused.
    fn refusal(&self, top: &str) -> String {
        let chain = Chain::open(&self.host, &self.folder.file(top), &Opening::reading()).unwrap();
        let standings = lineage(&self.ledger, chain.layers()).unwrap();
        let error = check_lineage(chain.layers(), &standings).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Policy);
        error.to_string()
    }

    /// The content ID of what qemu reads.
    fn by_qemu(&self, format: &str, image: &str) -> ContentId {
        Tree::of(&self.folder.flat(format, image)).id()
    }

    /// Two deltas on a base with some bytes in each, made by qemu; the top is `top`.
    fn chain(&self, base_options: &str) {
        let folder = &self.folder;
        folder.qemu_img(&format!("create -q -f qcow2 {base_options} base 8M"));
        folder.qemu_io("qcow2", "base", &["write -q -P 1 0 3M", "write -q -z 1M 100k"]);
        folder.qemu_img("create -q -f qcow2 -F qcow2 -b base middle");
        folder.qemu_io("qcow2", "middle", &["write -q -P 2 70k 5k", "write -q -P 2 4M 64k"]);
        folder.qemu_img("create -q -f qcow2 -F qcow2 -b middle top");
        folder.qemu_io("qcow2", "top", &["write -q -P 3 2M 1k", "write -q -z 256k 128k"]);
    }

    /// A chain that is sealed, and trusted throughout.
    fn sealed_chain(base_options: &str) -> Self {
        let bench = Self::new();
        bench.chain(base_options);
        bench.seal("top");
        assert_eq!(bench.trust("top"), [Trust::Trusted; 3]);
        bench
    }

    /// The base is in doubt, and with it all that lies on it; the refusal names both sides.
    #[track_caller]
    fn assert_base_is_doubted(&self) {
        let trust = self.trust("top");
        assert!(trust.iter().all(|trust| matches!(trust, Trust::Doubted(_))), "{trust:?}");
        let refusal = self.refusal("top");
        assert!(refusal.contains("middle: its parent") && refusal.contains("base"), "{refusal}");
        let wanted = self.try_seal("top").unwrap_err();
        assert_eq!(wanted.kind(), ErrorKind::Policy, "{wanted}");
    }
}

#[test]
fn a_base_written_by_qemu_io_is_doubted() {
    let bench = Bench::sealed_chain("");
    bench.folder.qemu_io("qcow2", "base", &["write -q -P 9 7M 512"]);
    bench.assert_base_is_doubted();
}

#[test]
fn qemu_m19_a_base_written_by_qemu_img_commit_is_doubted() {
    let bench = Bench::sealed_chain("");
    bench.folder.qemu_img("create -q -f qcow2 -F qcow2 -b base other");
    bench.folder.qemu_io("qcow2", "other", &["write -q -P 9 7M 512"]);
    bench.folder.qemu_img("commit -q other");
    bench.assert_base_is_doubted();
}

#[test]
fn a_base_written_through_its_data_file_is_doubted() {
    let bench = Bench::sealed_chain("-o data_file=base.data,data_file_raw=on");
    bench.folder.qemu_io("raw", "base.data", &["write -q -P 9 7M 512"]);
    bench.assert_base_is_doubted();
}

#[test]
fn a_raw_base_that_is_written_is_doubted() {
    let bench = Bench::new();
    bench.folder.qemu_img("create -q -f raw base 4M");
    bench.folder.qemu_io("raw", "base", &["write -q -P 1 1M 64k"]);
    bench.folder.qemu_img("create -q -f qcow2 -F raw -b base top");
    bench.seal("top");
    assert_eq!(bench.trust("top"), [Trust::Trusted; 2]);
    bench.folder.qemu_io("raw", "base", &["write -q -P 9 2M 512"]);
    assert!(bench.refusal("top").contains("it was written after"));
}

#[test]
fn qemu_m19_a_base_written_by_block_commit_of_a_live_disk_is_doubted() {
    let bench = Bench::sealed_chain("");
    bench.folder.qemu_img("create -q -f qcow2 -F qcow2 -b base other");
    bench.folder.qemu_io("qcow2", "other", &["write -q -P 9 7M 512"]);
    block_commit(&bench.folder, "other", "base");
    bench.assert_base_is_doubted();
}

/// Lets a storage daemon that has `child` over `parent` open commit the one into the other.
fn block_commit(folder: &Scratch, child: &str, parent: &str) {
    let blockdev = |image: &str, more: &str| {
        format!("driver=qcow2,node-name={image},file.driver=file,file.filename={image}{more}")
    };
    let arguments = [
        ["--blockdev".to_owned(), blockdev(parent, "")],
        ["--blockdev".to_owned(), blockdev(child, &format!(",backing={parent}"))],
        ["--chardev".to_owned(), "stdio,id=monitor".to_owned()],
        ["--monitor".to_owned(), "monitor".to_owned()],
    ];
    let mut daemon = Command::new("qemu-storage-daemon")
        .current_dir(folder.path())
        .args(arguments.concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("qemu-storage-daemon is needed for the tests: {e}"));
    let (mut say, hear) = (daemon.stdin.take().unwrap(), BufReader::new(daemon.stdout.take().unwrap()));
    let commit = format!(r#"{{"execute":"block-commit","arguments":{{"device":"{child}","job-id":"job"}}}}"#);
    writeln!(say, r#"{{"execute":"qmp_capabilities"}}"#).unwrap();
    writeln!(say, "{commit}").unwrap();
    let mut is_done = false;
    for line in hear.lines().map(Result::unwrap) {
        assert!(!line.contains("\"error\""), "{line}");
        if line.contains("BLOCK_JOB_READY") {
            writeln!(say, r#"{{"execute":"block-job-complete","arguments":{{"device":"job"}}}}"#).unwrap();
        } else if line.contains("BLOCK_JOB_COMPLETED") {
            is_done = true;
            writeln!(say, r#"{{"execute":"quit"}}"#).unwrap();
        }
    }
    assert!(daemon.wait().unwrap().success() && is_done);
}

#[test]
fn cid_2_owners_modes_names_and_readers_leave_a_chain_trusted() {
    let bench = Bench::sealed_chain("");
    let base = bench.folder.file("base");
    std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o440)).unwrap();
    // What libvirt does at each start of a machine; only root may.
    if bench.folder.run("id", "-u").trim() == "0" {
        bench.folder.run("chown", "65534:65534 base middle");
        bench.folder.run("chown", "0:0 base middle");
    }
    std::fs::rename(&base, bench.folder.file("elsewhere")).unwrap();
    std::fs::rename(bench.folder.file("elsewhere"), &base).unwrap();
    let read = bench.folder.try_run("qemu-io", ["-r", "-f", "qcow2", "-c", "read 0 1M", "base"]);
    assert!(read.status.success());
    bench.folder.qemu_img("convert -f qcow2 -O raw top copy");
    bench.folder.qemu_img("check -q base");
    assert_eq!(bench.trust("top"), [Trust::Trusted; 3]);
}

#[test]
fn a_head_that_qemu_writes_stays_readable_and_joined_to_its_parent() {
    let bench = Bench::sealed_chain("");
    bench.folder.qemu_io("qcow2", "top", &["write -q -P 9 7M 64k"]);
    let chain = Chain::open(&bench.host, &bench.folder.file("top"), &Opening::reading()).unwrap();
    let standings = lineage(&bench.ledger, chain.layers()).unwrap();
    check_lineage(chain.layers(), &standings).unwrap();
    assert_eq!(standings[1].known.trust, Trust::Trusted);
    drop(chain);
    // Something is to depend on it again: a new epoch, on the claim that it had.
    let layers = bench.layers("top");
    bench.ledger.freeze(layers[0].image.as_ref()).unwrap();
    drop(layers);
    assert_eq!(bench.trust("top"), [Trust::Trusted; 3]);
    assert_eq!(bench.seal("top")[0].id, bench.by_qemu("qcow2", "top"));
}

#[test]
fn a_head_that_is_rebased_by_qemu_is_of_unknown_lineage() {
    let bench = Bench::sealed_chain("");
    bench.folder.qemu_img("create -q -f qcow2 other 8M");
    bench.folder.qemu_img("rebase -u -f qcow2 -F qcow2 -b other top");
    let chain = Chain::open(&bench.host, &bench.folder.file("top"), &Opening::reading()).unwrap();
    let standings = lineage(&bench.ledger, chain.layers()).unwrap();
    check_lineage(chain.layers(), &standings).unwrap();
}

#[test]
fn cid_1_a_seal_names_what_qemu_reads_whatever_the_format() {
    let mut ids = Vec::new();
    for options in ["", "-o cluster_size=512", "-o cluster_size=2M", "-o compat=0.10", "-o extended_l2=on"] {
        let bench = Bench::new();
        bench.chain(options);
        let sealed = bench.seal("top");
        assert_eq!(bench.trust("top"), [Trust::Trusted; 3], "{options}");
        let by_qemu = ["top", "middle", "base"].map(|image| bench.by_qemu("qcow2", image));
        assert_eq!(sealed.iter().map(|s| s.id).collect::<Vec<_>>(), by_qemu, "{options}");
        assert_eq!(
            sealed.iter().map(|s| s.how).collect::<Vec<_>>(),
            [How::Incremental, How::Incremental, How::Full]
        );
        let again = bench.seal("top");
        assert!(again.iter().all(|s| s.how == How::Kept && s.read_bytes == 0), "{again:?}");
        bench.folder.qemu_img("check -q top");
        bench.folder.qemu_img("convert -f qcow2 -O raw top top.raw");
        bench.folder.qemu_img("convert -c -f qcow2 -O qcow2 top packed");
        assert_eq!([bench.seal("top.raw")[0].id, bench.seal("packed")[0].id], [by_qemu[0]; 2], "{options}");
        ids.push(by_qemu);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one view, one ID");
}

#[test]
fn an_incremental_seal_reads_the_changed_leaves_only() {
    let bench = Bench::sealed_chain("");
    let layers = bench.layers("top");
    let full = full_tree(&View::new(&layers), &Progress::default()).unwrap();
    drop(layers);
    assert!(full.read_bytes >= 2 << 20);
    // The second write lies across two clusters; the zeros of the third are not read.
    for (n, (write, leaves)) in
        [("write -q -P 5 0 512", 1), ("write -q -P 6 130k 64k", 2), ("write -q -z 1M 1M", 0)]
            .into_iter()
            .enumerate()
    {
        let child = format!("child{n}");
        bench.folder.qemu_img(&format!("create -q -f qcow2 -F qcow2 -b top {child}"));
        bench.folder.qemu_io("qcow2", &child, &[write]);
        let sealed = bench.seal(&child)[0];
        assert_eq!((sealed.how, sealed.read_bytes), (How::Incremental, leaves * 65536), "{write}");
        assert_eq!(sealed.id, bench.by_qemu("qcow2", &child), "{write}");
    }
}

#[test]
fn children_of_other_sizes_are_sealed_incrementally_too() {
    let bench = Bench::sealed_chain("");
    for size in ["512", "1000k", "3M", "8389120", "20M"] {
        let child = format!("child{size}");
        bench.folder.qemu_img(&format!("create -q -f qcow2 -F qcow2 -b top {child} {size}"));
        bench.folder.qemu_io("qcow2", &child, &["write -q -P 5 0 512"]);
        let sealed = bench.seal(&child)[0];
        assert_eq!(sealed.how, How::Incremental);
        assert_eq!(sealed.id, bench.by_qemu("qcow2", &child), "{size}");
    }
}

#[test]
fn a_hash_that_gives_the_sealed_id_ends_a_doubt() {
    let bench = Bench::sealed_chain("");
    clock::wait_past_ns(clock::coarse_ns());
    // Opened for writing, and the same bytes written again.
    bench.folder.qemu_io("qcow2", "base", &["write -q -P 1 0 64k"]);
    assert!(matches!(bench.trust("top")[2], Trust::Doubted(_)));
    let sealed = bench.seal("top");
    assert_eq!((sealed[2].how, sealed[1].how), (How::Full, How::Kept));
    assert_eq!(bench.trust("top"), [Trust::Trusted; 3]);
}

#[test]
fn what_is_hashed_is_what_is_read() {
    let bench = Bench::new();
    bench.chain("");
    let layers = bench.layers("top");
    let mut bytes = vec![0; 8 << 20];
    View::new(&layers).read(deltachain::base::GuestOffset::new(0), &mut bytes).unwrap();
    drop(layers);
    assert_same(&bytes, &bench.folder.flat("qcow2", "top"), "top");
    assert_eq!(bench.seal("top")[0].id, Tree::of(&bytes).id());
}
