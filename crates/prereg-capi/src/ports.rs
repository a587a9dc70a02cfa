//! Ports: structs of function pointers by which a caller pins, charges, or keeps memory alive.
//!
//! Every struct has a `release` that is called once, after the last use of its context. A call that fails does not take ownership of
//! the context, and `release` is not called for it.

#![expect(unsafe_code, reason = "calls a C caller's functions with their context")]

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{
    AddressKind, Barrier, Charge, ChargeError, DirtyPages, Errno, Granule, HostAddr, PageShift, PageSink,
    Pin, PinError, PinId, UserAddr, UserRange,
};
use prereg_linux::Membarrier;

use crate::error::{CallError, run_call, value_or};
use crate::handle::{Kind, Vacant, body, kinds, take};
use crate::record::{self, records};
use crate::types::{granule_of, kind_from};

/// The pages of a range that is being pinned, to which the pin function pushes their host addresses. Valid until that function
/// returns.
#[derive(Debug)]
pub struct prereg_page_list(());

/// The pages of a region that were marked as written, and possibly adjacent ones: every page of an access that writes
/// (`prereg_iova_hold`), of a table entry with write permission, and of `prereg_mark_dirty` and similar calls. Valid until the unpin
/// function returns.
#[derive(Debug)]
pub struct prereg_dirty_pages(());

kinds! {
    prereg_page_list, Mutex<Filling>, 14;
    prereg_dirty_pages, Mutex<Dirty>, 15;
}

/// The list that a caller's pin function fills.
#[derive(Debug)]
pub struct Filling {
    /// The sink of the caller of [`Pin::pin`], which waits for the pin function.
    pages: NonNull<PageSink<'static>>,
    granule: PageShift,
    refused: Option<PinError>,
}

// SAFETY: only between the call of the pin function and its return, one thread at a time by the lock around it.
unsafe impl Send for Filling {}

/// The marks that a caller's unpin function reads.
#[derive(Debug)]
pub struct Dirty {
    /// The marks of the caller of [`Pin::unpin`], which waits for the unpin function.
    pages: NonNull<DirtyPages<'static>>,
}

// SAFETY: as for `Filling`.
unsafe impl Send for Dirty {}

impl Filling {
    fn push(&mut self, host: u64, pages: u64) -> Result<(), CallError> {
        let host = HostAddr::new(host);
        // SAFETY: the list lives as long as the handle on it, which is released when the pin function returns.
        let list = unsafe { self.pages.as_mut() };
        let ua = list.range().first();
        if !host.is_aligned(self.granule) {
            let why = "the pin function pushed a host address that is not the start of a page";
            self.refused.get_or_insert(PinError::Unsupported { ua, why });
            return Err(CallError::NoPage { host, granule: self.granule });
        }
        list.push(host, pages).map_err(|error| {
            self.refused.get_or_insert(match error.into() {
                PinError::Unsupported { why, .. } => PinError::Unsupported { ua, why },
                error => error,
            });
            CallError::Pages(error)
        })
    }
}

/// Passes a handle to `work`, which is released when it returns.
fn with_handle<K: Kind, R>(body: K::Body, work: impl FnOnce(*mut K) -> R) -> Option<(R, K::Body)> {
    let mut handle = Vacant::<K>::new()?.fill(body);
    let result = work(handle);
    Some((result, take(&raw mut handle).ok()??))
}

/// The caller's functions that pin memory: set `backend` to `PREREG_BACKEND_CALLBACKS` and `pin` to this.
///
/// The functions are called from many threads at once, never under a lock of this library. They must not throw, jump out,
/// or call back into the same space; registering the range that is being pinned or unpinned returns -EDEADLK. The struct
/// is copied, `context` is not.
///
/// ADDRESSES are guaranteed by the program that supplies these functions. The library checks that there is one address for every page
/// of the range, that each is the start of a page, that no run passes 2^64, and that a large page is mapped only where the addresses are
/// contiguous and aligned. It never dereferences an address: every `hpa` and `host` that it returns later is one of these plus an
/// offset in its page, of the kind `address_kind`. It returns them with a mapping (and for reports by `prereg_registration_runs`), and
/// calls `unpin` only when nothing is mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_pin_ops {
    /// sizeof(struct prereg_pin_ops).
    pub size: usize,
    /// Passed to each function.
    pub context: *mut c_void,
    /// The system page size as a power of two: 12 to 24; 0 for the system's.
    pub granule_shift: u32,
    /// The meaning of the host addresses: a `PREREG_ADDRESS_...`; ANY means INVENTED, which no device may use.
    pub address_kind: u32,
    /// Pins every page of `bytes` bytes at `ua` and pushes the host address of each, in order, with
    /// `prereg_page_list_push`; sets `id` to a number that is passed to `unpin`. Devices are programmed with these
    /// addresses: until `unpin` is called, each must reach the page for which it was pushed and no other memory. Returns 0, or
    /// a negative errno with nothing pinned.
    pub pin: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            ua: u64,
            bytes: u64,
            pages: *mut prereg_page_list,
            id: *mut u64,
        ) -> c_int,
    >,
    /// Releases the pin; the pages are unpinned when it returns. `dirty` is read with `prereg_dirty_pages_next`.
    pub unpin: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            id: u64,
            ua: u64,
            bytes: u64,
            dirty: *mut prereg_dirty_pages,
        ),
    >,
    /// Called after the last use of the context. May be NULL.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

/// The caller's functions that count locked memory: set `charge` of the options to this. With NULL the back end counts, against
/// RLIMIT_MEMLOCK. The rules for the functions are those of `prereg_pin_ops`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_charge_ops {
    /// sizeof(struct prereg_charge_ops).
    pub size: usize,
    /// Passed to each function.
    pub context: *mut c_void,
    /// Adds `pages` system pages. Returns 0; or another value with nothing charged: the registration then fails with
    /// -ENOMEM, and its message has `charged` and `limit` (both in pages).
    pub charge: Option<
        unsafe extern "C" fn(context: *mut c_void, pages: u64, charged: *mut u64, limit: *mut u64) -> c_int,
    >,
    /// Subtracts `pages` pages.
    pub uncharge: Option<unsafe extern "C" fn(context: *mut c_void, pages: u64)>,
    /// Called after the last use of the context. May be NULL.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

/// Keeps registered memory mapped: `release` is called when the last page is unpinned. If the range is registered already, the region
/// keeps its owner, and `release` of the new one is called before the call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_keep {
    /// sizeof(struct prereg_keep).
    pub size: usize,
    /// Passed to the function.
    pub context: *mut c_void,
    /// Called after the last use of the memory, on any thread.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

records!(prereg_pin_ops, prereg_charge_ops, prereg_keep);

/// Pushes `pages` contiguous pages from host address `host` on, which is the start of a page.
///
/// Returns 0; -E2BIG when the range has fewer pages, -EINVAL when `host` is not the start of a page or the pages pass 2^64,
/// -ENOMEM; the registration then fails whatever the pin function returns. -EINVAL also after the pin function has returned.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_page_list_push(list: *mut prereg_page_list, host: u64, pages: u64) -> c_int {
    run_call(std::ptr::null_mut(), || locked(body(list)?).push(host, pages))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it is locked is a defect that the calling function reports.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next page that a device may have written, as its number from the start of the range; UINT64_MAX after the last.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_dirty_pages_next(dirty: *mut prereg_dirty_pages) -> u64 {
    value_or(u64::MAX, || {
        let mut dirty = locked(body(dirty)?);
        // SAFETY: the marks live as long as the handle on them, which ends when the unpin function has returned.
        let pages = unsafe { dirty.pages.as_mut() };
        Ok(pages.next().unwrap_or(u64::MAX))
    })
}

/// A caller's context and its release function.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) pointer: *mut c_void,
    release: Option<unsafe extern "C" fn(*mut c_void)>,
    taken: AtomicBool,
}

// SAFETY: the header requires that the context may be used on any thread.
unsafe impl Send for Context {}
// SAFETY: as above, on several at once.
unsafe impl Sync for Context {}

impl Context {
    /// A context that is released at its end only after [`taken`](Self::taken).
    pub(crate) const fn new(
        pointer: *mut c_void,
        release: Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> Self {
        Self { pointer, release, taken: AtomicBool::new(false) }
    }

    /// Takes ownership, because the call that passed it has succeeded.
    pub(crate) fn taken(&self) {
        // Relaxed: the owner's `Arc` or box orders the drop, which reads it, after this.
        self.taken.store(true, Ordering::Relaxed);
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let (true, Some(release)) = (*self.taken.get_mut(), self.release) {
            // SAFETY: the caller's function with the caller's context, once.
            unsafe { release(self.pointer) };
        }
    }
}

/// A caller's pins.
#[derive(Debug)]
pub(crate) struct Pins {
    context: Arc<Context>,
    granule: Granule,
    kind: AddressKind,
    pin: unsafe extern "C" fn(*mut c_void, u64, u64, *mut prereg_page_list, *mut u64) -> c_int,
    unpin: unsafe extern "C" fn(*mut c_void, u64, u64, u64, *mut prereg_dirty_pages),
    barrier: Option<Membarrier>,
}

impl Pins {
    /// The port and its context, which the caller still owns.
    pub(crate) fn new(ops: *const prereg_pin_ops) -> Result<(Self, Arc<Context>), CallError> {
        let none = CallError::Null("pin of the options (PREREG_BACKEND_CALLBACKS)");
        let ops = record::read_if(ops)?.ok_or(none)?;
        let (Some(pin), Some(unpin)) = (ops.pin, ops.unpin) else {
            return Err(CallError::Null("a function of prereg_pin_ops"));
        };
        let granule = granule_of(ops.granule_shift)?;
        let kind = kind_from(ops.address_kind)?.unwrap_or(AddressKind::Invented);
        let context = Arc::new(Context::new(ops.context, ops.release));
        let pins =
            Self { context: context.clone(), granule, kind, pin, unpin, barrier: Membarrier::register() };
        Ok((pins, context))
    }
}

// SAFETY: the header requires it of the caller's `pin` function.
unsafe impl Pin for Pins {
    fn name(&self) -> &'static str {
        "callbacks"
    }

    fn granule(&self) -> Granule {
        self.granule
    }

    fn address_kind(&self) -> AddressKind {
        self.kind
    }

    fn barrier(&self) -> Option<Arc<dyn Barrier>> {
        self.barrier.map(|barrier| Arc::new(barrier) as Arc<dyn Barrier>)
    }

    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        let mut id = 0;
        let (ua, bytes) = (range.first().raw(), range.bytes());
        let filling =
            Filling { pages: NonNull::from(pages).cast(), granule: self.granule.shift(), refused: None };
        let (code, filling) = with_handle::<prereg_page_list, _>(Mutex::new(filling), |list| {
            // SAFETY: the caller's function with the caller's context.
            unsafe { (self.pin)(self.context.pointer, ua, bytes, list, &raw mut id) }
        })
        .ok_or(PinError::OutOfMemory)?;
        if code != 0 {
            let errno = if code < 0 { Errno::from_raw(code.wrapping_neg()) } else { Errno::EIO };
            return Err(PinError::Os { ua: range.first(), errno, during: "the caller's pin function" });
        }
        if let Some(refused) = filling.into_inner().unwrap_or_else(PoisonError::into_inner).refused {
            self.unpin(PinId::new(id), range, DirtyPages::none());
            return Err(refused);
        }
        Ok(PinId::new(id))
    }

    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>) {
        let mut dirty = dirty;
        let (ua, bytes) = (range.first().raw(), range.bytes());
        let unpin = |dirty| {
            // SAFETY: the caller's function with the caller's context.
            unsafe { (self.unpin)(self.context.pointer, pin.raw(), ua, bytes, dirty) };
        };
        let marks = Dirty { pages: NonNull::from(&mut dirty).cast() };
        // Unpinning cannot fail: without memory for the handle the function gets no marks.
        if with_handle::<prereg_dirty_pages, _>(Mutex::new(marks), unpin).is_none() {
            unpin(std::ptr::null_mut());
        }
    }
}

/// A caller's account.
#[derive(Debug)]
pub(crate) struct Charges {
    context: Arc<Context>,
    charge: unsafe extern "C" fn(*mut c_void, u64, *mut u64, *mut u64) -> c_int,
    uncharge: unsafe extern "C" fn(*mut c_void, u64),
}

impl Charges {
    /// The port and its context, which the caller still owns.
    pub(crate) fn new(ops: &prereg_charge_ops) -> Result<(Self, Arc<Context>), CallError> {
        let (Some(charge), Some(uncharge)) = (ops.charge, ops.uncharge) else {
            return Err(CallError::Null("a function of prereg_charge_ops"));
        };
        let context = Arc::new(Context::new(ops.context, ops.release));
        Ok((Self { context: context.clone(), charge, uncharge }, context))
    }
}

impl Charge for Charges {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        let (mut charged, mut limit) = (0, 0);
        // SAFETY: the caller's function with the caller's context.
        match unsafe { (self.charge)(self.context.pointer, pages, &raw mut charged, &raw mut limit) } {
            0 => Ok(()),
            _ => Err(ChargeError::OverLimit { need: pages, charged, limit }),
        }
    }

    fn uncharge(&self, pages: u64) {
        // SAFETY: the caller's function with the caller's context.
        unsafe { (self.uncharge)(self.context.pointer, pages) };
    }
}

/// A caller's range of memory, and its owner.
pub(crate) struct CallersMemory {
    pub(crate) ua: u64,
    pub(crate) bytes: u64,
    pub(crate) owner: Option<Arc<Context>>,
}

impl CallersMemory {
    pub(crate) fn new(ua: u64, bytes: u64, keep: Option<prereg_keep>) -> Self {
        let owner = keep.map(|keep| Arc::new(Context::new(keep.context, keep.release)));
        Self { ua, bytes, owner }
    }

    /// Takes ownership of `keep`, because the registration has succeeded.
    pub(crate) fn taken(&self) {
        if let Some(owner) = &self.owner {
            owner.taken();
        }
    }
}

// SAFETY: the header requires it of the caller: the range stays the same memory until the region is released, or until `release` of its
// owner.
unsafe impl prereg::Memory for CallersMemory {
    fn ua(&self) -> UserAddr {
        UserAddr::new(self.ua)
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn keep(&self) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
        self.owner.clone().map(|owner| owner as Arc<dyn std::any::Any + Send + Sync>)
    }
}
