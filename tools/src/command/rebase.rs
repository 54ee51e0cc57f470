//! `dchain rebase`: another parent for an image, with the same view.

use crate::{
    failure::{Exit, Failure},
    options::{self, Source},
    output::Answer,
    plan::{Grade, Planned},
    progress::Watching,
    size,
};
use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser},
};
use deltachain::{
    format::Format,
    io::Access,
    job::rebase::{NewParent, Rebase},
};
use std::path::PathBuf;

/// Put an image on another parent without changing what it shows
#[derive(Args, Debug)]
pub struct Arguments {
    /// The new parent; an empty name makes the image stand alone
    #[arg(short, long, value_name = "PARENT", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    backing: PathBuf,
    /// Format of PARENT
    #[arg(short = 'F', long, value_name = "FMT", value_parser = options::format)]
    backing_format: Option<Format>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    planned: Planned,
    #[command(flatten)]
    watching: Watching,
    /// The image
    image: PathBuf,
}

impl Arguments {
    /// Plans and does it.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        let parent = self.parent()?;
        if let Some(parent) = &parent {
            options::refuse_header(&host, &parent.path, Some(parent.format), self.planned.yes)?;
        }
        let rebase = Rebase::prepare(&host, &self.image, &opening, parent.as_ref())?;
        let plan = rebase.plan();
        let name =
            |path: &Option<PathBuf>| path.as_ref().map_or("nothing".to_owned(), |p| p.display().to_string());
        let lines = [
            format!("{}: on {} -> on {}", plan.image.display(), name(&plan.from), name(&plan.to)),
            format!(
                "copied into it: {}; compared, and copied where different: {}; marked as zero: {}",
                size::show(plan.copy_bytes),
                size::show(plan.compare_bytes),
                size::show(plan.zero_bytes)
            ),
        ];
        if self.planned.agree(answer, plan, &lines, Grade::Harmless)? {
            let done = self.watching.run(|progress| rebase.run(progress))?;
            answer.print(&done, |out| writeln!(out, "Rebased."))?;
        }
        Ok(Exit::Done)
    }

    fn parent(&self) -> Result<Option<NewParent>, Failure> {
        if self.backing.as_os_str().is_empty() {
            return Ok(None);
        }
        let Some(format) = self.backing_format else {
            let what = format!("{}: a parent's format is never guessed", self.backing.display());
            return Err(Failure::usage(what).hint("-F raw or -F qcow2 states it"));
        };
        Ok(Some(NewParent { path: self.backing.clone(), format }))
    }
}
