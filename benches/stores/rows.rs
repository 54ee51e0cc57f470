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
        setup: "rm -f many/.dchain/index-*; $PROBE id 7 > $W.id; sync -f .; echo 3 > /proc/sys/vm/drop_caches || true",
        ours: "exec $DCHAIN id find $(cat $W.id) many",
        reach: &[within(20.0)],
        ends: "an index is written",
        ..ROW
    },
    Row {
        name: "index: lookup among 100,000 images",
        command: "id",
        prepare: "$PROBE images more $((100000 * $MIB / 4096)); sleep 3; $DCHAIN id find $($PROBE id 7) more; sleep 3; \
                  $DCHAIN id find $($PROBE id 7) more",
        setup: "$PROBE id 7 > $W.id",
        ours: "exec $DCHAIN id find $(cat $W.id) more",
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
