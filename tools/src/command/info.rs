//! `dchain info`: one image, or its whole chain, or what an OVA holds.

use crate::{
    failure::{Exit, Failure},
    options::{self, Reading},
    output::Answer,
    package::{self, Contents, Packaged},
    size,
};
use clap::Args;
use deltachain::{
    base::{Result, name},
    chain::{Chain, Layer, Opening, Package, open_layer},
    format::{Format, Snapshot},
    io::File,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    ffi::OsStr,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Show what an image is, or all layers of its chain
#[derive(Args, Debug)]
pub struct Arguments {
    /// Show every layer, not just the named image
    #[arg(long)]
    backing_chain: bool,
    #[command(flatten)]
    packaged: Packaged,
    #[command(flatten)]
    reading: Reading,
    /// The image, or an OVA
    image: PathBuf,
}

/// What is shown of one image: qemu-img's keys and values, and ours.
#[derive(Debug, Serialize)]
struct Facts {
    filename: String,
    format: &'static str,
    virtual_size: u64,
    actual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_size: Option<u64>,
    #[serde(skip_serializing_if = "is_false")]
    encrypted: bool,
    dirty_flag: bool,
    #[serde(flatten)]
    parent: Option<Parent>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snapshots: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format_specific: Option<Value>,
    children: Vec<Value>,
    /// Where the file really is.
    #[serde(serialize_with = "deltachain::base::name::serialize")]
    path: PathBuf,
    /// The format whose header stands at the start of a raw disk: a guest may write any there, the disk stays raw.
    #[serde(skip_serializing_if = "Option::is_none")]
    starts_like: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Parent {
    backing_filename: String,
    full_backing_filename: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename_format: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl Arguments {
    /// Prints the facts.
    pub fn run(&self, answer: &Answer) -> std::result::Result<Exit, Failure> {
        let host = options::host();
        // What an image says of itself is shown whatever the records say of it.
        let opening = Opening { ledger: None, ..self.reading.opening(&host)? };
        if let Some(package) = self.packaged.open(&host, &self.image, &opening)? {
            self.show_package(&package, answer)?;
        } else if self.backing_chain {
            let chain = Chain::open(&host, &self.image, &opening)?;
            let facts = facts_of_all(chain.layers(), &self.image)?;
            answer.print_list(&facts, |facts, out| {
                for (place, layer) in facts.iter().enumerate() {
                    if place > 0 {
                        writeln!(out)?;
                    }
                    layer.write(out)?;
                }
                Ok(())
            })?;
        } else {
            let layer = open_layer(&host, &self.image, &opening)?;
            let facts = Facts::of(&layer, &self.image)?;
            answer.print(&facts, |out| facts.write(out))?;
        }
        Ok(Exit::Done)
    }

    /// Shows what is in an OVA, or the disk of it that is named.
    fn show_package(&self, package: &Package, answer: &Answer) -> std::result::Result<(), Failure> {
        if !self.packaged.is_named() {
            let contents = Contents::of(package).map_err(|e| package::failure(&e, &self.image))?;
            return answer.print(&contents, |out| contents.write(out));
        }
        let disk = self.packaged.disk(package)?;
        let facts = package.layer(&disk).and_then(|layer| Facts::of(&layer, &self.image.join(disk.name())));
        let facts = facts.map_err(|e| package::failure(&e, &self.image))?;
        answer.print(&facts, |out| facts.write(out))
    }
}

fn facts_of_all(layers: &[Layer], image: &Path) -> Result<Vec<Facts>> {
    let mut name = image.to_path_buf();
    let mut all = Vec::with_capacity(layers.len());
    for layer in layers {
        let facts = Facts::of(layer, &name)?;
        if let Some(parent) = &facts.parent {
            name = name::path(&parent.full_backing_filename);
        }
        all.push(facts);
    }
    Ok(all)
}

impl Facts {
    /// Collects the facts of a layer that the user knows as `name`.
    fn of(layer: &Layer, name: &Path) -> Result<Self> {
        let details = layer.image.details()?;
        let files = layer.image.files();
        let parent = layer.image.parent().map(|parent| {
            let written = Path::new(OsStr::from_bytes(&parent.name));
            Parent {
                backing_filename: name::text(written).into_owned(),
                full_backing_filename: name::text(&beside(name, written)).into_owned(),
                backing_filename_format: parent.format,
            }
        });
        let format = layer.format().name();
        let shown = files.first().map(|file| Format::recognise(file.as_ref())).transpose()?;
        let shown = shown.map(Format::name).filter(|shown| *shown != format);
        let specific: Map<_, _> = details.specific.into_iter().collect();
        // As qemu-img counts: with the extents of a VMDK, without a qcow2's data file.
        let counted = if layer.format() == Format::Vmdk { files.len() } else { 1 };
        let held = files.iter().take(counted).map(|file| file.allocated_bytes());
        Ok(Self {
            filename: name::text(name).into_owned(),
            format,
            virtual_size: layer.size(),
            actual_size: held.sum::<deltachain::base::Result<u64>>()?,
            cluster_size: details.cluster_bytes,
            encrypted: details.is_encrypted,
            dirty_flag: details.is_dirty,
            parent,
            snapshots: details.snapshots.iter().map(snapshot).collect(),
            format_specific: (!specific.is_empty()).then(|| json!({ "type": format, "data": specific })),
            children: files
                .first()
                .map(|f| file_node(f.as_ref(), name))
                .into_iter()
                .collect::<Result<_>>()?,
            path: layer.path.clone(),
            starts_like: shown,
        })
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "image: {}", self.filename)?;
        writeln!(out, "file format: {}", self.format)?;
        if let Some(shown) = self.starts_like {
            writeln!(out, "starts like: {shown} (if it really is, state it: -f {shown})")?;
        }
        writeln!(out, "virtual size: {} ({} bytes)", size::show(self.virtual_size), self.virtual_size)?;
        writeln!(out, "disk size: {}", size::show(self.actual_size))?;
        if let Some(bytes) = self.cluster_size {
            writeln!(out, "cluster_size: {bytes}")?;
        }
        if self.encrypted {
            writeln!(out, "encrypted: yes")?;
        }
        if self.dirty_flag {
            writeln!(out, "cleanly shut down: no")?;
        }
        if let Some(parent) = &self.parent {
            let (written, whole) = (&parent.backing_filename, &parent.full_backing_filename);
            let actual = if whole == written { String::new() } else { format!(" (actual path: {whole})") };
            writeln!(out, "backing file: {written}{actual}")?;
            if let Some(format) = &parent.backing_filename_format {
                writeln!(out, "backing file format: {format}")?;
            }
        }
        if !self.snapshots.is_empty() {
            writeln!(out, "internal snapshots:")?;
        }
        for snapshot in &self.snapshots {
            let shown = |key: &str| match snapshot.get(key) {
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
                None => String::new(),
            };
            writeln!(
                out,
                "    {}  {}  taken at {} s since 1970",
                shown("id"),
                shown("name"),
                shown("date-sec")
            )?;
        }
        if let Some(data) = self.format_specific.as_ref().and_then(|s| s.get("data")) {
            writeln!(out, "Format specific information:")?;
            write_value(out, data, 4)?;
        }
        Ok(())
    }
}

/// Returns where a name that stands in the image `name` leads to, as qemu-img shows it.
fn beside(name: &Path, written: &Path) -> PathBuf {
    name.parent().unwrap_or(Path::new("")).join(written)
}

fn snapshot(snapshot: &Snapshot) -> Value {
    const SECOND: u64 = 1_000_000_000;
    let mut facts = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.machine_bytes,
        "date-sec": snapshot.taken_ns / SECOND,
        "date-nsec": snapshot.taken_ns % SECOND,
        "vm-clock-sec": snapshot.guest_ns / SECOND,
        "vm-clock-nsec": snapshot.guest_ns % SECOND,
        "virtual-size": snapshot.size,
    });
    if let (Some(count), Value::Object(facts)) = (snapshot.guest_instructions, &mut facts) {
        facts.insert("icount".to_owned(), count.into());
    }
    facts
}

/// The file below the format, as qemu-img describes it.
fn file_node(file: &dyn File, name: &Path) -> Result<Value> {
    let kind = if file.is_device() { "host_device" } else { "file" };
    let facts = json!({
        "children": [],
        "virtual-size": file.bytes()?.next_multiple_of(512),
        "filename": name::text(name),
        "format": kind,
        "actual-size": file.allocated_bytes()?,
        "format-specific": { "type": kind, "data": {} },
        "dirty-flag": false,
    });
    Ok(json!({ "name": "file", "info": facts }))
}

/// Writes JSON the way qemu-img writes its format's own facts.
fn write_value(out: &mut dyn Write, value: &Value, indent: usize) -> io::Result<()> {
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(k, v)| (k.replace('-', " "), v)).collect(),
        Value::Array(values) => values.iter().enumerate().map(|(n, v)| (format!("[{n}]"), v)).collect(),
        _ => return Ok(()),
    };
    for (key, value) in entries {
        match value {
            Value::Object(_) | Value::Array(_) => {
                writeln!(out, "{:indent$}{key}:", "")?;
                write_value(out, value, indent + 4)?;
            }
            Value::String(text) => writeln!(out, "{:indent$}{key}: {text}", "")?,
            plain => writeln!(out, "{:indent$}{key}: {plain}", "")?,
        }
    }
    Ok(())
}
