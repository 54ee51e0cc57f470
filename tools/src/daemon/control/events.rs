//! What happens, as a stream of server-sent events.

use crate::output::versioned;
use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use deltachain::service::{JobState, Service};
use futures_util::stream::{self, Stream};
use serde::Serialize;
use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

/// How often it is looked for something new.
const GLANCE: Duration = Duration::from_millis(200);
/// Every how many glances it is told how far running jobs are.
const GLANCES_A_REPORT: u64 = 5;

/// Somebody who follows.
struct Follower {
    service: Arc<Service>,
    seen: u64,
    glances: u64,
    waiting: VecDeque<Event>,
}

/// Answers with all that happens from now on; running jobs tell once a second how far they are.
pub async fn follow(
    State(service): State<Arc<Service>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let seen = service.last_event();
    // The first event comes at once: whoever reads it misses nothing from there on.
    let hello = Event::default().event("hello").id(seen.to_string()).data("{}");
    let follower = Follower { service, seen, glances: 0, waiting: VecDeque::from([hello]) };
    let events = stream::unfold(follower, |mut follower| async {
        let event = follower.next().await;
        Some((Ok(event), follower))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

impl Follower {
    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            tokio::time::sleep(GLANCE).await;
            self.look();
        }
    }

    fn look(&mut self) {
        for event in self.service.events_after(self.seen) {
            self.seen = event.number;
            let name = serde_json::to_value(event.event).ok();
            let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or_default();
            self.waiting.push_back(said(name, &event).id(event.number.to_string()));
        }
        self.glances += 1;
        if self.glances.is_multiple_of(GLANCES_A_REPORT) {
            let jobs = self.service.view_jobs().into_iter();
            let moving = jobs.filter(|job| matches!(job.state, JobState::Running | JobState::Pending));
            self.waiting.extend(moving.map(|job| said("progress", &job)));
        }
    }
}

fn said<T: Serialize>(name: &str, what: &T) -> Event {
    let data = versioned(what).map(|value| value.to_string()).unwrap_or_default();
    Event::default().event(name).data(data)
}
