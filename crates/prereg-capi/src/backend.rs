//! The back ends: conversion of a space's options to its two ports.

#![expect(
    unsafe_code,
    reason = "calls a C caller's progress function; duplicates a descriptor that it names by number"
)]

use std::ffi::{c_int, c_void};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::{AddressKind, Charge, Errno, HostAddr, Pin, UserAddr, UserRange};
use prereg_linux::{Fixed, IoUring, Iommufd, MemlockAccount, Mlock, Placement, VfioSpaprV2, VfioType1};

use crate::caller::text;
use crate::error::CallError;
use crate::options::{
    PREREG_BACKEND_CALLBACKS, PREREG_BACKEND_FIXED, PREREG_BACKEND_IO_URING, PREREG_BACKEND_IOMMUFD,
    PREREG_BACKEND_MLOCK, PREREG_BACKEND_VFIO_SPAPR_V2, PREREG_BACKEND_VFIO_TYPE1, PREREG_PLACEMENT_HELD,
    PREREG_PLACEMENT_SHARED, prereg_options,
};
use crate::ports::{Context, Pins};
use crate::record::Record;
use crate::types::{
    PREREG_ADDRESS_ANY, PREREG_ADDRESS_PHYSICAL, PREREG_ADDRESS_SLOT_OFFSET, choice, granule_of, zero,
};

const IO_URING_ADDRESSES: &str =
    "PREREG_ADDRESS_ANY, PREREG_ADDRESS_PHYSICAL and PREREG_ADDRESS_SLOT_OFFSET: io_uring has no others";

/// A back end: its two ports, a note on its addresses, and its cancel flag.
pub(crate) struct Backend {
    pub(crate) pins: Arc<dyn Pin>,
    pub(crate) charges: Arc<dyn Charge>,
    pub(crate) note: &'static str,
    pub(crate) cancel: Option<Arc<AtomicBool>>,
    pub(crate) vfio: Vfio,
}

/// The VFIO or iommufd back end of a space, for functions that only they have.
pub(crate) enum Vfio {
    None,
    Type1(Arc<VfioType1>),
    SpaprV2(Arc<VfioSpaprV2>),
    Iommufd(Arc<Iommufd>),
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
            // Relaxed: the flag orders nothing.
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

/// The name of a back end, and the options that only it uses.
fn uses(backend: u32) -> Result<(&'static str, &'static [&'static str]), CallError> {
    Ok(match backend {
        PREREG_BACKEND_IO_URING => {
            ("IO_URING", &["addresses", "fault_threads", "slot_limit", "progress", "progress_context"])
        }
        PREREG_BACKEND_MLOCK => ("MLOCK", &[]),
        PREREG_BACKEND_FIXED => ("FIXED", &["granule_shift", "fixed_ua", "fixed_bytes", "fixed_host"]),
        PREREG_BACKEND_CALLBACKS => ("CALLBACKS", &["pin"]),
        PREREG_BACKEND_VFIO_TYPE1 => ("VFIO_TYPE1", &["container_fd", "device"]),
        PREREG_BACKEND_VFIO_SPAPR_V2 => ("VFIO_SPAPR_V2", &["device"]),
        PREREG_BACKEND_IOMMUFD => ("IOMMUFD", &["device", "placement"]),
        _ => return Err(choice("backend of prereg_options", backend, "PREREG_BACKEND_...")),
    })
}

/// Refuses options that have no effect, so that they can be defined later.
fn refuse_unused(options: &prereg_options) -> Result<(), CallError> {
    zero(prereg_options::NAME, options.reserved | options.reserved_too)?;
    let (backend, used) = uses(options.backend)?;
    let set = [
        ("addresses", options.addresses != 0),
        ("fault_threads", options.fault_threads != 0),
        ("granule_shift", options.granule_shift != 0),
        ("slot_limit", options.slot_limit != 0),
        ("container_fd", !matches!(options.container_fd, 0 | -1)),
        ("fixed_ua", options.fixed_ua != 0),
        ("fixed_bytes", options.fixed_bytes != 0),
        ("fixed_host", options.fixed_host != 0),
        ("progress", options.progress.is_some()),
        ("progress_context", !options.progress_context.is_null()),
        ("pin", !options.pin.is_null()),
        ("device", !options.device.is_null()),
        ("placement", options.placement != 0),
    ];
    match set.into_iter().find(|(option, is_set)| *is_set && !used.contains(option)) {
        Some((option, _)) => Err(CallError::Unused { option, backend }),
        None if options.progress.is_none() && !options.progress_context.is_null() => {
            Err(CallError::Unused { option: "progress_context without progress", backend })
        }
        None => Ok(()),
    }
}

/// The device of the options.
fn device(options: &prereg_options) -> Result<&str, CallError> {
    let named = text(options.device, "device of prereg_options")?;
    named.ok_or(CallError::Null("device of prereg_options"))
}

impl Backend {
    /// The back end of the options, and the caller's context if there is one.
    pub(crate) fn new(options: &prereg_options) -> Result<(Self, Option<Arc<Context>>), CallError> {
        refuse_unused(options)?;
        Ok((
            match options.backend {
                PREREG_BACKEND_IO_URING => Self::io_uring(options)?,
                PREREG_BACKEND_MLOCK => {
                    Self::of(Mlock::new()?, "pages that are only locked, so they may move at any time")
                }
                PREREG_BACKEND_FIXED => Self::fixed(options)?,
                PREREG_BACKEND_VFIO_TYPE1 => Self::vfio_type1(options)?,
                PREREG_BACKEND_VFIO_SPAPR_V2 => Self::vfio_spapr_v2(options)?,
                PREREG_BACKEND_IOMMUFD => Self::iommufd(options)?,
                _ => return Self::callbacks(options),
            },
            None,
        ))
    }

    fn of<T: Pin + Charge + 'static>(backend: T, note: &'static str) -> Self {
        Self::shared(&Arc::new(backend), note, Vfio::None)
    }

    fn shared<T: Pin + Charge + 'static>(backend: &Arc<T>, note: &'static str, vfio: Vfio) -> Self {
        Self { pins: backend.clone(), charges: backend.clone(), note, cancel: None, vfio }
    }

    fn callbacks(options: &prereg_options) -> Result<(Self, Option<Arc<Context>>), CallError> {
        let (pins, context) = Pins::new(options.pin)?;
        let charges = Arc::new(MemlockAccount::new(pins.granule()));
        let note = "the addresses that the caller's pin function pushes";
        Ok((Self { pins: Arc::new(pins), charges, note, cancel: None, vfio: Vfio::None }, Some(context)))
    }

    fn io_uring(options: &prereg_options) -> Result<Self, CallError> {
        let mut builder = IoUring::builder().prefault_threads(options.fault_threads as usize);
        match options.addresses {
            PREREG_ADDRESS_ANY => {}
            PREREG_ADDRESS_PHYSICAL => builder = builder.addresses(AddressKind::Physical),
            PREREG_ADDRESS_SLOT_OFFSET => builder = builder.addresses(AddressKind::SlotOffset),
            _ => return Err(choice("addresses of prereg_options", options.addresses, IO_URING_ADDRESSES)),
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
        Ok(Self { cancel, ..Self::of(backend, note) })
    }

    fn vfio_type1(options: &prereg_options) -> Result<Self, CallError> {
        let note = "addresses on the bus of the container";
        if let Some(device) = text(options.device, "device of prereg_options")? {
            if !matches!(options.container_fd, 0 | -1) {
                return Err(CallError::Argument("either device or container_fd, not both"));
            }
            let type1 = Arc::new(VfioType1::open(device)?);
            return Ok(Self::shared(&type1, note, Vfio::Type1(type1.clone())));
        }
        if options.container_fd < 0 {
            return Err(CallError::Argument("VFIO_TYPE1 needs a device, or a descriptor as container_fd"));
        }
        // SAFETY: not negative; duplicating a descriptor that is not open fails.
        let container = unsafe { BorrowedFd::borrow_raw(options.container_fd) };
        let own = container.try_clone_to_owned().map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
            CallError::Refused(format!("container_fd cannot be duplicated: {error}"), errno)
        })?;
        let type1 = Arc::new(VfioType1::on_container(own)?);
        Ok(Self::shared(&type1, note, Vfio::Type1(type1.clone())))
    }

    fn vfio_spapr_v2(options: &prereg_options) -> Result<Self, CallError> {
        let spapr = Arc::new(VfioSpaprV2::open(device(options)?)?);
        let note = "user addresses: the kernel translates them when it maps";
        Ok(Self::shared(&spapr, note, Vfio::SpaprV2(spapr.clone())))
    }

    fn iommufd(options: &prereg_options) -> Result<Self, CallError> {
        let (placement, note) = match options.placement {
            PREREG_PLACEMENT_SHARED => (Placement::DeviceIoas, "addresses on the bus of the devices"),
            PREREG_PLACEMENT_HELD => {
                (Placement::StagingIoas, "addresses of the staging IOAS, which no device can use")
            }
            _ => {
                return Err(choice("placement of prereg_options", options.placement, "PREREG_PLACEMENT_..."));
            }
        };
        let iommufd = Arc::new(Iommufd::open(device(options)?, placement)?);
        Ok(Self::shared(&iommufd, note, Vfio::Iommufd(iommufd.clone())))
    }

    fn fixed(options: &prereg_options) -> Result<Self, CallError> {
        let granule = granule_of(options.granule_shift)?;
        let window = UserRange::new(UserAddr::new(options.fixed_ua), options.fixed_bytes, granule)?;
        let fixed = Fixed::new(window, HostAddr::new(options.fixed_host), granule).ok_or(
            CallError::Argument("fixed_host is not a page's start, or the window passes 2^64 there"),
        )?;
        Ok(Self::of(fixed, "addresses of device memory"))
    }
}
