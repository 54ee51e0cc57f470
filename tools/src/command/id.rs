//! `dchain id`: content IDs of layers.

use crate::{
    data::Data,
    failure::{Exit, Failure},
    options::{self, Reading, References, Source},
    output::Answer,
    progress::Watching,
    size,
};
use clap::{Args, Subcommand};
use deltachain::{
    base::name,
    chain::Chain,
    content::{ContentId, IdPrefix},
    io::Access,
    job::{
        find::find,
        seal::{self, How, Sealed},
        verify::verify,
    },
    store::Trust,
};
use serde::Serialize;
use std::path::PathBuf;

/// Show, compute and prove content IDs
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show what is known of each layer of a chain; nothing is read or written
    Show(Show),
    /// Compute the content ID of IMAGE, freeze it, and record the ID
    Seal(Seal),
    /// Compute the content ID of IMAGE as it is now, and compare it with the recorded one
    Verify(Verify),
    /// Say which images of a folder show a content ID, by their records; nothing is hashed
    ///
    /// A folder of 256 files or more has an index, which is made with the first question.
    Find(Find),
}

#[derive(Args, Debug)]
struct Show {
    #[command(flatten)]
    reading: Reading,
    /// The head of the chain
    image: PathBuf,
}

#[derive(Args, Debug)]
struct Seal {
    /// Print the layers below, too: they are sealed in any case, an ID stands on theirs
    #[arg(long)]
    chain: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    watching: Watching,
    /// The image
    image: PathBuf,
}

#[derive(Args, Debug)]
struct Verify {
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    watching: Watching,
    /// The image
    image: PathBuf,
}

#[derive(Args, Debug)]
struct Find {
    #[command(flatten)]
    references: References,
    /// The content ID, or how it starts (4 hex digits at least)
    id: IdPrefix,
    /// The folder
    #[arg(default_value = ".")]
    folder: PathBuf,
}

impl Arguments {
    /// Does what is asked for.
    pub fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        match &self.what {
            What::Show(show) => show.run(answer),
            What::Seal(seal) => seal.run(answer),
            What::Verify(verify) => verify.run(answer),
            What::Find(find) => find.run(answer),
        }
    }
}

/// What is known of a layer.
#[derive(Serialize)]
struct Shown {
    filename: String,
    epoch: Option<String>,
    id: Option<ContentId>,
    #[serde(flatten)]
    trust: Trust,
    parent_epoch: Option<String>,
    parent_id: Option<ContentId>,
    /// Why the layer must not be read on its parent.
    refused: Option<String>,
}

impl Show {
    fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let mut opening = self.reading.opening(&host)?;
        // A refusal is part of the answer here.
        let ledger = opening.ledger.take();
        let chain = Chain::open(&host, &self.image, &opening)?;
        let ledger = ledger.unwrap_or_else(|| options::ledger(&host));
        let standings = deltachain::chain::lineage(&ledger, chain.layers())?;
        let mut shown = Vec::new();
        for (at, (layer, standing)) in chain.layers().iter().zip(&standings).enumerate() {
            let known = &standing.known;
            let below = chain.layers().get(at + 1);
            shown.push(Shown {
                filename: name::text(&layer.path).into_owned(),
                epoch: known.layer.frozen.map(|r| r.epoch.to_string()),
                id: known.layer.frozen.and_then(|r| r.sealed),
                trust: known.trust,
                parent_epoch: known.layer.claim.as_ref().map(|c| c.parent_epoch.to_string()),
                parent_id: known.layer.claim.as_ref().and_then(|c| c.parent_id),
                refused: standing
                    .refusal()
                    .zip(below)
                    .map(|(refusal, parent)| refusal.error(&layer.path, &parent.path).to_string()),
            });
        }
        let is_refused = shown.iter().any(|s| s.refused.is_some());
        answer.print_list(&shown, |shown, out| {
            for layer in shown {
                let id = layer.id.map_or_else(|| "not sealed".to_owned(), |id| id.short());
                let trust = match (layer.trust, layer.epoch.is_some()) {
                    (Trust::Doubted(doubt), _) => format!("doubted: {doubt}"),
                    (Trust::Trusted, _) => "trusted".to_owned(),
                    (Trust::Claimed, true) => "claimed".to_owned(),
                    _ => "open".to_owned(),
                };
                writeln!(out, "{}: {id}, {trust}", layer.filename)?;
                if let Some(refused) = &layer.refused {
                    writeln!(out, "  {refused}")?;
                }
            }
            Ok(())
        })?;
        Ok(if is_refused { Exit::Refused } else { Exit::Done })
    }
}

/// A layer that was sealed.
#[derive(Serialize)]
struct Done {
    filename: String,
    #[serde(flatten)]
    sealed: Sealed,
}

impl Seal {
    fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.source.opening(&host, Access::Write)?;
        let ledger = options::ledger(&host);
        let layers = seal::open_layers(&host, &self.image, &opening)?;
        let sealed = self.watching.run(|progress| seal::seal(&ledger, &layers, progress))?;
        let shown = if self.chain { layers.len() } else { 1 };
        let done: Vec<_> = layers
            .iter()
            .zip(sealed)
            .take(shown)
            .map(|(layer, sealed)| Done { filename: name::text(&layer.path).into_owned(), sealed })
            .collect();
        answer.print_list(&done, |done, out| {
            done.iter().try_for_each(|layer| {
                let how = match layer.sealed.how {
                    How::Kept => "as before".to_owned(),
                    How::Incremental | How::Full => format!("{} read", size::show(layer.sealed.read_bytes)),
                };
                writeln!(out, "{}: {} ({how})", layer.filename, layer.sealed.id)
            })
        })?;
        Ok(Exit::Done)
    }
}

/// What an image shows, and what it says that it shows.
#[derive(Serialize)]
struct Shows {
    filename: String,
    recorded: Option<ContentId>,
    #[serde(flatten)]
    data: Data,
}

impl Verify {
    fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let mut opening = self.reading.opening(&host)?;
        let ledger = opening.ledger.take().unwrap_or_else(|| options::ledger(&host));
        let chain = Chain::open(&host, &self.image, &opening)?;
        let verified = self.watching.run(|progress| verify(&ledger, &chain, progress))?;
        let recorded = verified.promise.as_ref().filter(|promise| promise.is_own).map(|promise| promise.id);
        let filename = name::text(&chain.head()?.path).into_owned();
        let done = Shows { filename, recorded, data: Data::from(&verified) };
        answer.print(&done, |out| {
            match (verified.shown, recorded) {
                (Some(id), Some(wanted)) if id == wanted => {
                    return writeln!(out, "{}: shows {id}, as recorded", done.filename);
                }
                (Some(id), Some(wanted)) => {
                    writeln!(out, "{}: shows {id}, the record says {wanted}", done.filename)?;
                }
                (Some(id), None) => {
                    return writeln!(out, "{}: shows {id}; nothing is recorded", done.filename);
                }
                (None, _) => writeln!(out, "{}: cannot be read as a whole", done.filename)?,
            }
            done.data.lines().iter().try_for_each(|line| writeln!(out, "{line}"))
        })?;
        Ok(match (verified.shown, recorded) {
            (None, _) => Exit::Failed,
            (Some(id), Some(wanted)) if id != wanted => Exit::Refused,
            _ => Exit::Done,
        })
    }
}

impl Find {
    fn run(&self, answer: &Answer) -> Result<Exit, Failure> {
        let host = options::host();
        let opening = self.references.opening(host.as_ref(), Access::ReadShared)?;
        let folder = options::folder(host.as_ref(), &self.folder)?;
        let found = find(&host, &options::ledger(&host), &folder, &self.id, &opening);
        let found = found.map_err(|error| Failure::inside(&error))?;
        answer.print_list(&found, |found, out| {
            found.iter().try_for_each(|image| {
                let trust = match image.trust {
                    Trust::Doubted(doubt) => format!("doubted: {doubt}"),
                    Trust::Trusted => "trusted".to_owned(),
                    Trust::Claimed | Trust::Unknown => "claimed".to_owned(),
                };
                writeln!(out, "{}: {}, {trust}", name::text(&image.path), image.id)
            })
        })?;
        Ok(Exit::Done)
    }
}
