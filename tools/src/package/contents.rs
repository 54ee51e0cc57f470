//! What `dchain info` says of an OVA: its descriptor's disks, and what speaks for their bytes.

use crate::{output::printable, size};
use deltachain::{
    base::{ErrorKind, Result, name},
    chain::{Layer, Package},
    job::ova::{Outcome, verify_descriptor},
    store::ova::{Algorithm, OvaDisk},
};
use serde::Serialize;
use std::io::{self, Write};

/// What is shown of an OVA.
#[derive(Debug, Serialize)]
pub struct Contents {
    filename: String,
    format: &'static str,
    actual_size: u64,
    /// The file that describes the others.
    descriptor: String,
    /// What the virtual machines are called.
    systems: Vec<String>,
    manifest: Option<ManifestFacts>,
    /// The file that signs the manifest: it is not verified.
    certificate: Option<String>,
    disks: Vec<DiskFacts>,
    /// Files that are none of the above.
    other_files: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ManifestFacts {
    file: String,
    algorithms: Vec<Algorithm>,
    /// Whether the descriptor is as it says: `verified`, `differs`, `not-listed`. The disks are held against it when they
    /// are converted.
    descriptor: &'static str,
}

#[derive(Debug, Serialize)]
struct DiskFacts {
    disk_id: String,
    /// The file that has its bytes, as the descriptor names it.
    file: Option<String>,
    /// What the file is by what stands in it.
    format: Option<&'static str>,
    /// Size of the disk by what stands in the file.
    virtual_size: Option<u64>,
    /// The format by the descriptor.
    format_uri: Option<String>,
    /// Size of the disk by the descriptor.
    capacity: Option<u64>,
    /// The same as it is written there.
    stated_capacity: Option<String>,
    /// Size of the file.
    file_size: Option<u64>,
    /// The same by the descriptor.
    stated_file_size: Option<u64>,
    compression: Option<String>,
    chunk_size: Option<String>,
    parent: Option<String>,
    /// Why it cannot be read, if it cannot.
    problem: Option<String>,
}

impl Contents {
    /// Looks at an OVA and at the header of each disk in it.
    pub fn of(package: &Package) -> Result<Self> {
        let ova = package.ova();
        let manifest = match ova.manifest() {
            None => None,
            Some((member, manifest)) => Some(ManifestFacts {
                file: member.name.clone(),
                algorithms: manifest.algorithms(),
                descriptor: match verify_descriptor(ova) {
                    Ok(Outcome::Verified) => "verified",
                    Ok(_) => "not-listed",
                    Err(e) if e.kind() == ErrorKind::Corrupt => "differs",
                    Err(e) => return Err(e),
                },
            }),
        };
        let disks: Vec<OvaDisk> = ova.disks()?;
        let speaking = [Some(ova.descriptor()), ova.manifest().map(|(member, _)| member), ova.certificate()];
        let is_other = |name: &str| {
            let is_disk =
                disks.iter().any(|disk| disk.member.as_ref().is_some_and(|member| member.name == name));
            !is_disk && !speaking.iter().flatten().any(|member| member.name == name)
        };
        let names = ova.members().iter().map(|member| member.name.as_str());
        Ok(Self {
            filename: name::text(ova.file().path()).into_owned(),
            format: "ova",
            actual_size: ova.file().allocated_bytes()?,
            descriptor: ova.descriptor().name.clone(),
            systems: ova.systems().to_vec(),
            manifest,
            certificate: ova.certificate().map(|member| member.name.clone()),
            other_files: names.filter(|name| is_other(name)).map(str::to_owned).collect(),
            disks: disks.into_iter().map(|disk| DiskFacts::of(package, disk)).collect(),
        })
    }

    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "image: {}", self.filename)?;
        writeln!(out, "file format: {}", self.format)?;
        writeln!(out, "disk size: {}", size::show(self.actual_size))?;
        writeln!(out, "descriptor: {}", self.descriptor)?;
        if !self.systems.is_empty() {
            writeln!(out, "virtual machine: {}", self.systems.join(", "))?;
        }
        match &self.manifest {
            None => writeln!(out, "manifest: none")?,
            Some(manifest) => {
                let names: Vec<_> = manifest.algorithms.iter().map(|algorithm| algorithm.name()).collect();
                let descriptor = match manifest.descriptor {
                    "verified" => "the descriptor is as it says",
                    "differs" => "the descriptor is NOT as it says",
                    _ => "it does not speak of the descriptor",
                };
                let (file, names) = (&manifest.file, names.join(", "));
                writeln!(out, "manifest: {file} ({names}; {descriptor}; convert looks at the disks)")?;
            }
        }
        if let Some(file) = &self.certificate {
            writeln!(out, "certificate: {file} (not verified)")?;
        }
        writeln!(out, "disks:{}", if self.disks.is_empty() { " none" } else { "" })?;
        for disk in &self.disks {
            disk.write(out)?;
        }
        match self.other_files.as_slice() {
            [] => Ok(()),
            files => writeln!(out, "other files: {}", files.join(", ")),
        }
    }
}

impl DiskFacts {
    fn of(package: &Package, disk: OvaDisk) -> Self {
        let opened = match disk.refusal() {
            Some(why) => Err(why),
            None => package.layer(&disk).map_err(|e| e.what().to_owned()),
        };
        let image = opened.as_ref().ok();
        Self {
            format: image.map(|layer| layer.format().name()),
            virtual_size: image.map(Layer::size),
            problem: opened.err(),
            file_size: disk.member.as_ref().map(|member| member.range.bytes),
            disk_id: disk.id,
            file: disk.href,
            format_uri: disk.format,
            capacity: disk.size,
            stated_capacity: disk.capacity,
            stated_file_size: disk.stated_bytes,
            compression: disk.compression,
            chunk_size: disk.chunk,
            parent: disk.parent,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let file = self.file.as_deref().unwrap_or("no file");
        writeln!(out, "    {}: {file}", self.disk_id)?;
        let mut line = |key: &str, value: String| writeln!(out, "        {key}: {}", printable(&value));
        if let Some(format) = self.format {
            line("format", format.to_owned())?;
        }
        if let Some(uri) = &self.format_uri {
            line("format by the descriptor", uri.clone())?;
        }
        match (self.virtual_size, self.capacity, &self.stated_capacity) {
            (Some(size), capacity, _) => {
                line("virtual size", format!("{} ({size} bytes)", size::show(size)))?;
                if let Some(capacity) = capacity.filter(|capacity| *capacity != size) {
                    line("capacity by the descriptor", format!("{capacity} bytes"))?;
                }
            }
            (None, Some(size), _) => line("capacity", format!("{} ({size} bytes)", size::show(size)))?,
            (None, None, Some(text)) => line("capacity", text.clone())?,
            (None, None, None) => {}
        }
        if let Some(bytes) = self.file_size {
            line("file size", size::show(bytes))?;
        }
        if let Some(stated) =
            self.stated_file_size.filter(|stated| self.file_size.is_some_and(|is| is != *stated))
        {
            line("file size by the descriptor", format!("{stated} bytes"))?;
        }
        match &self.problem {
            Some(why) => line("not read here", why.clone()),
            None => Ok(()),
        }
    }
}
