//! `dchain measure`: how much space a new image will take.

use crate::{
    failure::{Exit, Failure},
    options::{self, FormatOptions, Reading},
    output::Answer,
    size,
};
use clap::Args;
use deltachain::{
    chain::Chain,
    disk::Disk,
    format::{Creation, Format},
    job::measure::{Measured, measure},
};
use std::path::PathBuf;

/// Say how much space a new image will take, empty or with the disk of IMAGE in it
#[derive(Args, Debug)]
pub struct Arguments {
    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FMT", value_parser = options::format, default_value = "raw")]
    target_format: Format,
    #[command(flatten)]
    options: FormatOptions,
    #[command(flatten)]
    reading: Reading,
    /// Measure an empty disk of that size
    #[arg(long, value_name = "SIZE", value_parser = size::parse,
          conflicts_with_all = ["image", "format", "allow_dir", "force_share"])]
    size: Option<u64>,
    /// The image whose disk is measured
    image: Option<PathBuf>,
}

impl Arguments {
    /// Measures and prints.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let measured = self.measure()?;
        answer.print(&measured, |out| {
            writeln!(out, "required size: {}", measured.required)?;
            writeln!(out, "fully allocated size: {}", measured.fully_allocated)?;
            match measured.bitmaps {
                Some(bytes) => writeln!(out, "bitmaps size: {bytes}"),
                None => Ok(()),
            }
        })?;
        Ok(Exit::Done)
    }

    fn measure(&self) -> Result<Measured, Failure> {
        if self.image.is_none() && self.size.is_none() {
            let what = "of what? IMAGE is a disk to measure, --size SIZE an empty one";
            return Err(Failure::usage(what).hint("dchain measure --help"));
        }
        let host = options::host();
        let chain = match &self.image {
            Some(image) => Some(Chain::open(&host, image, &self.reading.opening(&host)?)?),
            None => None,
        };
        let size = chain.as_ref().map(Disk::size).or(self.size).unwrap_or(0).next_multiple_of(512);
        let creation = Creation { size, parent: None, options: self.options.pairs() };
        Ok(measure(self.target_format, &creation, chain.as_ref().map(|c| c.view(0)).as_ref())?)
    }
}
