//! Chains that qemu made, folded by us, read by qemu again.

use crate::foreign::{Scratch, assert_same};
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
const PACE: Pace = Pace { move_bytes: 1 << 20, mark_bytes: 2 << 20 };

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
        Consolidation::prepare(&self.host, &self.ledger, &self.folder.file(top), &Opening::reading(), request)
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
fn con_10_a_cancelled_job_keeps_the_disk_and_is_resumed() {
    let bench = three_layers("raw", "");
    let before = bench.folder.flat("qcow2", "top");
    let mut stops = 0;
    // Each life is cancelled from the start: it gets no further than the next clean point.
    let progress = Progress::default();
    progress.cancel();
    for _ in 0..3 {
        let job = bench.prepare("top", &Request::default()).unwrap();
        let error = job.run(PACE, &progress).unwrap_err();
        assert_eq!(error.kind(), deltachain::base::ErrorKind::Interrupted);
        assert_same(&bench.folder.flat("qcow2", "top"), &before, "the view of a cancelled job");
        stops += 1;
    }
    assert_eq!(stops, 3);
    bench.fold_and_compare("top", ("qcow2", "top"), &Request::default());
}

#[test]
fn a_plan_says_what_is_lost_and_writes_nothing() {
    let bench = three_layers("raw", "");
    bench.folder.qemu_img("bitmap --add top changes");
    let names = bench.names();
    let plan = bench.prepare("top", &Request::default()).unwrap().plan().clone();
    let lost: Vec<PathBuf> = plan.lost.iter().map(|lost| lost.layer.clone()).collect();
    assert_eq!(lost, [bench.folder.file("middle"), bench.folder.file("base")]);
    assert_eq!(plan.bitmaps_lost, [format!("{}: changes", bench.folder.file("top").display())]);
    assert_eq!(plan.looked_in, [bench.folder.path()]);
    assert!(serde_json::to_string(&plan).unwrap().contains("\"mode\":\"empty-top\""));
    assert_eq!(bench.names(), names);
    assert!(!bench.folder.file(".dchain").exists());
}
