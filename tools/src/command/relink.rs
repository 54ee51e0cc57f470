//! `dchain relink`: finds lost parents and mends the links.

use crate::{
    failure::{Exit, Failure, quoted},
    options::{self, Source},
    output::Answer,
    plan::{Grade, Planned},
    progress::Watching,
};
use clap::Args;
use deltachain::{
    io::Access,
    job::relink::{Report, Request, Why, accept, relink},
};
use std::path::{Path, PathBuf};

/// Find lost parents by content ID and mend the links
#[derive(Args, Debug)]
pub struct Arguments {
    /// Where a child says nothing of its parent: the one that it calls OLD is NEW (may be repeated)
    #[arg(long, value_name = "OLD=NEW", value_parser = pair)]
    map: Vec<(PathBuf, PathBuf)>,
    /// Take the parent of CHILD as it is now; what changed underneath is listed where it is known
    #[arg(long, value_name = "CHILD")]
    accept: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    planned: Planned,
    #[command(flatten)]
    watching: Watching,
    /// Folders, or images whose folders are meant
    #[arg(required_unless_present = "accept")]
    paths: Vec<PathBuf>,
}

fn pair(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (old, new) = text.split_once('=').ok_or("OLD=NEW is wanted")?;
    Ok((old.into(), new.into()))
}

impl Arguments {
    /// Looks, plans and mends.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        match &self.accept {
            Some(child) => self.accept(answer, child),
            None => self.relink(answer),
        }
    }

    fn relink(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let mut opening = self.source.opening(&host, Access::Read)?;
        let folders: Vec<PathBuf> =
            self.paths.iter().map(|p| options::folder(host.as_ref(), p)).collect::<Result<_, _>>()?;
        // Who names them wants links between them.
        for folder in &folders {
            opening.policy.allowed.push(host.canonical(folder)?);
        }
        let request = Request { folders, map: self.map.clone() };
        let ledger = options::ledger(&host);
        let how = (&opening, self.planned.dry_run);
        let report = self.watching.run(|progress| relink(&host, &ledger, &request, how, progress))?;
        answer.print(&report, |out| lines(&report).iter().try_for_each(|line| writeln!(out, "{line}")))?;
        Ok(if report.lost.is_empty() { Exit::Done } else { Exit::Refused })
    }

    fn accept(&self, answer: &Answer, child: &Path) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        let ledger = options::ledger(&host);
        let look = |is_dry| {
            self.watching.run(|progress| accept(&host, &ledger, child, (&opening, is_dry), progress))
        };
        let plan = look(true)?;
        let mut lines =
            vec![format!("{} takes {} as it is now", plan.child.display(), plan.parent.display())];
        match &plan.changed {
            None => lines.push("what changed underneath is not known".to_owned()),
            Some(changed) => lines.extend(
                changed.iter().map(|(at, bytes)| format!("changed underneath: {bytes} bytes at {at:#x}")),
            ),
        }
        if self.planned.agree(answer, &plan, &lines, Grade::Destructive)? {
            let done = look(false)?;
            answer.print(&done, |out| writeln!(out, "Accepted."))?;
        }
        Ok(Exit::Done)
    }
}

fn lines(report: &Report) -> Vec<String> {
    let proved = report.proved.iter();
    let mut lines: Vec<String> = proved
        .map(|parent| format!("{}: shows what its record says: believed again", parent.display()))
        .collect();
    lines.extend(report.mended.iter().map(|mended| {
        let why = match mended.why {
            Why::Epoch => "it carries the epoch that the child was made on",
            Why::Content => "it shows what the child was made on",
            Why::Word => "you say so",
        };
        format!("{}: parent '{}' -> '{}': {why}", mended.child.display(), mended.was, mended.name)
    }));
    let folder = |image: &Path| image.parent().map(Path::to_path_buf).unwrap_or_default();
    let far =
        report.mended.iter().filter(|mended| !folder(&mended.parent).starts_with(folder(&mended.child)));
    lines.extend(far.map(|mended| {
        let (child, place) = (mended.child.display(), quoted(&folder(&mended.parent)));
        format!("{child}: lies on an image outside its folder: it is opened with --allow-dir {place}")
    }));
    lines.extend(report.lost.iter().map(|(child, why)| format!("{}: not found: {why}", child.display())));
    if lines.is_empty() {
        lines.push("Every link is right.".to_owned());
    }
    if !report.lost.is_empty() {
        lines.push("A parent that lies in another folder is found if that is named as well.".to_owned());
    }
    lines
}
