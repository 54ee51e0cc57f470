//! Figures for Prometheus, in its text format (version 0.0.4).

use super::answer::Refusal;
use axum::{
    extract::State,
    http::{HeaderName, header},
};
use deltachain::{
    base::Error,
    service::{DiskView, JobState, JobView, Service},
};
use std::{fmt::Write, io, sync::Arc};

const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers with all figures.
pub async fn show(
    State(service): State<Arc<Service>>,
) -> Result<([(HeaderName, &'static str); 1], String), Refusal> {
    let jobs = service.view_jobs();
    let looked = tokio::task::spawn_blocking(move || service.view_disks()).await;
    let disks = looked.map_err(|e| Error::io("look at the disks", io::Error::other(e)))?;
    Ok(([(header::CONTENT_TYPE, TYPE)], text(&disks, &jobs)))
}

/// A figure: its name, what it is, and its lines.
fn figure(out: &mut String, name: &str, help: &str, lines: impl Iterator<Item = (String, String)>) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (labels, value) in lines {
        let _ = writeln!(out, "{name}{{{labels}}} {value}");
    }
}

fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    format!("{name}=\"{value}\"")
}

fn text(disks: &[DiskView], jobs: &[JobView]) -> String {
    let mut out = String::new();
    let served = || disks.iter().filter(|disk| disk.is_served);
    let of = |disk: &DiskView| label("disk", &disk.name);
    let each = |value: fn(&DiskView) -> u64| served().map(move |disk| (of(disk), value(disk).to_string()));
    let is_served = disks.iter().map(|disk| (of(disk), u8::from(disk.is_served).to_string()));
    figure(&mut out, "deltachain_disk_served", "Whether guests can use the disk.", is_served);
    figure(&mut out, "deltachain_disk_size_bytes", "Size of the disk.", each(|disk| disk.size));
    let layers = each(|disk| disk.layers.len() as u64);
    figure(&mut out, "deltachain_disk_layers", "Layers of the disk.", layers);
    let space = |disk: &DiskView| disk.layers.iter().map(|layer| layer.allocated).sum::<Option<u64>>();
    let allocated = served().filter_map(|disk| Some((of(disk), space(disk)?.to_string())));
    figure(&mut out, "deltachain_disk_allocated_bytes", "Space that its layers take.", allocated);
    let clients = each(|disk| disk.clients.len() as u64);
    figure(&mut out, "deltachain_disk_clients", "Clients that use the disk.", clients);
    let of = |job: &JobView| format!("{},{}", label("disk", &job.disk), label("job", &job.id.to_string()));
    let live = || jobs.iter().filter(|job| job.state != JobState::Concluded);
    let each = |value: fn(&JobView) -> u64| live().map(move |job| (of(job), value(job).to_string()));
    let moved = each(|job| job.progress.transferred);
    figure(&mut out, "deltachain_job_transferred_bytes", "What the job has moved in this phase.", moved);
    figure(&mut out, "deltachain_job_size_bytes", "What it has to move.", each(|job| job.progress.size));
    figure(&mut out, "deltachain_job_rate_bytes", "Bytes a second so far.", each(|job| job.progress.rate));
    let slowest = live().filter_map(|job| Some((of(job), (job.progress.guest_p99? / 1000.0).to_string())));
    let help = "What all but one in a hundred of the guests' requests took, a moment ago.";
    figure(&mut out, "deltachain_job_guest_p99_seconds", help, slowest);
    let over = jobs.iter().filter(|job| job.state == JobState::Concluded);
    let ends = over.map(|job| {
        let end = if job.error.is_some() { "failed" } else { "done" };
        (format!("{},{}", of(job), label("end", end)), "1".to_owned())
    });
    figure(&mut out, "deltachain_job_concluded", "Jobs that have ended since the start.", ends);
    let pauses =
        jobs.iter().filter_map(|job| Some((of(job), job.report.as_ref()?.pause.as_secs_f64().to_string())));
    figure(
        &mut out,
        "deltachain_job_swap_pause_seconds",
        "How long guests were held back at its end.",
        pauses,
    );
    out
}
