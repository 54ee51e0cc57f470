//! What a guest would do, done by fio over its nbd engine.

use serde_json::Value;
use std::process::Command;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// 4K reads at random places, so many in flight.
    Reads(u32),
    /// 4K writes at random places, so many in flight.
    Writes(u32),
    /// 1M reads one after the other, four in flight.
    Stream,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// Requests a second.
    pub(crate) rate: f64,
    requests: f64,
    p99_us: f64,
    /// Processor time of the server for each request.
    pub(crate) cpu_us: f64,
}

impl Figures {
    /// Adds the processor time that the server took, in seconds.
    pub(crate) fn with_cpu(self, seconds: f64) -> Self {
        Self { cpu_us: seconds * 1e6 / self.requests.max(1.0), ..self }
    }
}

impl Work {
    fn arguments(self) -> [String; 3] {
        let (kind, block, depth) = match self {
            Self::Reads(depth) => ("randread", "4k", depth),
            Self::Writes(depth) => ("randwrite", "4k", depth),
            Self::Stream => ("read", "1m", 4),
        };
        [format!("--rw={kind}"), format!("--bs={block}"), format!("--iodepth={depth}")]
    }

    /// Returns the figures as a person reads them.
    pub(crate) fn shown(self, figures: &Figures) -> String {
        let Figures { rate, p99_us, .. } = figures;
        match self {
            Self::Stream => format!("{:.2} GB/s", rate * 1048576.0 / 1e9),
            _ => format!("{:.1}k/s, p99 {p99_us:.0} us", rate / 1e3),
        }
    }
}

/// Does the work on the disk at `uri`, which has `size` bytes.
pub(crate) fn run(work: Work, uri: &str, size: u64, seconds: u32) -> Result<Figures, String> {
    let output = Command::new("fio")
        .args(["--name=live", "--ioengine=nbd", "--time_based", "--randseed=3", "--invalidate=0"])
        .args(["--output-format=json".to_owned(), format!("--runtime={seconds}"), format!("--size={size}")])
        .arg(format!("--uri={uri}"))
        .args(work.arguments())
        .output()
        .map_err(|e| format!("fio: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = || format!("fio {uri}: {}", String::from_utf8_lossy(&output.stderr).trim());
    let start = said.find('{').filter(|_| output.status.success()).ok_or_else(wrong)?;
    let told: Value =
        serde_json::from_str(said.get(start..).unwrap_or_default()).map_err(|e| e.to_string())?;
    let side = if matches!(work, Work::Writes(_)) { "write" } else { "read" };
    let figure =
        |path: &str| told.pointer(&format!("/jobs/0/{side}/{path}")).and_then(Value::as_f64).unwrap_or(0.0);
    let p99_us = figure("clat_ns/percentile/99.000000") / 1e3;
    Ok(Figures { rate: figure("iops"), requests: figure("total_ios"), p99_us, cpu_us: 0.0 })
}

/// Returns the sample whose rate is in the middle.
pub(crate) fn median(samples: &[Figures]) -> Figures {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
