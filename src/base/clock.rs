//! The only time: everything that asks what time it is asks here.

use rustix::time::ClockId;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Returns the time since 1970 (wall clock); zero if the clock stands before that.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns the time by the clock that the kernel stamps files with, in nanoseconds since 1970: it stands still
/// for a tick.
pub fn coarse_ns() -> i128 {
    ns(ClockId::RealtimeCoarse)
}

/// Returns the time in nanoseconds since 1970, as finely as the kernel knows it; at most a tick after
/// [`coarse_ns`].
pub fn fine_ns() -> i128 {
    ns(ClockId::Realtime)
}

fn ns(clock: ClockId) -> i128 {
    let now = rustix::time::clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// Waits until [`coarse_ns`] has passed `moment_ns`: a tick of the kernel at most, unless that lies in the
/// future. Returns the time then.
pub fn wait_past_ns(moment_ns: i128) -> i128 {
    let watch = Stopwatch::start();
    loop {
        let now = coarse_ns();
        if now > moment_ns || watch.elapsed() > Duration::from_millis(20) {
            return now;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns a moment (nanoseconds since 1970) as people read it: `2026-11-20 09:12:03 UTC`.
pub fn utc(moment_ns: i128) -> String {
    let seconds = moment_ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years are counted from 1 March, so that the leap day is the last; 400 of them have 146,097 days.
    let day = days + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + month / 10, (month + 2) % 12 + 1);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

/// Writes a time as seconds, for serde.
pub fn serialize_seconds<S: serde::Serializer>(
    time: &Duration,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// A moment to measure from (monotonic).
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts to measure now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_as_people_read_it() {
        let cases = [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_868_799, "2000-02-29 23:59:59 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_795_166_723, "2026-11-20 09:25:23 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
        ];
        for (seconds, text) in cases {
            assert_eq!(utc(seconds * 1_000_000_000), text);
        }
    }
}
