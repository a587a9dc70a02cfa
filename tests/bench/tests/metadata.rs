//! Memory per page stays below the goals at every size.

use prereg_benches::guarantees::metadata::{Tables, bytes_per_page};
use prereg_benches::guarantees::no_fault::CountingAllocator;
use prereg_benches::hot_path::layout::Layout;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

// One test: two at once would count each other's memory.
#[test]
fn a_page_costs_five_bytes_scattered_and_a_twentieth_of_one_contiguous() {
    for (layout, goal) in [(Layout::Scattered, 5.0), (Layout::Contiguous, 0.05)] {
        for tables in [Tables::Heap, Tables::Locked] {
            for shift in [26, 30, 34] {
                let (each, _) = bytes_per_page(&ALLOCATOR, layout, 1 << shift, tables);
                assert!(each > 0.0 && each <= goal, "{layout:?}, {tables:?}, 2^{shift}: {each} bytes a page");
            }
        }
    }
}
