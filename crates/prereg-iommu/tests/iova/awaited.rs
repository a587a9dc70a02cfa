//! Unmaps that are awaited.

use std::future::{Future, IntoFuture};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use prereg::Access;

use crate::fixture::{Fixture, PAGE, iova};

/// Counts wakes, and unparks a thread.
struct Wakes(AtomicU64, Thread);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.unpark();
    }
}

fn wakes() -> (Arc<Wakes>, Waker) {
    let wakes = Arc::new(Wakes(AtomicU64::new(0), std::thread::current()));
    (Arc::clone(&wakes), Waker::from(wakes))
}

#[test]
fn an_unmap_is_ready_when_its_last_access_is_dropped_and_only_the_last_task_is_woken() {
    let fixture = Fixture::new();
    fixture.map(0, 2, 0).unwrap();
    let held = [(); 2].map(|()| fixture.map.hold(iova(0), PAGE, Access::Read).unwrap());
    let mut future = pin!(fixture.map.unmap(iova(0), 2 * PAGE).unwrap().into_future());
    let ((first, waker), (second, other)) = (wakes(), wakes());
    assert_eq!(future.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
    let [one, two] = held;
    drop(one);
    assert_eq!(future.as_mut().poll(&mut Context::from_waker(&other)), Poll::Pending);
    drop(two);
    assert_eq!([first, second].map(|wakes| wakes.0.load(Ordering::SeqCst)), [0, 1]);
    assert_eq!(future.as_mut().poll(&mut Context::from_waker(&other)), Poll::Ready(()));
}

#[test]
fn an_unmap_that_waits_for_nothing_is_ready_and_a_dropped_future_is_forgotten() {
    let fixture = Fixture::new();
    fixture.map(0, 1, 0).unwrap();
    let (wakes, waker) = wakes();
    let mut ready = pin!(fixture.map.unmap(iova(0), PAGE).unwrap().into_future());
    assert_eq!(ready.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(()));
    fixture.map(0, 1, 0).unwrap();
    let held = fixture.map.hold(iova(0), PAGE, Access::Read).unwrap();
    let mut future = Box::pin(fixture.map.unmap(iova(0), PAGE).unwrap().into_future());
    assert_eq!(future.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
    drop(future);
    drop(held);
    assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
}

/// A lost wake would leave this thread parked for good.
#[test]
fn no_wake_is_lost_between_the_poll_and_the_last_access() {
    let fixture = Fixture::new();
    for _ in 0..if cfg!(miri) { 8 } else { 2000 } {
        fixture.map(0, 1, 0).unwrap();
        let held = fixture.map.hold(iova(0), PAGE, Access::Read).unwrap();
        let mut future = pin!(fixture.map.unmap(iova(0), PAGE).unwrap().into_future());
        let (_, waker) = wakes();
        std::thread::scope(|scope| {
            scope.spawn(move || drop(held));
            while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                std::thread::park();
            }
        });
    }
}
