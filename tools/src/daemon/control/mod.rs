//! The control socket: HTTP and JSON on a unix socket that only the daemon's own user can use; if asked for, the same on
//! a loopback port for those who know its token. A page at `/` shows it to people.
//!
//! One thread waits for everybody; what takes a disk's time is done by a few others. `openapi.json` describes it; tests
//! hold the two together.

mod answer;
mod backup;
mod events;
mod gate;
mod layers;
mod metrics;
mod migrate;
mod narrow;
mod page;
mod routes;
mod web;

pub use backup::Places;
pub use web::Web;

use deltachain::{
    base::{Error, ErrorKind},
    export::listen_privately,
    service::Service,
};
use futures_util::future;
use gate::Gate;
use narrow::{Known, Narrow};
use std::{
    fs, io,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// How many clients the port has at once.
const WEB_CLIENTS: usize = 32;
/// How many requests wait for disks at once; others wait for them. Each is a thread only while it works: some may wait long
/// for a host that does not answer, and the others are still to be had.
const WORKERS: usize = 64;

/// The control socket, open. Its name goes with it, if the daemon made it.
pub struct Door {
    listener: UnixListener,
    made: Option<PathBuf>,
}

impl Door {
    /// Listens at `path`, as [`listen_privately`] does.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let listener = listen_privately(path)?;
        listener.set_nonblocking(true).map_err(|e| Error::io("listen", e).path(path))?;
        Ok(Self { listener, made: Some(path.to_path_buf()) })
    }

    /// Takes the socket that whoever started the daemon has opened.
    pub fn given(listener: UnixListener) -> Result<Self, Error> {
        listener.set_nonblocking(true).map_err(|e| Error::io("take the control socket over", e))?;
        Ok(Self { listener, made: None })
    }
}

/// Serves the control socket and the port until the program ends; exports are at `places`.
pub fn serve(
    door: Option<&Door>,
    web: Option<Web>,
    service: &Arc<Service>,
    places: Places,
) -> Result<(), Error> {
    let failed = |e: io::Error| Error::io("serve the control socket", e);
    let listener = door.map(|door| door.listener.try_clone()).transpose().map_err(failed)?;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(WORKERS).build().map_err(failed)?;
    let own = (Arc::clone(service), places);
    let others = own.clone();
    let work = move || {
        let both = async { future::join(control(listener, own), port(web, others)).await };
        runtime.block_on(both)
    };
    let thread = thread::Builder::new().name("control".to_owned());
    thread.spawn(move || drop(work())).map(drop).map_err(failed)
}

type Served = (Arc<Service>, Places);

async fn control(listener: Option<UnixListener>, (service, places): Served) -> io::Result<()> {
    let Some(listener) = listener else { return Ok(()) };
    let listener = tokio::net::UnixListener::from_std(listener)?;
    axum::serve(listener, routes::router(service, places, Gate::default())).await
}

async fn port(web: Option<Web>, (service, places): Served) -> io::Result<()> {
    let Some(web) = web else { return Ok(()) };
    let listener = Narrow::new(tokio::net::TcpListener::from_std(web.listener)?, WEB_CLIENTS);
    let gate = Gate::web(web.address.port(), &web.token);
    let routes = routes::router(service, places, gate);
    axum::serve(listener, routes.into_make_service_with_connect_info::<Known>()).await
}

impl Drop for Door {
    fn drop(&mut self) {
        // Another daemon may have taken the name by now; then it keeps a socket without one, which nobody starts twice.
        if let Some(path) = &self.made {
            drop(fs::remove_file(path));
        }
    }
}

/// Returns an error's class as it stands in JSON.
pub fn kind_name(kind: ErrorKind) -> String {
    serde_json::to_value(kind).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
