//! The data structures of Identify (figures 245, 247 and 249).

use super::async_event::AsyncEvents;
use super::error_log::ErrorLog;
use super::namespace::{Namespace, Namespaces};
use super::sgl;
use super::shared::Limits;
use crate::spec::Page;
use crate::spec::register;

/// Names and numbers of a controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// PCI vendor.
    pub vendor: u16,
    /// PCI subsystem vendor.
    pub subsystem_vendor: u16,
    /// Serial number, up to 20 ASCII characters.
    pub serial: String,
    /// Model, up to 40 ASCII characters.
    pub model: String,
    /// Firmware revision, up to 8 ASCII characters.
    pub firmware: String,
    /// UUID of the subsystem.
    pub uuid: [u8; 16],
    /// Controller identifier (CNTLID).
    pub controller: u16,
    /// Whether Doorbell Buffer Config is supported.
    pub shadow_doorbells: bool,
    /// Whether the subsystem may have other controllers with the same namespaces.
    pub shared: bool,
}

/// The composite temperature in kelvins. It is mandatory, but there is no sensor.
pub(crate) const TEMPERATURE: u16 = 298;

/// Abort Command Limit, zero based (ACL).
const ABORT_LIMIT: u8 = 3;

/// OACS: Doorbell Buffer Config.
const OACS_DOORBELL_BUFFER: u16 = 1 << 8;
/// OAES: namespace attribute notices.
const OAES_NAMESPACE: u32 = 1 << 8;
/// CTRATT: 128-bit host identifier.
const CTRATT_HOST_128: u32 = 1;
/// LPA: Commands Supported and Effects page; extended data (offset and length).
const LPA: u8 = 1 << 1 | 1 << 2;
/// ONCS: Compare, Dataset Management, Write Zeroes, Save and Select of features.
const ONCS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 4;
/// VWC: there is a write cache, and Flush may name all namespaces.
const VWC: u8 = 1 | 3 << 1;

/// Identify Controller.
pub(crate) fn controller(identity: &Identity, limits: &Limits, namespaces: &Namespaces) -> Page {
    let mut page = Page::zeroed();
    page.put_u16(0, identity.vendor);
    page.put_u16(2, identity.subsystem_vendor);
    page.put_text(4, 20, &identity.serial);
    page.put_text(24, 40, &identity.model);
    page.put_text(64, 8, &identity.firmware);
    page.put_u8(72, 4); // RAB: bursts of 2^4 commands
    page.put_u8(76, u8::from(identity.shared) << 1); // CMIC: several controllers
    page.put_u8(77, limits.transfer_shift);
    page.put_u16(78, identity.controller);
    page.put_u32(80, register::VERSION);
    page.put_u32(92, OAES_NAMESPACE);
    page.put_u32(96, CTRATT_HOST_128);
    page.put_u8(111, 1); // CNTRLTYPE: I/O controller
    page.put_u16(256, if identity.shadow_doorbells { OACS_DOORBELL_BUFFER } else { 0 });
    page.put_u8(258, ABORT_LIMIT);
    page.put_u8(259, AsyncEvents::REQUESTS as u8 - 1);
    page.put_u8(260, 1 << 1 | 1); // FRMW: one slot, read only
    page.put_u8(261, LPA);
    page.put_u8(262, ErrorLog::ENTRIES as u8 - 1);
    page.put_u16(266, TEMPERATURE + 50); // WCTEMP
    page.put_u16(268, TEMPERATURE + 60); // CCTEMP
    let total: u128 = namespaces.iter().map(|(_, one)| u128::from(one.blocks()) << one.block_shift()).sum();
    page.put_u128(280, total); // TNVMCAP
    page.put_u8(512, 6 << 4 | 6); // SQES: 64 bytes
    page.put_u8(513, 4 << 4 | 4); // CQES: 16 bytes
    page.put_u32(516, namespaces.count());
    page.put_u16(520, ONCS);
    page.put_u8(525, VWC);
    page.put_u32(536, sgl::SUPPORT);
    page.put(768, subsystem_name(&identity.uuid).as_bytes());
    // One power state. Its power is unknown; 25 W is the least that any slot provides.
    page.put_u16(2048, 2500);
    page
}

/// The subsystem's NQN, made from a UUID (section 7.9).
fn subsystem_name(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "nqn.2014-08.org.nvmexpress:uuid:{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// Identify Namespace.
pub(crate) fn namespace(identity: &Identity, namespace: &Namespace) -> Page {
    /// NSFEAT: the optimal sizes below are valid.
    const OPTIMAL: u8 = 1 << 4;
    /// DLFEAT: deallocated blocks read zero (bits 2:0), Write Zeroes may deallocate (bit 3).
    const READS_ZERO: u8 = 1;
    const ZEROES_DEALLOCATE: u8 = 1 << 3;
    let blocks = namespace.blocks();
    let mut page = Page::zeroed();
    page.put_u64(0, blocks);
    page.put_u64(8, blocks);
    page.put_u64(16, blocks);
    page.put_u8(24, OPTIMAL);
    page.put_u8(30, u8::from(identity.shared)); // NMIC
    page.put_u8(33, ZEROES_DEALLOCATE | if namespace.zeroes_deallocated() { READS_ZERO } else { 0 });
    page.put_u128(48, u128::from(blocks) << namespace.block_shift());
    // NPWG, NPWA, NPDG, NPDA and NOWS: granularity and alignment of writes and deallocations, 4 KiB as in most file systems.
    // NOWS must be a multiple of NPWG: hosts derive stripe sizes from the two.
    let preferred = (1u16 << 12_u8.saturating_sub(namespace.block_shift())) - 1;
    for field in [64, 66, 68, 70, 72] {
        page.put_u16(field, preferred);
    }
    page.put_u8(99, u8::from(namespace.is_read_only()));
    page.put_u32(128, u32::from(namespace.block_shift()) << 16); // LBAF0, in use
    page
}

/// Namespace Identification Descriptor list: the UUID. NGUID and EUI64 need a registered vendor identifier.
pub(crate) fn descriptors(namespace: &Namespace) -> Page {
    const UUID: u8 = 3;
    let mut page = Page::zeroed();
    page.put(0, &[UUID, 16, 0, 0]);
    page.put(4, namespace.uuid());
    page
}

/// The list of namespaces above `nsid`.
pub(crate) fn list(namespaces: &Namespaces, nsid: u32) -> Page {
    let mut page = Page::zeroed();
    for (at, nsid) in (0..Page::BYTES / 4).zip(namespaces.above(nsid)) {
        page.put_u32(at * 4, nsid);
    }
    page
}

/// The list of controllers from identifier `from` on: only this one.
pub(crate) fn controllers(identity: &Identity, from: u16) -> Page {
    let mut page = Page::zeroed();
    if identity.controller >= from {
        page.put_u16(0, 1);
        page.put_u16(2, identity.controller);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::subsystem_name;

    #[test]
    fn the_subsystem_is_named_by_its_uuid() {
        let uuid = core::array::from_fn(|at| at as u8);
        assert_eq!(
            subsystem_name(&uuid),
            "nqn.2014-08.org.nvmexpress:uuid:00010203-0405-0607-0809-0a0b0c0d0e0f"
        );
    }
}
