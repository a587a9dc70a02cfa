//! Concurrent clients on threads of their own, sharing files.

use std::os::fd::AsFd;
use std::sync::Arc;

use prereg::{Access, Errno};
use prereg_vfio_user::server::MemoryPolicy;

use crate::fixture::{Client, PAGE, iova, pinned, sealed, store};
use crate::hole::punch;

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn everybody(policy: MemoryPolicy, rounds: u64) {
    const PAGES: u64 = 32;
    let Some(store) = store(policy) else { return };
    let files: Arc<Vec<_>> = Arc::new((0..3).map(|_| sealed(PAGES)).collect());
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            let (store, files) = (Arc::clone(&store), Arc::clone(&files));
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                let mut client = Client::new(&store, seed);
                let mut holds = Vec::new();
                for round in 0..rounds {
                    let (at, pages) = (numbers.below(40), 1 + numbers.below(6));
                    match numbers.below(10) {
                        0..=3 => {
                            let (_, fd) = &files[numbers.below(3) as usize];
                            if let Err(error) = client.map(at, pages, fd, numbers.below(PAGES - 6)) {
                                assert!(matches!(error.errno(), Errno::EEXIST | Errno::ENOSPC), "{error}");
                            }
                        }
                        4 | 5 => {
                            let _ = client.space.unmap(iova(at), pages * PAGE);
                        }
                        6 => {
                            holds.pop();
                        }
                        7 if seed == 0 && round % 7 == 0 => {
                            let (_, fd) = &files[2];
                            punch(fd.as_fd(), numbers.below(PAGES) * PAGE, PAGE);
                        }
                        8 if round % 97 == 0 => client = Client::new(&store, seed),
                        _ => {
                            if let Ok(hold) = client.dma.hold(iova(at), pages * PAGE, Access::ReadWrite) {
                                hold.write(8, &[seed as u8; 100]).unwrap();
                                assert_eq!(hold.pieces().map(|piece| piece.bytes).sum::<u64>(), pages * PAGE);
                                holds.push(hold);
                            }
                        }
                    }
                    if holds.len() > 6 {
                        holds.clear();
                    }
                }
            });
        }
    });
    // A piece that was being pinned for a disconnected client is released when its pin ends.
    store.wait_for_background();
    assert_eq!(pinned(&store), 0);
    assert!(store.snapshot().files.is_empty());
}

#[test]
fn clients_of_the_same_files_leave_nothing() {
    everybody(MemoryPolicy::EAGER, 1500);
}

#[test]
fn clients_of_blocks_pinned_at_first_use_leave_nothing() {
    everybody(MemoryPolicy::FIRST_USE.with_extent(4 * PAGE), 1500);
}

#[test]
fn clients_of_blocks_pinned_in_the_background_leave_nothing() {
    everybody(MemoryPolicy::BACKGROUND.with_extent(4 * PAGE), 1500);
}
