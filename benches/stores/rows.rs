//! The rows: what is compared with what, and what is to be reached.

use crate::{
    place::Place,
    reach::{Bound, Figure, Reach},
    run::Row,
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
];
