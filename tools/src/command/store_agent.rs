//! `dchain store-agent`: what ssh starts on the machine that has a store. Not for people.

use crate::{
    failure::{Exit, Failure},
    options,
    output::{Answer, wires},
};
use clap::Args;
use deltachain::job::stream::{Peer, serve};
use std::path::PathBuf;

/// Serve one session with a `dchain` on another machine, on stdin and stdout
///
/// It keeps to one folder. In `authorized_keys`, `command="dchain store-agent --root /srv/vm",restrict` lets a key do
/// nothing else, whatever folder it asks for.
#[derive(Args, Debug)]
#[command(hide = true)]
pub struct Arguments {
    /// The folder: nothing outside it is read or written
    #[arg(long, value_name = "FOLDER")]
    root: PathBuf,
    /// Take layers in
    #[arg(long)]
    write: bool,
}

impl Arguments {
    /// Serves one session.
    pub fn run(&self, _: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let (from, to) = wires()?;
        let peer = Peer::new(Box::new(from), Box::new(to));
        // What goes wrong is told to the peer, whose user reads it there.
        let served = serve(&host, &options::ledger(&host), (&self.root, self.write), peer);
        Ok(if served.is_ok() { Exit::Done } else { Exit::Failed })
    }
}
