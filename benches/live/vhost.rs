//! 4K reads in a virtual machine whose disk comes over vhost-user, 32 in flight: what they cost the server.
//!
//! The machine is qemu's emulator (the laboratory's, with Linux and busybox); the driver is Linux's own, with two queues.
//! In it 32 processes of `dd` read 4K each past the guest's page cache, one after the other, each in a place of its own
//! (`vhost.sh`). The emulator is slow and shares the processors with the server: requests a second say little, and are not
//! compared. The server's processor time between two lines that the guest says is counted, for each read that the guest's
//! kernel counted between them.

use crate::{Options, data, server::Server};
use dchain_lab::guest;
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    time::Instant,
};

/// The row's name.
pub(crate) const ROW: &str = "vhost-user-blk in a TCG guest, 4K read, qd 32";

/// The server's processor time may be so much of theirs.
const REACH: f64 = 0.7;
/// The guest's first program.
const INIT: &str = include_str!("vhost.sh");
const OURS: Server = Server::OursVhost("base.raw");
/// What is its default, and what costs it less.
const THEIRS: [Server; 2] =
    [Server::QemuVhost("base.raw", "threads"), Server::QemuVhost("base.raw", "io_uring")];

/// Runs all sides in turn; returns a line for each of theirs.
pub(crate) fn lines(data: &mut data::Data, options: &Options) -> Result<Vec<[String; 7]>, String> {
    data.make(&[data::Piece::Base])?;
    let (mut ours, mut theirs) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..options.runs {
        ours.push(sample(&OURS, &data.folder)?);
        for (server, samples) in THEIRS.iter().zip(&mut theirs) {
            samples.push(sample(server, &data.folder)?);
        }
    }
    let ours = median(ours);
    Ok(THEIRS.iter().zip(theirs).map(|(server, theirs)| line(server, ours, median(theirs))).collect())
}

/// Each side as microseconds a read, and reads a second.
fn line(server: &Server, ours: (f64, f64), theirs: (f64, f64)) -> [String; 7] {
    let ratio = ours.0 / theirs.0;
    let mark = if ratio > REACH { " **missed**" } else { "" };
    let shown = |rate: f64| format!("{:.1}k/s", rate / 1e3);
    [
        ROW.to_owned(),
        server.name().to_owned(),
        shown(ours.1),
        shown(theirs.1),
        format!("CPU {ratio:.2}"),
        format!("{:.1} us, {:.1} us", ours.0, theirs.0),
        format!("CPU <= {REACH}x{mark}"),
    ]
}

/// The sample in the middle, by the first figure.
fn median(mut samples: Vec<(f64, f64)>) -> (f64, f64) {
    samples.sort_by(|a, b| a.0.total_cmp(&b.0));
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

/// A machine that runs; killed when this goes.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Boots a machine once; returns the server's microseconds for each read, and reads a second.
fn sample(server: &Server, folder: &Path) -> Result<(f64, f64), String> {
    let running = server.start(folder)?;
    let place = running.folder();
    let device = [
        "-chardev".to_owned(),
        format!("socket,id=wire,path={}", place.join("s").display()),
        "-device".to_owned(),
        "vhost-user-blk-pci,chardev=wire,num-queues=2".to_owned(),
    ];
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    let mut qemu = guest::emulator(place, &kernel, INIT, &device)?;
    let qemu = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut machine = Machine(qemu.map_err(|e| format!("qemu-system-x86_64: {e}"))?);
    let out = machine.0.stdout.take().ok_or("qemu has no output")?;
    let (mut first, mut said) = (None, String::new());
    for line in BufReader::new(out).split(b'\n') {
        let line = line.map_err(|e| e.to_string())?;
        String::from_utf8_lossy(&line).trim().clone_into(&mut said);
        let Some(reads) = said.strip_prefix("guest: reads ").and_then(|reads| reads.parse::<f64>().ok())
        else {
            continue;
        };
        let (at, cpu) = (Instant::now(), running.cpu());
        let Some((reads_before, cpu_before, began)) = first else {
            first = Some((reads, cpu, at));
            continue;
        };
        let reads = reads - reads_before;
        return Ok(((cpu - cpu_before) * 1e6 / reads, reads / at.duration_since(began).as_secs_f64()));
    }
    Err(format!("{}: the guest ends early; it said last: {said}", server.name()))
}
