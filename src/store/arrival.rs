//! The note of a layer that is on its way into a folder from elsewhere: how much of it is durable there already.
//!
//! It is replaced whole, after the bytes that it speaks of are durable: it may promise too little, never too much. Of
//! what it promises nothing is believed before it was hashed again.

use super::{
    Draft, FOLDER,
    place::{self, Lasting, is_plain},
};
use crate::{
    base::{Error, ErrorKind, Result, name::FileName},
    content::ContentId,
    io::Host,
};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

const VERSION: u32 = 1;
const START: &str = "arriving-";
const DIGITS: usize = 32;

/// How far a layer is that is being received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    version: u32,
    /// The content ID that its view will have.
    pub id: ContentId,
    /// The name that it will have.
    pub name: FileName,
    /// The name that it has until then, in the same folder.
    pub temporary: FileName,
    /// How the image is made, in any words: one that was begun in another way is not gone on with.
    pub form: String,
    /// What it holds of the guest's bytes before this place is durable.
    pub done_bytes: u64,
}

impl Arrival {
    /// Begins a layer that will show `id` under the name `target`, durably; what was noted of it before is forgotten.
    pub fn begin(host: &Arc<dyn Host>, id: ContentId, target: &Path, form: String) -> Result<Self> {
        let name = |path: &Path| FileName(PathBuf::from(path.file_name().unwrap_or_default()));
        let temporary = name(&Draft::temporary_name(target));
        let arrival = Self { version: VERSION, id, name: name(target), temporary, form, done_bytes: 0 };
        arrival.write(host, folder_of(target))?;
        Ok(arrival)
    }

    /// Reads the note of the layer that will show `id` in `folder`; `Corrupt` for one that names files elsewhere.
    pub fn find(host: &dyn Host, folder: &Path, id: &ContentId) -> Result<Option<Self>> {
        let found = read(host, &folder.join(FOLDER).join(file_name(id)))?;
        Ok(found.filter(|arrival| arrival.id == *id))
    }

    /// Returns all layers that are on their way into `folder`, in the order of their content IDs.
    pub fn all(host: &dyn Host, folder: &Path) -> Result<Vec<Self>> {
        let notes = match host.list(&folder.join(FOLDER)) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed?,
        };
        let is_note = |path: &Path| path.file_name().is_some_and(|name| Self::is_name(Path::new(name)));
        let notes = notes.iter().filter(|entry| is_note(&entry.path));
        notes.filter_map(|entry| read(host, &entry.path).transpose()).collect()
    }

    /// Returns whether a path is that of such a note, by its name.
    pub fn is_name(path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(START) && name.ends_with(".json")
    }

    /// Notes, durably, that what it holds before `done_bytes` is durable.
    pub fn mark(&mut self, host: &Arc<dyn Host>, folder: &Path, done_bytes: u64) -> Result<()> {
        self.done_bytes = done_bytes;
        self.write(host, folder)
    }

    /// Removes the note: the layer has its name, or is given up. A power cut may bring it back.
    pub fn close(self, host: &dyn Host, folder: &Path) -> Result<()> {
        match host.remove(&folder.join(FOLDER).join(file_name(&self.id))) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn write(&self, host: &Arc<dyn Host>, folder: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|e| Error::invalid(format!("a note: {e}")))?;
        let write =
            |out: &mut dyn std::io::Write| out.write_all(&bytes).map_err(|e| Error::io("write a note", e));
        let name = file_name(&self.id);
        place::replace_in_first(host, &[folder.join(FOLDER)], (&name, Lasting::Now), &write).map(drop)
    }

    /// Refuses names that lead elsewhere: what has the temporary one is written, and removed.
    fn check(self) -> Result<Self> {
        let wrong = |field: &str, name: &Path, why: &str| {
            let name = name.as_os_str().to_string_lossy();
            Err(Error::corrupt(format!("{field}: '{}' {why}", name.escape_debug())))
        };
        if !is_plain(&self.name) {
            return wrong("name", &self.name, "is not a plain name in the folder");
        }
        if !is_plain(&self.temporary) || !Draft::is_left_over(&self.temporary) {
            return wrong("temporary", &self.temporary, "is not the name of a file in the making");
        }
        Ok(self)
    }
}

fn folder_of(target: &Path) -> &Path {
    target.parent().unwrap_or(Path::new("/"))
}

fn file_name(id: &ContentId) -> PathBuf {
    PathBuf::from(format!("{START}{}.json", id.hex().get(..DIGITS).unwrap_or_default()))
}

fn read(host: &dyn Host, path: &Path) -> Result<Option<Arrival>> {
    let found: Option<Arrival> = place::read_own(host, path)?;
    // What another version of this program has begun is not gone on with.
    let found = found.filter(|arrival| arrival.version == VERSION);
    found.map(|arrival| arrival.check().map_err(|e| e.path(path))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{content::Tree, io::faulty::SimHost};

    #[test]
    fn a_note_that_leads_elsewhere_is_refused_by_field_and_one_of_another_version_is_none() {
        let sim = SimHost::new();
        let (store, id) = (Path::new("/store"), Tree::new(512).id());
        sim.make_folder(store).unwrap();
        let host: Arc<dyn Host> = Arc::new(sim);
        let begun = Arrival::begin(&host, id, &store.join("base"), "qcow2".to_owned()).unwrap();
        let found = |arrival: &Arrival| {
            arrival.write(&host, store).unwrap();
            Arrival::find(host.as_ref(), store, &id).map_err(|error| error.to_string())
        };
        assert_eq!(found(&begun).unwrap().as_ref(), Some(&begun));
        assert_eq!(found(&Arrival { version: VERSION + 1, ..begun.clone() }).unwrap(), None);
        let elsewhere = || FileName(PathBuf::from("../precious"));
        let wrong = [
            (Arrival { name: elsewhere(), ..begun.clone() }, "name: '../precious'"),
            (Arrival { temporary: elsewhere(), ..begun.clone() }, "temporary: '../precious'"),
            (Arrival { temporary: begun.name.clone(), ..begun.clone() }, "temporary: 'base'"),
        ];
        for (arrival, said) in wrong {
            let error = found(&arrival).unwrap_err();
            assert!(error.contains(said) && error.starts_with("/store/.dchain/arriving-"), "{error}");
        }
    }
}
