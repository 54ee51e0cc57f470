//! Sound inputs, one for each parser and shape of file: what is damaged, and what reads it.

use super::{
    feed::{self, Fed, Wrong},
    package,
    streams::{self, Side},
    vhdx, vmdk, vpc, wire,
};
use deltachain::{
    base::{GuestOffset, HostOffset, Result as Answer, name::FileName, units::index},
    content::{ContentId, Tree},
    io::{Access, Host, Witness, faulty::SimHost},
    store::{
        Claim, Epoch, FOLDER, Fold, FoldMode, Held, HeldState, Journal, LayerRecord, Part, Position, Record,
        Removed, Transfer,
    },
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The head that the journal and the note are about.
pub(super) const HEAD: &str = "/top.qcow2";
/// The folder that the note is about.
pub(super) const TARGET: &str = "/target";

/// What reads an input.
#[derive(Clone, Debug)]
pub enum Parser {
    /// The qcow2 format; what the external data file holds, if there is one.
    Qcow2(Vec<u8>),
    /// The VHDX format.
    Vhdx,
    /// The VMDK format; what the further file holds, if there is one.
    Vmdk(Vec<u8>),
    /// The VHD format.
    Vpc,
    /// The raw format.
    Raw,
    /// A layer's record.
    Record,
    /// A stored tree, and the ID that it is kept for.
    Tree(ContentId),
    /// A consolidation's journal, and its place.
    Journal(PathBuf),
    /// The note of a copy, and its place.
    Note(PathBuf),
    /// A server of NBD: what a client says to it.
    Nbd,
    /// One side of a chain's way to another store: what the other says.
    Stream(Side),
    /// An OVA, with the sums of its headers put right.
    Ova,
    /// What names the disks of a virtual machine (`.vmx`, `.vmsd`).
    Machine,
}

/// A sound input.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What recipes call it: a file below `testdata`, or a word.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What reads it.
    pub parser: Parser,
}

impl Subject {
    /// Returns all of them: the golden images below `testdata`, and one of each further thing that is parsed.
    pub fn all(testdata: &Path) -> Result<Vec<Self>, String> {
        let mut all = Vec::new();
        let folders =
            [("qcow2", "qcow2"), ("vhdx", "vhdx"), ("vmdk", "vmdk"), ("vpc", "vhd"), ("raw", "raw")];
        for (name, ending) in folders {
            let folder = testdata.join(name);
            let wrong = |e: std::io::Error| format!("{}: {e}", folder.display());
            for entry in std::fs::read_dir(&folder).map_err(wrong)? {
                let path = entry.map_err(wrong)?.path();
                if path.extension().is_some_and(|e| e == ending) {
                    all.push(golden(&path, name).map_err(wrong)?);
                }
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.extend(others().map_err(|e| e.to_string())?);
        Ok(all)
    }

    /// Has an input read.
    pub(super) fn feed(&self, input: &[u8]) -> Result<Fed, Wrong> {
        match &self.parser {
            Parser::Qcow2(data) => feed::qcow2(input, data),
            Parser::Vhdx => feed::vhdx(input),
            Parser::Vmdk(data) => feed::vmdk(input, data),
            Parser::Vpc => feed::vpc(input),
            Parser::Raw => feed::raw(input),
            Parser::Record => Ok(feed::record(input)),
            Parser::Tree(id) => feed::tree(input, id),
            Parser::Journal(path) => feed::journal(input, path),
            Parser::Note(path) => feed::note(input, path),
            Parser::Nbd => wire::nbd(input),
            Parser::Stream(side) => streams::hear(input, *side),
            Parser::Ova => package::ova(input),
            Parser::Machine => feed::machine_text(input),
        }
    }

    /// Whether it is an image of a format that allocates.
    pub(super) const fn is_image(&self) -> bool {
        matches!(self.parser, Parser::Qcow2(_) | Parser::Vhdx | Parser::Vmdk(_) | Parser::Vpc)
    }
}

fn golden(path: &Path, folder: &str) -> std::io::Result<Subject> {
    let name = format!("{folder}/{}", path.file_name().unwrap_or_default().display());
    let data = path.with_extension("data");
    let parser = match folder {
        "raw" => Parser::Raw,
        "vhdx" => Parser::Vhdx,
        "vmdk" => Parser::Vmdk(Vec::new()),
        "vpc" => Parser::Vpc,
        _ => Parser::Qcow2(if data.exists() { std::fs::read(data)? } else { Vec::new() }),
    };
    Ok(Subject { name, bytes: std::fs::read(path)?, parser })
}

fn others() -> Answer<Vec<Subject>> {
    let subject = |name: &str, bytes, parser| Subject { name: name.to_owned(), bytes, parser };
    let mut tree = Vec::new();
    let view: Vec<u8> = (0..9_000_000_u32).map(|n| u8::from(n % 70_001 == 0)).collect();
    let whole = Tree::of(&view);
    whole.write_to(&mut tree)?;
    let (journal, journal_at) = journal()?;
    let (note, note_at) = note()?;
    let (flat, data) = vmdk::flat();
    let mut all = vec![
        subject("vmdk child", vmdk::child()?, Parser::Vmdk(Vec::new())),
        subject("vmdk stream", vmdk::stream()?, Parser::Vmdk(Vec::new())),
        subject("vmdk cowd", vmdk::cowd(), Parser::Vmdk(Vec::new())),
        subject("vmdk sesparse", vmdk::space_efficient(), Parser::Vmdk(Vec::new())),
        subject("vmdk flat", flat, Parser::Vmdk(data)),
        subject("vhdx child", vhdx::dirty_child()?, Parser::Vhdx),
        subject("vpc child", vpc::child()?, Parser::Vpc),
        subject("record", layer().encode(), Parser::Record),
        subject("tree", tree, Parser::Tree(whole.id())),
        subject("journal", journal, Parser::Journal(journal_at)),
        subject("note", note, Parser::Note(note_at)),
        subject("ova", package::sound(), Parser::Ova),
        subject("vmx", MACHINE.into(), Parser::Machine),
        subject("vmsd", SNAPSHOTS.into(), Parser::Machine),
        subject("nbd compact", wire::conversation(false), Parser::Nbd),
        subject("nbd extended", wire::conversation(true), Parser::Nbd),
    ];
    for side in Side::ALL {
        all.push(subject(side.name(), streams::conversation(side)?, Parser::Stream(side)));
    }
    Ok(all)
}

fn layer() -> LayerRecord {
    let id = Some(ContentId::new([3; 32]));
    let (name, format) = (b"base.qcow2".to_vec(), Some("qcow2".to_owned()));
    LayerRecord {
        frozen: Some(Record { epoch: Epoch::new(7), sealed: id }),
        claim: Some(Claim { parent_epoch: Epoch::new(9), parent_id: id, name, format }),
    }
}

const MACHINE: &str = ".encoding = \"UTF-8\"\nscsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"vm |22a|22.vmdk\"\n\
    ide1:0.fileName = \"x.iso\"\nide1:0.deviceType = \"cdrom-image\"\n# disks\nSATA0:1.FileName = /far/b.vmdk\n";
const SNAPSHOTS: &str = ".encoding = \"UTF-8\"\nsnapshot.numSnapshots = \"2\"\nsnapshot0.disk0.fileName = \"vm.vmdk\"\n\
    snapshot0.disk0.node = \"scsi0:0\"\nsnapshot1.disk0.fileName = \"vm-000001.vmdk\"\n";

const WITNESS: Witness = Witness { file_system: 1, inode: 2, bytes: 3, modified_ns: 4, boot: 5 };

fn journal() -> Answer<(Vec<u8>, PathBuf)> {
    let host: Arc<dyn Host> = Arc::new(SimHost::new());
    let fold = Fold {
        job: 1,
        mode: FoldMode::TopName,
        old_epoch: Some(Epoch::new(2)),
        new_epoch: Epoch::new(3),
        head: WITNESS,
        head_epoch: None,
        list_digest: [4; 32],
        list_bytes: 1 << 20,
        view_id: Some([5; 32]),
        size: 1 << 30,
        layers: ["top.qcow2", "middle.qcow2", "base.raw"].map(PathBuf::from).to_vec(),
        result: "top.qcow2".into(),
        format: "raw".into(),
        draft: None,
        removed: vec![Removed { name: "middle.qcow2".into(), file: WITNESS }],
        options: Vec::new(),
        bitmaps: vec![Held {
            name: "changes".to_owned(),
            granularity_bytes: 65536,
            state: HeldState::Records,
        }],
    };
    let mut journal = Journal::create(&host, Path::new(HEAD), fold)?;
    journal.note(Position { mark: GuestOffset::new(4096), is_ready: false })?;
    let path = journal.path().to_path_buf();
    drop(journal);
    Ok((whole(host.as_ref(), &path)?, path))
}

fn note() -> Answer<(Vec<u8>, PathBuf)> {
    let host: Arc<dyn Host> = Arc::new(SimHost::new());
    let folder = Path::new(TARGET).join(FOLDER);
    host.make_folder(&folder)?;
    let mut note = Transfer::open(&host, Path::new(TARGET), Path::new(HEAD))?;
    let part = Part {
        source: WITNESS,
        further: Vec::new(),
        temporary: FileName(".disk.dchain-draft-0".into()),
        done_bytes: 77,
        whole: Some(WITNESS),
        form: String::new(),
    };
    note.note(Path::new("base.raw"), part)?;
    let path = host.list(&folder)?.into_iter().map(|entry| entry.path).next().unwrap_or_default();
    Ok((whole(host.as_ref(), &path)?, path))
}

fn whole(host: &dyn Host, path: &Path) -> Answer<Vec<u8>> {
    let file = host.open(path, Access::ReadShared)?;
    let mut bytes = vec![0; index(file.bytes()?)];
    file.read_at(HostOffset::new(0), &mut bytes)?;
    Ok(bytes)
}
