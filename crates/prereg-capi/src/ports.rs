//! Ports: structs of function pointers with which a caller pins and charges by himself, or keeps memory alive.
//!
//! Every struct comes with a `release` that is called once, when nothing here will use its context again. A call that
//! fails has not taken the context: it stays the caller's, and `release` is not called for it.

#![expect(unsafe_code, reason = "calls a C caller's functions, with the context that he gave")]

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::{
    AddressKind, Barrier, Charge, ChargeError, DirtyPages, Errno, Granule, HostAddr, PageListError, PageSink,
    Pin, PinError, PinId, UserAddr, UserRange,
};
use prereg_linux::Membarrier;

use crate::failure::{Failure, value_or};
use crate::words::{granule_of, kind_from};

/// The pages of a range that is being pinned: where the pin function puts the host address of each. Good only until that
/// function returns.
#[derive(Debug)]
pub struct prereg_page_list<'a, 'b> {
    pages: &'a mut PageSink<'b>,
    refused: Option<PageListError>,
}

/// The pages of a region that a device may have written, and perhaps neighbours of them. Good only until the unpin function
/// returns.
#[derive(Debug)]
pub struct prereg_dirty_pages<'a> {
    pages: DirtyPages<'a>,
}

/// How a caller pins memory: set `backend` to `PREREG_BACKEND_CALLBACKS` and `pin` to this.
///
/// The functions are called from many threads at once, never under a lock of this library. They may not throw, jump out,
/// or call back into the same space; registering the range that is being pinned or unpinned is answered with -EDEADLK. The
/// struct is copied; what `context` points at is not.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_pin_ops {
    /// sizeof(struct prereg_pin_ops).
    pub size: usize,
    /// Passed to each function.
    pub context: *mut c_void,
    /// The system page as a power of two: 12 to 24; 0 for this system's.
    pub granule_shift: u32,
    /// What the host addresses mean: a `PREREG_ADDRESS_...`.
    pub address_kind: u32,
    /// Pins every page of `bytes` bytes at `ua` and pushes the host address of each, in order, with
    /// `prereg_page_list_push`; sets `id` to whatever `unpin` is to be called with. Devices are programmed with these
    /// addresses: until `unpin` is called, each must reach the page that it was pushed for and no other memory. Returns 0, or
    /// a negative errno and nothing stays pinned.
    pub pin: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            ua: u64,
            bytes: u64,
            pages: &mut prereg_page_list<'_, '_>,
            id: &mut u64,
        ) -> c_int,
    >,
    /// Releases what `pin` pinned; the pages are free when it returns. `dirty` is read with `prereg_dirty_pages_next`.
    pub unpin: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            id: u64,
            ua: u64,
            bytes: u64,
            dirty: &mut prereg_dirty_pages<'_>,
        ),
    >,
    /// The context is not used any more. May be NULL.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

/// How a caller counts locked memory: set `charge` of the options to this. With NULL there the back end counts, against
/// RLIMIT_MEMLOCK. The rules for the functions are those of `prereg_pin_ops`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_charge_ops {
    /// sizeof(struct prereg_charge_ops).
    pub size: usize,
    /// Passed to each function.
    pub context: *mut c_void,
    /// Adds `pages` system pages. Returns 0; or anything else, and nothing is charged: the registration then fails with
    /// -ENOMEM, and its message says what `charged` and `limit` were set to (both in pages).
    pub charge: Option<
        unsafe extern "C" fn(context: *mut c_void, pages: u64, charged: &mut u64, limit: &mut u64) -> c_int,
    >,
    /// Takes `pages` off again.
    pub uncharge: Option<unsafe extern "C" fn(context: *mut c_void, pages: u64)>,
    /// The context is not used any more. May be NULL.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

/// What keeps registered memory mapped: `release` is called when the last page is unpinned. If the range was registered
/// already, the region keeps the owner that it has, and `release` of the new one is called before the call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_keep {
    /// Passed to the function.
    pub context: *mut c_void,
    /// The memory is not used any more. May be called on any thread.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

/// Pushes `pages` pages that follow each other from host address `host` on.
///
/// Returns 0; -E2BIG when the range has fewer pages, -EINVAL when the pages pass 2^64, -ENOMEM; the registration then fails
/// whatever the pin function returns.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_page_list_push(
    list: Option<&mut prereg_page_list<'_, '_>>,
    host: u64,
    pages: u64,
) -> c_int {
    crate::failure::answer(None, || {
        let list = list.ok_or(Failure::Null("the page list"))?;
        list.pages.push(HostAddr::new(host), pages).map_err(|error| {
            list.refused.get_or_insert(error);
            Failure::Pages(error)
        })
    })
}

/// The next page that a device may have written, as its number from the start of the range; UINT64_MAX after the last.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_dirty_pages_next(dirty: Option<&mut prereg_dirty_pages<'_>>) -> u64 {
    value_or(u64::MAX, || Ok(dirty.ok_or(Failure::Null("the dirty pages"))?.pages.next().unwrap_or(u64::MAX)))
}

/// A caller's context and what gives it back.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) pointer: *mut c_void,
    release: Option<unsafe extern "C" fn(*mut c_void)>,
    taken: AtomicBool,
}

// SAFETY: the header demands that the context may be used on any thread.
unsafe impl Send for Context {}
// SAFETY: as above, on several at once.
unsafe impl Sync for Context {}

impl Context {
    /// Not given back at its end before [`taken`](Self::taken) was called.
    pub(crate) const fn new(
        pointer: *mut c_void,
        release: Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> Self {
        Self { pointer, release, taken: AtomicBool::new(false) }
    }

    /// The call that brought it has succeeded: it is ours now.
    pub(crate) fn taken(&self) {
        // Relaxed: the drop that reads it comes after everything by the count of the `Arc` or box around.
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
    pin: unsafe extern "C" fn(*mut c_void, u64, u64, &mut prereg_page_list<'_, '_>, &mut u64) -> c_int,
    unpin: unsafe extern "C" fn(*mut c_void, u64, u64, u64, &mut prereg_dirty_pages<'_>),
    barrier: Option<Membarrier>,
}

impl Pins {
    /// The port, and its context, which is still the caller's.
    pub(crate) fn new(ops: Option<&prereg_pin_ops>) -> Result<(Self, Arc<Context>), Failure> {
        let ops = ops.ok_or(Failure::Null("pin of the options (PREREG_BACKEND_CALLBACKS)"))?;
        sized("prereg_pin_ops", ops.size, size_of::<prereg_pin_ops>())?;
        let (Some(pin), Some(unpin)) = (ops.pin, ops.unpin) else {
            return Err(Failure::Null("a function of prereg_pin_ops"));
        };
        let granule = granule_of(ops.granule_shift)?;
        let kind = kind_from(ops.address_kind)?.unwrap_or(AddressKind::Invented);
        let context = Arc::new(Context::new(ops.context, ops.release));
        let pins =
            Self { context: context.clone(), granule, kind, pin, unpin, barrier: Membarrier::register() };
        Ok((pins, context))
    }
}

// SAFETY: the header demands it of the caller's `pin` function.
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
        let mut list = prereg_page_list { pages, refused: None };
        let mut id = 0;
        let (ua, bytes) = (range.first().raw(), range.bytes());
        // SAFETY: the caller's function with the caller's context.
        let code = unsafe { (self.pin)(self.context.pointer, ua, bytes, &mut list, &mut id) };
        if code != 0 {
            let errno = if code < 0 { Errno::from_raw(code.wrapping_neg()) } else { Errno::EIO };
            return Err(PinError::Os { ua: range.first(), errno, during: "the caller's pin function" });
        }
        if let Some(refused) = list.refused {
            self.unpin(PinId::new(id), range, DirtyPages::none());
            return Err(refused.into());
        }
        Ok(PinId::new(id))
    }

    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>) {
        let mut dirty = prereg_dirty_pages { pages: dirty };
        let (ua, bytes) = (range.first().raw(), range.bytes());
        // SAFETY: the caller's function with the caller's context.
        unsafe { (self.unpin)(self.context.pointer, pin.raw(), ua, bytes, &mut dirty) };
    }
}

/// A caller's account.
#[derive(Debug)]
pub(crate) struct Charges {
    context: Arc<Context>,
    charge: unsafe extern "C" fn(*mut c_void, u64, &mut u64, &mut u64) -> c_int,
    uncharge: unsafe extern "C" fn(*mut c_void, u64),
}

impl Charges {
    /// The port, and its context, which is still the caller's.
    pub(crate) fn new(ops: &prereg_charge_ops) -> Result<(Self, Arc<Context>), Failure> {
        sized("prereg_charge_ops", ops.size, size_of::<prereg_charge_ops>())?;
        let (Some(charge), Some(uncharge)) = (ops.charge, ops.uncharge) else {
            return Err(Failure::Null("a function of prereg_charge_ops"));
        };
        let context = Arc::new(Context::new(ops.context, ops.release));
        Ok((Self { context: context.clone(), charge, uncharge }, context))
    }
}

impl Charge for Charges {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        let (mut charged, mut limit) = (0, 0);
        // SAFETY: the caller's function with the caller's context.
        match unsafe { (self.charge)(self.context.pointer, pages, &mut charged, &mut limit) } {
            0 => Ok(()),
            _ => Err(ChargeError::OverLimit { need: pages, charged, limit }),
        }
    }

    fn uncharge(&self, pages: u64) {
        // SAFETY: the caller's function with the caller's context.
        unsafe { (self.uncharge)(self.context.pointer, pages) };
    }
}

/// A caller's range of memory, with what keeps it there.
pub(crate) struct CallersMemory {
    pub(crate) ua: u64,
    pub(crate) bytes: u64,
    pub(crate) owner: Option<Arc<Context>>,
}

impl CallersMemory {
    pub(crate) fn new(ua: u64, bytes: u64, keep: Option<&prereg_keep>) -> Self {
        let owner = keep.map(|keep| Arc::new(Context::new(keep.context, keep.release)));
        Self { ua, bytes, owner }
    }

    /// The registration has succeeded: what keeps the memory is given back when nobody needs it any more.
    pub(crate) fn taken(&self) {
        if let Some(owner) = &self.owner {
            owner.taken();
        }
    }
}

// SAFETY: the header demands it of whoever names the range: it stays the same memory until the region is released, or
// until `release` of the owner that came with it.
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

/// A struct of another size was made for another version of the header.
pub(crate) const fn sized(name: &'static str, found: usize, known: usize) -> Result<(), Failure> {
    if found == known { Ok(()) } else { Err(Failure::Size { name, found, known }) }
}
