//! Folds of a delta under a guest: ours, and the jobs that qemu has for it.
//!
//! A chain of two, `w.base` <- `w.d`, is copied for each run and synced. The guest is fio with 16 random writes in
//! flight, which begins a tenth of a second before the fold: the delta is about as large as its row says. What the guest had is
//! counted from the fold's first moment to its last. Ours ends durable, qemu's jobs do not.

use crate::{
    data::{Data, Piece},
    qmp::Qmp,
};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

/// How long the guest is at work when the fold begins.
pub(crate) const LEAD: Duration = Duration::from_millis(100);
/// A job of qemu that does not end is given up after so long.
const LIMIT: Duration = Duration::from_secs(30);
/// Snapshots and folds whose pauses are looked at.
const PAUSES: u32 = 40;

/// What the guest does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    Idle,
    /// Writes of so many KiB, as fast as they are answered.
    Full(u32),
    /// 64 KiB writes, 100 MB a second.
    Limited,
}

/// Who folds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    /// `cp` of the delta and `sync`: what has to be moved at least.
    Cp,
    /// `block-commit` of `qemu-storage-daemon`, the active kind.
    Commit,
    /// `blockdev-mirror` with `copy-mode=write-blocking`, to a new image.
    Mirror,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// From the command to its end.
    Seconds,
    /// What the guest wrote in a second meanwhile.
    Rate,
    /// All but one of its writes in a hundred took no longer.
    P99,
    /// What the copier moved, for each byte of the delta as it was when the fold began.
    Copied,
}

/// One fold, and what is compared with whom.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    guest: Guest,
    /// Ours divided by theirs is to be at most, or of a rate at least, that.
    theirs: &'static [(Side, &'static [(Figure, f64)])],
}

const COMMIT: &[(Figure, f64)] =
    &[(Figure::Seconds, 0.5), (Figure::Copied, 1.05), (Figure::Rate, 1.0), (Figure::P99, 1.0)];
const MIRROR: &[(Figure, f64)] = &[(Figure::Rate, 2.0), (Figure::P99, 0.5)];

/// All of them.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "fold 910 MiB, idle guest",
        guest: Guest::Idle,
        theirs: &[(Side::Cp, &[(Figure::Seconds, 1.15)])],
    },
    Row {
        name: "fold 910 MiB, guest at full rate, 64K",
        guest: Guest::Full(64),
        theirs: &[(Side::Commit, COMMIT), (Side::Mirror, MIRROR)],
    },
    Row {
        name: "fold 910 MiB, guest at full rate, 4K",
        guest: Guest::Full(4),
        theirs: &[(Side::Commit, COMMIT), (Side::Mirror, MIRROR)],
    },
    Row {
        name: "fold 910 MiB, guest of 100 MB/s",
        guest: Guest::Limited,
        theirs: &[(Side::Commit, &[(Figure::P99, 1.0)])],
    },
];

/// The name of the row that looks at pauses.
pub(crate) const PAUSE_ROW: &str = "pauses of 40 snapshots and folds, guest at full rate, 4K";

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    seconds: f64,
    rate: f64,
    p99_us: f64,
    copied: f64,
    delta: f64,
}

impl Sample {
    fn get(&self, figure: Figure) -> f64 {
        match figure {
            Figure::Seconds => self.seconds,
            Figure::Rate => self.rate,
            Figure::P99 => self.p99_us,
            Figure::Copied => self.copied / self.delta,
        }
    }
}

impl Figure {
    fn shown(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.2} s"),
            Self::Rate => format!("guest {:.0} MB/s", value / 1e6),
            Self::P99 => format!("guest p99 {:.2} ms", value / 1e3),
            Self::Copied => format!("copied {value:.2} of the delta"),
        }
    }
}

impl Row {
    /// Runs all sides in turn; returns the table's lines.
    pub(crate) fn run(&self, data: &mut Data, runs: u32) -> Result<Vec<[String; 7]>, String> {
        data.make(&[Piece::Scattered])?;
        let sides: Vec<Side> =
            [Side::Ours].into_iter().chain(self.theirs.iter().map(|(side, _)| *side)).collect();
        let mut samples = vec![Vec::new(); sides.len()];
        for _ in 0..runs {
            for (side, samples) in sides.iter().zip(&mut samples) {
                samples.push(sample(*side, self.guest, &data.folder)?);
            }
        }
        let median = |samples: &[Sample], figure| {
            let mut values: Vec<f64> = samples.iter().map(|sample| sample.get(figure)).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let ours = samples.first().cloned().unwrap_or_default();
        let mut lines = Vec::new();
        for ((side, figures), samples) in self.theirs.iter().zip(samples.iter().skip(1)) {
            for (figure, reach) in *figures {
                let (own, other) = (median(&ours, *figure), median(samples, *figure));
                let ratio = if *figure == Figure::Copied { own } else { own / other };
                let (sign, missed) = match figure {
                    Figure::Rate => (">=", ratio < *reach),
                    _ => ("<=", ratio > *reach),
                };
                let mark = if missed { " **missed**" } else { "" };
                lines.push([
                    self.name.to_owned(),
                    side.name().to_owned(),
                    figure.shown(own),
                    figure.shown(other),
                    format!("{ratio:.2}"),
                    "-".to_owned(),
                    format!("{sign} {reach}x{mark}"),
                ]);
            }
        }
        Ok(lines)
    }
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Cp => "cp of the delta, then sync",
            Self::Commit => "QEMU block-commit",
            Self::Mirror => "QEMU mirror write-blocking",
        }
    }
}

/// Makes a fresh chain, and folds it once.
#[allow(clippy::cast_precision_loss, reason = "figures to look at")]
fn sample(side: Side, guest: Guest, folder: &Path) -> Result<Sample, String> {
    let place = TempDir::new_in(folder).map_err(|e| e.to_string())?;
    let place = place.path();
    run(place, "cp", &["--reflink=never", "../d.1", "w.d"])?;
    if side == Side::Cp {
        run(place, "sync", &["w.d"])?;
        touch_memory();
        let watch = Instant::now();
        run(place, "cp", &["--reflink=never", "w.d", "w.copy"])?;
        run(place, "sync", &["w.copy"])?;
        return Ok(Sample { seconds: watch.elapsed().as_secs_f64(), ..Sample::default() });
    }
    run(place, "cp", &["--reflink=never", "../base.qcow2", "w.base"])?;
    run(place, "qemu-img", &["rebase", "-u", "-F", "qcow2", "-b", "w.base", "w.d"])?;
    run(place, "sync", &[])?;
    touch_memory();
    let server = start(side, place, "qcow2")?;
    let guest = Fio::start(guest, place)?;
    thread::sleep(LEAD);
    let mut delta = fs::metadata(place.join("w.d")).map_err(|e| e.to_string())?.blocks() as f64 * 512.0;
    let (watch, began) = (Instant::now(), now_ms());
    let copied = match side {
        Side::Ours => {
            let job = ask(place, &["consolidate", "--disk", "x", "--yes"])?;
            delta = figure(&job, "/report/plan/copy-bytes").unwrap_or(delta);
            figure(&job, "/report/copied-bytes").unwrap_or_default()
        }
        _ => qemu_job(side, place, watch, LIMIT)?,
    };
    let (seconds, ended) = (watch.elapsed().as_secs_f64(), now_ms());
    let (rate, p99_us) = guest.stop(began, ended)?;
    drop(server);
    Ok(Sample { seconds, rate, p99_us, copied, delta })
}

/// Has the host give this machine the memory that page cache takes next: under a hypervisor that takes free memory
/// back, whoever runs after a pause would pay for that, for each side another share.
fn touch_memory() {
    std::hint::black_box(vec![1_u8; 2 << 30]);
}

/// Snapshots and folds a disk under a guest, over and over; returns a line for each kind of pause.
pub(crate) fn pauses(data: &mut Data) -> Result<Vec<[String; 7]>, String> {
    data.make(&[Piece::Base])?;
    let place = TempDir::new_in(&data.folder).map_err(|e| e.to_string())?;
    let place = place.path();
    run(place, "qemu-img", &["create", "-q", "-f", "qcow2", "w.d", "1G"])?;
    let server = start(Side::Ours, place, "qcow2")?;
    let guest = Fio::start(Guest::Full(4), place)?;
    let (mut snapshots, mut swaps) = (Vec::new(), Vec::new());
    for round in 0..PAUSES {
        thread::sleep(Duration::from_millis(100));
        let taken = ask(place, &["snapshot", "--disk", &format!("x=w.{round}")])?;
        snapshots.push(figure(&taken, "/pause").ok_or("a snapshot without a pause")? * 1e3);
        let job = ask(place, &["consolidate", "--disk", "x", "--yes"])?;
        swaps.push(figure(&job, "/report/pause").ok_or("a fold without a pause")? * 1e3);
    }
    drop((guest, server));
    let line = |what: &str, mut pauses: Vec<f64>| {
        pauses.sort_by(f64::total_cmp);
        let at = |index: usize| pauses.get(index).copied().unwrap_or_default();
        let (median, longest) = (at(pauses.len() / 2), at(pauses.len() - 1));
        let mark = if longest >= 20.0 { " **missed**" } else { "" };
        let shown = format!("longest of {PAUSES} {longest:.1} ms, median {median:.1} ms");
        [PAUSE_ROW, what, &shown, "-", "-", "-", &format!("< 20 ms{mark}")].map(str::to_owned)
    };
    Ok(vec![line("swap", swaps), line("snapshot", snapshots)])
}

/// A program that runs; ended when this goes.
pub(crate) struct Server(pub(crate) Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(Command::new("kill").arg(self.0.id().to_string()).status());
        drop(self.0.wait());
    }
}

/// Serves the chain in `place`, whose base is of the format `base`.
pub(crate) fn start(side: Side, place: &Path, base: &str) -> Result<Server, String> {
    let mut command = match side {
        Side::Ours | Side::Cp => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_dchaind"));
            command.args([
                "--disk",
                "x=w.d,format=qcow2",
                "--nbd",
                "unix:s",
                "--control",
                "unix:c",
                "--state",
                "state",
            ]);
            command
        }
        Side::Commit | Side::Mirror => {
            run(place, "qemu-img", &["create", "-q", "-f", "qcow2", "w.t", "4G"])?;
            let mut command = Command::new("qemu-storage-daemon");
            command.args(["--blockdev", "driver=file,node-name=fb,filename=w.base"]);
            command.args(["--blockdev", &format!("driver={base},node-name=base,file=fb")]);
            for node in [
                "driver=file,node-name=fd,filename=w.d",
                "driver=qcow2,node-name=top,file=fd,backing=base",
                "driver=file,node-name=ft,filename=w.t",
                "driver=qcow2,node-name=tgt,file=ft,discard=unmap",
            ] {
                command.args(["--blockdev", node]);
            }
            command.args(["--chardev", "socket,id=m,path=c,server=on,wait=off", "--monitor", "chardev=m"]);
            command.args(["--nbd-server", "addr.type=unix,addr.path=s"]);
            command.args(["--export", "type=nbd,id=x,node-name=top,writable=on,name=x"]);
            command
        }
    };
    let child = command.current_dir(place).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let server = Server(child.map_err(|e| format!("{}: {e}", side.name()))?);
    for _ in 0..500 {
        if ["s", "c"].iter().all(|name| std::os::unix::net::UnixStream::connect(place.join(name)).is_ok()) {
            return Ok(server);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(format!("{} does not listen", side.name()))
}

/// Runs the job to its end, or to the limit; returns how many bytes it copied.
pub(crate) fn qemu_job(side: Side, place: &Path, watch: Instant, limit: Duration) -> Result<f64, String> {
    let mut qmp = Qmp::connect(&place.join("c"))?;
    match side {
        Side::Commit => qmp.ask("block-commit", &json!({"job-id": "j", "device": "top"}))?,
        _ => qmp.ask(
            "blockdev-mirror",
            &json!({"job-id": "j", "device": "top", "target": "tgt", "sync": "full", "copy-mode": "write-blocking"}),
        )?,
    };
    let (mut copied, mut is_ready) = (0.0, false);
    loop {
        let jobs = qmp.ask("query-jobs", &json!({}))?;
        let Some(job) = jobs.get(0) else { return Ok(copied) };
        copied = figure(job, "/current-progress").unwrap_or(copied);
        if job.get("status").is_some_and(|status| status == "ready") && !is_ready {
            is_ready = true;
            qmp.ask("job-complete", &json!({"id": "j"}))?;
        }
        if watch.elapsed() > limit {
            return Ok(copied);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// fio as a guest, and where its logs go.
pub(crate) struct Fio(Option<(Child, PathBuf, f64)>);

impl Fio {
    pub(crate) fn start(guest: Guest, place: &Path) -> Result<Self, String> {
        let (block, rate) = match guest {
            Guest::Idle => return Ok(Self(None)),
            Guest::Full(block) => (block, None),
            Guest::Limited => (64, Some("--rate=100m")),
        };
        let mut fio = Command::new("fio");
        fio.args(["--name=guest", "--ioengine=nbd", "--rw=randwrite", "--iodepth=16", "--time_based"]);
        fio.args(["--runtime=300", "--norandommap", "--randrepeat=0", "--randseed=5", "--invalidate=0"]);
        fio.args(["--write_lat_log=guest", "--log_unix_epoch=1", "--uri=nbd+unix:///x?socket=s"]);
        fio.args([format!("--bs={block}k"), format!("--size={}m", guest_mib(place))]).args(rate);
        let child = fio.current_dir(place).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(|e| format!("fio: {e}"))?;
        Ok(Self(Some((child, place.join("guest_clat.1.log"), f64::from(block) * 1024.0))))
    }

    /// Ends it; returns bytes a second, and the 99th percentile in microseconds, of what ended between two times.
    pub(crate) fn stop(mut self, began: u64, ended: u64) -> Result<(f64, f64), String> {
        let Some((mut child, log, block)) = self.0.take() else { return Ok((0.0, 0.0)) };
        drop(Command::new("kill").args(["-INT", &child.id().to_string()]).status());
        child.wait().map_err(|e| e.to_string())?;
        let log = fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let mut latencies = Vec::new();
        for line in log.lines() {
            let mut fields = line.split(',').map(str::trim);
            let at: Option<u64> = fields.next().and_then(|at| at.parse().ok());
            let took: Option<f64> = fields.next().and_then(|took| took.parse().ok());
            latencies.extend(took.filter(|_| at.is_some_and(|at| (began..=ended).contains(&at))));
        }
        latencies.sort_by(f64::total_cmp);
        let p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default() / 1e3;
        #[allow(clippy::cast_precision_loss, reason = "figures to look at")]
        let rate = latencies.len() as f64 * block * 1e3 / (ended - began).max(1) as f64;
        Ok((rate, p99))
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        if let Some((child, ..)) = &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The size of the disk whose head is in the folder.
fn guest_mib(place: &Path) -> u64 {
    let info = run(place, "qemu-img", &["info", "-U", "--output=json", "w.d"]).unwrap_or_default();
    let info: Value = serde_json::from_str(&info).unwrap_or_default();
    info.get("virtual-size").and_then(Value::as_u64).unwrap_or_default() >> 20
}

pub(crate) fn figure(value: &Value, place: &str) -> Option<f64> {
    value.pointer(place).and_then(Value::as_f64)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

pub(crate) fn ask(place: &Path, arguments: &[&str]) -> Result<Value, String> {
    let all = [arguments, &["--socket", "c", "--output", "json"]].concat();
    serde_json::from_str(&run(place, env!("CARGO_BIN_EXE_dchain"), &all)?).map_err(|e| e.to_string())
}

pub(crate) fn run(folder: &Path, program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).current_dir(folder).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
}
