//! The rows: what is compared with what, and what is to be reached.

use crate::{
    data::Piece::{Base, Contiguous, Deep, Deltas, Empty, Scattered, Wide},
    place::Place,
    reach::{Bound, Figure, Reach},
    run::{Row, SEALED_CHAIN},
};

/// What rows have unless they say otherwise.
const ROW: Row = Row {
    name: "",
    command: "",
    place: Place::Data,
    pieces: &[Base],
    warm: "",
    prepare: "",
    setup: "",
    ours: "",
    theirs: &[],
    against: "",
    proof: "",
    output: "",
    reach: &[],
    ends: "",
    times: 1,
};

const BEST: &str = "the better of qemu-img convert and -m 16 -W, sync";
const FLUSHED: &str =
    "ours: flushed before the name is there; theirs: sync FILE; neither reads the result again";
const READS: &str = "nothing is written";
const TO_QCOW2: Row = Row {
    name: "convert raw -> qcow2",
    command: "convert",
    warm: "base.raw",
    ours: "exec $DCHAIN convert -f raw -O qcow2 base.raw $W.q",
    theirs: &[
        "qemu-img convert -f raw -O qcow2 base.raw $W.q && sync $W.q",
        "qemu-img convert -m 16 -W -f raw -O qcow2 base.raw $W.q && sync $W.q",
    ],
    against: BEST,
    proof: "qemu-img compare -f qcow2 -F qcow2 ours.q theirs0.q >&2",
    reach: &[Reach::wall(1.05), Reach::of(Figure::Cpu, Bound::Ratio(1.0))],
    ends: FLUSHED,
    ..ROW
};
const TO_RAW: Row = Row {
    name: "convert qcow2 -> raw",
    warm: "base.qcow2",
    ours: "exec $DCHAIN convert -f qcow2 -O raw base.qcow2 $W.raw",
    theirs: &[
        "qemu-img convert -f qcow2 -O raw base.qcow2 $W.raw && sync $W.raw",
        "qemu-img convert -m 16 -W -f qcow2 -O raw base.qcow2 $W.raw && sync $W.raw",
    ],
    proof: "qemu-img compare -f raw -F raw ours.raw theirs0.raw >&2",
    ..TO_QCOW2
};
const CONSOLIDATE: Row = Row {
    name: "consolidate 910 MiB into the base",
    command: "consolidate",
    pieces: &[Scattered],
    warm: "base.qcow2 d.1",
    setup: "cp --reflink=never base.qcow2 $W.base && cp --reflink=never d.1 $W.d && \
            qemu-img rebase -u -f qcow2 -F qcow2 -b $W.base $W.d",
    ours: "exec $DCHAIN consolidate $W.d --into $W.base --yes",
    theirs: &["qemu-img commit -q -d $W.d && sync $W.base"],
    against: "qemu-img commit -d, sync",
    proof: "qemu-img check -q -f qcow2 ours.d && qemu-img compare -f qcow2 -F qcow2 ours.d theirs0.base >&2",
    reach: &[Reach::wall(0.8)],
    ends: "ours: journal, flush, rename, proved by tree; theirs: sync of the base, nothing verified",
    ..ROW
};
const CREATE: Row = Row {
    name: "create a delta, in memory",
    command: "create",
    place: Place::Memory,
    pieces: &[],
    setup: "qemu-img create -q -f qcow2 $W.b 4G",
    ours: "exec $DCHAIN create -q -f qcow2 -F qcow2 -b $W.b $W.n",
    theirs: &["exec qemu-img create -q -f qcow2 -F qcow2 -b $W.b $W.n"],
    against: "qemu-img create -b",
    reach: &[Reach::wall(1.0)],
    ends: "tmpfs: syncs cost nothing on either side",
    times: 7,
    ..ROW
};
const SNAPSHOT: Row = Row {
    name: "snapshot, in memory",
    command: "snapshot",
    ours: "exec $DCHAIN snapshot -q $W.b $W.n",
    ..CREATE
};
/// The prepared chain that is copied: sealed (again, where the host has restarted since).
const COPY: Row = Row {
    name: "copy base + 8 deltas, target empty",
    command: "copy",
    pieces: &[Deltas],
    prepare: SEALED_CHAIN,
    setup: "mkdir $W.to",
    ours: "exec $DCHAIN copy copy/c.8 $W.to",
    theirs: &["cp copy/base.qcow2 copy/c.* $W.to/ && sync $W.to/*"],
    against: "cp, sync",
    proof: "qemu-img compare -f qcow2 -F qcow2 ours.to/c.8 theirs0.to/c.8 >&2",
    reach: &[Reach::wall(1.15)],
    ends: "ours: each file flushed, then published under its ID; theirs: sync of each file, nothing verified",
    ..ROW
};
const COMPRESS: Row = Row {
    name: "convert -c, zstd",
    command: "convert",
    warm: "base.raw",
    ours: "exec $DCHAIN convert -c -f raw -O qcow2 -o compression_type=zstd base.raw $W.q",
    theirs: &[
        "qemu-img convert -c -m 16 -W -f raw -O qcow2 -o compression_type=zstd base.raw $W.q && sync $W.q",
    ],
    against: "qemu-img convert -c -m 16 -W of the same kind, sync",
    proof: "qemu-img compare -f qcow2 -F qcow2 ours.q theirs0.q >&2",
    output: ".q",
    reach: &[Reach::wall(0.9), Reach::of(Figure::Output, Bound::Ratio(1.01))],
    ends: FLUSHED,
    ..ROW
};
const SEAL: Row = Row {
    name: "seal, 4 GiB disk, a third holes",
    command: "id",
    warm: "base.raw",
    setup: "[ $W != ours ] || { cp base.qcow2 $W.q && sync $W.q && cat $W.q; }",
    ours: "exec $DCHAIN id seal $W.q",
    theirs: &["exec b3sum --num-threads $(nproc) base.raw"],
    against: "b3sum of the raw bytes, all cores",
    proof: "exec $DCHAIN id verify ours.q",
    reach: &[Reach::wall(0.8)],
    ends: "ours: record and tree durable; theirs: nothing is written",
    ..ROW
};
const REFLINK: &str = "base.qcow2 c.1 c.2 c.3 c.4 c.5 c.6 c.7 c.8";

/// All rows, in the table's order.
pub(crate) const ROWS: &[Row] = &[
    TO_QCOW2,
    TO_RAW,
    Row {
        name: "xfs with reflink: convert raw -> qcow2",
        place: Place::Reflink,
        reach: &[Reach::wall(0.2)],
        ..TO_QCOW2
    },
    Row {
        name: "xfs with reflink: convert qcow2 -> raw",
        place: Place::Reflink,
        reach: &[Reach::wall(0.2)],
        ..TO_RAW
    },
    Row {
        name: "xfs with reflink: flatten, depth 8",
        place: Place::Reflink,
        pieces: &[Deltas],
        warm: REFLINK,
        ours: "exec $DCHAIN convert -f qcow2 -O qcow2 c.8 $W.q",
        theirs: &[
            "qemu-img convert -f qcow2 -O qcow2 c.8 $W.q && sync $W.q",
            "qemu-img convert -m 16 -W -f qcow2 -O qcow2 c.8 $W.q && sync $W.q",
        ],
        reach: &[Reach::wall(0.2)],
        ..TO_QCOW2
    },
    Row {
        name: "flatten, depth 64",
        pieces: &[Deltas],
        warm: "base.qcow2 c.*",
        ours: "exec $DCHAIN convert -f qcow2 -O qcow2 c.64 $W.q",
        theirs: &["qemu-img convert -m 16 -W -f qcow2 -O qcow2 c.64 $W.q && sync $W.q"],
        against: "qemu-img convert -m 16 -W, sync",
        reach: &[Reach::wall(0.45)],
        ..TO_QCOW2
    },
    CONSOLIDATE,
    Row {
        name: "xfs with reflink: consolidate, contiguous",
        place: Place::Reflink,
        pieces: &[Contiguous],
        warm: "base.qcow2 e.1",
        setup: "cp --reflink=never base.qcow2 $W.base && cp --reflink=never e.1 $W.d && \
                qemu-img rebase -u -f qcow2 -F qcow2 -b $W.base $W.d",
        reach: &[Reach::wall(0.15)],
        ..CONSOLIDATE
    },
    Row {
        name: "xfs with reflink: consolidate, scattered",
        place: Place::Reflink,
        reach: &[Reach::wall(0.3)],
        ..CONSOLIDATE
    },
    Row {
        name: "20,000 scattered 4K reads, depth 64, against depth 1",
        pieces: &[Deltas],
        warm: "base.qcow2 c.*",
        // c.1 will not do: a third of it are holes, which cost no read; of c.64 hardly anything is.
        prepare: "[ -e flat.64 ] || { qemu-img convert -m 16 -W -f qcow2 -O qcow2 c.64 flat.part && mv flat.part flat.64; } && \
                  cat flat.64",
        ours: "exec $PROBE reads c.64 20000 3149824",
        theirs: &["exec $PROBE reads flat.64 20000 3149824"],
        against: "ours, the same view in one layer",
        times: 3,
        reach: &[Reach::wall(1.2)],
        ends: READS,
        ..ROW
    },
    Row {
        name: "20,000 scattered 4K reads, depth 64",
        pieces: &[Deltas],
        warm: "base.qcow2 c.*",
        ours: "exec $PROBE reads c.64 20000 3149824",
        theirs: &["exec qemu-img bench -q -c 20000 -d 1 -s 4096 -S 3149824 -f qcow2 c.64"],
        against: "qemu-img bench",
        reach: &[Reach::wall(0.35)],
        ends: READS,
        ..ROW
    },
    Row {
        name: "open + 64K read, depth 300",
        pieces: &[Deep],
        warm: "h.*",
        ours: "exec $PROBE first h.300",
        theirs: &["exec qemu-io -r -f qcow2 -c 'read -q 0 64k' h.300"],
        against: "qemu-io",
        reach: &[Reach::of(Figure::Wall, Bound::Absolute(0.05))],
        ends: READS,
        times: 3,
        ..ROW
    },
    Row {
        name: "map, 1 TiB, 8 layers",
        command: "map",
        pieces: &[Wide],
        warm: "t.*",
        ours: "exec $DCHAIN map -f qcow2 --output json t.8",
        theirs: &["exec qemu-img map -f qcow2 --output=json t.8"],
        against: "qemu-img map",
        reach: &[Reach::wall(0.1), Reach::of(Figure::Peak, Bound::Absolute(70.0))],
        ends: READS,
        ..ROW
    },
    Row {
        name: "flatten, 1 TiB, 8 layers, 2 GiB data",
        pieces: &[Wide],
        warm: "t.*",
        ours: "exec $DCHAIN convert -f qcow2 -O qcow2 t.8 $W.q",
        theirs: &["qemu-img convert -f qcow2 -O qcow2 t.8 $W.q && sync $W.q"],
        against: "qemu-img convert, sync",
        reach: &[Reach::wall(0.125)],
        ..TO_QCOW2
    },
    COMPRESS,
    Row {
        name: "convert -c, zlib",
        ours: "exec $DCHAIN convert -c -f raw -O qcow2 -o compression_type=zlib base.raw $W.q",
        theirs: &["qemu-img convert -c -m 16 -W -f raw -O qcow2 base.raw $W.q && sync $W.q"],
        reach: &[Reach::wall(0.6), Reach::of(Figure::Output, Bound::Ratio(1.01))],
        ..COMPRESS
    },
    Row {
        name: "check, 1 TiB layer",
        command: "check",
        pieces: &[Wide],
        warm: "t.8",
        ours: "exec $DCHAIN check -f qcow2 t.8",
        theirs: &["exec qemu-img check -f qcow2 t.8"],
        against: "qemu-img check",
        reach: &[Reach::wall(1.0)],
        ends: READS,
        times: 3,
        ..ROW
    },
    Row {
        name: "safe rebase, depth 8 onto the base",
        command: "rebase",
        pieces: &[Deltas],
        warm: REFLINK,
        setup: "cp c.8 $W.c",
        ours: "exec $DCHAIN rebase -f qcow2 -F qcow2 -b base.qcow2 $W.c",
        theirs: &["qemu-img rebase -f qcow2 -F qcow2 -b base.qcow2 $W.c && sync $W.c"],
        against: "qemu-img rebase, sync",
        proof: "qemu-img compare -f qcow2 -F qcow2 ours.c c.8 >&2 && qemu-img check -q -f qcow2 ours.c",
        reach: &[Reach::wall(0.5)],
        ends: "ours: data flushed before the header; theirs: sync FILE",
        ..ROW
    },
    SEAL,
    Row {
        name: "seal, 64 TiB, empty",
        pieces: &[Empty],
        warm: "",
        setup: "cp z.qcow2 $W.q",
        theirs: &[],
        against: "",
        proof: "",
        reach: &[Reach::of(Figure::Wall, Bound::Absolute(0.05))],
        times: 3,
        ..SEAL
    },
    Row {
        name: "seal again, 1 % changed",
        // No seal in earnest replaces a tree: what is sealed again has changed.
        setup: "[ $W != ours ] || { rm -rf .dchain/trees && cp base.qcow2 $W.base && $DCHAIN id seal $W.base && \
                $DCHAIN create -f qcow2 -F qcow2 -b $W.base $W.q && \
                seq 0 100 $((MIB - 1)) | sed 's/.*/write -q -P 7 &M 1M/' | qemu-io -f qcow2 $W.q && sync $W.q && cat $W.q; }",
        reach: &[Reach::wall(0.05)],
        ..SEAL
    },
    COPY,
    Row {
        name: "copy base + 8 deltas, base there, its ID known",
        setup: "mkdir $W.to && if [ $W = ours ]; then $DCHAIN copy copy/base.qcow2 $W.to && \
                $DCHAIN id seal $W.to/base.qcow2; else cp copy/base.qcow2 $W.to/; fi",
        theirs: &["cp copy/c.* $W.to/ && sync $W.to/c.*"],
        ..COPY
    },
    CREATE,
    Row {
        name: "create a delta, on disk",
        place: Place::Data,
        theirs: &["qemu-img create -q -f qcow2 -F qcow2 -b $W.b $W.n && sync $W.n"],
        against: "qemu-img create -b, sync",
        reach: &[Reach::of(Figure::Wall, Bound::Shown)],
        ends: "ours: parent's record, image and folder synced; theirs: sync FILE",
        ..CREATE
    },
    Row {
        name: "info",
        command: "info",
        pieces: &[Deltas],
        ours: "exec $DCHAIN info -f qcow2 c.1",
        theirs: &["exec qemu-img info -f qcow2 c.1"],
        against: "qemu-img info",
        reach: &[Reach::wall(1.0)],
        ends: READS,
        times: 7,
        ..ROW
    },
    SNAPSHOT,
    Row {
        name: "snapshot, on disk",
        place: Place::Data,
        theirs: &["qemu-img create -q -f qcow2 -F qcow2 -b $W.b $W.n && sync $W.n"],
        against: "qemu-img create -b, sync",
        reach: &[Reach::of(Figure::Wall, Bound::Shown)],
        ends: "ours: parent's record, image and folder synced; theirs: sync FILE",
        ..SNAPSHOT
    },
];
