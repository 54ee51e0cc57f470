//! What rows need of the library itself, where there is no command for it.

use crate::images;
use clap::Subcommand;
use deltachain::base::Result;
use std::path::PathBuf;

/// A piece of work of a row.
#[derive(Subcommand)]
pub(crate) enum Probe {
    /// Makes FOLDER with so many images, unless it is there.
    #[command(hide = true)]
    Images {
        /// The folder.
        folder: PathBuf,
        /// How many.
        count: u64,
    },
}

impl Probe {
    /// Does it.
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Self::Images { folder, count } => images::make(folder, *count),
        }
    }
}
