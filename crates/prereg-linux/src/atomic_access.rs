//! Loads, stores and copies of memory that a device, another process or another thread may change at the same time.
//!
//! For the memory model every access here is a sequence of relaxed atomic accesses of single bytes (with fences where
//! ordering is promised), so no two of them are a data race, whatever their ranges and sizes. Volatile accesses would
//! be data races, and so would overlapping atomics of different sizes: the words of two copies need not have the same
//! alignment.
//!
//! The machine guarantees more: an aligned number of up to 8 bytes is one load or store, and so is every aligned word
//! of a copy. No stable Rust operation expresses both. On x86-64 and aarch64 the accesses are therefore single
//! instructions in assembly (`Instructions`). Other machines use atomics of the number's size (`Atomics`); LLVM
//! defines races of different sizes byte by byte, although Rust does not yet. Miri does not support assembly and
//! executes the byte accesses (`Bytes`). The copies are generic over all three, and the tests compare each with
//! copies of slices.
//!
//! Bounds are not checked here but by the owners of mappings.
#![expect(unsafe_code, reason = "accesses to memory that is no Rust value; the callers vouch for its bounds")]

use std::sync::atomic::{Ordering, fence};

#[cfg(miri)]
type Native = Bytes;
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
type Native = Instructions;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", miri)))]
type Native = Atomics;

const WORD: usize = size_of::<u64>();
/// Words that a copy moves per iteration; more would not be faster.
const LINE: usize = 4;

/// Copies `into.len()` bytes out of memory that may change.
///
/// # Safety
/// `[from, from + into.len())` is mapped readable through the call, and contains no Rust value that is accessed
/// otherwise.
pub(crate) unsafe fn copy_out(from: *const u8, into: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { copy_out_by::<Native>(from, into) }
}

/// Copies `from` into memory that may change.
///
/// # Safety
/// `[to, to + from.len())` is mapped writable through the call, and contains no Rust value that is accessed otherwise.
pub(crate) unsafe fn copy_in(to: *mut u8, from: &[u8]) {
    // SAFETY: the caller's promise.
    unsafe { copy_in_by::<Native>(to, from) }
}

/// Loads a number with acquire ordering.
///
/// # Safety
/// `at` is aligned, and its 4 bytes satisfy [`copy_out`].
pub(crate) unsafe fn load_u32(at: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    let value = unsafe { Native::load_u32(at) };
    // Acquire: pairs with the release ordering of the writer's store of this number.
    fence(Ordering::Acquire);
    value
}

/// Loads a number with acquire ordering.
///
/// # Safety
/// `at` is aligned, and its 8 bytes satisfy [`copy_out`].
pub(crate) unsafe fn load_u64(at: *const u64) -> u64 {
    // SAFETY: the caller's promise.
    let value = unsafe { Native::load_u64(at) };
    // Acquire: as in `load_u32`.
    fence(Ordering::Acquire);
    value
}

/// Stores a number with release ordering.
///
/// # Safety
/// `at` is aligned, and its 4 bytes satisfy [`copy_in`].
pub(crate) unsafe fn store_u32(at: *mut u32, value: u32) {
    // Release: pairs with the acquire ordering of the reader's load of this number.
    fence(Ordering::Release);
    // SAFETY: the caller's promise.
    unsafe { Native::store_u32(at, value) }
}

/// Stores a number with release ordering.
///
/// # Safety
/// `at` is aligned, and its 8 bytes satisfy [`copy_in`].
pub(crate) unsafe fn store_u64(at: *mut u64, value: u64) {
    // Release: as in `store_u32`.
    fence(Ordering::Release);
    // SAFETY: the caller's promise.
    unsafe { Native::store_u64(at, value) }
}

/// Relaxed accesses to a number or to the words of a line.
///
/// # Safety
/// For every function: `at` is aligned, and the memory there is mapped readable for a load and writable for a store,
/// and contains no Rust value that is accessed otherwise.
trait Access {
    unsafe fn load_u8(at: *const u8) -> u8;
    unsafe fn load_u16(at: *const u16) -> u16;
    unsafe fn load_u32(at: *const u32) -> u32;
    unsafe fn load_u64(at: *const u64) -> u64;
    unsafe fn load_line(at: *const u64) -> [u64; LINE];
    unsafe fn store_u8(at: *mut u8, value: u8);
    unsafe fn store_u16(at: *mut u16, value: u16);
    unsafe fn store_u32(at: *mut u32, value: u32);
    unsafe fn store_u64(at: *mut u64, value: u64);
    unsafe fn store_line(at: *mut u64, line: [u64; LINE]);
}

/// Copies by `A`: numbers of increasing size until `from` is aligned, then lines and words, then numbers of decreasing
/// size.
///
/// # Safety
/// As [`copy_out`].
#[inline(always)]
unsafe fn copy_out_by<A: Access>(mut from: *const u8, mut into: &mut [u8]) {
    // Copies one number, if enough bytes are left.
    macro_rules! step {
        ($load:ident, $bytes:literal) => {{
            let enough = into.len() >= $bytes;
            if enough {
                let (bytes, rest) = std::mem::take(&mut into).split_at_mut($bytes);
                // SAFETY: inside the caller's range. Aligned: the first three steps align `from` if there are enough
                // bytes for them, and if not, too few are left for a step that needs the alignment.
                bytes.copy_from_slice(&unsafe { A::$load(from.cast()) }.to_ne_bytes());
                (from, into) = (from.wrapping_add($bytes), rest);
            }
            enough
        }};
    }
    if from.addr() % WORD != 0 {
        let _ = from.addr() & 1 != 0 && step!(load_u8, 1);
        let _ = from.addr() & 2 != 0 && step!(load_u16, 2);
        let _ = from.addr() & 4 != 0 && step!(load_u32, 4);
    }
    while into.len() >= LINE * WORD {
        let (line, rest) = std::mem::take(&mut into).split_at_mut(LINE * WORD);
        // SAFETY: as in `step`.
        let words = unsafe { A::load_line(from.cast()) };
        for (bytes, word) in line.chunks_exact_mut(WORD).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        (from, into) = (from.wrapping_add(LINE * WORD), rest);
    }
    while step!(load_u64, 8) {}
    if !into.is_empty() {
        step!(load_u32, 4);
        step!(load_u16, 2);
        if let [byte] = into {
            // SAFETY: the last byte of the caller's range.
            *byte = unsafe { A::load_u8(from) };
        }
    }
}

/// Copies by `A`, like [`copy_out_by`].
///
/// # Safety
/// As [`copy_in`].
#[inline(always)]
unsafe fn copy_in_by<A: Access>(mut to: *mut u8, mut from: &[u8]) {
    // Copies one number, if enough bytes are left.
    macro_rules! step {
        ($store:ident, $number:ty) => {{
            let next = from.split_first_chunk();
            let enough = next.is_some();
            if let Some((bytes, rest)) = next {
                // SAFETY: as in `copy_out_by`.
                unsafe { A::$store(to.cast(), <$number>::from_ne_bytes(*bytes)) };
                (from, to) = (rest, to.wrapping_add(bytes.len()));
            }
            enough
        }};
    }
    if to.addr() % WORD != 0 {
        let _ = to.addr() & 1 != 0 && step!(store_u8, u8);
        let _ = to.addr() & 2 != 0 && step!(store_u16, u16);
        let _ = to.addr() & 4 != 0 && step!(store_u32, u32);
    }
    while let Some((line, rest)) = from.split_first_chunk::<{ LINE * WORD }>() {
        let mut words = [0; LINE];
        for (word, bytes) in words.iter_mut().zip(line.chunks_exact(WORD)) {
            *word = bytes.try_into().map_or(0, u64::from_ne_bytes);
        }
        // SAFETY: as in `copy_out_by`.
        unsafe { A::store_line(to.cast(), words) };
        (from, to) = (rest, to.wrapping_add(LINE * WORD));
    }
    while step!(store_u64, u64) {}
    if !from.is_empty() {
        step!(store_u32, u32);
        step!(store_u16, u16);
        if let [byte] = from {
            // SAFETY: the last byte of the caller's range.
            unsafe { A::store_u8(to, *byte) };
        }
    }
}

/// One instruction per number, and one or two per pair of words.
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
struct Instructions;

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
const _: () = {
    use std::arch::asm;

    /// A load and a store of a number through a register of type `$register`.
    macro_rules! number {
        ($number:ty, $register:ty, $load:ident: $load_by:literal, $store:ident: $store_by:literal) => {
            #[inline(always)]
            unsafe fn $load(at: *const $number) -> $number {
                let value: $register;
                // SAFETY: one load of what the caller vouches for.
                unsafe {
                    asm!($load_by, at = in(reg) at, value = lateout(reg) value,
                        options(nostack, preserves_flags, readonly));
                }
                value as $number
            }

            #[inline(always)]
            unsafe fn $store(at: *mut $number, value: $number) {
                // SAFETY: one store to what the caller vouches for.
                unsafe {
                    asm!($store_by, at = in(reg) at, value = in(reg) <$register>::from(value),
                        options(nostack, preserves_flags));
                }
            }
        };
    }

    /// A load and a store of four words; the first output is written before the last read of `at`.
    macro_rules! line {
        (load: $($load_by:literal)+, store: $($store_by:literal)+) => {
            #[inline(always)]
            unsafe fn load_line(at: *const u64) -> [u64; LINE] {
                let (a, b, c, d);
                // SAFETY: loads of what the caller vouches for.
                unsafe {
                    asm!($($load_by,)+ at = in(reg) at,
                        a = out(reg) a, b = out(reg) b, c = out(reg) c, d = out(reg) d,
                        options(nostack, preserves_flags, readonly));
                }
                [a, b, c, d]
            }

            #[inline(always)]
            unsafe fn store_line(at: *mut u64, [a, b, c, d]: [u64; LINE]) {
                // SAFETY: stores to what the caller vouches for.
                unsafe {
                    asm!($($store_by,)+ at = in(reg) at, a = in(reg) a, b = in(reg) b, c = in(reg) c, d = in(reg) d,
                        options(nostack, preserves_flags));
                }
            }
        };
    }

    #[cfg(target_arch = "x86_64")]
    impl Access for Instructions {
        number!(u8, u32, load_u8: "movzx {value:e}, byte ptr [{at}]", store_u8: "mov byte ptr [{at}], {value:l}");
        number!(u16, u32, load_u16: "movzx {value:e}, word ptr [{at}]", store_u16: "mov word ptr [{at}], {value:x}");
        number!(u32, u32, load_u32: "mov {value:e}, dword ptr [{at}]", store_u32: "mov dword ptr [{at}], {value:e}");
        number!(u64, u64, load_u64: "mov {value}, qword ptr [{at}]", store_u64: "mov qword ptr [{at}], {value}");
        line!(
            load: "mov {a}, qword ptr [{at}]" "mov {b}, qword ptr [{at} + 8]"
                "mov {c}, qword ptr [{at} + 16]" "mov {d}, qword ptr [{at} + 24]",
            store: "mov qword ptr [{at}], {a}" "mov qword ptr [{at} + 8], {b}"
                "mov qword ptr [{at} + 16], {c}" "mov qword ptr [{at} + 24], {d}"
        );
    }

    // Each word of a pair (`ldp`, `stp`) is a single access.
    #[cfg(target_arch = "aarch64")]
    impl Access for Instructions {
        number!(u8, u32, load_u8: "ldrb {value:w}, [{at}]", store_u8: "strb {value:w}, [{at}]");
        number!(u16, u32, load_u16: "ldrh {value:w}, [{at}]", store_u16: "strh {value:w}, [{at}]");
        number!(u32, u32, load_u32: "ldr {value:w}, [{at}]", store_u32: "str {value:w}, [{at}]");
        number!(u64, u64, load_u64: "ldr {value}, [{at}]", store_u64: "str {value}, [{at}]");
        line!(
            load: "ldp {a}, {b}, [{at}]" "ldp {c}, {d}, [{at}, #16]",
            store: "stp {a}, {b}, [{at}]" "stp {c}, {d}, [{at}, #16]"
        );
    }
};

/// An atomic of the number's size.
#[cfg(any(test, not(any(target_arch = "x86_64", target_arch = "aarch64", miri))))]
struct Atomics;

/// Implements line accesses by word accesses.
#[cfg(any(test, miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
macro_rules! line_of_words {
    () => {
        #[inline(always)]
        unsafe fn load_line(at: *const u64) -> [u64; LINE] {
            // SAFETY: every word is one that the caller vouches for.
            std::array::from_fn(|word| unsafe { Self::load_u64(at.wrapping_add(word)) })
        }

        #[inline(always)]
        unsafe fn store_line(at: *mut u64, line: [u64; LINE]) {
            for (word, value) in line.into_iter().enumerate() {
                // SAFETY: every word is one that the caller vouches for.
                unsafe { Self::store_u64(at.wrapping_add(word), value) };
            }
        }
    };
}

#[cfg(any(test, not(any(target_arch = "x86_64", target_arch = "aarch64", miri))))]
const _: () = {
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

    macro_rules! number {
        ($number:ty, $atomic:ty, $load:ident, $store:ident) => {
            #[inline(always)]
            unsafe fn $load(at: *const $number) -> $number {
                // SAFETY: aligned and mapped, as the caller vouches; only loaded from.
                let number = unsafe { <$atomic>::from_ptr(at.cast_mut()) };
                // Relaxed: the trait's promise.
                number.load(Ordering::Relaxed)
            }

            #[inline(always)]
            unsafe fn $store(at: *mut $number, value: $number) {
                // SAFETY: aligned and mapped, as the caller vouches.
                let number = unsafe { <$atomic>::from_ptr(at) };
                // Relaxed: the trait's promise.
                number.store(value, Ordering::Relaxed);
            }
        };
    }

    impl Access for Atomics {
        number!(u8, AtomicU8, load_u8, store_u8);
        number!(u16, AtomicU16, load_u16, store_u16);
        number!(u32, AtomicU32, load_u32, store_u32);
        number!(u64, AtomicU64, load_u64, store_u64);
        line_of_words!();
    }
};

/// An atomic per byte: the semantics of the other two for the memory model.
#[cfg(any(test, miri))]
struct Bytes;

#[cfg(any(test, miri))]
const _: () = {
    use std::sync::atomic::AtomicU8;

    macro_rules! number {
        ($number:ty, $load:ident, $store:ident) => {
            unsafe fn $load(at: *const $number) -> $number {
                <$number>::from_ne_bytes(std::array::from_fn(|byte| {
                    let byte = at.cast::<u8>().wrapping_add(byte);
                    // SAFETY: mapped, as the caller vouches; only loaded from.
                    let byte = unsafe { AtomicU8::from_ptr(byte.cast_mut()) };
                    // Relaxed: the trait's promise.
                    byte.load(Ordering::Relaxed)
                }))
            }

            unsafe fn $store(at: *mut $number, value: $number) {
                for (byte, value) in value.to_ne_bytes().into_iter().enumerate() {
                    // SAFETY: mapped, as the caller vouches.
                    let byte = unsafe { AtomicU8::from_ptr(at.cast::<u8>().wrapping_add(byte)) };
                    // Relaxed: the trait's promise.
                    byte.store(value, Ordering::Relaxed);
                }
            }
        };
    }

    impl Access for Bytes {
        number!(u8, load_u8, store_u8);
        number!(u16, load_u16, store_u16);
        number!(u32, load_u32, store_u32);
        number!(u64, load_u64, store_u64);
        line_of_words!();
    }
};

#[cfg(test)]
mod tests;
