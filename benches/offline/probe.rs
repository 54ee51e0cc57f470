//! What a measured run does with the library itself, where there is no command for it.

use clap::Subcommand;
use deltachain::{
    base::{GuestOffset, Result},
    chain::{Chain, Opening},
    disk::Disk,
    format::Format,
    io::{Host, real::RealHost},
};
use std::{path::PathBuf, sync::Arc};

/// A piece of work to be measured.
#[derive(Subcommand)]
pub(crate) enum Probe {
    /// Opens the chain and reads 4K at every STEP bytes, starting again at the front.
    #[command(hide = true)]
    Reads {
        /// The head.
        image: PathBuf,
        /// How many reads.
        count: u64,
        /// From one to the next, in bytes.
        step: u64,
    },
    /// Opens the chain and reads the first 64K.
    #[command(hide = true)]
    First {
        /// The head.
        image: PathBuf,
    },
}

impl Probe {
    /// Does it.
    pub(crate) fn run(&self) -> Result<()> {
        let (image, count, step, length) = match self {
            Self::Reads { image, count, step } => (image, *count, *step, 4 << 10),
            Self::First { image } => (image, 1, 0, 64 << 10),
        };
        let host: Arc<dyn Host> = Arc::new(RealHost::new());
        let chain = Chain::open(&host, image, &Opening::reading().with_format(Some(Format::Qcow2)))?;
        let mut buf = vec![0; length];
        let mut at = 0;
        for _ in 0..count {
            chain.read(GuestOffset::new(at), &mut buf)?;
            at = (at + step) % chain.size();
        }
        Ok(())
    }
}
