//! An ext4 in a Linux guest, on a disk that is reshaped under it; `dchain-lab guest` goes on for longer.

use dchain_lab::guest::{Programs, Wire, search};
use std::path::Path;

/// Rounds of a snapshot and a fold.
const ROUNDS: u64 = 20;

fn survives(wire: Wire) {
    let programs = Programs {
        dchain: env!("CARGO_BIN_EXE_dchain").into(),
        dchaind: env!("CARGO_BIN_EXE_dchaind").into(),
        kernel: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest"),
    };
    let tally = search(wire, ROUNDS, &programs).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{tally}");
    assert!(tally.rounds == ROUNDS && tally.files >= 20 && tally.writes >= 3 * ROUNDS, "{tally}");
    assert!(tally.copied_bytes > 0 && tally.mirrored_bytes > 0, "{tally}");
}

#[test]
fn con_1_a_guest_s_ext4_over_nbd_is_whole_after_twenty_snapshots_and_folds() {
    survives(Wire::Nbd);
}

#[test]
fn con_1_a_guest_s_ext4_over_vhost_user_is_whole_after_twenty_snapshots_and_folds() {
    survives(Wire::VhostUser);
}
