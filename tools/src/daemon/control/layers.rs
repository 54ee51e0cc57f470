//! A disk's layers: what has changed since one of them, and going back to one.

use super::answer::{Answer, body, done};
use axum::{
    body::Bytes,
    extract::{Path, Query, State},
};
use deltachain::{
    base::name,
    service::{DiffOf, Service},
};
use serde::Deserialize;
use std::sync::Arc;

type Held = State<Arc<Service>>;

/// Ranges that nobody says are as coarse as a page.
const GRANULARITY_BYTES: u64 = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Diff {
    from: Option<String>,
    to: Option<String>,
    granularity: Option<u64>,
}

pub async fn diff(State(service): Held, Path(disk): Path<String>, Query(asked): Query<Diff>) -> Answer {
    let of = DiffOf {
        from: asked.from.as_deref().map(name::path),
        to: asked.to.as_deref().map(name::path),
        granularity_bytes: asked.granularity.unwrap_or(GRANULARITY_BYTES),
    };
    done(service, move |service| service.diff(&disk, &of)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Revert {
    layer: String,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    dry_run: bool,
}

pub async fn revert(State(service): Held, Path(disk): Path<String>, bytes: Bytes) -> Answer {
    let asked: Revert = body(&bytes)?;
    let layer = name::path(&asked.layer);
    done(service, move |service| {
        if asked.dry_run {
            service.plan_revert(&disk, &layer)
        } else {
            service.revert(&disk, &layer, asked.force)
        }
    })
    .await
}
