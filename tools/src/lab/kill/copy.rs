//! Where a copy was killed, by its note.

use super::{
    Stage, Told,
    scene::{NAMES, Scene},
    told,
};
use deltachain::{base::HostOffset, io::Access};
use serde_json::Value;
use std::{fs, path::Path};

pub(super) const PHASES: [&str; 6] =
    ["copy base", "publish base", "copy middle", "publish middle", "copy top", "publish top"];

/// How far past the mark a copy may be when it is killed: an interval between marks and a piece.
const AHEAD_BYTES: u64 = (512 + 16) << 20;

/// Reads the parts of the copy's note.
fn parts(scene: &Scene) -> Option<Value> {
    let notes = fs::read_dir(scene.path("store/.dchain")).ok()?;
    let is_note =
        |name: &str| name.starts_with("copy-") && Path::new(name).extension().is_some_and(|e| e == "json");
    let note = notes.flatten().find(|entry| entry.file_name().to_str().is_some_and(is_note))?;
    let mut note: Value = serde_json::from_slice(&fs::read(note.path()).ok()?).ok()?;
    Some(note.get_mut("parts")?.take())
}

fn done_bytes(parts: &Value, name: &str) -> u64 {
    let part = parts.get(name);
    part.and_then(|part| part.get("done_bytes")).and_then(Value::as_u64).unwrap_or_default()
}

pub(super) fn stage(scene: &Scene) -> Stage {
    let Some(parts) = parts(scene) else {
        return if scene.is_there("store/top") { Stage::Over } else { Stage::Before };
    };
    let mut stage = Stage::Before;
    for (number, name) in NAMES.iter().enumerate() {
        // The one with the header comes last: once that is whole, the layer is.
        let files = scene.files(name);
        let Some(under_way) = files.iter().rfind(|file| parts.get(file).is_some()) else { break };
        let is_published = under_way == name && is_whole(&parts, name);
        stage = Stage::In(2 * number + usize::from(is_published), done_bytes(&parts, under_way));
    }
    stage
}

fn is_whole(parts: &Value, file: &str) -> bool {
    parts.get(file).and_then(|part| part.get("whole")).is_some_and(|whole| !whole.is_null())
}

/// What has a name is whole, and no file is further than its mark allows.
pub(super) fn judge_killed(scene: &Scene, _: Stage) -> Told<()> {
    for name in NAMES {
        if scene.is_there(&format!("store/{name}")) {
            scene.compare(&format!("store/{name}"), name)?;
        }
    }
    let Some(parts) = parts(scene) else { return Ok(()) };
    for file in scene.all_files() {
        let temporary = parts.get(&file).and_then(|part| part.get("temporary")).and_then(Value::as_str);
        let Some(temporary) = temporary else { continue };
        let (bytes, done) = (
            fs::metadata(scene.path("store").join(temporary)).map_or(0, |file| file.len()),
            done_bytes(&parts, &file),
        );
        if !is_whole(&parts, &file) && bytes > done + AHEAD_BYTES && bytes < scene.size() {
            return Err(format!("{file} is {bytes} bytes long, its mark is {done}"));
        }
    }
    Ok(())
}

/// What lies past the marks of the files that have no name yet may be copied again.
pub(super) fn allowance(scene: &Scene) -> Told<u64> {
    let parts = parts(scene).unwrap_or_default();
    let mut bytes = 0;
    for name in scene.all_files().iter().filter(|name| !scene.is_there(&format!("store/{name}"))) {
        let file = scene.host.open(&scene.path(name), Access::ReadShared).map_err(told)?;
        let (mut at, end) = (done_bytes(&parts, name), file.bytes().map_err(told)?);
        while at < end {
            let run = file.run_at(HostOffset::new(at)).map_err(told)?;
            let next = run.range.end().bytes().min(end);
            bytes += if run.is_data { next - at } else { 0 };
            if next <= at {
                break;
            }
            at = next;
        }
    }
    Ok(bytes)
}
