//! Host addresses of pinned memory: page frames from the page map, or (slot, offset) of a buffer table.

use prereg::{Errno, HostAddr, PageSink, PinError, UserAddr, UserRange};

use crate::pagemap::{PageBacking, Pagemap, PagemapError};
use crate::sys;

/// Error of a walk over the page map.
enum WalkError {
    Map(PagemapError),
    Pin(PinError),
}

impl From<PagemapError> for WalkError {
    fn from(error: PagemapError) -> Self {
        Self::Map(error)
    }
}

/// A pinned page can lack its page-table entry, for example after reclaim tried it; reading brings it back. More
/// retries than this mean that the entry is being removed repeatedly.
const MAX_RETRIES: u32 = 3;

/// Pushes the page frames of `range`.
pub(crate) fn push_frames(map: &Pagemap, range: UserRange, pages: &mut PageSink<'_>) -> Result<(), PinError> {
    push_runs(map, range, pages, MAX_RETRIES).map_err(|error| match error {
        WalkError::Pin(error) => error,
        WalkError::Map(error) => {
            PinError::Os { ua: range.first(), errno: error.errno(), during: "reading /proc/self/pagemap" }
        }
    })
}

fn push_runs(
    map: &Pagemap,
    range: UserRange,
    pages: &mut PageSink<'_>,
    retries: u32,
) -> Result<(), WalkError> {
    map.runs(range, |run| {
        match run.backing {
            PageBacking::Frames(host) => pages.push(host, run.pages).map_err(|error| WalkError::Pin(error.into())),
            PageBacking::Hidden => Err(WalkError::Pin(PinError::Os {
                ua: run.ua,
                errno: Errno::EPERM,
                during: "reading page frames (the process has lost CAP_SYS_ADMIN)",
            })),
            PageBacking::Absent => {
                let bytes = run.pages << map.granule().shift().get();
                let dropped = WalkError::Pin(PinError::Fault {
                    ua: run.ua,
                    why: "it was unmapped or dropped while it was being pinned; keep the memory as it is until it is \
                          unregistered",
                });
                let Ok(part) = UserRange::new(run.ua, bytes, map.granule()) else { return Err(dropped) };
                if retries == 0 || sys::populate_read(run.ua.raw(), bytes).is_err() {
                    return Err(dropped);
                }
                push_runs(map, part, pages, retries - 1)
            }
        }
    })
}

/// Whether most of `range` appears to be resident, judged by a sample of pages.
pub(crate) fn looks_resident(map: &Pagemap, range: UserRange) -> bool {
    const SAMPLES: u64 = 64;
    let pages = range.pages(map.granule());
    let step = (pages / SAMPLES).max(1);
    let at = |page: u64| UserAddr::new(range.first().raw() + (page << map.granule().shift().get()));
    (0..pages)
        .step_by(usize::try_from(step).unwrap_or(usize::MAX))
        .chain([pages - 1])
        .all(|page| map.page(at(page)).is_ok_and(|backing| backing != PageBacking::Absent))
}

/// The host address of the first byte of a slot; see [`SlotAddress`].
pub(crate) const fn slot_host(slot: u32) -> HostAddr {
    HostAddr::new((slot as u64 + 1) << SlotAddress::SHIFT)
}

/// The parts of a host address of kind [`SlotOffset`](prereg::AddressKind::SlotOffset).
///
/// The address is `(slot + 1) << 40 | offset`: contiguous within a slot and nowhere else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct SlotAddress {
    /// The slot, counted over all rings of the back end: slot `slot % 16384` of ring `slot / 16384`.
    pub slot: u32,
    /// Bytes from the start of the slot's memory.
    pub offset: u64,
}

impl SlotAddress {
    const SHIFT: u32 = 40;

    /// `None` for an address that names no slot.
    #[must_use]
    pub const fn of(host: HostAddr) -> Option<Self> {
        let slot = host.raw() >> Self::SHIFT;
        if slot == 0 {
            return None;
        }
        // At most 24 bits are left.
        Some(Self { slot: (slot - 1) as u32, offset: host.raw() & ((1 << Self::SHIFT) - 1) })
    }
}
