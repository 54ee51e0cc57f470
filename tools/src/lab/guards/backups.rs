//! Scenes about backups of disks in use.

use crate::jobs::world::{arc, path, writing};
use deltachain::{
    base::{ErrorKind, GuestOffset, Result},
    chain::{Chain, Opening},
    disk::Disk,
    format::Format,
    io::{Host, faulty::SimHost},
    job::{
        consolidate::LivePace,
        create::{NewImage, create},
        rebase::NewParent,
    },
    service::{AskNobody, FoldRequest, Hooks, Named, Service, Settings},
};
use std::{path::Path, sync::Arc, time::Duration};

const PATIENCE: Duration = Duration::from_mins(1);

/// `top` on `base`, made by a program that keeps no records.
fn machine() -> Result<SimHost> {
    let host = SimHost::new();
    host.make_folder(Path::new("/vm"))?;
    for (name, parent) in [("base", None), ("top", Some("base"))] {
        let parent = parent.map(|name| NewParent { path: path(name), format: Format::Qcow2 });
        let new = NewImage { format: Format::Qcow2, size: Some(1 << 16), parent, options: Vec::new() };
        create(&arc(&host), &path(name), &new, &Opening::writing())?;
    }
    Ok(host)
}

fn start(host: &SimHost) -> Result<Arc<Service>> {
    let settings = Settings {
        host: arc(host),
        opening: writing(host),
        state: Some(path("state")),
        resumes: true,
        pace: LivePace::USUAL,
        quiesce: Arc::new(AskNobody),
    };
    let hooks = Hooks::default();
    let named = Named { name: "vm".to_owned(), path: path("top"), format: None, is_read_only: false, hooks };
    Service::start(settings, &[named])
}

fn begin(service: &Service, since: Option<&str>) -> Result<(String, bool)> {
    let view = service.begin_backup(&["vm".to_owned()], since)?;
    let is_full = view.disks.iter().all(|disk| disk.is_full && disk.error.is_none());
    Ok((view.id, is_full))
}

/// Another program writes below the layer that a backup was taken of.
pub(super) fn tells_no_increment_over_a_strangers_write() -> Result<bool> {
    let host = machine()?;
    let service = start(&host)?;
    let (first, _) = begin(&service, None)?;
    service.end_backup(&first, true)?;
    service.stop(PATIENCE)?;
    drop(service);
    let chain = Chain::open(&arc(&host), &path("base"), &Opening::writing())?;
    chain.write(GuestOffset::new(0), &[7; 512])?;
    chain.flush()?;
    drop(chain);
    let service = start(&host)?;
    Ok(begin(&service, Some(&first))?.1)
}

/// A disk is to be folded whose layers a backup program reads.
pub(super) fn folds_nothing_under_a_backup() -> Result<bool> {
    let host = machine()?;
    let service = start(&host)?;
    begin(&service, None)?;
    let folded = service.consolidate("vm", &FoldRequest::default());
    let is_refused = folded.as_ref().is_err_and(|error| error.kind() == ErrorKind::Busy);
    service.stop(PATIENCE)?;
    Ok(is_refused)
}
