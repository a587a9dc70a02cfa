//! Asking for a cache line before it is needed. A hint: where there is none, nothing happens.

#![cfg_attr(
    all(target_arch = "x86_64", not(any(miri, loom))),
    expect(unsafe_code, reason = "the instruction is an intrinsic")
)]

/// Asks for the line at `at`. Never faults, whatever `at` is.
#[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: every x86-64 processor has it, and it touches nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

/// Nothing: this host has no such instruction that stable Rust knows.
#[cfg(not(all(target_arch = "x86_64", not(any(miri, loom)))))]
#[inline(always)]
pub(crate) fn prefetch<T>(_at: *const T) {}
