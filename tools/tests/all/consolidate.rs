//! Chains that qemu made, folded by us, read by qemu again.

use crate::{
    dchain::{dchain, done},
    foreign::{Scratch, assert_same},
};
use deltachain::{
    chain::Opening,
    format::Format,
    io::{Host, real::RealHost},
    job::{
        Progress,
        consolidate::{Consolidation, NewImage, Pace, Report, Request, Verify},
    },
    store::Ledger,
};
use std::{path::PathBuf, sync::Arc};

/// A small pace, so that small disks see several moves and marks.
const PACE: Pace = Pace { move_bytes: 1 << 20, mark_bytes: 2 << 20, adopted_pieces: 2 };

struct Bench {
    folder: Scratch,
    host: Arc<dyn Host>,
    ledger: Ledger,
}

impl Bench {
    fn new() -> Self {
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        Self { folder: Scratch::new(), ledger: Ledger::new(Arc::clone(&host), None), host }
    }

    fn prepare(&self, top: &str, request: &Request) -> deltachain::base::Result<Consolidation> {
        let opening = Opening::reading().with_ledger(self.ledger.clone());
        Consolidation::prepare(&self.host, &self.folder.file(top), &opening, request)
    }

    fn fold(&self, top: &str, request: &Request) -> Report {
        let report = self.prepare(top, request).unwrap().run(PACE, &Progress::default()).unwrap();
        assert_eq!(report.verified, Some(request.verify));
        report
    }

    /// Folds, and holds the result against what qemu read before; returns what was done.
    fn fold_and_compare(&self, top: &str, result: (&str, &str), request: &Request) -> Report {
        let before = self.folder.flat("qcow2", top);
        let report = self.fold(top, request);
        let (format, name) = result;
        assert_same(&self.folder.flat(format, name), &before, "the view");
        if format == "qcow2" {
            self.folder.qemu_img(&format!("check -q {name}"));
        }
        report
    }

    /// The names in the folder, but for hidden ones.
    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = names
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.starts_with('.'))
            .collect();
        names.sort();
        names
    }
}

fn into(bench: &Bench, layer: &str) -> Request {
    Request { into: Some(bench.folder.file(layer)), ..Request::default() }
}

/// `base <- middle <- top`, each with bytes and zeros of its own; the base of that format.
fn three_layers(base_format: &str, options: &str) -> Bench {
    let bench = Bench::new();
    let f = &bench.folder;
    f.qemu_img(&format!("create -q -f {base_format} base 8M"));
    f.qemu_io(base_format, "base", &["write -P 1 0 8M"]);
    f.qemu_img(&format!("create -q -f qcow2 {options} -b base -F {base_format} middle"));
    f.qemu_io("qcow2", "middle", &["write -P 2 1M 2M", "write -z 3500k 300k", "write -P 3 5000k 64k"]);
    f.qemu_img(&format!("create -q -f qcow2 {options} -b middle -F qcow2 top"));
    f.qemu_io("qcow2", "top", &["write -P 4 2M 512k", "write -z 2600k 128k", "write -P 5 7777k 3k"]);
    bench
}

#[test]
fn con_5_a_raw_base_gets_the_bytes_and_top_stays_as_an_empty_delta() {
    let bench = three_layers("raw", "");
    let before = bench.folder.flat("qcow2", "top");
    let report = bench.fold_and_compare("top", ("qcow2", "top"), &Request::default());
    assert_same(&bench.folder.flat("raw", "base"), &before, "the base");
    assert_eq!(bench.names(), ["base", "top"]);
    assert_eq!(report.plan.removed, [bench.folder.file("middle")]);
    let map = bench.folder.qemu_img("map -f qcow2 --output json top");
    assert!(!map.contains("\"depth\": 0"), "top holds nothing of its own: {map}");
}

#[test]
fn con_2_no_more_is_moved_than_the_run_holds() {
    let bench = three_layers("raw", "");
    let report = bench.fold("top", &Request::default());
    let moved = report.copied_bytes + report.shared_bytes;
    assert_eq!(moved, report.plan.copy_bytes);
    assert_eq!(report.zeroed_bytes, report.plan.zero_bytes);
    // 2 MiB and a cluster below, half a MiB and a piece of a cluster above, which hides some of it.
    assert!(moved <= (2 << 20) + (512 << 10) + 4 * 65536, "{moved}");
}

#[test]
fn con_5_a_raw_base_can_be_the_result_under_its_own_name() {
    let bench = three_layers("raw", "");
    let request = Request { keeps_target_name: true, verify: Verify::Bytes, ..into(&bench, "base") };
    let report = bench.fold_and_compare("top", ("raw", "base"), &request);
    assert_eq!(bench.names(), ["base"]);
    assert_eq!(report.plan.result, bench.folder.file("base"));
}

#[test]
fn con_5_a_run_is_folded_into_a_new_raw_image_and_stays() {
    let bench = three_layers("qcow2", "");
    let new = NewImage { path: bench.folder.file("new"), format: Some(Format::Raw), options: vec![] };
    let request = Request { new: Some(new), ..Request::default() };
    bench.fold_and_compare("top", ("raw", "new"), &request);
    assert_eq!(bench.names(), ["base", "middle", "new", "top"]);
}

#[test]
fn con_5_all_deltas_go_into_the_base_and_tops_name_opens_it() {
    let bench = three_layers("qcow2", "");
    let report = bench.fold_and_compare("top", ("qcow2", "top"), &Request::default());
    assert_eq!(bench.names(), ["top"]);
    assert_eq!(report.plan.lost.len(), 2);
    let info = bench.folder.qemu_img("info top");
    assert!(!info.contains("backing"), "{info}");
}

#[test]
fn con_5_a_run_goes_into_the_delta_in_the_middle() {
    let bench = three_layers("qcow2", "");
    bench.fold_and_compare("top", ("qcow2", "top"), &into(&bench, "middle"));
    assert_eq!(bench.names(), ["base", "top"]);
    let info = bench.folder.qemu_img("info top");
    assert!(info.contains("backing file: base"), "{info}");
}

#[test]
fn con_5_the_target_can_keep_its_name() {
    let bench = three_layers("qcow2", "");
    let request = Request { keeps_target_name: true, ..into(&bench, "base") };
    bench.fold_and_compare("top", ("qcow2", "base"), &request);
    assert_eq!(bench.names(), ["base"]);
}

#[test]
fn con_5_a_run_above_a_layer_becomes_a_new_child_of_it() {
    let bench = three_layers("qcow2", "");
    let options = vec![("cluster_size".to_owned(), "4096".to_owned())];
    let new = NewImage { path: bench.folder.file("new"), format: None, options };
    let request = Request { new: Some(new), verify: Verify::Bytes, ..into(&bench, "base") };
    bench.fold_and_compare("top", ("qcow2", "new"), &request);
    assert_eq!(bench.names(), ["base", "middle", "new", "top"]);
    let info = bench.folder.qemu_img("info new");
    assert!(info.contains("backing file: base") && info.contains("cluster_size: 4096"), "{info}");
}

/// Layers of differing sizes: what a shorter one in the middle hides stays hidden.
#[test]
fn con_5_shorter_and_longer_layers_fold_to_the_same_view() {
    let sizes =
        [("8M", "4M", "6M"), ("4M", "6M", "8M"), ("8M", "6M", "4M"), ("4M", "8M", "3M"), ("6M", "2M", "8M")];
    for (base, middle, top) in sizes {
        for format in ["qcow2", "raw"] {
            let bench = Bench::new();
            let f = &bench.folder;
            f.qemu_img(&format!("create -q -f {format} base {base}"));
            f.qemu_io(format, "base", &[&format!("write -P 1 0 {base}")]);
            f.qemu_img(&format!("create -q -f qcow2 -b base -F {format} middle {middle}"));
            f.qemu_io("qcow2", "middle", &["write -P 2 1M 700k"]);
            f.qemu_img(&format!("create -q -f qcow2 -b middle -F qcow2 top {top}"));
            f.qemu_io("qcow2", "top", &["write -P 3 1500k 700k", "write -z 2500k 100k"]);
            bench.fold_and_compare("top", ("qcow2", "top"), &into(&bench, "base"));
        }
    }
}

#[test]
fn con_5_clusters_of_all_sizes_and_versions_fold() {
    let options = [
        "-o cluster_size=512",
        "-o cluster_size=4k",
        "-o cluster_size=2M",
        "-o compat=0.10",
        "-o extended_l2=on",
        "-o refcount_bits=1",
        "-o lazy_refcounts=on",
    ];
    let mut cells = 0;
    for (n, above) in options.iter().enumerate() {
        let below = options[(n * 3 + 2) % options.len()];
        let bench = Bench::new();
        let f = &bench.folder;
        f.qemu_img(&format!("create -q -f qcow2 {below} base 4M"));
        f.qemu_io("qcow2", "base", &["write -P 1 0 3M"]);
        f.qemu_img(&format!("create -q -f qcow2 {below} -b base -F qcow2 middle"));
        f.qemu_io("qcow2", "middle", &["write -P 2 100k 300k", "write -z 1M 200k"]);
        f.qemu_img(&format!("create -q -f qcow2 {above} -b middle -F qcow2 top"));
        f.qemu_io("qcow2", "top", &["write -P 3 333k 77k", "write -z 2M 130k", "write -P 4 3500k 3k"]);
        bench.fold_and_compare("top", ("qcow2", "top"), &into(&bench, "base"));
        cells += 1;
    }
    println!("{cells} cells");
}

#[test]
fn con_5_compressed_clusters_are_unpacked_on_their_way() {
    for kind in ["zlib", "zstd"] {
        let bench = three_layers("qcow2", "");
        bench.folder.qemu_img(&format!(
            "convert -c -O qcow2 -o compression_type={kind} -B base -F qcow2 middle packed"
        ));
        bench.folder.qemu_img("rebase -u -b packed -F qcow2 top");
        std::fs::remove_file(bench.folder.file("middle")).unwrap();
        bench.fold_and_compare("top", ("qcow2", "top"), &into(&bench, "base"));
    }
}

#[test]
fn con_5_a_deep_chain_folds_in_one_pass() {
    for depth in [5, 32] {
        let bench = Bench::new();
        let f = &bench.folder;
        f.qemu_img("create -q -f qcow2 l0 8M");
        f.qemu_io("qcow2", "l0", &["write -P 1 0 8M"]);
        for n in 1..=depth {
            f.qemu_img(&format!("create -q -f qcow2 -b l{} -F qcow2 l{n}", n - 1));
            let write = format!("write -P {} {}k 70k", n % 250 + 2, n * 977 % 8000);
            f.qemu_io("qcow2", &format!("l{n}"), &[&write, &format!("write -z {}k 9k", n * 1511 % 8000)]);
        }
        let top = format!("l{depth}");
        let report = bench.fold_and_compare(&top, ("qcow2", &top), &Request::default());
        assert_eq!(bench.names(), [top]);
        assert!(report.copied_bytes + report.shared_bytes <= 8 << 20);
    }
}

#[test]
fn con_8_a_layer_with_another_child_is_not_folded_into() {
    let bench = three_layers("raw", "");
    bench.folder.qemu_img("create -q -f qcow2 -b base -F raw sibling");
    let error = bench.prepare("top", &into(&bench, "base")).unwrap_err().to_string();
    assert!(error.contains("base") && error.contains("sibling lies on it"), "{error}");
    bench.folder.qemu_img("create -q -f qcow2 -b middle -F qcow2 cousin");
    let error = bench.prepare("top", &Request::default()).unwrap_err().to_string();
    assert!(error.contains("nothing of its own") && error.contains("cousin lies on it, too"), "{error}");
}

#[test]
fn con_8_a_golden_image_is_not_folded_into_unless_it_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let bench = three_layers("raw", "");
    std::fs::remove_file(bench.folder.file("top")).unwrap();
    let golden = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(bench.folder.file("base"), golden).unwrap();
    let error = bench.prepare("middle", &Request::default()).unwrap_err().to_string();
    assert!(error.contains("nothing of its own") && error.contains("is read-only"), "{error}");
    assert!(bench.prepare("middle", &into(&bench, "base")).is_ok());
}

#[test]
fn con_8_a_disk_that_qemu_writes_is_refused() {
    let bench = three_layers("raw", "");
    let top = bench.folder.file("top");
    let mut writer = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", top.to_str().unwrap()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The prompt says that the image is open.
    let mut prompt = [0; 8];
    std::io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    let refused = bench.prepare("top", &Request::default()).err().map(|e| e.kind());
    drop(writer.stdin.take());
    writer.wait().unwrap();
    assert_eq!(refused, Some(deltachain::base::ErrorKind::Busy));
}

#[test]
fn con_10_a_job_stopped_midway_keeps_the_disk_and_goes_on_where_it_was() {
    let bench = three_layers("qcow2", "");
    let before = bench.folder.flat("qcow2", "top");
    let job = bench.prepare("top", &Request::default()).unwrap();
    let progress = Progress::default();
    // So slow that the stop comes before the second move.
    progress.set_rate(1000);
    let error = std::thread::scope(|scope| {
        let job = scope.spawn(|| job.run(PACE, &progress).unwrap_err());
        while progress.state().moved_bytes == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        progress.cancel();
        job.join().unwrap()
    });
    assert_eq!(error.kind(), deltachain::base::ErrorKind::Interrupted);
    assert_same(&bench.folder.flat("qcow2", "top"), &before, "the view of a stopped job");
    let report = bench.fold_and_compare("top", ("qcow2", "top"), &Request::default());
    assert!(report.plan.is_resumed);
    assert!(report.copied_bytes + report.shared_bytes < report.plan.copy_bytes, "{report:?}");
}

/// The target and TOP in two folders: its parent's name must hold in both.
#[test]
fn con_5_a_target_in_another_folder_takes_tops_name() {
    let bench = Bench::new();
    let f = &bench.folder;
    std::fs::create_dir(f.file("golden")).unwrap();
    f.qemu_img("create -q -f qcow2 golden/root 4M");
    f.qemu_io("qcow2", "golden/root", &["write -P 1 0 4M"]);
    f.qemu_img("create -q -f qcow2 -b root -F qcow2 golden/base");
    f.qemu_io("qcow2", "golden/base", &["write -P 2 1M 1M"]);
    f.qemu_img("create -q -f qcow2 -b golden/base -F qcow2 top");
    f.qemu_io("qcow2", "top", &["write -P 3 1500k 1M"]);
    let error = bench.prepare("top", &Request::default()).unwrap_err().to_string();
    assert!(error.contains("is in another folder"), "{error}");
    bench.fold_and_compare("top", ("qcow2", "top"), &into(&bench, "golden/base"));
    let info = bench.folder.qemu_img("info top");
    assert!(info.contains("backing file: golden/root"), "{info}");
    assert!(!bench.folder.file("golden/base").exists());
}

#[test]
fn con_8_a_target_with_a_data_file_does_not_move_to_another_folder() {
    let bench = Bench::new();
    let f = &bench.folder;
    std::fs::create_dir(f.file("golden")).unwrap();
    f.qemu_img("create -q -f qcow2 -o data_file=golden/base.data golden/base 1M");
    f.qemu_img("amend -q -f qcow2 -o data_file=base.data golden/base");
    f.qemu_img("create -q -f qcow2 -b golden/base -F qcow2 top 1M");
    let error = bench.prepare("top", &into(&bench, "golden/base")).unwrap_err().to_string();
    assert!(error.contains("golden/base") && error.contains("data file"), "{error}");
}

#[test]
fn a_plan_says_what_is_lost_and_writes_nothing() {
    let bench = three_layers("raw", "");
    bench.folder.qemu_img("bitmap --add top changes");
    let names = bench.names();
    let plan = bench.prepare("top", &Request::default()).unwrap().plan().clone();
    let lost: Vec<PathBuf> = plan.lost.iter().map(|lost| lost.layer.clone()).collect();
    assert_eq!(lost, [bench.folder.file("middle"), bench.folder.file("base")]);
    assert_eq!(plan.bitmaps_merged, [format!("{}: changes", bench.folder.file("top").display())]);
    assert_eq!(plan.looked_in, [bench.folder.path()]);
    assert!(serde_json::to_string(&plan).unwrap().contains("\"mode\":\"empty-top\""));
    assert_eq!(bench.names(), names);
    assert!(!bench.folder.file(".dchain").exists());
}

#[test]
fn a_target_that_cannot_hold_bitmaps_loses_them_by_name() {
    let bench = Bench::new();
    let f = &bench.folder;
    f.qemu_img("create -q -f qcow2 -o compat=0.10 base 4M");
    f.qemu_img("create -q -f qcow2 -b base -F qcow2 top");
    f.qemu_img("bitmap --add top changes");
    f.qemu_io("qcow2", "top", &["write -P 1 1M 64k"]);
    let report = bench.fold_and_compare("top", ("qcow2", "top"), &Request::default());
    assert_eq!(report.plan.bitmaps_lost, [format!("{}: changes", f.file("top").display())]);
    assert_eq!(report.plan.bitmaps_merged, [""; 0]);
}

/// qemu's commit leaves them behind.
#[test]
fn con_5_data_files_go_with_their_layers_unless_another_image_needs_them() {
    let bench = Bench::new();
    let f = &bench.folder;
    f.qemu_img("create -q -f qcow2 base 4M");
    f.qemu_io("qcow2", "base", &["write -P 1 0 4M"]);
    for (parent, layer, write) in [
        ("base", "middle", "write -P 2 1M 64k"),
        ("middle", "second", "write -P 3 2M 64k"),
        ("second", "top", "write -P 4 3M 64k"),
    ] {
        f.qemu_img(&format!("create -q -f qcow2 -o data_file={layer}.data -b {parent} -F qcow2 {layer} 4M"));
        f.qemu_io("qcow2", layer, &[write]);
    }
    f.qemu_img("create -q -f qcow2 -o data_file=other.data other 4M");
    f.qemu_img("amend -q -f qcow2 -o data_file=second.data other");
    let report = bench.fold_and_compare("top", ("qcow2", "top"), &Request::default());
    let removed = ["top.data", "second", "middle", "middle.data"];
    assert_eq!(report.plan.removed, removed.map(|name| f.file(name)));
    let (stays, why) = report.plan.stays.first().unwrap();
    assert_eq!((stays, report.plan.stays.len()), (&f.file("second.data"), 1));
    assert!(why.contains("other keeps its bytes there"), "{why}");
    assert_eq!(bench.names(), ["other", "other.data", "second.data", "top"]);
}

#[test]
fn con_8_a_file_that_cannot_be_read_may_be_a_child_until_a_person_says_no() {
    let bench = three_layers("raw", "");
    std::fs::write(bench.folder.file("broken"), b"QFI\xfb and no version").unwrap();
    let names = bench.names();
    let refused = dchain(&bench.folder.path(), &["consolidate", "--yes", "top"]);
    assert_eq!(refused.code, Some(77), "{}", refused.err);
    assert!(refused.err.contains("/broken: might lie on a layer"), "{}", refused.err);
    assert!(refused.err.contains("hint: --ignore-unread"), "{}", refused.err);
    assert_eq!(bench.names(), names);
    let folded = done(&bench.folder.path(), &["consolidate", "--yes", "--ignore-unread", "top"]);
    assert!(folded.out.contains("verified: tree"), "{}", folded.out);
    assert!(folded.err.contains("could not be read: ") && folded.err.contains("/broken"), "{}", folded.err);
    assert_eq!(bench.names(), ["base", "broken", "top"]);
}

#[test]
fn con_8_what_has_another_name_is_neither_changed_nor_removed() {
    for (linked, folder) in [("top", "."), ("middle", "."), ("base", "elsewhere")] {
        let bench = three_layers("qcow2", "");
        let f = &bench.folder;
        std::fs::create_dir(f.file("elsewhere")).unwrap();
        let second = f.file(folder).join("second");
        std::fs::hard_link(f.file(linked), &second).unwrap();
        let before = std::fs::read(&second).unwrap();
        let run = dchain(&f.path(), &["consolidate", "--yes", "--into", "base", "top"]);
        let name = if folder == "." { "second would no longer" } else { "another name would no longer" };
        assert_eq!((run.code, run.err.contains("has 2 names")), (Some(69), true), "{}", run.err);
        assert!(run.err.contains(name), "{}", run.err);
        assert!(std::fs::read(&second).unwrap() == before, "{linked}");
        std::fs::remove_file(second).unwrap();
        done(&f.path(), &["consolidate", "--yes", "--into", "base", "top"]);
        assert_eq!(bench.names(), ["elsewhere", "top"]);
    }
}

#[test]
fn con_8_a_data_file_with_another_name_is_not_changed_under_it() {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 -o data_file=base.data base 1M");
    folder.qemu_img("create -q -f qcow2 -b base -F qcow2 top");
    folder.qemu_io("qcow2", "top", &["write -q -P 3 0 64k"]);
    std::fs::hard_link(folder.file("base.data"), folder.file("second.raw")).unwrap();
    let fold = ["consolidate", "--yes", "--into", "base", "top"];
    let run = dchain(&folder.path(), &fold);
    assert_eq!(run.code, Some(69), "{}", run.err);
    assert!(
        run.err.contains("base.data: has 2 names (hard links): ") && run.err.contains("second.raw would"),
        "{}",
        run.err
    );
    std::fs::remove_file(folder.file("second.raw")).unwrap();
    done(&folder.path(), &fold);
}

#[test]
fn names_as_long_as_they_can_be_are_folded_and_copied() {
    let folder = Scratch::new();
    let here = folder.path();
    let [base, top, new] = ["b", "t", "n"].map(|letter| format!("{}.qcow2", letter.repeat(249)));
    folder.qemu_img(&format!("create -q -f qcow2 {base} 1M"));
    folder.qemu_io("qcow2", &base, &["write -q -P 1 0 128k"]);
    done(&here, &["create", "-f", "qcow2", "-b", &base, "-F", "qcow2", &top]);
    folder.qemu_io("qcow2", &top, &["write -q -P 2 0 64k"]);
    let truth = folder.flat("qcow2", &top);
    std::fs::create_dir(folder.file("there")).unwrap();
    done(&here, &["copy", "--verify", &top, "there"]);
    done(&here, &["consolidate", "--new", &new, &top]);
    done(&here, &["consolidate", "--yes", &top]);
    for image in [&new, &top, &format!("there/{top}")] {
        assert_same(&folder.flat("qcow2", image), &truth, image);
    }
}
