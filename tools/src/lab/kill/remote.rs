//! Where a copy to another store was killed, on either side, by the note of the layer that was arriving.

use super::{
    PATIENCE, Stage, Told,
    scene::{NAMES, Scene},
    told,
};
use deltachain::{
    base::{GuestOffset, clock::Stopwatch},
    io::Access,
    job::stream::arriving,
    map::State,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::{fs, path::Path, thread, time::Duration};

pub(super) const PHASES: [&str; 3] = ["base arrives", "middle arrives", "top arrives"];

/// What stands in for ssh: it runs what it is asked to, and says who that is.
pub(super) const SSH: &str = "sh ./agent";

/// Puts it into the scene's folder, with the program where it is looked for.
pub(super) fn prepare(scene: &Scene, program: &Path) -> Told<()> {
    let folder = program.parent().unwrap_or(Path::new("/")).display();
    let script = format!("echo $$ > agent.pid\nPATH='{folder}':$PATH\neval \"exec $3\"\n");
    fs::write(scene.path("agent"), script).map_err(told)
}

fn agent(scene: &Scene) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(scene.path("agent.pid")).ok()?.trim().parse().ok()?)
}

/// Kills the far side, if there is one.
pub(super) fn kill_agent(scene: &Scene) {
    if let Some(pid) = agent(scene) {
        // It may have ended.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Returns whether the near side complained of a far side that was killed before its first word: there is nothing to go on
/// from then, and whoever calls is to look why.
pub(super) fn had_said_nothing(complaint: &[u8]) -> bool {
    String::from_utf8_lossy(complaint).contains("ended before it had said what it has")
}

/// Waits until the far side has ended: what it does after its peer is gone is a part of the story.
pub(super) fn wait_for_agent(scene: &Scene) -> Told<()> {
    let since = Stopwatch::start();
    while agent(scene).is_some_and(|pid| test_kill_process(pid).is_ok() && !is_zombie(pid)) {
        if since.elapsed() > PATIENCE {
            return Err("the far side hangs".to_owned());
        }
        thread::sleep(Duration::from_millis(2));
    }
    drop(fs::remove_file(scene.path("agent.pid")));
    Ok(())
}

fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Returns the name of the layer that is arriving, and what of it is durable.
fn under_way(scene: &Scene) -> Option<(usize, u64)> {
    let note = arriving(scene.host.as_ref(), &scene.path("store")).ok()?.into_iter().next()?;
    Some((NAMES.iter().position(|name| note.name == Path::new(name))?, note.done_bytes))
}

pub(super) fn stage(scene: &Scene) -> Stage {
    let there = NAMES.iter().filter(|name| scene.is_there(&format!("store/{name}"))).count();
    match (under_way(scene), there) {
        (Some((number, done)), _) => Stage::In(number, done),
        (None, 0) => Stage::Before,
        (None, 3) => Stage::Over,
        (None, there) => Stage::In(there, 0),
    }
}

/// What has a name is whole.
pub(super) fn judge_killed(scene: &Scene, _: Stage) -> Told<()> {
    let there = NAMES.iter().filter(|name| scene.is_there(&format!("store/{name}")));
    there.into_iter().try_for_each(|name| scene.compare(&format!("store/{name}"), name))
}

/// What lies past the marks of the layers that have no name yet may be sent again.
pub(super) fn allowance(scene: &Scene) -> Told<u64> {
    let (under_way, mut bytes) = (under_way(scene), 0);
    for (number, name) in NAMES.iter().enumerate() {
        if scene.is_there(&format!("store/{name}")) {
            continue;
        }
        let from = under_way.filter(|(nth, _)| *nth == number).map_or(0, |(_, done)| done);
        let chain = scene.open(name, Access::ReadShared).map_err(told)?;
        let rest = GuestOffset::new(from).range(scene.size().saturating_sub(from));
        let mut extents = Vec::new();
        chain.view(0).own_map(rest, &mut extents).map_err(told)?;
        let data = extents.iter().filter(|e| matches!(e.state, State::Data { .. } | State::Packed));
        bytes += data.map(|extent| extent.range.bytes).sum::<u64>();
    }
    Ok(bytes)
}
