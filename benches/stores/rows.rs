//! The rows: what is compared with what, and what is to be reached.

use crate::{
    data::Piece::{Base, Deltas, Scattered},
    place::Place,
    reach::{Bound, Figure, Reach},
    run::{Row, SEALED_CHAIN},
};

/// What rows have unless they say otherwise.
const ROW: Row = Row {
    name: "",
    command: "",
    place: Place::Data,
    pieces: &[],
    warm: "",
    prepare: "",
    setup: "",
    ours: "",
    theirs: &[],
    against: "-",
    proof: "",
    output: "",
    reach: &[],
    ends: "",
    times: 1,
};

/// At most so many seconds.
const fn within(seconds: f64) -> Reach {
    Reach::of(Figure::Wall, Bound::Absolute(seconds))
}

const MANY: &str = "$PROBE images many $((10000 * $MIB / 4096))";

/// The chain over ssh. The far side is `sshd -i`, started for each connection by the near one: no port, no daemon.
const SSH: Row = Row {
    name: "copy base + 8 deltas over ssh",
    command: "copy",
    pieces: &[Deltas],
    prepare: SEALED_CHAIN,
    setup: SSH_SETUP,
    ours: "exec $DCHAIN copy --ssh 'ssh -F far/client' copy/c.8 ssh://far$PWD/$W.to",
    theirs: &["rsync -e 'ssh -F far/client' copy/base.qcow2 copy/c.* far:$PWD/$W.to/ && sync $W.to/*"],
    against: "rsync over the same ssh, sync",
    proof: "qemu-img compare -f qcow2 -F qcow2 ours.to/c.8 theirs0.to/c.8 >&2",
    reach: &[Reach::wall(1.0)],
    ends: "ours: each file flushed, then published under its ID; theirs: sync of each file, its sum compared",
    ..ROW
};
const SSH_SETUP: &str = r#"
    rm -rf far; mkdir -p $W.to far /run/sshd && ssh-keygen -q -t ed25519 -N '' -f far/host && \
    ssh-keygen -q -t ed25519 -N '' -f far/user && \
    printf '%s\n' "HostKey $PWD/far/host" "AuthorizedKeysFile $PWD/far/user.pub" 'UsePAM no' 'StrictModes no' \
        'PermitRootLogin yes' "SetEnv PATH=$(dirname $DCHAIN):/usr/bin:/bin" > far/server && \
    printf '%s\n' 'Host far' "ProxyCommand /usr/sbin/sshd -i -f $PWD/far/server" "IdentityFile $PWD/far/user" \
        'IdentitiesOnly yes' 'BatchMode yes' 'LogLevel ERROR' 'StrictHostKeyChecking no' \
        "UserKnownHostsFile $PWD/far/known" > far/client && ssh -F far/client far true"#;

/// All rows, in the table's order.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "index: scan of 10,000 images, cold",
        command: "id",
        prepare: MANY,
        // Only root can have the host forget what it has read.
        setup: "rm -f many/.dchain/index-*; sync -f .; echo 3 > /proc/sys/vm/drop_caches || true",
        ours: "exec $DCHAIN id find c1:0fcb433333e80767 many",
        reach: &[within(20.0)],
        ends: "an index is written",
        ..ROW
    },
    Row {
        name: "index: lookup among 100,000 images",
        command: "id",
        // The index believes that nothing came since once the folder has rested for two seconds.
        prepare: "$PROBE images more $((100000 * $MIB / 4096)); $DCHAIN id find c1:0fcb433333e80767 more; sleep 3; \
                  $DCHAIN id find c1:0fcb433333e80767 more",
        ours: "exec $DCHAIN id find c1:0fcb433333e80767 more",
        reach: &[within(0.005)],
        ends: "nothing is written",
        times: 5,
        ..ROW
    },
    Row {
        name: "lint of 10,000 images, warm",
        command: "lint",
        prepare: MANY,
        setup: "$DCHAIN lint many",
        ours: "exec $DCHAIN lint many",
        reach: &[within(2.0)],
        ends: "nothing is written",
        ..ROW
    },
    Row {
        name: "tree of 10,000 images, warm",
        command: "tree",
        prepare: MANY,
        setup: "$DCHAIN tree many",
        ours: "exec $DCHAIN tree many",
        reach: &[within(2.0)],
        ends: "nothing is written",
        ..ROW
    },
    SSH,
    Row {
        name: "copy a base of 2.6 GiB, an older one there: 0.9 GiB changed",
        command: "copy",
        pieces: &[Base, Scattered],
        prepare: "if [ ! -d newer ]; then rm -rf newer.part && mkdir newer.part && cp base.qcow2 newer.part/new.qcow2 && \
                  cp d.1 newer.part/d.1 && cd newer.part && \
                  qemu-img rebase -u -f qcow2 -F qcow2 -b new.qcow2 d.1 && qemu-img commit -q -d d.1 && rm d.1 && \
                  cd .. && mv newer.part newer; fi; $DCHAIN id seal newer/new.qcow2 && sync newer/* && cat newer/*",
        setup: "mkdir $W.to && cp base.qcow2 $W.to/ && \
                if [ $W = ours ]; then $DCHAIN id seal $W.to/base.qcow2; fi && cat $W.to/base.qcow2",
        ours: "exec $DCHAIN copy --relatives newer/new.qcow2 $W.to",
        theirs: &["rsync --no-whole-file newer/new.qcow2 $W.to/base.qcow2 && sync $W.to/base.qcow2"],
        against: "rsync --no-whole-file, sync",
        proof: "qemu-img compare -f qcow2 -F qcow2 ours.to/new.qcow2 theirs0.to/base.qcow2 >&2",
        reach: &[Reach::wall(0.5)],
        ends: "ours: flushed, and its content ID proved; theirs: sync, its sum compared",
        ..ROW
    },
    Row {
        name: "20 linked clones of one base",
        pieces: &[Deltas],
        command: "copy",
        prepare: "if [ ! -d clones ]; then rm -rf clones.part && mkdir clones.part && cp base.qcow2 clones.part/ && \
                  for i in $(seq 20); do cp c.$i clones.part/ && \
                  qemu-img rebase -u -f qcow2 -F qcow2 -b base.qcow2 clones.part/c.$i || exit 1; done; \
                  mv clones.part clones; fi; $DCHAIN id seal clones/base.qcow2 && sync clones/* && cat clones/*",
        setup: "mkdir $W.to",
        ours: "for i in $(seq 20); do $DCHAIN copy clones/c.$i $W.to || exit 1; done",
        theirs: &["cp clones/base.qcow2 clones/c.* $W.to/ && sync $W.to/*"],
        against: "cp of the base and the 20 deltas, sync",
        // What 20 clones take: the base once, and their deltas.
        proof: "for i in 1 20; do qemu-img compare -f qcow2 -F qcow2 ours.to/c.$i theirs0.to/c.$i >&2 || exit 1; done; \
                set -- $(du -sk ours.to theirs0.to); [ $(($1 * 100)) -le $(($3 * 101)) ] || { echo $* >&2; exit 1; }",
        reach: &[Reach::wall(1.15)],
        ends: "ours: each copy durable by itself; theirs: one sync of each file; the bytes are the same, within 1 %",
        ..ROW
    },
];
