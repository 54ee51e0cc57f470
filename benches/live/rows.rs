//! The rows: what is compared with what, and what is to be reached.

use crate::{
    data::Piece::{self, Base, Deltas},
    load::Work,
    server::{Files, Server},
};

/// One comparison.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) pieces: &'static [Piece],
    pub(crate) work: Work,
    pub(crate) ours: Server,
    /// Each with what ours has to reach of its rate; `None`: shown only.
    pub(crate) theirs: &'static [(Server, Option<f64>)],
}

const RAW: Server = Server::Ours("base.raw", Files::Copy);
const QCOW2: Server = Server::Ours("base.qcow2", Files::Copy);
const NBDKIT: Server = Server::Nbdkit("base.raw");
const QEMU: (Server, Option<f64>) = (Server::QemuRaw("base.raw"), None);
const QEMU_QCOW2: (Server, Option<f64>) = (Server::QemuQcow2("base.qcow2", Files::Copy), None);

const fn raw(name: &'static str, work: Work, theirs: &'static [(Server, Option<f64>)]) -> Row {
    Row { name, pieces: &[Base], work, ours: RAW, theirs }
}

/// All rows, in the table's order.
pub(crate) const ROWS: &[Row] = &[
    raw("NBD 4K random read, qd 32, raw", Work::Reads(32), &[(NBDKIT, Some(1.0)), QEMU]),
    raw("NBD 4K random write, qd 32, raw", Work::Writes(32), &[(NBDKIT, Some(1.0)), QEMU]),
    raw("NBD 4K random read, qd 1, raw", Work::Reads(1), &[(NBDKIT, Some(1.0)), QEMU]),
    raw("NBD 4K random write, qd 1, raw", Work::Writes(1), &[(NBDKIT, Some(1.0)), QEMU]),
    raw("NBD 1M sequential read, qd 4, raw", Work::Stream, &[(NBDKIT, Some(0.9)), QEMU]),
    Row {
        name: "NBD 4K random read, qd 32, qcow2",
        pieces: &[Base],
        work: Work::Reads(32),
        ours: QCOW2,
        theirs: &[(RAW, Some(0.85)), QEMU_QCOW2],
    },
    Row {
        name: "NBD 4K random write, qd 32, qcow2",
        pieces: &[Base],
        work: Work::Writes(32),
        ours: QCOW2,
        theirs: &[(RAW, Some(0.85)), QEMU_QCOW2],
    },
    Row {
        name: "NBD 4K random read, qd 32, depth 64",
        pieces: &[Deltas],
        work: Work::Reads(32),
        ours: Server::Ours("c.64", Files::Chain(64)),
        theirs: &[
            (Server::Ours("c.1", Files::Chain(1)), Some(0.95)),
            (Server::QemuQcow2("c.64", Files::Chain(64)), None),
        ],
    },
];
