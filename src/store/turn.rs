//! Turns: of several processes that are about to put the same thing into a folder, one does at a time.
//!
//! A turn is a file of a known name in the folder's `.dchain/turns`, locked for writing by whoever has it, and removed by
//! whoever had it. What stays true: who has locked the file that has the name now has the turn, and nobody else. A power
//! cut or a kill ends it; what it leaves is taken by the next.

use super::{FOLDER, place};
use crate::{
    base::{ErrorKind, Result},
    io::{Access, File, Host},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

const TURNS: &str = "turns";

/// How often the name may turn out to stand for another file before it counts as another's turn.
const TRIES: usize = 10;

/// The right to make something, as long as it is held.
#[derive(Debug)]
pub struct Turn {
    host: Arc<dyn Host>,
    path: PathBuf,
    file: Option<Arc<dyn File>>,
}

impl Turn {
    /// Takes the turn for what `key` stands for in `folder`; `None` while another has it.
    pub fn take(host: &Arc<dyn Host>, folder: &Path, key: &str) -> Result<Option<Self>> {
        let turns = folder.join(FOLDER).join(TURNS);
        let path = turns.join(blake3::hash(key.as_bytes()).to_hex().get(..32).unwrap_or_default());
        for _ in 0..TRIES {
            let opened = match host.open(&path, Access::Write) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    place::make_durable_folder(host.as_ref(), &folder.join(FOLDER))?;
                    host.make_folder(&turns)?;
                    host.create(&path)
                }
                opened => opened,
            };
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::Busy => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Exists => continue,
                Err(error) => return Err(error),
            };
            // Whoever had it before removes it last of all: then the name stands for nothing, or for another's.
            let is_named = host.witness(&path).and_then(|named| Ok(named.same_file(&file.witness()?)));
            match is_named {
                Ok(true) => return Ok(Some(Self { host: Arc::clone(host), path, file: Some(file) })),
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Removed while it is locked: nobody else has locked what the name stands for.
        let _ = self.host.remove(&self.path);
        self.file = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{faulty::SimHost, real::RealHost};

    fn take_turns(host: &Arc<dyn Host>, folder: &Path) {
        let take = |key| Turn::take(host, folder, key).unwrap();
        let one = take("a base").unwrap();
        assert!(take("a base").is_none());
        let other = take("another base").unwrap();
        drop(one);
        let next = take("a base").unwrap();
        assert!(take("a base").is_none() && take("another base").is_none());
        drop((next, other));
        assert_eq!(host.list(&folder.join(FOLDER).join(TURNS)).unwrap(), []);
    }

    #[test]
    fn what_is_being_made_is_made_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        take_turns(&(Arc::new(RealHost::new()) as Arc<dyn Host>), folder.path());
        let sim = SimHost::new();
        sim.make_folder(Path::new("/store")).unwrap();
        take_turns(&(Arc::new(sim.clone()) as Arc<dyn Host>), Path::new("/store"));
    }

    #[test]
    fn the_turn_of_a_process_that_was_killed_is_the_next_ones() {
        let sim = SimHost::new();
        sim.make_folder(Path::new("/store")).unwrap();
        let host: Arc<dyn Host> = Arc::new(sim.clone());
        let held = Turn::take(&host, Path::new("/store"), "a base").unwrap().unwrap();
        let after: Arc<dyn Host> = Arc::new(sim.twin());
        assert_eq!(after.list(Path::new("/store/.dchain/turns")).unwrap().len(), 1);
        assert!(Turn::take(&after, Path::new("/store"), "a base").unwrap().is_some());
        drop(held);
    }
}
