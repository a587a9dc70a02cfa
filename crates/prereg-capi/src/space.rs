//! Address spaces: `prereg_space`, the owner of a set of regions, and the options it is made with.

#![expect(unsafe_code, reason = "names for C; calls a C caller's progress function")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::{
    AddressKind, AddressSpace, AddressSpaceBuilder, Charge, Errno, HostAddr, Pin, UserAddr, UserRange,
};
use prereg_linux::{Fixed, IoUring, MemlockAccount, Mlock, SlotAddress, VfioType1};

use crate::failure::{Failure, answer, prereg_error, value_or};
use crate::handle::{Handle, body, hand_out, kinds, room, take};
use crate::ports::{Charges, Context, Pins, prereg_charge_ops, prereg_pin_ops, sized};
use crate::region::{prereg_region, region_of};
use crate::words::{
    PREREG_ADDRESS_ANY, PREREG_ADDRESS_PHYSICAL, PREREG_ADDRESS_SLOT_OFFSET, granule_of, kind_number,
};

/// Pins with io_uring: FOLL_LONGTERM, for anybody within RLIMIT_MEMLOCK. What 0 chooses.
pub const PREREG_BACKEND_IO_URING: u32 = 0;
/// Locks with mlock(2). Locked pages still move: for comparison, not for devices.
pub const PREREG_BACKEND_MLOCK: u32 = 1;
/// Device memory: host address = `fixed_host` + offset; nothing is pinned or charged.
pub const PREREG_BACKEND_FIXED: u32 = 2;
/// The caller pins: see `prereg_pin_ops`.
pub const PREREG_BACKEND_CALLBACKS: u32 = 3;

/// A VFIO container of type1 version 2 that the caller opened and gave a group to (`container_fd`): a region is mapped into it
/// once, and that pins it; host addresses are I/O addresses. The caller keeps a group in it.
pub const PREREG_BACKEND_VFIO_TYPE1: u32 = 4;

/// How a space is made. Set all of it to zero, then `size`, then what is wanted.
#[repr(C)]
#[derive(Debug)]
pub struct prereg_options<'a> {
    /// sizeof(struct prereg_options).
    pub size: usize,
    /// A `PREREG_BACKEND_...`.
    pub backend: u32,
    /// What host addresses must be, for `PREREG_BACKEND_IO_URING`: ANY, PHYSICAL (fails with -EPERM where they are
    /// hidden) or SLOT_OFFSET.
    pub addresses: u32,
    /// Threads that bring memory in before it is pinned (io_uring); 0: one for each processor, up to 8.
    pub fault_threads: u32,
    /// The page of `PREREG_BACKEND_FIXED` as a power of two; 0 for this system's.
    pub granule_shift: u32,
    /// The most bytes that one slot takes (io_uring); 0: what the kernel allows.
    pub slot_limit: u64,
    /// Bytes that may be locked; 0: RLIMIT_MEMLOCK, as the kernel has it. Not with `charge`.
    pub locked_limit: u64,
    /// The descriptor of the container of `PREREG_BACKEND_VFIO_TYPE1`; duplicated.
    pub container_fd: c_int,
    /// Zero.
    pub reserved: u32,
    /// The window of `PREREG_BACKEND_FIXED`: its first user address.
    pub fixed_ua: u64,
    /// Its length.
    pub fixed_bytes: u64,
    /// The host address of its first byte.
    pub fixed_host: u64,
    /// Called while much memory is brought in (io_uring), from the threads that do it: bytes done, bytes in all. Anything
    /// but 0 stops it: the registration fails with -EINTR and nothing is pinned. May be NULL.
    pub progress: Option<unsafe extern "C" fn(context: *mut c_void, done: u64, total: u64) -> c_int>,
    /// Passed to `progress`; must stay good as long as the space or anything made from it.
    pub progress_context: *mut c_void,
    /// For `PREREG_BACKEND_CALLBACKS`.
    pub pin: Option<&'a prereg_pin_ops>,
    /// The caller's account, or NULL.
    pub charge: Option<&'a prereg_charge_ops>,
}

impl Default for prereg_options<'_> {
    fn default() -> Self {
        Self {
            size: size_of::<Self>(),
            backend: PREREG_BACKEND_IO_URING,
            addresses: PREREG_ADDRESS_ANY,
            fault_threads: 0,
            granule_shift: 0,
            slot_limit: 0,
            locked_limit: 0,
            container_fd: -1,
            reserved: 0,
            fixed_ua: 0,
            fixed_bytes: 0,
            fixed_host: 0,
            progress: None,
            progress_context: std::ptr::null_mut(),
            pin: None,
            charge: None,
        }
    }
}

/// An address space: the owner of a set of regions. One per process, or one per guest. Any thread, any number at once.
#[derive(Debug)]
pub struct prereg_space(Handle<Space>);

kinds! {
    prereg_space, Space, b"pr-space";
}

/// An address space with its ports, which containers use too.
pub struct Space {
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) pins: Arc<dyn Pin>,
    pub(crate) charges: Arc<dyn Charge>,
    name: CString,
    note: CString,
    cancel: Option<Arc<AtomicBool>>,
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").field("space", &self.space).finish_non_exhaustive()
    }
}

impl Space {
    /// Forgets that an earlier registration was stopped.
    pub(crate) fn resume(&self) {
        if let Some(cancel) = &self.cancel {
            // Relaxed: a flag that guards nothing.
            cancel.store(false, Ordering::Relaxed);
        }
    }
}

/// The caller's progress function, with its context.
struct ProgressCall {
    function: unsafe extern "C" fn(*mut c_void, u64, u64) -> c_int,
    context: Context,
    cancel: Arc<AtomicBool>,
}

impl ProgressCall {
    fn call(&self, done: u64, total: u64) {
        // SAFETY: the caller's function with the caller's context.
        if unsafe { (self.function)(self.context.pointer, done, total) } != 0 {
            // Relaxed: a flag that guards nothing.
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

/// A back end: its two ports, a note on its addresses, and what stops it.
struct Backend {
    pins: Arc<dyn Pin>,
    charges: Arc<dyn Charge>,
    note: &'static str,
    cancel: Option<Arc<AtomicBool>>,
}

impl Backend {
    fn new<T: Pin + Charge + 'static>(backend: T, note: &'static str) -> Self {
        let backend = Arc::new(backend);
        Self { pins: backend.clone(), charges: backend, note, cancel: None }
    }

    fn io_uring(options: &prereg_options<'_>) -> Result<Self, Failure> {
        let mut builder = IoUring::builder().prefault_threads(options.fault_threads as usize);
        match options.addresses {
            PREREG_ADDRESS_ANY => {}
            PREREG_ADDRESS_PHYSICAL => builder = builder.addresses(AddressKind::Physical),
            PREREG_ADDRESS_SLOT_OFFSET => builder = builder.addresses(AddressKind::SlotOffset),
            _ => return Err(Failure::Argument("addresses is none that io_uring can give")),
        }
        if options.slot_limit != 0 {
            builder = builder.slot_limit(options.slot_limit);
        }
        let mut cancel = None;
        if let Some(function) = options.progress {
            let flag = Arc::new(AtomicBool::new(false));
            let context = Context::new(options.progress_context, None);
            let call = ProgressCall { function, context, cancel: flag.clone() };
            builder = builder.progress(move |done, total| call.call(done, total)).cancel(flag.clone());
            cancel = Some(flag);
        }
        let backend = builder.build()?;
        let note = backend.address_note();
        Ok(Self { cancel, ..Self::new(backend, note) })
    }

    fn vfio_type1(options: &prereg_options<'_>) -> Result<Self, Failure> {
        if options.container_fd < 0 {
            return Err(Failure::Argument("container_fd is no descriptor"));
        }
        // SAFETY: not negative; if it is not open the system says so, and it is only duplicated.
        let container = unsafe { BorrowedFd::borrow_raw(options.container_fd) };
        let own = container.try_clone_to_owned().map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
            Failure::Refused(format!("container_fd cannot be duplicated: {error}"), errno)
        })?;
        Ok(Self::new(VfioType1::on_container(own)?, "addresses on the bus of the container"))
    }

    fn fixed(options: &prereg_options<'_>) -> Result<Self, Failure> {
        let granule = granule_of(options.granule_shift)?;
        let window = UserRange::new(UserAddr::new(options.fixed_ua), options.fixed_bytes, granule)?;
        let fixed = Fixed::new(window, HostAddr::new(options.fixed_host), granule)
            .ok_or(Failure::Argument("fixed_host is not a page's start, or the window passes 2^64 there"))?;
        Ok(Self::new(fixed, "addresses of device memory"))
    }
}

fn make(options: &prereg_options<'_>) -> Result<Space, Failure> {
    sized("prereg_options", options.size, size_of::<prereg_options<'_>>())?;
    let mut contexts = Vec::new();
    let mut backend = match options.backend {
        PREREG_BACKEND_IO_URING => Backend::io_uring(options)?,
        PREREG_BACKEND_MLOCK => {
            Backend::new(Mlock::new()?, "pages that are only locked: they may move at any time")
        }
        PREREG_BACKEND_FIXED => Backend::fixed(options)?,
        PREREG_BACKEND_VFIO_TYPE1 => Backend::vfio_type1(options)?,
        PREREG_BACKEND_CALLBACKS => {
            let (pins, context) = Pins::new(options.pin)?;
            contexts.push(context);
            let granule = pins.granule();
            let note = "what the caller's pin function pushes";
            let charges = Arc::new(MemlockAccount::new(granule));
            Backend { pins: Arc::new(pins), charges, note, cancel: None }
        }
        _ => return Err(Failure::Argument("backend is none of PREREG_BACKEND_...")),
    };
    match (options.charge, options.locked_limit) {
        (None, 0) => {}
        (None, limit) => {
            let granule = backend.pins.granule();
            let pages = limit >> granule.shift().get();
            backend.charges = Arc::new(MemlockAccount::with_limit(granule, Some(pages)));
        }
        (Some(ops), 0) => {
            let (charges, context) = Charges::new(ops)?;
            contexts.push(context);
            backend.charges = Arc::new(charges);
        }
        (Some(_), _) => return Err(Failure::Argument("either charge or locked_limit, not both")),
    }
    let space = Arc::new(AddressSpaceBuilder::new(backend.pins.clone(), backend.charges.clone()).build()?);
    let name = CString::new(space.backend()).unwrap_or_default();
    let note = CString::new(backend.note).unwrap_or_default();
    for context in contexts {
        context.taken();
    }
    Ok(Space { space, pins: backend.pins, charges: backend.charges, name, note, cancel: backend.cancel })
}

/// Makes an empty address space. `options` may be NULL: io_uring and its defaults.
///
/// Returns 0; -EPERM when io_uring or what was asked of it is forbidden to this user, -ENOSYS or -EINVAL when the kernel
/// has it not, -ENOMEM, -EINVAL for options that do not go together.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_new(
    options: Option<&prereg_options<'_>>,
    space: Option<&mut MaybeUninit<Option<Box<prereg_space>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || hand_out(space, || make(options.unwrap_or(&prereg_options::default()))))
}

/// Gives the space up and sets `*space` to NULL. Every registration is given up with it, whoever holds it: what nobody
/// maps is unpinned at once, what somebody maps when he lets go. Handles on them stay good: their calls answer -ENOENT.
/// Tables, owners and IOVA maps made from the space keep it until they are freed themselves.
///
/// Returns 0, also for NULL; -EINVAL for what is no space.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_free(space: Option<&mut Option<Box<prereg_space>>>) -> c_int {
    answer(None, || take(space).map(drop))
}

/// The system page of the space as a power of two; 0 for what is no space.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_granule_shift(space: Option<&prereg_space>) -> u32 {
    value_or(0, || Ok(body(space)?.space.granule().shift().get()))
}

/// What the host addresses of the space mean: a `PREREG_ADDRESS_...`; 0 for what is no space.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_address_kind(space: Option<&prereg_space>) -> u32 {
    value_or(0, || Ok(kind_number(body(space)?.space.address_kind())))
}

/// The name of the back end, good as long as the space; NULL for what is no space.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_backend(space: Option<&prereg_space>) -> *const c_char {
    value_or(std::ptr::null(), || Ok(body(space)?.name.as_ptr()))
}

/// Why its addresses are of the kind they are, in a sentence, good as long as the space; NULL for what is no space.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_address_note(space: Option<&prereg_space>) -> *const c_char {
    value_or(std::ptr::null(), || Ok(body(space)?.note.as_ptr()))
}

/// Whether anything is registered: 1 or 0; -EINVAL for what is no space.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_is_preregistered(space: Option<&prereg_space>) -> c_int {
    value_or(-Errno::EINVAL.raw(), || Ok(c_int::from(body(space)?.space.is_preregistered())))
}

/// Finds the one region that holds all of `bytes` bytes at `ua`.
///
/// Returns 0; -ENOENT when there is none (neighbours are not stitched together, and zero bytes lie nowhere).
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_find(
    space: Option<&prereg_space>,
    ua: u64,
    bytes: u64,
    region: Option<&mut MaybeUninit<prereg_region>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let space = body(space)?;
        let region = room(region, "region")?;
        let found = space.space.find(UserAddr::new(ua), bytes).ok_or_else(|| {
            let text = format!("no region holds all of {bytes:#x} bytes at ua {ua:#x}");
            Failure::Refused(text, Errno::ENOENT)
        })?;
        region.write(region_of(&found));
        Ok(())
    })
}

/// How many of the `bytes` bytes of host addresses from `host` on one region of device memory covers; 0 for none.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_device_at(space: Option<&prereg_space>, host: u64, bytes: u64) -> u64 {
    value_or(0, || Ok(body(space)?.space.device_at(HostAddr::new(host), bytes).unwrap_or(0)))
}

/// Releases regions whose last mapping was given back by `prereg_unmap` or a table, which only queue them. Registering and
/// unregistering do it too.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_reap(space: Option<&prereg_space>) -> c_int {
    answer(None, || {
        body(space)?.space.reap();
        Ok(())
    })
}

/// Takes a host address of the kind SLOT_OFFSET apart: the slot, counted over all rings (ring = slot / 16384), and the
/// offset from the start of the slot's memory.
///
/// Returns 0; -EINVAL for an address that names no slot.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_slot_address(
    host: u64,
    slot: Option<&mut MaybeUninit<u32>>,
    offset: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    answer(None, || {
        let address =
            SlotAddress::of(HostAddr::new(host)).ok_or(Failure::Argument("not a slot's address"))?;
        if let Some(slot) = slot {
            slot.write(address.slot);
        }
        if let Some(offset) = offset {
            offset.write(address.offset);
        }
        Ok(())
    })
}
