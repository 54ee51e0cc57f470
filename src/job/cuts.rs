//! For tests of jobs: the power goes at every point of a whole job, and again during the resume.

use crate::io::faulty::{SimHost, crash_states};

/// Cuts the power at every point of what `machine` did, and at some points (every `second_every`th) again at some of the
/// resume; returns how many cuts.
///
/// `check` looks at a machine right after a cut; `end` resumes the job there and looks at its end. Both get the story.
pub(super) fn everywhere(
    machine: &SimHost,
    (samples, second_every): (u64, usize),
    check: impl Fn(&SimHost, &str),
    end: impl Fn(&SimHost, &str),
) -> usize {
    let mut cuts = 0;
    for (number, crash) in crash_states(&machine.trace(), 7, samples).enumerate() {
        let story = format!("power cut after {} {:?}", crash.after, crash.landing);
        check(&crash.host, &story);
        end(&crash.host, &story);
        cuts += 1;
        if !number.is_multiple_of(second_every) {
            continue;
        }
        for (nested, second) in crash_states(&crash.host.trace(), 11, 1).enumerate() {
            if !(nested + number).is_multiple_of(5) {
                continue;
            }
            let story = format!("{story}, then after {} {:?} of the resume", second.after, second.landing);
            check(&second.host, &story);
            end(&second.host, &story);
            cuts += 1;
        }
    }
    cuts
}
