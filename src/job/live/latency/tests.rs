use super::*;
use crate::base::seed::Seeded;

#[test]
fn a_time_is_told_within_an_eighth() {
    for ns in [1, 9, 100, 12_345, 1_000_000, 77_777_777, 1 << 40] {
        let latencies = Latencies::default();
        latencies.count(Duration::from_nanos(ns));
        let told = latencies.take(true).unwrap().p99;
        let most = Duration::from_nanos(ns + ns / 8 + 9);
        assert!(told >= Duration::from_nanos(ns) && told <= most, "{ns}: {told:?}");
    }
}

#[test]
fn one_request_in_a_hundred_is_told_from_the_rest() {
    let latencies = Latencies::default();
    assert_eq!(latencies.take(false), None);
    for number in 0..1000 {
        latencies.count(if number % 50 == 0 { Duration::from_millis(9) } else { Duration::from_micros(80) });
    }
    let felt = latencies.take(false).unwrap();
    assert_eq!(felt.requests, 1000);
    assert!(felt.p50 < Duration::from_micros(100) && felt.p99 > Duration::from_millis(8), "{felt:?}");
    assert_eq!(latencies.take(true).unwrap().requests, 0);
}

/// A disk on which requests wait the longer the more of its time the copier takes, with some noise; what the guest
/// wants changes. Returns how long a copier needs for work that takes it alone `work` windows, and the part of the
/// windows in which guests waited too long.
fn simulate(share: f64, goal: Duration, alone: Duration) -> (f64, f64) {
    let (mut throttle, mut random) = (Throttle::new(share), Seeded::new(3));
    let (mut part, mut done, mut windows, mut late) = (share, 0.0, 0.0, 0.0);
    while done < 1000.0 {
        let noise = 0.9 + f64::from(u32::try_from(random.below(200)).unwrap()) / 1000.0;
        // Twice as long while the copier takes half, twenty times as long while it takes nearly all.
        let p99 = alone.mul_f64(noise / (1.05 - part));
        late += f64::from(u8::from(p99 > goal));
        done += part;
        windows += 1.0;
        part = throttle.next(share, goal, Felt { requests: 500, p50: p99 / 4, p99 });
        assert!(part >= share && part <= 1.0);
    }
    (windows, late / windows)
}

#[test]
fn con_2_the_copier_takes_what_guests_do_not_feel() {
    // At a half, requests take twice as long: much less than what is allowed.
    let (windows, late) = simulate(0.2, Duration::from_millis(10), Duration::from_millis(2));
    assert!(windows < 1500.0, "{windows}");
    assert!(late < 0.2, "{late}");
}

#[test]
fn con_2_a_goal_that_cannot_be_met_leaves_the_copier_its_share() {
    let (windows, late) = simulate(0.25, Duration::from_millis(1), Duration::from_millis(5));
    assert!(windows <= 4001.0, "{windows}");
    assert!(late > 0.99, "{late}");
}

#[test]
fn guests_that_ask_nothing_leave_the_copier_all_the_time() {
    let mut throttle = Throttle::new(0.1);
    let goal = Duration::from_millis(1);
    let part = (0..30).map(|_| throttle.next(0.1, goal, Felt::default())).last();
    assert_eq!(part, Some(1.0));
    let late = Felt { requests: 100, p50: goal, p99: goal * 2 };
    let part = (0..30).map(|_| throttle.next(0.1, goal, late)).last();
    assert_eq!(part, Some(0.1));
}
