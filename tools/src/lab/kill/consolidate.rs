//! Where a consolidation was killed, by its journal.

use super::{
    Stage, Told,
    scene::{STRIDE_BYTES, Scene},
    told,
};
use deltachain::{
    chain::{Opening, open_layer},
    format::Format,
    io::Access,
    job::consolidate::Pace,
    store::{FoldMode, Journal},
};
use std::{fs::File, os::unix::fs::FileExt};

pub(super) const PHASES: [&str; 4] = ["begin", "copy", "record", "drop"];
pub(super) const COPYING: usize = 1;
const RECORDING: usize = 2;
const DROPPING: usize = 3;

pub(super) fn stage(scene: &Scene) -> Stage {
    let Ok(Some(journal)) = Journal::find(&scene.host, &scene.path("top")) else {
        return if scene.is_there("middle") { Stage::Before } else { Stage::Over };
    };
    let (fold, position) = (journal.fold(), journal.position());
    let is_there = |name| journal.place(name).exists();
    let has_landed = match fold.mode {
        FoldMode::TopName => !scene.is_there("base"),
        _ => fold.draft.as_ref().is_some_and(|draft| !is_there(draft)),
    };
    let mark = position.mark.bytes();
    if position.is_ready && has_landed {
        return Stage::In(DROPPING, scene.size());
    }
    if position.is_ready || mark >= scene.size() {
        return Stage::In(RECORDING, mark);
    }
    let opening = Opening::reading().with_access(Access::ReadShared).with_format(Some(scene.base));
    let base = open_layer(&scene.host, &scene.path("base"), &opening).ok();
    let known = base.and_then(|base| scene.ledger().look(base.image.as_ref()).ok());
    let is_renewed = known.is_some_and(|known| known.layer.frozen.map(|f| f.epoch) == Some(fold.new_epoch));
    Stage::In(if is_renewed || mark > 0 { COPYING } else { 0 }, mark)
}

/// TOP shows what it showed, and no more was moved past the mark than a pace.
pub(super) fn judge_killed(scene: &Scene, stage: Stage) -> Told<()> {
    scene.compare("top", "top")?;
    let Stage::In(COPYING, mark) = stage else { return Ok(()) };
    if scene.base != Format::Raw {
        return Ok(());
    }
    let base = File::open(scene.path("base")).map_err(told)?;
    let bound = mark + Pace::USUAL.mark_bytes + 2 * Pace::USUAL.move_bytes;
    for at in (0..scene.size() / STRIDE_BYTES).map(|stride| stride * STRIDE_BYTES).filter(|at| *at >= bound) {
        let mut byte = [0];
        base.read_exact_at(&mut byte, at).map_err(told)?;
        if byte == [0] {
            return Err(format!("byte {at:#x} was moved already, the mark is at {mark:#x}"));
        }
    }
    Ok(())
}

/// Everything past the mark may be moved again.
pub(super) fn allowance(scene: &Scene) -> u64 {
    match stage(scene) {
        Stage::In(_, mark) => scene.size().saturating_sub(mark),
        Stage::Before => scene.size(),
        Stage::Over => 0,
    }
}
