//! An eventfd for the end of a drain, for event loops that wait for descriptors.

use std::os::fd::OwnedFd;

use prereg::{Draining, Errno};
use rustix::event::{EventfdFlags, eventfd};

use crate::sys::errno_from;

/// An eventfd (`eventfd(2)`, nonblocking) that becomes readable when `draining` [is done](Draining::is_done). The caller may
/// close it before.
///
/// # Errors
/// The system's, for instance EMFILE. The region is drained nevertheless.
pub fn drain_eventfd(draining: Draining) -> Result<OwnedFd, Errno> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(errno_from)?;
    let signalled = rustix::io::fcntl_dupfd_cloexec(&event, 0).map_err(errno_from)?;
    draining.on_done(move || {
        // One is added to a count of zero, which cannot fail.
        let _ = rustix::io::write(&signalled, &1u64.to_ne_bytes());
    });
    Ok(event)
}

#[cfg(test)]
mod tests {
    use prereg::{AddressSpace, Granule, HostAddr, PageShift, UserAddr, UserRange};

    use super::*;
    use crate::fixed::Fixed;

    const PAGE: u64 = 4096;

    #[test]
    fn the_eventfd_is_readable_after_the_last_unmap() {
        let first = UserAddr::new(0x10_0000);
        let window = UserRange::new(first, PAGE, Granule::K4).unwrap();
        let fixed = Fixed::new(window, HostAddr::new(0xf000_0000), Granule::K4).unwrap();
        let space = AddressSpace::builder(fixed).build().unwrap();
        let registration = space.register_device(first, PAGE, HostAddr::new(0xf000_0000)).unwrap();
        let mut translator = space.translator();
        let mapping = translator.map(first, PageShift::K4).unwrap();
        let event = drain_eventfd(registration.drain()).unwrap();
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&event, &mut count), Err(rustix::io::Errno::AGAIN));
        translator.unmap(mapping);
        let mut wait = [rustix::event::PollFd::new(&event, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut wait, None).unwrap();
        assert_eq!(rustix::io::read(&event, &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}
