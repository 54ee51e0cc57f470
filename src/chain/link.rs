//! Names of parents: how a child's header says where its parent is.

use std::path::{Component, Path, PathBuf};

/// Returns the name that an image in `folder` gives to the file at `target`: relative where both lie under
/// one root, so that a folder can be moved as a whole. Both paths are absolute and free of links.
pub fn relative_name(folder: &Path, target: &Path) -> PathBuf {
    let (here, there) = (parts(folder), parts(target));
    let shared = here.iter().zip(&there).take_while(|(a, b)| a == b).count();
    let up = here.iter().skip(shared).map(|_| Component::ParentDir);
    up.chain(there.iter().skip(shared).copied()).collect()
}

fn parts(path: &Path) -> Vec<Component<'_>> {
    path.components().filter(|c| !matches!(c, Component::RootDir | Component::CurDir)).collect()
}

/// Returns the path that `name` stands for in the header of an image in `folder`.
pub(super) fn join(folder: &Path, name: &Path) -> PathBuf {
    folder.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_childs_folder() {
        let name = |folder: &str, target: &str| relative_name(Path::new(folder), Path::new(target));
        assert_eq!(name("/vm/a", "/vm/a/base"), Path::new("base"));
        assert_eq!(name("/vm/a", "/vm/golden/base"), Path::new("../golden/base"));
        assert_eq!(name("/", "/base"), Path::new("base"));
        assert_eq!(name("/vm/a/b", "/x"), Path::new("../../../x"));
    }
}
