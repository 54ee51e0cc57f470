//! `dchain bitmap`: an image's persistent dirty bitmaps.

use crate::{
    failure::{Exit, Failure},
    options::{self, Source},
    output::Answer,
    size,
};
use clap::Args;
use deltachain::{
    chain::{Layer, Opening, open_layer},
    format::{Bitmap, BitmapEdit, Format, Image},
    io::{Access, Host},
    job::bitmap::{change, merge},
};
use std::{path::PathBuf, sync::Arc};

/// List, add, remove, clear, switch and merge an image's dirty bitmaps
#[derive(Args, Debug)]
#[command(override_usage = "dchain bitmap [OPTIONS] IMAGE [BITMAP]")]
pub struct Arguments {
    /// List all of them (default)
    #[arg(long, conflicts_with = "bitmap")]
    list: bool,
    #[command(flatten)]
    change: Change,
    /// With --add: bytes of the disk that one bit stands for
    #[arg(short, long, value_name = "BYTES", value_parser = size::parse, requires = "add")]
    granularity: Option<u64>,
    /// With --merge: the image that SOURCE is in
    #[arg(long, value_name = "FILE", requires = "merge")]
    source_file: Option<PathBuf>,
    /// Format of that image
    #[arg(long, value_name = "FMT", value_parser = options::format, requires = "source_file")]
    source_format: Option<Format>,
    #[command(flatten)]
    source: Source,
    /// The image
    image: PathBuf,
    /// The bitmap to change
    #[arg(requires = "Change")]
    bitmap: Option<String>,
}

/// What is done to BITMAP, in this order.
#[derive(Args, Debug)]
#[group(multiple = true)]
#[expect(clippy::struct_excessive_bools, reason = "these are flags of a command line")]
struct Change {
    /// Make it; it records writes
    #[arg(long, requires = "bitmap")]
    add: bool,
    /// Clear all its bits
    #[arg(long, requires = "bitmap")]
    clear: bool,
    /// Set in it what is set in SOURCE
    #[arg(long, value_name = "SOURCE", requires = "bitmap")]
    merge: Option<String>,
    /// Let it record writes
    #[arg(long, requires = "bitmap", conflicts_with = "disable")]
    enable: bool,
    /// Let it record no more writes
    #[arg(long, requires = "bitmap")]
    disable: bool,
    /// Remove it
    #[arg(long, requires = "bitmap", conflicts_with_all = ["add", "clear", "merge", "enable", "disable"])]
    remove: bool,
}

impl Arguments {
    /// Changes and lists.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let list = match &self.bitmap {
            None => {
                let opening = self.source.opening(&host, Access::Read)?;
                open_layer(&host, &self.image, &opening)?.image.details()?.bitmaps
            }
            Some(name) => self.change(&host, name)?.image.details()?.bitmaps,
        };
        answer.print_list(&list, |list, out| {
            let lines = list.iter().map(line);
            lines.into_iter().try_for_each(|line| writeln!(out, "{line}"))
        })?;
        Ok(Exit::Done)
    }

    fn change(&self, host: &Arc<dyn Host>, name: &str) -> Result<Layer, Failure> {
        let opening = self.source.opening(host, Access::Write)?;
        let named = || name.to_owned();
        let mut edits = Vec::new();
        if self.change.add {
            edits.push(BitmapEdit::Add { name: named(), granularity_bytes: self.granularity });
        }
        if self.change.clear {
            edits.push(BitmapEdit::Clear { name: named() });
        }
        if self.change.remove {
            edits.push(BitmapEdit::Remove { name: named() });
        }
        let from = match &self.source_file {
            Some(file) => {
                let how = Opening { access: Access::Read, ..opening.clone() };
                Some(open_layer(host, file, &how.with_format(self.source_format))?)
            }
            None => None,
        };
        let all = |image: &dyn Image| {
            edits.iter().try_for_each(|edit| image.edit_bitmap(edit))?;
            if let Some(source) = &self.change.merge {
                merge(from.as_ref().map_or(image, |from| from.image.as_ref()), source, image, name)?;
            }
            if self.change.enable || self.change.disable {
                image.edit_bitmap(&BitmapEdit::Record { name: named(), is_auto: self.change.enable })?;
            }
            Ok(())
        };
        change(host, &self.image, &opening, all).map_err(|error| Failure::inside(&error))
    }
}

fn line(bitmap: &Bitmap) -> String {
    let state = match (bitmap.is_in_use, bitmap.is_auto) {
        (true, _) => "missed writes",
        (false, true) => "records",
        (false, false) => "stands still",
    };
    format!("{}: {state}, {} a bit", bitmap.name, size::show(bitmap.granularity_bytes))
}
