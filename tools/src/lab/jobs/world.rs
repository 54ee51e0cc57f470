//! Seeded chains on a simulated machine, and what is to be read of them.

use crate::history::Beside;
use deltachain::{
    base::{self, GuestOffset, seed::Seeded, units::index},
    chain::{Chain, Opening, freeze, join},
    disk::Disk,
    format::{self, Creation, Format, NoParts, Repair},
    io::{Access, Entry, EntryKind, Host, Kept, faulty::SimHost},
    job::{
        Progress,
        convert::convert,
        seal::{full_tree, open_layers, seal},
    },
    store::{Ledger, Trust},
};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where the chain is.
pub(crate) const FOLDER: &str = "/vm";

/// What a store has before, sealed: something that shows what a layer of the chain does.
pub(crate) const MATCH: &str = "match";

/// Where layers are that lie apart from their head, in that folder.
const BELOW: &str = "below/";

/// One layer.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) format: Format,
    cluster: u64,
    size: u64,
    /// Where, how many bytes, which byte; zero is marked as such.
    writes: Vec<(u64, u64, u8)>,
}

/// A chain as it was made, on the machine that has it.
pub(crate) struct World {
    /// The base first; the last is `top`.
    pub(crate) layers: Vec<Made>,
    pub(crate) host: SimHost,
    /// What each layer shows, in the order of `layers`.
    pub(crate) views: Vec<Vec<u8>>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layers.fmt(f)
    }
}

impl World {
    /// Makes the chain that belongs to `seed`; the same numbers of `random` decide on what else there is. Sixteen seeds
    /// each have layers of the same format, the first ones qcow2.
    pub(crate) fn new(random: &mut Seeded, seed: u64) -> base::Result<Self> {
        const FORMATS: [Format; 4] = [Format::Qcow2, Format::Vhdx, Format::Vpc, Format::Vmdk];
        let format = FORMATS.get(index(seed / 16) % FORMATS.len()).copied().unwrap_or(Format::Qcow2);
        let mut layers = layers(random);
        if format != Format::Qcow2 {
            layers = of_one_size(layers);
            let deltas = layers.iter_mut().filter(|layer| layer.format != Format::Raw);
            deltas.for_each(|layer| layer.format = format);
        }
        Self::of(layers, seed)
    }

    /// The same with qcow2 layers, whatever the seed.
    pub(crate) fn qcow2(random: &mut Seeded, seed: u64) -> base::Result<Self> {
        Self::of(layers(random), seed)
    }

    /// The same with all layers but the topmost one in a folder of their own, every other time on a raw disk.
    pub(crate) fn apart(random: &mut Seeded, seed: u64) -> base::Result<Self> {
        let mut layers = layers(random);
        layers.iter_mut().take(index(1 - seed % 2)).for_each(|base| base.format = Format::Raw);
        layers.iter_mut().rev().skip(1).for_each(|layer| layer.name.insert_str(0, BELOW));
        Self::of(layers, seed)
    }

    /// Makes a raw disk with nothing beside it.
    pub(crate) fn alone() -> base::Result<Self> {
        let (format, size) = (Format::Raw, 8192);
        Self::of(
            vec![Made { name: "top".to_owned(), format, cluster: 512, size, writes: vec![(0, size, 200)] }],
            1,
        )
    }

    fn of(mut layers: Vec<Made>, seed: u64) -> base::Result<Self> {
        // Every third world is made as people make theirs: with clusters whose header has all extensions, which reach
        // beyond its first sector, and by who only reads a parent and notes beside it what it notes.
        let is_usual = seed.is_multiple_of(3);
        let opening = if is_usual { Opening::reading() } else { Opening::writing() };
        // Every fifth is of other programs, which leave no claims.
        let opening = Some(opening).filter(|_| seed % 5 != 4);
        layers.iter_mut().filter(|_| is_usual).for_each(|layer| layer.cluster = 4096);
        let host = SimHost::new();
        host.make_folder(Path::new(FOLDER))?;
        if layers.iter().any(|layer| layer.name.starts_with(BELOW)) {
            host.make_folder(&path(BELOW))?;
        }
        for (number, layer) in layers.iter().enumerate() {
            let parent = number.checked_sub(1).and_then(|below| layers.get(below));
            layer.make(&host, parent, opening.as_ref())?;
        }
        // Every other world has frozen layers that are sealed.
        if seed.is_multiple_of(2)
            && let Some(frozen) = layers.iter().rev().nth(1)
        {
            let open = open_layers(&arc(&host), &path(&frozen.name), &Opening::reading())?;
            seal(&ledger(&host), &open, &Progress::default())?;
        }
        let views =
            layers.iter().map(|layer| view(&host, &path(&layer.name))).collect::<base::Result<_>>()?;
        Ok(Self { layers, host: host.twin(), views })
    }

    /// Makes a store, in which something shows what the layer of that number does, if one is named.
    pub(crate) fn stock(&mut self, store: &Path, held: Option<usize>) -> base::Result<()> {
        let (host, place) = (&self.host, store.join(MATCH));
        host.make_folder(store)?;
        if let Some(layer) = held {
            let chain = Chain::open(&arc(host), &self.path(layer), &reading(host))?;
            let new = (Format::Qcow2, [].as_slice(), false);
            convert(&arc(host), &chain.view(0), &place, new, &Progress::default())?;
            let layers = open_layers(&arc(host), &place, &Opening::reading())?;
            seal(&ledger(host), &layers, &Progress::default())?;
        }
        self.host = host.twin();
        Ok(())
    }

    /// What the topmost layer shows.
    pub(crate) fn top(&self) -> &[u8] {
        self.views.last().map(Vec::as_slice).unwrap_or_default()
    }

    /// The name of the layer of that number, counted from the base.
    pub(crate) fn path(&self, number: usize) -> PathBuf {
        self.layers.get(number).map(|layer| path(&layer.name)).unwrap_or_default()
    }

    /// Says so if one of the first `count` layers shows something else than before.
    pub(crate) fn judge_layers(&self, host: &SimHost, count: usize) -> Result<(), String> {
        for (layer, view) in self.layers.iter().zip(&self.views).take(count) {
            shows(host, &path(&layer.name), view)?;
        }
        Ok(())
    }
}

fn layers(random: &mut Seeded) -> Vec<Made> {
    let depth = 2 + index(random.below(3));
    let usual = 1024 * (12 + random.below(16));
    (0..depth).map(|number| layer(number, depth, usual, random)).collect()
}

/// Children of the other formats are as large as their parents.
fn of_one_size(mut layers: Vec<Made>) -> Vec<Made> {
    let size = layers.last().map_or(0, |top| top.size);
    for layer in &mut layers {
        layer.size = size;
        layer.writes.retain_mut(|(at, bytes, _)| {
            *bytes = (*bytes).min(size.saturating_sub(*at));
            *bytes > 0
        });
    }
    layers
}

fn layer(number: usize, depth: usize, usual: u64, random: &mut Seeded) -> Made {
    let is_base = number == 0;
    let size = if random.chance(1, 3) { 512 * (16 + random.below(48)) } else { usual };
    let format = if is_base && random.chance(1, 3) { Format::Raw } else { Format::Qcow2 };
    let cluster = 512 << random.below(3);
    let name = if number + 1 == depth { "top".to_owned() } else { format!("layer{number}") };
    let mut writes = if is_base { vec![(0, size, 200)] } else { vec![] };
    for _ in 0..=random.below(4) {
        let at = random.below(size);
        let bytes = (1 + random.below(3000)).min(size - at);
        let byte = if random.chance(1, 4) { 0 } else { 1 + u8::try_from(random.below(199)).unwrap_or(1) };
        writes.push((at, bytes, byte));
    }
    Made { name, format, cluster, size, writes }
}

impl Made {
    /// Makes it on `parent`, to which it is joined if that is opened for it as `joins` says.
    fn make(&self, host: &SimHost, parent: Option<&Self>, joins: Option<&Opening>) -> base::Result<()> {
        let open = |layer: &Self, opening: &Opening| {
            let how = opening.clone().with_format(Some(layer.format));
            Chain::open(&arc(host), &path(&layer.name), &how)
        };
        let place = path(&self.name);
        let reading = Opening::reading();
        let below = parent.map(|parent| open(parent, joins.unwrap_or(&reading))).transpose()?;
        let link = below.as_ref().map(|below| {
            Ok::<_, base::Error>(below.head()?.name_in(place.parent().unwrap_or(Path::new(FOLDER))))
        });
        let unit = match self.format {
            Format::Qcow2 => Some(("cluster_size", self.cluster.to_string())),
            Format::Vhdx => Some(("block_size", "1M".to_owned())),
            Format::Vpc => Some(("block_size", "4k".to_owned())),
            Format::Vmdk => Some(("cluster_size", "512".to_owned())),
            _ => None,
        };
        let options = unit.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        let creation = Creation { size: self.size, parent: link.transpose()?, options };
        let image = format::create(self.format, host.create(&place)?, &creation, &NoParts)?;
        if let Some(below) = below.filter(|_| joins.is_some())
            && let Some(known) = freeze(&ledger(host), below.layers())?
        {
            join(&ledger(host), image.as_ref(), (below.head()?.image.as_ref(), &known))?;
        }
        image.flush()?;
        drop(image);
        let chain = open(self, &Opening::writing())?;
        for (at, bytes, byte) in &self.writes {
            let at = GuestOffset::new(*at);
            if *byte == 0 {
                chain.zero(at.range(*bytes), Kept::Nothing)?;
            } else {
                chain.write(at, &vec![*byte; index(*bytes)])?;
            }
        }
        chain.flush()
    }
}

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

pub(crate) fn arc(host: &SimHost) -> Arc<dyn Host> {
    Arc::new(host.clone())
}

pub(crate) fn ledger(host: &SimHost) -> Ledger {
    Ledger::new(arc(host), None)
}

/// Opens for reading, holding children to what they claim of their parents.
pub(crate) fn reading(host: &SimHost) -> Opening {
    Opening::reading().with_ledger(ledger(host))
}

/// Opens for writing, in the same way.
pub(crate) fn writing(host: &SimHost) -> Opening {
    Opening::writing().with_ledger(ledger(host))
}

/// What a name shows.
pub(crate) fn view(host: &SimHost, path: &Path) -> base::Result<Vec<u8>> {
    read(&Chain::open(&arc(host), path, &reading(host))?)
}

fn read(chain: &Chain) -> base::Result<Vec<u8>> {
    let mut bytes = vec![0xee; index(chain.size())];
    chain.read(GuestOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

/// Says so unless a name opens and shows `expected`.
pub(crate) fn shows(host: &SimHost, path: &Path, expected: &[u8]) -> Result<(), String> {
    let place = path.display();
    let shown = view(host, path).map_err(|e| format!("{place} does not open: {e}"))?;
    if shown == expected { Ok(()) } else { Err(format!("{place} shows something else")) }
}

/// The names of the files in a folder, and in the one below it, that are not hidden, sorted.
pub(crate) fn names(host: &SimHost, folder: &Path) -> Result<Vec<String>, String> {
    let mut entries = host.list(folder).map_err(|e| e.to_string())?;
    if folder == Path::new(FOLDER) && host.kind(&path(BELOW)).is_ok_and(|kind| kind.is_some()) {
        entries.extend(host.list(&path(BELOW)).map_err(|e| e.to_string())?);
    }
    let files = entries.iter().filter(|entry| entry.kind == EntryKind::File);
    let name = |at: &Path| at.strip_prefix(folder).unwrap_or(at).to_string_lossy().into_owned();
    let is_shown =
        |entry: &&Entry| !entry.path.file_name().unwrap_or_default().as_encoded_bytes().starts_with(b".");
    let mut names: Vec<String> = files.filter(is_shown).map(|entry| name(&entry.path)).collect();
    names.sort();
    Ok(names)
}

/// Says so if the metadata of an image contradict themselves.
pub(crate) fn check(host: &SimHost, path: &Path) -> Result<(), String> {
    let file = host.open(path, Access::Read).map_err(|e| e.to_string())?;
    let format = Format::recognise(file.as_ref()).map_err(|e| e.to_string())?;
    if format == Format::Raw {
        return Ok(());
    }
    let checked = format::check(format, file, Repair::Nothing, &Beside(host)).map_err(|e| e.to_string())?;
    let is_sound = checked.corruptions == 0 && checked.errors == 0;
    if is_sound { Ok(()) } else { Err(format!("{}: {:?}", path.display(), checked.findings)) }
}

/// Says so if an image in the folder opens whose record tells the content ID of something else.
pub(crate) fn judge_seals(host: &SimHost, folder: &Path) -> Result<(), String> {
    for name in names(host, folder)? {
        let place = folder.join(&name);
        let Ok(chain) = Chain::open(&arc(host), &place, &reading(host)) else { continue };
        let Some(known) = chain.standings().first().map(|standing| &standing.known) else { continue };
        let sealed = known.layer.frozen.and_then(|record| record.sealed);
        let Some(sealed) = sealed.filter(|_| matches!(known.trust, Trust::Trusted | Trust::Claimed)) else {
            continue;
        };
        let shown = full_tree(&chain.view(0), &Progress::default()).map_err(|e| e.to_string())?.tree.id();
        if shown != sealed {
            return Err(format!(
                "{} is sealed as something else than it shows ({:?})",
                place.display(),
                known.trust
            ));
        }
    }
    Ok(())
}
