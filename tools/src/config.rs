//! What this host's owner allows: `DCHAIN_ALLOW_DIRS` and `/etc/deltachain.toml`.

use crate::failure::Failure;
use serde::Deserialize;
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// The host's file.
const FILE: &str = "/etc/deltachain.toml";
/// Folders, as in `PATH`.
const VARIABLE: &str = "DCHAIN_ALLOW_DIRS";

/// The host's file, parsed.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Config {
    /// Folders whose files an image may refer to.
    #[serde(default)]
    allow_dirs: Vec<PathBuf>,
}

/// Returns the folders that the environment and the host's file allow.
pub fn allowed_folders() -> Result<Vec<PathBuf>, Failure> {
    let mut folders: Vec<_> = env::var_os(VARIABLE)
        .iter()
        .flat_map(env::split_paths)
        .filter(|p| !p.as_os_str().is_empty())
        .collect();
    folders.extend(read(Path::new(FILE))?.allow_dirs);
    Ok(folders)
}

/// Returns the folder for what is known of images in folders that cannot be written (XDG base directories).
pub fn state_folder() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("deltachain"))
}

fn read(file: &Path) -> Result<Config, Failure> {
    let wrong = |what: String| Failure::usage(format!("{}: {what}", file.display()));
    match fs::read_to_string(file) {
        Ok(text) => toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Config::default()),
        Err(e) => Err(wrong(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_names_folders() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "allow-dirs = [\"/srv/golden\"]\n").unwrap();
        assert_eq!(read(file.path()).unwrap().allow_dirs, [Path::new("/srv/golden")]);
        assert_eq!(read(Path::new("/nowhere/at/all.toml")).unwrap(), Config::default());
    }

    #[test]
    fn a_mistake_in_the_hosts_file_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "allow-dir = [\"/srv\"]\n").unwrap();
        let failure = read(file.path()).unwrap_err().to_string();
        assert!(
            failure.contains("allow-dir") && failure.contains(file.path().to_str().unwrap()),
            "{failure}"
        );
    }
}
