//! Prints the memory that describes a page, by size and layout, next to the goals.

use std::process::ExitCode;

use prereg_benches::guarantees::metadata::{Tables, bytes_per_page};
use prereg_benches::guarantees::no_fault::CountingAllocator;
use prereg_benches::hot_path::layout::Layout;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

fn main() -> ExitCode {
    let mut missed = false;
    println!("{:<11} {:<7} {:>10} {:>14} {:>6}", "layout", "tables", "size", "bytes a page", "goal");
    for (layout, goal) in [(Layout::Scattered, 5.0), (Layout::Contiguous, 0.05)] {
        for (name, tables) in [("heap", Tables::Heap), ("locked", Tables::Locked)] {
            for shift in [26, 28, 30, 32, 34] {
                let (each, _) = bytes_per_page(&ALLOCATOR, layout, 1 << shift, tables);
                missed |= each > goal;
                let size = format!("{} MiB", 1u64 << (shift - 20));
                println!("{:<11} {name:<7} {size:>10} {each:>14.4} {goal:>6}", layout.name());
            }
        }
    }
    for (name, tables) in [("heap", Tables::Heap), ("locked", Tables::Locked)] {
        let (_, fixed) = bytes_per_page(&ALLOCATOR, Layout::Contiguous, 1 << 26, tables);
        println!("an address space with a translator and a first region, {name}: {} KiB", fixed >> 10);
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
