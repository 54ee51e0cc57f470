//! Names of parents: how a child's header says where its parent is.

use std::{
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

/// Returns the name that an image in `folder` gives to the file at `target`: relative where both lie under
/// one root, so that a folder can be moved as a whole. Both paths are absolute and free of links.
pub fn relative_name(folder: &Path, target: &Path) -> PathBuf {
    let (here, there) = (parts(folder), parts(target));
    let shared = here.iter().zip(&there).take_while(|(a, b)| a == b).count();
    let up = here.iter().skip(shared).map(|_| Component::ParentDir);
    up.chain(there.iter().skip(shared).copied()).collect()
}

/// Returns the bytes by which the header of an image in `folder` names the file at `target`: as [`relative_name`], and
/// behind `./` where QEMU would take what stands before a colon for a protocol. Both paths are absolute and free of
/// links.
pub fn header_name(folder: &Path, target: &Path) -> Vec<u8> {
    let name = relative_name(folder, target).into_os_string().into_vec();
    if is_plain(&name) { name } else { [b"./", name.as_slice()].concat() }
}

/// Returns whether `name`, from an image's header, stands for a file: no NUL byte, and no colon in its first part.
pub fn is_plain(name: &[u8]) -> bool {
    let first = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    !name.contains(&0) && !first.contains(&b':')
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

    #[test]
    fn a_colon_in_a_headers_name_is_no_protocol() {
        let name = |target: &str| {
            let name = header_name(Path::new("/vm"), Path::new(target));
            assert!(is_plain(&name));
            String::from_utf8(name).unwrap()
        };
        assert_eq!(name("/vm/vm-19:30.qcow2"), "./vm-19:30.qcow2");
        assert_eq!(name("/vm/day:1/base"), "./day:1/base");
        assert_eq!(name("/vm/day/1:base"), "day/1:base");
        assert_eq!(name("/1:base"), "../1:base");
    }
}
