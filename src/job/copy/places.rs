//! Where layers go: each file under its own name, as long as no layer above it has that.
//!
//! What stays true: the same chain gets the same names each time, so that a copy that was cut off finds them again.

use super::{Conversion, Match, Placed, Plan, file};
use crate::{
    base::{Error, ErrorKind, Result},
    chain::{Chain, Layer},
    format,
    io::{File, Host},
    store::Transfer,
};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

impl Plan {
    /// Ends the list with what stands in for `layer`, if anything was found; `NoSpace` if the rest does not fit.
    pub(super) fn stand_on(&mut self, found: Option<&Match>, layer: Option<&Layer>) -> Result<()> {
        if let (Some(found), Some(layer)) = (found, layer) {
            let to = found.chain.head()?.path.clone();
            self.layers.push(Placed::Link { from: layer.path.clone(), to, id: found.id });
        }
        if self.copy_bytes > self.free_bytes && !self.is_resumed {
            let what =
                format!("{} bytes are to be copied, {} are free there", self.copy_bytes, self.free_bytes);
            return Err(Error::new(ErrorKind::NoSpace, what).path(&self.folder));
        }
        Ok(())
    }
}

/// Digits of the sum that tells layers of one name apart.
const SUM_DIGITS: usize = 8;

/// Names in one folder, as they are given away.
#[derive(Default)]
pub(in crate::job) struct Names(BTreeSet<PathBuf>);

impl Names {
    /// Takes a name for the layer at `place`; if that is taken, one with a sum of the place before the suffix.
    pub(in crate::job) fn take(&mut self, name: PathBuf, place: &Path) -> PathBuf {
        if self.0.insert(name.clone()) {
            return name;
        }
        let sum = blake3::hash(place.as_os_str().as_bytes()).to_hex();
        let mut distinct = name.file_stem().unwrap_or_default().to_owned();
        distinct.push("-");
        distinct.push(sum.get(..SUM_DIGITS).unwrap_or_default());
        if let Some(suffix) = name.extension() {
            distinct.push(".");
            distinct.push(suffix);
        }
        let distinct = PathBuf::from(distinct);
        self.0.insert(distinct.clone());
        distinct
    }
}

/// Returns where the files of each layer go, the head's first, of each the one with the header first. Headers name further
/// files, so that those keep their names: two may want the same.
pub(super) fn places(layers: &[Layer], folder: &Path) -> Vec<Vec<PathBuf>> {
    let mut names = Names::default();
    let name = |path: &Path| PathBuf::from(path.file_name().unwrap_or_default());
    let mut of = |layer: &Layer| {
        let own = names.take(name(&layer.path), &layer.path);
        let further: Vec<_> = layer.image.files().iter().skip(1).map(|file| name(file.path())).collect();
        names.0.extend(further.iter().cloned());
        std::iter::once(own).chain(further).map(|name| folder.join(name)).collect()
    };
    layers.iter().map(&mut of).collect()
}

/// Says where the topmost `depth` layers go.
pub(super) fn placed(
    host: &dyn Host,
    chain: &Chain,
    depth: usize,
    (folder, conversion): (&Path, Option<&Conversion>),
    transfer: &Transfer,
) -> Result<Vec<Placed>> {
    if let Some(new) = conversion {
        return new.placed(host, chain, folder, transfer);
    }
    let mut taken = BTreeSet::new();
    let mut out = Vec::new();
    for (layer, places) in chain.layers().iter().zip(places(chain.layers(), folder)).take(depth) {
        let files = layer.image.files();
        refuse_far_bytes(layer, &files)?;
        let mut is_done = false;
        for (file, place) in files.iter().zip(&places).rev() {
            // The header's file comes last, here and in time.
            is_done = file::is_done(host, &[file.witness()?], place, transfer)?;
            if taken.contains(place) {
                let what = "is what files of two layers are called that lie in different folders, and whose headers name them: \
                            together they can only be copied into another format, or as one image";
                return Err(Error::unsupported(what).path(place));
            }
            taken.insert(place.clone());
            if !is_done && host.is_taken(place)? {
                return Err(Error::new(ErrorKind::Exists, "is there already").path(place));
            }
        }
        let bytes = files.iter().map(|f| f.allocated_bytes()).sum::<Result<u64>>()?;
        let to = places.into_iter().next().unwrap_or_default();
        out.push(Placed::Copy { from: layer.path.clone(), to, bytes, is_done });
    }
    Ok(out)
}

/// Refuses an image whose copy would not have its bytes beside it. A header that names them by a whole path would lead the
/// copy to those of its source: whoever writes one would write both.
fn refuse_far_bytes(layer: &Layer, files: &[Arc<dyn File>]) -> Result<()> {
    let Some((header, further)) = files.split_first() else { return Ok(()) };
    if let Some(file) = further.iter().find(|file| file.path().parent() != layer.path.parent()) {
        let what = format!("keeps bytes outside its folder, in {}", file.path().display());
        return Err(Error::unsupported(what).path(&layer.path));
    }
    if further.is_empty() {
        return Ok(());
    }
    let names = format::peek(layer.format(), header.as_ref())?.data_names;
    match names.iter().find(|name| Path::new(OsStr::from_bytes(name)).is_absolute()) {
        Some(name) => {
            let name = String::from_utf8_lossy(name);
            let what = format!(
                "names its data file by a whole path, '{}': its copy would write there, too; it can only be copied into \
                 another format, or as one image",
                name.escape_debug()
            );
            Err(Error::unsupported(what).path(&layer.path))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::{Opening, Policy},
        format::Format,
        io::Access,
        job::{
            create::{NewImage, create},
            rebase::NewParent,
        },
    };

    #[test]
    fn two_data_files_of_one_name_are_refused_with_what_helps() {
        let folder = tempfile::tempdir().unwrap();
        let host: std::sync::Arc<dyn Host> = std::sync::Arc::new(crate::io::real::RealHost::new());
        let path = |name: &str| folder.path().canonicalize().unwrap().join(name);
        let opening = Opening::writing().with_policy(Policy { allowed: vec![path("")], ..Policy::default() });
        for (name, parent) in [("a/base", None), ("b/top", Some("a/base"))] {
            std::fs::create_dir(path(name).parent().unwrap()).unwrap();
            let options = vec![("data_file".to_owned(), "data".to_owned())];
            let parent = parent.map(|parent| NewParent { path: path(parent), format: Format::Qcow2 });
            let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent, options };
            create(&host, &path(name), &new, &opening).unwrap();
        }
        let opening = opening.with_access(Access::Read).with_format(Some(Format::Qcow2));
        let chain = Chain::open(&host, &path("b/top"), &opening).unwrap();
        let store = path("store");
        let transfer = Transfer::open(&host, &store, &path("b/top")).unwrap();
        let refused = placed(host.as_ref(), &chain, 2, (&store, None), &transfer).unwrap_err();
        assert_eq!(
            (refused.kind(), refused.file()),
            (ErrorKind::Unsupported, Some(store.join("data").as_path()))
        );
    }

    /// A copy whose header led to its source's bytes would be another name for the same disk.
    #[test]
    fn a_data_file_that_is_named_by_a_whole_path_is_not_copied_as_if_it_were_beside_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let host: std::sync::Arc<dyn Host> = std::sync::Arc::new(crate::io::real::RealHost::new());
        let path = |name: &str| folder.path().canonicalize().unwrap().join(name);
        std::fs::create_dir(path("store")).unwrap();
        let transfer = Transfer::open(&host, &path("store"), &path("disk")).unwrap();
        let opening = Opening::writing().with_format(Some(Format::Qcow2));
        let place = |name: &str, data: &str| {
            let options = vec![("data_file".to_owned(), data.to_owned())];
            let new = NewImage { format: Format::Qcow2, size: Some(1 << 20), parent: None, options };
            create(&host, &path(name), &new, &opening).unwrap();
            let chain = Chain::open(&host, &path(name), &opening).unwrap();
            placed(host.as_ref(), &chain, 1, (&path("store"), None), &transfer)
        };
        assert_eq!(place("disk", "data").unwrap().len(), 1);
        let whole = path("whole.data");
        let refused = place("whole", whole.to_str().unwrap()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.to_string().contains(&format!("{}: names its data file", path("whole").display())));
    }

    #[test]
    fn a_name_that_is_taken_gets_a_sum_before_its_suffix() {
        let mut names = Names::default();
        let mut take = |name: &str, place: &str| names.take(name.into(), Path::new(place));
        assert_eq!(take("vm.qcow2", "/a/vm.qcow2"), Path::new("vm.qcow2"));
        let (one, other) = (take("vm.qcow2", "/b/vm.qcow2"), take("vm.qcow2", "/c/vm.qcow2"));
        assert!(one.to_str().unwrap().starts_with("vm-") && one.extension().unwrap() == "qcow2", "{one:?}");
        assert!(one != other && one.as_os_str().len() == "vm-01234567.qcow2".len(), "{one:?} {other:?}");
        assert_eq!(take("disk", "/a/disk"), Path::new("disk"));
        assert!(take("disk", "/b/disk").to_str().unwrap().starts_with("disk-"));
    }
}
