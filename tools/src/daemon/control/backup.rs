//! Backups: what is exported, and where programs that pull it find it.

use super::answer::{Answer, body, done};
use crate::arguments::Address;
use axum::{
    Extension,
    body::Bytes,
    extract::{Path, State},
};
use deltachain::service::{BackupPart, BackupView, Service};
use serde::{Deserialize, Serialize};
use std::{os::unix::ffi::OsStrExt, sync::Arc};

type Held = State<Arc<Service>>;

/// Where the daemon's exports are, as clients of this host say it.
#[derive(Clone, Debug)]
pub struct Places {
    pub of: Arc<[Address]>,
    /// Whether only TLS is spoken there.
    pub is_secret: bool,
}

impl Places {
    /// Returns the URIs of an export (`doc/uri.md` of the NBD project).
    fn uris(&self, export: &str) -> Vec<String> {
        let export = escaped(export.as_bytes());
        let scheme = if self.is_secret { "nbds" } else { "nbd" };
        let uri = |place: &Address| match place {
            Address::Unix(path) => {
                format!("{scheme}+unix:///{export}?socket={}", escaped(path.as_os_str().as_bytes()))
            }
            Address::Tcp(address) => format!("{scheme}://{address}/{export}"),
        };
        self.of.iter().map(uri).collect()
    }

    fn show(&self, view: BackupView) -> Shown {
        let BackupView { id, since, taken_ms, contexts, disks } = view;
        let disks = disks.into_iter().map(|part| ShownPart { uris: self.uris(&part.export), part }).collect();
        Shown { id, since, taken_ms, contexts, disks }
    }
}

/// A part of a URI in which every other character would have a meaning.
fn escaped(bytes: &[u8]) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(byte);
    let shown = bytes.iter().map(|byte| match byte {
        byte if is_plain(byte) => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    shown.collect()
}

#[derive(Serialize)]
struct Shown {
    id: String,
    since: Option<String>,
    taken_ms: u64,
    contexts: [&'static str; 2],
    disks: Vec<ShownPart>,
}

#[derive(Serialize)]
struct ShownPart {
    #[serde(flatten)]
    part: BackupPart,
    uris: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    disks: Vec<String>,
    since: Option<String>,
}

pub async fn list(State(service): Held, Extension(places): Extension<Places>) -> Answer {
    done(service, move |service| {
        Ok(service.view_backups().into_iter().map(|view| places.show(view)).collect::<Vec<_>>())
    })
    .await
}

pub async fn begin(State(service): Held, Extension(places): Extension<Places>, bytes: Bytes) -> Answer {
    let asked: Begin = body(&bytes)?;
    done(service, move |service| Ok(places.show(service.begin_backup(&asked.disks, asked.since.as_deref())?)))
        .await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct End {
    keep: bool,
}

pub async fn end(State(service): Held, Path(id): Path<String>, bytes: Bytes) -> Answer {
    let asked: End = body(&bytes)?;
    done(service, move |service| service.end_backup(&id, asked.keep)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_found_by_its_uri_whatever_its_name() {
        let places =
            ["unix:/run/a b.sock", "tcp:[::1]:10809"].map(|place| crate::arguments::address(place).unwrap());
        let uris = Places { of: Arc::from(places), is_secret: false }.uris("vm?.b1");
        assert_eq!(uris, ["nbd+unix:///vm%3F.b1?socket=/run/a%20b.sock", "nbd://[::1]:10809/vm%3F.b1"]);
    }
}
