use core::convert::Infallible;
use core::sync::atomic::{AtomicU64, Ordering};

use super::*;

type Blocks = Sparse<[AtomicU64; 512], 9>;

fn zeros() -> Result<[AtomicU64; 512], OutOfMemory> {
    Ok([const { AtomicU64::new(0) }; 512])
}

fn add(array: &Blocks, index: u64) {
    let block = array.block_or_make(index, zeros).unwrap();
    block[Blocks::offset(index)].fetch_add(1, Ordering::Relaxed);
}

fn visited(array: &Blocks, first: u64, count: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    array
        .visit(first, count, |base, part, block| {
            for offset in part {
                if block[offset].load(Ordering::Relaxed) != 0 {
                    found.push((base + offset as u64, block[offset].load(Ordering::Relaxed)));
                }
            }
            Ok::<(), Infallible>(())
        })
        .unwrap();
    found
}

#[test]
fn entries_are_found_again_at_every_depth() {
    for bits in [0u32, 1, 9, 10, 18, 19, 20, 28, 29, 37, 38, 46, 52] {
        let entries = 1u64 << bits;
        let array = Blocks::new(entries).unwrap();
        let mut some = vec![0, entries / 3, entries / 2, entries - 1];
        some.dedup();
        for &index in &some {
            assert!(
                array.block(index).is_none() || some.iter().any(|&other| other >> 9 == index >> 9),
                "{bits}"
            );
            add(&array, index);
        }
        for &index in &some {
            assert!(
                array.block(index).unwrap()[Blocks::offset(index)].load(Ordering::Relaxed) > 0,
                "{bits} {index}"
            );
        }
        let found: Vec<u64> = visited(&array, 0, entries).into_iter().map(|(index, _)| index).collect();
        some.sort_unstable();
        assert_eq!(found, some, "2^{bits} entries");
    }
}

#[test]
fn a_visit_sees_its_range_and_nothing_else() {
    let array = Blocks::new(1 << 28).unwrap();
    for index in [0, 511, 512, 513, 1023, 1024, 1 << 20, (1 << 28) - 1] {
        add(&array, index);
    }
    let indices =
        |first, count| visited(&array, first, count).into_iter().map(|(index, _)| index).collect::<Vec<_>>();
    assert_eq!(indices(0, 0), []);
    assert_eq!(indices(511, 1), [511]);
    assert_eq!(indices(512, 512), [512, 513, 1023]);
    assert_eq!(indices(513, (1 << 20) - 513), [513, 1023, 1024]);
    assert_eq!(indices(513, (1 << 20) - 512), [513, 1023, 1024, 1 << 20]);
    assert_eq!(indices(1 << 27, u64::MAX), [(1 << 28) - 1]);
    assert_eq!(indices(1 << 28, 5), []);
    assert_eq!(indices(u64::MAX, 5), []);
}

#[test]
fn outside_the_table_nothing_is_made() {
    let array = Blocks::new(1000).unwrap();
    assert!(array.block(1000).is_none());
    let refused = array.block_or_make(1000, zeros).unwrap_err();
    assert_eq!(refused, TableError::OutOfRange { index: 1000, entries: 1000 });
    assert_eq!(refused.errno(), Errno::EINVAL);
    assert_eq!(array.check(999, 1), Ok(()));
    assert_eq!(array.check(1000, 0), Ok(()));
    assert!(array.check(999, 2).is_err());
    assert!(array.check(u64::MAX, 2).is_err());
}

#[test]
fn a_failure_to_make_a_block_leaves_its_place_empty() {
    let array = Blocks::new(1 << 28).unwrap();
    assert_eq!(array.block_or_make(77, || Err(OutOfMemory)).unwrap_err(), TableError::OutOfMemory);
    assert!(array.block(77).is_none());
    add(&array, 77);
    assert_eq!(visited(&array, 0, 1 << 28), [(77, 1)]);
}

#[test]
fn memory_follows_use() {
    let bytes = |array: &Blocks| array.memory_bytes(|_| 512 * 8);
    let array = Blocks::new(1 << 28).unwrap();
    let bare = bytes(&array);
    assert!(bare <= 1024 * 8, "{bare}");
    add(&array, 12_345_678);
    assert!(bytes(&array) - bare <= 4096 + 4096 + 64, "{}", bytes(&array) - bare);
    assert!(Blocks::new(1 << 52).unwrap().memory_bytes(|_| 0) <= 1024 * 8);
    assert_eq!(Blocks::new(1).unwrap().memory_bytes(|_| 0), 8);
}

#[test]
fn makers_on_many_threads_lose_no_entry() {
    let (rounds, paths) = if cfg!(miri) { (1, 4) } else { (20, 64u64) };
    for _ in 0..rounds {
        let array = Blocks::new(1 << 38).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for index in 0..paths {
                        add(&array, index << 32);
                    }
                });
            }
        });
        let found = visited(&array, 0, 1 << 38);
        assert_eq!(found, (0..paths).map(|index| (index << 32, 4)).collect::<Vec<_>>());
    }
}
