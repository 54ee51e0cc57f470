//! Disks that go to another store.

use super::{
    answer::{Answer, Refusal, body, done},
    routes::{absolute, ms},
};
use crate::options;
use axum::{
    body::Bytes,
    extract::{Path, State},
};
use deltachain::{
    job::migrate::Request,
    service::{JobView, MigrateRequest, Service},
};
use serde::Deserialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Migrate {
    store: String,
    target_format: Option<String>,
    #[serde(default)]
    options: BTreeMap<String, String>,
    #[serde(default)]
    remove_source: bool,
    #[serde(default)]
    dry_run: bool,
    share: Option<f64>,
    /// Milliseconds.
    latency_target: Option<f64>,
    #[serde(default)]
    rate: u64,
    /// Seconds.
    deadline: Option<u64>,
}

/// Begins to bring a disk to another store, or says what that would do.
pub async fn begin(State(service): State<Arc<Service>>, Path(name): Path<String>, bytes: Bytes) -> Answer {
    let asked: Migrate = body(&bytes)?;
    let format = asked.target_format.as_deref().map(options::format).transpose();
    let request = Request {
        store: absolute(&asked.store)?,
        format: format.map_err(Refusal::senseless)?,
        options: asked.options.into_iter().collect(),
        removes_source: asked.remove_source,
    };
    if asked.dry_run {
        return done(service, move |service| service.plan_migrate(&name, &request)).await;
    }
    let (share, rate, deadline) = (asked.share, asked.rate, asked.deadline.map(Duration::from_secs));
    let asked = MigrateRequest { request, share, latency_target: ms(asked.latency_target)?, rate, deadline };
    done(service, move |service| Ok(JobView::from(service.migrate(&name, &asked)?.as_ref()))).await
}
