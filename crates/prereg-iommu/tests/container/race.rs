//! Scenario 90: a map races the last unregister.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use prereg::Errno;

use crate::fixture::{A, B, K4, Process, User};

/// Two threads that start every round together.
struct Rounds {
    arrived: AtomicU64,
}

impl Rounds {
    /// Waits until both threads have called this `time` times.
    fn meet(&self, time: u64) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut looks = 0u32;
        while self.arrived.load(Ordering::Acquire) < 2 * time {
            looks += 1;
            if looks % 64 == 0 {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

#[test]
fn scenario_90_a_map_racing_the_last_unregister_has_two_outcomes() {
    let rounds: u64 = if cfg!(miri) { 20 } else { 100_000 };
    let process = Process::new();
    let meeting = Rounds { arrived: AtomicU64::new(0) };
    let mapped = AtomicU64::new(0);
    let refused = AtomicU64::new(0);
    let (process, meeting, mapped_ref, refused_ref) = (&process, &meeting, &mapped, &refused);
    let (map_won, unregister_won) = thread::scope(|scope| {
        let mapper = scope.spawn(move || {
            let mut user = User::new(process, 1);
            user.register(B, 16).unwrap();
            user.remove(0).unwrap();
            user.create(12, 1 << 24, 1).unwrap();
            let mut won = 0;
            for round in 0..rounds {
                meeting.meet(3 * round + 1);
                let answer = user.map(A, 0, K4);
                mapped_ref.store(u64::from(answer.is_ok()), Ordering::Release);
                if answer.is_ok() {
                    won += 1;
                    assert!(process.host.pin_count(A) == 1, "what is mapped is pinned");
                    assert_eq!(user.live(), 1, "success with nothing mapped");
                } else {
                    assert!(matches!(answer, Err(Errno::EINVAL | Errno::ENXIO)), "{answer:?}");
                    assert_eq!(user.live(), 0);
                }
                meeting.meet(3 * round + 2);
                let busy = refused_ref.load(Ordering::Acquire) == 1;
                assert_eq!(busy, answer.is_ok(), "map won if and only if unregister was refused");
                user.unmap(0, K4).unwrap();
                meeting.meet(3 * round + 3);
            }
            won
        });
        let registrar = scope.spawn(move || {
            let mut user = User::new(process, 0);
            let mut won = 0;
            for round in 0..rounds {
                if user.register(A, 16) == Err(Errno::EBUSY) {
                    // The registration stayed if the map won.
                    assert_eq!(process.counts(A), (1, 1));
                }
                meeting.meet(3 * round + 1);
                let answer = user.unregister(A, 16);
                assert!(matches!(answer, Ok(()) | Err(Errno::EBUSY)), "{answer:?}");
                won += u64::from(answer.is_ok());
                refused_ref.store(u64::from(answer.is_err()), Ordering::Release);
                meeting.meet(3 * round + 2);
                assert_eq!(mapped_ref.load(Ordering::Acquire) == 1, answer.is_err());
                meeting.meet(3 * round + 3);
            }
            won
        });
        (mapper.join().unwrap(), registrar.join().unwrap())
    });
    assert_eq!(map_won + unregister_won, rounds);
    println!("{rounds} rounds: the map won {map_won}, the unregister {unregister_won}");
    process.host.assert_clean();
}
