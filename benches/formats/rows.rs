//! The rows: what is compared with what, and what is to be reached.

use crate::{
    data::Piece::{Base, Scattered},
    place::Place,
    reach::Reach,
    run::Row,
};

/// What rows have unless they say otherwise.
const ROW: Row = Row {
    name: "",
    command: "convert",
    place: Place::Data,
    pieces: &[Base],
    warm: "",
    prepare: "",
    setup: "",
    ours: "",
    theirs: &[],
    against: "the better of qemu-img convert and -m 16 -W, sync",
    proof: "",
    output: "",
    reach: &[Reach::wall(1.0)],
    ends: "ours: flushed before the name is there; theirs: sync FILE; neither reads the result again",
    times: 1,
};

const TO_VHDX: Row = Row {
    name: "convert raw -> VHDX",
    warm: "base.raw",
    ours: "exec $DCHAIN convert -f raw -O vhdx base.raw $W.x",
    theirs: &[
        "qemu-img convert -f raw -O vhdx base.raw $W.x && sync $W.x",
        "qemu-img convert -m 16 -W -f raw -O vhdx base.raw $W.x && sync $W.x",
    ],
    proof: "qemu-img compare -f vhdx -F raw ours.x base.raw >&2",
    output: ".x",
    ..ROW
};
const FROM_VHDX: Row = Row {
    name: "convert VHDX -> raw",
    warm: "base.vhdx",
    prepare: "test -e base.vhdx || (qemu-img convert -f raw -O vhdx base.raw base.vhdx.part && sync base.vhdx.part && mv base.vhdx.part base.vhdx)",
    ours: "exec $DCHAIN convert -f vhdx -O raw base.vhdx $W.raw",
    theirs: &[
        "qemu-img convert -f vhdx -O raw base.vhdx $W.raw && sync $W.raw",
        "qemu-img convert -m 16 -W -f vhdx -O raw base.vhdx $W.raw && sync $W.raw",
    ],
    proof: "qemu-img compare -f raw -F raw ours.raw base.raw >&2",
    ..ROW
};
const TO_VMDK: Row = Row {
    name: "convert raw -> VMDK",
    warm: "base.raw",
    ours: "exec $DCHAIN convert -f raw -O vmdk base.raw $W.x",
    theirs: &[
        "qemu-img convert -f raw -O vmdk base.raw $W.x && sync $W.x",
        "qemu-img convert -m 16 -W -f raw -O vmdk base.raw $W.x && sync $W.x",
    ],
    proof: "qemu-img compare -f vmdk -F raw ours.x base.raw >&2",
    output: ".x",
    ..ROW
};
const FROM_VMDK: Row = Row {
    name: "convert VMDK -> raw",
    warm: "base.vmdk",
    prepare: "test -e base.vmdk || (qemu-img convert -f raw -O vmdk base.raw base.vmdk.part && sync base.vmdk.part && mv base.vmdk.part base.vmdk)",
    ours: "exec $DCHAIN convert -f vmdk -O raw base.vmdk $W.raw",
    theirs: &[
        "qemu-img convert -f vmdk -O raw base.vmdk $W.raw && sync $W.raw",
        "qemu-img convert -m 16 -W -f vmdk -O raw base.vmdk $W.raw && sync $W.raw",
    ],
    proof: "qemu-img compare -f raw -F raw ours.raw base.raw >&2",
    ..ROW
};
const TO_STREAM: Row = Row {
    name: "convert raw -> streamOptimized",
    warm: "base.raw",
    ours: "exec $DCHAIN convert -f raw -O vmdk -o subformat=streamOptimized base.raw $W.x",
    theirs: &["qemu-img convert -f raw -O vmdk -o subformat=streamOptimized base.raw $W.x && sync $W.x"],
    against: "qemu-img convert of the same kind, sync",
    proof: "qemu-img compare -f vmdk -F raw ours.x base.raw >&2",
    output: ".x",
    reach: &[Reach::wall(0.6)],
    ..ROW
};
const FOLD_VHDX: Row = Row {
    name: "consolidate a VHDX child, 910 MiB",
    command: "consolidate",
    pieces: &[Scattered],
    // A chain of two in that format, which shows what d.1 shows.
    prepare: "test -d of-vhdx || (rm -rf part-vhdx && mkdir part-vhdx && $DCHAIN convert --chain -q -O vhdx d.1 part-vhdx && \
              rm -rf part-vhdx/.dchain && sync part-vhdx/* && mv part-vhdx of-vhdx)",
    setup: "mkdir $W.to && cp --reflink=never of-vhdx/* $W.to/ && sync $W.to/*",
    ours: "exec $DCHAIN consolidate -q --yes $W.to/d.1",
    theirs: &["cp --reflink=never $W.to/d.1 $W.copy && sync $W.copy"],
    against: "cp of the child, sync",
    proof: "$DCHAIN compare ours.to/d.1 d.1 >&2",
    reach: &[Reach::wall(1.2)],
    ends: "ours: journal, flush, rename, proved by tree; theirs: sync, nothing verified",
    ..ROW
};
const FOLD_VHD: Row = Row {
    name: "consolidate a VHD child, 910 MiB",
    prepare: "test -d of-vpc || (rm -rf part-vpc && mkdir part-vpc && $DCHAIN convert --chain -q -O vpc d.1 part-vpc && \
              rm -rf part-vpc/.dchain && sync part-vpc/* && mv part-vpc of-vpc)",
    setup: "mkdir $W.to && cp --reflink=never of-vpc/* $W.to/ && sync $W.to/*",
    ..FOLD_VHDX
};
/// Makes `live.FMT`, every byte of it stored, and has fio do so many requests of 4 KiB on it through `dchaind`. `$F` is the format,
/// `$RW` what is done.
macro_rules! served {
    ($name:literal, $format:literal, $rw:literal) => {
        Row {
            name: $name,
            command: "",
            pieces: &[Base],
            prepare: concat!(
                "make() { test -e live.$1 || ($DCHAIN convert -q -f raw -O $1 live.raw live.$1.part && mv live.$1.part live.$1); }; \
                 test -e live.raw || (head -c $((MIB / 4))M /dev/urandom > live.raw.part && mv live.raw.part live.raw); \
                 make qcow2 && make ",
                $format
            ),
            setup: concat!("case $W in ours) f=", $format, ";; *) f=qcow2;; esac; cp --reflink=never live.$f $W.image"),
            ours: served!(@run $rw),
            theirs: &[served!(@run $rw)],
            against: "our qcow2",
            reach: &[Reach::wall(1.25)],
            ends: "the page cache holds what is written; 0.8 of the requests a second are 1.25 of the time",
            ..ROW
        }
    };
    (@run $rw:literal) => {
        concat!(
            "rm -f $W.s; $(dirname $DCHAIN)/dchaind --disk vm=$W.image --nbd unix:$W.s > $W.said & p=$!; \
             until grep -q ready $W.said; do sleep 0.01; done; \
             fio --name=guest --ioengine=nbd --uri=nbd+unix:///vm?socket=$PWD/$W.s --bs=4k --iodepth=32 --randseed=5 --rw=",
            $rw,
            " --norandommap --size=$((MIB / 4))m --io_size=$((MIB / 2))m; r=$?; kill $p; wait $p; exit $r"
        )
    };
}

/// All rows, in the table's order.
pub(crate) const ROWS: &[Row] = &[
    TO_VHDX,
    FROM_VHDX,
    TO_VMDK,
    FROM_VMDK,
    TO_STREAM,
    FOLD_VHDX,
    FOLD_VHD,
    served!("4K random reads, 32 at once, on a served VHDX", "vhdx", "randread"),
    served!("4K random writes, 32 at once, on a served VHDX", "vhdx", "randwrite"),
    served!("4K random reads, 32 at once, on a served VMDK", "vmdk", "randread"),
    served!("4K random writes, 32 at once, on a served VMDK", "vmdk", "randwrite"),
];
