//! Capabilities and their negotiation (vfio-user specification, "VFIO_USER_VERSION").
//!
//! Capabilities are JSON. A reply may only name capabilities that the command named; for the others the specification has
//! defaults. `max_msg_fds` and `max_data_xfer_size` are each side's own limits as a receiver, the others are shared.

use serde_json::{Map, Value};

use crate::request_error::RequestError;

/// One side's capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Descriptors it accepts with one message. QEMU refuses a server with more than 16.
    pub max_msg_fds: u32,
    /// Bytes of data it accepts or returns in one message. QEMU refuses a server with more than 64 MiB.
    pub max_data_xfer_size: u32,
    /// Page sizes of DMA maps, or'ed together; mappings are multiples of the smallest. QEMU refuses a server with pages below 4
    /// KiB.
    pub page_sizes: u64,
    /// DMA maps at a time. QEMU refuses a server with more than 65,535.
    pub max_dma_maps: u32,
    /// Whether REGION_WRITE_MULTI is supported.
    pub write_multiple: bool,
}

impl Default for Capabilities {
    /// The capabilities of this crate's server: 16 descriptors, 1 MiB, 4 KiB pages and multiples, 65,535 maps,
    /// REGION_WRITE_MULTI.
    fn default() -> Self {
        Self {
            max_msg_fds: 16,
            max_data_xfer_size: 1 << 20,
            page_sizes: !0xfff,
            max_dma_maps: 65_535,
            write_multiple: true,
        }
    }
}

/// The capabilities of a side that names none.
const DEFAULTS: Capabilities = Capabilities {
    max_msg_fds: 1,
    max_data_xfer_size: 1 << 20,
    page_sizes: 0x1000,
    max_dma_maps: 65_535,
    write_multiple: false,
};

/// The negotiated capabilities of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Negotiated {
    /// The minor version; the major one is 0.
    pub minor: u16,
    /// Descriptors that the client accepts with one message.
    pub client_max_msg_fds: u32,
    /// Bytes of data that the client accepts or returns in one message.
    pub client_max_data_xfer_size: u32,
    /// Descriptors that the server accepts with one message.
    pub server_max_msg_fds: u32,
    /// Bytes of data that the server accepts or returns in one message.
    pub server_max_data_xfer_size: u32,
    /// Page sizes of DMA maps that both sides support, or'ed together; never 0.
    pub page_sizes: u64,
    /// DMA maps at a time, not enforced by the engine.
    pub max_dma_maps: u32,
    /// Whether REGION_WRITE_MULTI may be sent.
    pub write_multiple: bool,
}

impl Negotiated {
    /// The smallest page size in bytes; addresses and lengths of DMA maps are multiples of it.
    #[must_use]
    pub fn smallest_page(&self) -> u64 {
        self.page_sizes & self.page_sizes.wrapping_neg()
    }
}

/// The newest supported minor version.
const MINOR: u16 = 1;
/// Longer version data is refused: parsing it could take many times its size.
const MAX_VERSION_DATA: usize = 16 << 10;

/// Negotiates with a client's proposal: the result, and the version data of the reply with its NUL.
///
/// # Errors
/// [`RequestError::Version`], [`RequestError::Capability`].
pub(crate) fn negotiate(
    server: &Capabilities,
    major: u16,
    minor: u16,
    data: &[u8],
) -> Result<(Negotiated, Vec<u8>), RequestError> {
    if major != 0 {
        return Err(RequestError::Version { major, minor });
    }
    let proposed = parse(data)?;
    let client = Capabilities {
        max_msg_fds: number32(&proposed, "max_msg_fds", DEFAULTS.max_msg_fds)?,
        max_data_xfer_size: number32(&proposed, "max_data_xfer_size", DEFAULTS.max_data_xfer_size)?,
        page_sizes: number(&proposed, "pgsizes", DEFAULTS.page_sizes)?,
        max_dma_maps: number32(&proposed, "max_dma_maps", DEFAULTS.max_dma_maps)?,
        write_multiple: match proposed.get("write_multiple") {
            None => DEFAULTS.write_multiple,
            Some(value) => value.as_bool().ok_or(RequestError::Capability { name: "write_multiple" })?,
        },
    };
    if client.max_data_xfer_size == 0 {
        return Err(RequestError::Capability { name: "max_data_xfer_size" });
    }
    let negotiated = Negotiated {
        minor: minor.min(MINOR),
        client_max_msg_fds: client.max_msg_fds,
        client_max_data_xfer_size: client.max_data_xfer_size,
        server_max_msg_fds: server.max_msg_fds,
        server_max_data_xfer_size: server.max_data_xfer_size,
        page_sizes: client.page_sizes & server.page_sizes,
        max_dma_maps: client.max_dma_maps.min(server.max_dma_maps),
        write_multiple: client.write_multiple && server.write_multiple,
    };
    if negotiated.page_sizes == 0 {
        return Err(RequestError::Capability { name: "pgsizes" });
    }
    if negotiated.max_dma_maps == 0 {
        return Err(RequestError::Capability { name: "max_dma_maps" });
    }
    Ok((negotiated, reply(&negotiated, &proposed)))
}

/// The `capabilities` object; empty if it or all data is absent.
fn parse(data: &[u8]) -> Result<Map<String, Value>, RequestError> {
    const MALFORMED: RequestError = RequestError::Capability { name: "capabilities" };
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let json = data.get(..end).unwrap_or_default();
    if json.is_empty() {
        return Ok(Map::new());
    }
    if json.len() > MAX_VERSION_DATA {
        return Err(MALFORMED);
    }
    match serde_json::from_slice(json) {
        Ok(Value::Object(mut data)) => match data.remove("capabilities") {
            None => Ok(Map::new()),
            Some(Value::Object(capabilities)) => Ok(capabilities),
            Some(_) => Err(MALFORMED),
        },
        _ => Err(MALFORMED),
    }
}

fn number(capabilities: &Map<String, Value>, name: &'static str, default: u64) -> Result<u64, RequestError> {
    match capabilities.get(name) {
        None => Ok(default),
        Some(value) => value.as_u64().ok_or(RequestError::Capability { name }),
    }
}

/// A count or size; larger numbers are cut to 32 bits' maximum.
fn number32(
    capabilities: &Map<String, Value>,
    name: &'static str,
    default: u32,
) -> Result<u32, RequestError> {
    Ok(u32::try_from(number(capabilities, name, u64::from(default))?).unwrap_or(u32::MAX))
}

/// The version data of the reply: capabilities that the client named, and those below the defaults.
fn reply(negotiated: &Negotiated, proposed: &Map<String, Value>) -> Vec<u8> {
    let mut capabilities = Map::new();
    let mut say = |name: &str, value: Value, less: bool| {
        if less || proposed.contains_key(name) {
            capabilities.insert(name.to_owned(), value);
        }
    };
    let descriptors = negotiated.server_max_msg_fds;
    say("max_msg_fds", descriptors.into(), descriptors < DEFAULTS.max_msg_fds);
    let transfer = negotiated.server_max_data_xfer_size;
    say("max_data_xfer_size", transfer.into(), transfer < DEFAULTS.max_data_xfer_size);
    say("pgsizes", negotiated.page_sizes.into(), false);
    say("max_dma_maps", negotiated.max_dma_maps.into(), negotiated.max_dma_maps < DEFAULTS.max_dma_maps);
    say("write_multiple", negotiated.write_multiple.into(), false);
    let data = Value::Object(Map::from_iter([("capabilities".to_owned(), Value::Object(capabilities))]));
    let mut data = data.to_string().into_bytes();
    data.push(0);
    data
}
