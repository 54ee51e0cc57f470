//! The sockets at which virtual machines come to their disks.

use crate::{arguments::Guest, failure::Failure};
use deltachain::service::Service;
use std::{sync::Arc, time::Duration};

#[cfg(feature = "vhost-user")]
use deltachain::export::vhost_user::{Server, Socket};

/// What serves virtual machines.
pub struct Guests {
    #[cfg(feature = "vhost-user")]
    server: Server,
}

#[cfg(feature = "vhost-user")]
impl Guests {
    /// Makes the sockets, and lets in who comes.
    pub fn start(places: &[Guest], service: &Arc<Service>) -> Result<Self, Failure> {
        let socket = |guest: &Guest| Socket { export: guest.disk.clone(), path: guest.path.clone() };
        let sockets: Vec<_> = places.iter().map(socket).collect();
        let exports = Arc::clone(service) as Arc<_>;
        Ok(Self { server: Server::start(&sockets, &exports)? })
    }

    /// Has all leave; returns whether what they had asked for was done.
    pub fn stop(self, patience: Duration) -> bool {
        self.server.stop(patience)
    }
}

#[cfg(not(feature = "vhost-user"))]
impl Guests {
    /// Refuses, where there is a place.
    pub fn start(places: &[Guest], _service: &Arc<Service>) -> Result<Self, Failure> {
        match places {
            [] => Ok(Self {}),
            _ => Err(Failure::usage("--vhost-user: this program was built without it")),
        }
    }

    /// Nobody is here.
    pub fn stop(self, _patience: Duration) -> bool {
        true
    }
}
