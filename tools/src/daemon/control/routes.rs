//! What can be asked for: one line a route, and what it does.

use super::{
    answer::{Answer, Refusal, body, done, json},
    backup::{self, Places},
    events, gate,
    gate::Gate,
    layers, metrics, migrate, page,
};
use crate::{options, settings::Disk};
use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    middleware,
    routing::{MethodRouter, get, post},
};
use deltachain::{
    base::{Error, name},
    format::Format,
    job::consolidate::{NewImage, Request},
    service::{FoldRequest, JobView, Service, SnapshotOf, Speed},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

type Held = State<Arc<Service>>;

/// How often a request that waits looks whether it has to.
const GLANCE: Duration = Duration::from_millis(50);

/// The description of all of it.
pub const DESCRIPTION: &str = include_str!("openapi.json");

/// All routes: method, path, and what answers.
fn table() -> Vec<(&'static str, &'static str, MethodRouter<Arc<Service>>)> {
    vec![
        ("get", "/", get(page::show)),
        ("get", "/v1/disks", get(disks)),
        ("get", "/v1/disks/{name}", get(disk)),
        ("post", "/v1/disks/{name}/attach", post(attach)),
        ("post", "/v1/disks/{name}/detach", post(detach)),
        ("post", "/v1/disks/{name}/consolidate", post(consolidate)),
        ("post", "/v1/disks/{name}/migrate", post(migrate::begin)),
        ("get", "/v1/disks/{name}/diff", get(layers::diff)),
        ("post", "/v1/disks/{name}/revert", post(layers::revert)),
        ("post", "/v1/snapshot", post(snapshot)),
        ("get", "/v1/backups", get(backup::list)),
        ("post", "/v1/backups", post(backup::begin)),
        ("post", "/v1/backups/{id}/end", post(backup::end)),
        ("get", "/v1/jobs", get(jobs)),
        ("get", "/v1/cut-off", get(cut_off)),
        ("get", "/v1/jobs/{id}", get(job)),
        ("get", "/v1/jobs/{id}/wait", get(wait)),
        ("post", "/v1/jobs/{id}/pause", post(pause)),
        ("post", "/v1/jobs/{id}/resume", post(resume)),
        ("post", "/v1/jobs/{id}/cancel", post(cancel)),
        ("post", "/v1/jobs/{id}/speed", post(speed)),
        ("get", "/v1/events", get(events::follow)),
        ("get", "/v1/openapi.json", get(description)),
        ("get", "/metrics", get(metrics::show)),
    ]
}

/// Returns what answers the requests that `gate` lets through.
pub fn router(service: Arc<Service>, places: Places, gate: Gate) -> Router {
    let routes = table().into_iter().fold(Router::new(), |router, (_, path, how)| router.route(path, how));
    let missing = || async { Refusal::unknown(StatusCode::NOT_FOUND, "nothing is there") };
    let wrong = || async { Refusal::unknown(StatusCode::METHOD_NOT_ALLOWED, "is not to be had in that way") };
    let routes = routes.fallback(missing).method_not_allowed_fallback(wrong);
    let routes = routes.layer(Extension(places));
    routes.layer(middleware::from_fn_with_state(gate, gate::check)).with_state(service)
}

async fn description() -> Result<Json<Value>, Refusal> {
    serde_json::from_str(DESCRIPTION).map(Json).map_err(|e| Refusal::senseless(e.to_string()))
}

async fn disks(State(service): Held) -> Answer {
    done(service, |service| Ok(service.view_disks())).await
}

async fn disk(State(service): Held, Path(name): Path<String>) -> Answer {
    done(service, move |service| service.view_disk(&name)).await
}

async fn attach(State(service): Held, Path(name): Path<String>, bytes: Bytes) -> Answer {
    let asked: Disk = body(&bytes)?;
    if asked.vhost_user.is_some() {
        return Err(Refusal::senseless("vhost-user: sockets are made at the start of the daemon"));
    }
    let named = asked.named(name).map_err(Refusal::senseless)?;
    refuse_relative(&named.path)?;
    done(service, move |service| {
        service.attach(&named)?;
        service.view_disk(&named.name)
    })
    .await
}

/// The daemon's folder is nobody's business.
fn refuse_relative(path: &std::path::Path) -> Result<(), Refusal> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(Refusal::senseless(format!("'{}': a path from the root is wanted", name::text(path))))
    }
}

/// Returns a path that a client named, which begins at the root.
pub fn absolute(text: &str) -> Result<std::path::PathBuf, Refusal> {
    let path = name::path(text);
    refuse_relative(&path).map(|()| path)
}

/// What there is no more.
#[derive(Serialize)]
struct Gone {
    detached: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Detach {
    #[serde(default)]
    force: bool,
}

async fn detach(State(service): Held, Path(name): Path<String>, bytes: Bytes) -> Answer {
    let asked: Detach = body(&bytes)?;
    done(service, move |service| {
        service.detach(&name, asked.force)?;
        Ok(Gone { detached: name })
    })
    .await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Consolidate {
    into: Option<String>,
    new: Option<String>,
    target_format: Option<String>,
    options: BTreeMap<String, String>,
    keep_target_name: bool,
    ignore_unread: bool,
    dry_run: bool,
    share: Option<f64>,
    /// Milliseconds.
    latency_target: Option<f64>,
    rate: u64,
    /// Seconds.
    deadline: Option<u64>,
}

/// Returns a time given in milliseconds.
pub fn ms(time: Option<f64>) -> Result<Option<Duration>, Refusal> {
    let read = |ms: f64| {
        let wrong = |_| Refusal::senseless(format!("latency-target: {ms} is no time in milliseconds"));
        Duration::try_from_secs_f64(ms / 1000.0).map_err(wrong)
    };
    time.map(read).transpose()
}

async fn consolidate(State(service): Held, Path(name): Path<String>, bytes: Bytes) -> Answer {
    let asked: Consolidate = body(&bytes)?;
    let format = asked.target_format.as_deref().map(options::format).transpose();
    let format = format.map_err(Refusal::senseless)?;
    let options: Vec<_> = asked.options.clone().into_iter().collect();
    let new = asked.new.as_deref().map(absolute).transpose()?;
    let request = Request {
        into: asked.into.as_deref().map(name::path),
        new: new.map(|path| NewImage { path, format, options }),
        keeps_target_name: asked.keep_target_name,
        ignores_unread: asked.ignore_unread,
        ..Request::default()
    };
    if asked.dry_run {
        return done(service, move |service| service.plan(&name, &request)).await;
    }
    let deadline = asked.deadline.map(Duration::from_secs);
    let Consolidate { share, rate, .. } = asked;
    let latency_target = ms(asked.latency_target)?;
    let fold = FoldRequest { request, share, latency_target, rate, deadline };
    done(service, move |service| Ok(JobView::from(service.consolidate(&name, &fold)?.as_ref()))).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    disks: Vec<SnapshotDisk>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotDisk {
    name: String,
    new: Option<String>,
    format: Option<String>,
}

async fn snapshot(State(service): Held, bytes: Bytes) -> Answer {
    let asked: Snapshot = body(&bytes)?;
    done(service, move |service| {
        let of = |one: SnapshotDisk| -> deltachain::base::Result<SnapshotOf> {
            let format = one.format.as_deref().map_or(Ok(Format::Qcow2), Format::parse)?;
            Ok(SnapshotOf { disk: one.name, new: one.new.as_deref().map(name::path), format })
        };
        let disks = asked.disks.into_iter().map(of).collect::<Result<Vec<_>, _>>()?;
        service.snapshot(&disks)
    })
    .await
}

async fn jobs(State(service): Held) -> Answer {
    json(&service.view_jobs())
}

async fn cut_off(State(service): Held) -> Answer {
    done(service, |service| Ok(service.view_cut_off())).await
}

fn number(id: &str) -> Result<u64, Refusal> {
    id.parse().map_err(|_| Refusal::senseless(format!("'{id}' is no job's number")))
}

async fn job(State(service): Held, Path(id): Path<String>) -> Answer {
    json(&JobView::from(service.job(number(&id)?)?.as_ref()))
}

#[derive(Deserialize)]
struct Patience {
    /// Seconds; for ever if not given.
    timeout: Option<f64>,
}

async fn wait(State(service): Held, Path(id): Path<String>, Query(patience): Query<Patience>) -> Answer {
    let job = service.job(number(&id)?)?;
    let begun = tokio::time::Instant::now();
    let is_too_long = |seconds: f64| begun.elapsed().as_secs_f64() >= seconds;
    while !job.is_over() && !patience.timeout.is_some_and(is_too_long) {
        tokio::time::sleep(GLANCE).await;
    }
    json(&JobView::from(job.as_ref()))
}

/// Tells a job something, which is done at once, whoever waits for disks or for a guest to hold still; the answer comes
/// when the next start knows of it, too.
async fn tell(
    service: Arc<Service>,
    id: &str,
    what: impl FnOnce(&Service, u64) -> Result<Arc<deltachain::service::Job>, Error>,
) -> Answer {
    let job = what(&service, number(id)?)?;
    done(service, move |service| service.note_told(&job).map(|()| JobView::from(job.as_ref()))).await
}

async fn pause(State(service): Held, Path(id): Path<String>) -> Answer {
    tell(service, &id, Service::pause).await
}

async fn resume(State(service): Held, Path(id): Path<String>) -> Answer {
    tell(service, &id, Service::resume).await
}

async fn cancel(State(service): Held, Path(id): Path<String>) -> Answer {
    tell(service, &id, Service::cancel).await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Faster {
    rate: Option<u64>,
    share: Option<f64>,
    /// Milliseconds; 0 is none.
    latency_target: Option<f64>,
}

async fn speed(State(service): Held, Path(id): Path<String>, bytes: Bytes) -> Answer {
    let asked: Faster = body(&bytes)?;
    let speed = Speed { rate: asked.rate, share: asked.share, latency_target: ms(asked.latency_target)? };
    tell(service, &id, |service, number| service.set_speed(number, speed)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_description_has_each_route_and_no_other() {
        let description: Value = serde_json::from_str(DESCRIPTION).unwrap();
        let mut described = BTreeSet::new();
        for (path, methods) in description["paths"].as_object().unwrap() {
            described.extend(methods.as_object().unwrap().keys().map(|m| (m.clone(), path.clone())));
        }
        let served: BTreeSet<_> =
            table().iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
        assert_eq!(described, served);
    }
}
