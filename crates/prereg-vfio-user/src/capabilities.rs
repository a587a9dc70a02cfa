//! What both sides can, and what they agree on (vfio-user specification, "VFIO_USER_VERSION").
//!
//! Capabilities travel as JSON. A reply may only name what the command named; what neither names has the specification's
//! default. `max_msg_fds` and `max_data_xfer_size` are each side's own limit as a receiver, the rest is shared.

use serde_json::{Map, Value};

use crate::refusal::Refusal;

/// One side's capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Descriptors it takes with one message. QEMU refuses a server that says more than 16.
    pub max_msg_fds: u32,
    /// Bytes of data it takes or gives in one message. QEMU refuses a server that says more than 64 MiB.
    pub max_data_xfer_size: u32,
    /// Page sizes of DMA maps, or'ed together; everything that is mapped is a multiple of the smallest. QEMU refuses a
    /// server with pages below 4 KiB.
    pub page_sizes: u64,
    /// DMA maps at a time. QEMU refuses a server that says more than 65,535.
    pub max_dma_maps: u32,
    /// Whether REGION_WRITE_MULTI is understood.
    pub write_multiple: bool,
}

impl Default for Capabilities {
    /// What a server of this crate can: 16 descriptors, 1 MiB, 4 KiB pages and multiples, 65,535 maps, many writes at once.
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

/// What a side that names nothing is taken to be able to.
const UNNAMED: Capabilities = Capabilities {
    max_msg_fds: 1,
    max_data_xfer_size: 1 << 20,
    page_sizes: 0x1000,
    max_dma_maps: 65_535,
    write_multiple: false,
};

/// What a session's two sides agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Terms {
    /// The minor version; the major one is 0.
    pub minor: u16,
    /// Descriptors the client takes with one message.
    pub client_max_msg_fds: u32,
    /// Bytes of data the client takes or gives in one message.
    pub client_max_data_xfer_size: u32,
    /// Descriptors the server takes with one message.
    pub server_max_msg_fds: u32,
    /// Bytes of data the server takes or gives in one message.
    pub server_max_data_xfer_size: u32,
    /// Page sizes of DMA maps that both have, or'ed together; never 0.
    pub page_sizes: u64,
    /// DMA maps at a time. The engine does not count them.
    pub max_dma_maps: u32,
    /// Whether REGION_WRITE_MULTI may be sent.
    pub write_multiple: bool,
}

impl Terms {
    /// The smallest page in bytes: what addresses and lengths of DMA maps are multiples of.
    #[must_use]
    pub fn smallest_page(&self) -> u64 {
        self.page_sizes & self.page_sizes.wrapping_neg()
    }
}

/// The newest minor version that is spoken.
const MINOR: u16 = 1;
/// Version data beyond this is no list of capabilities; reading it could take many times its size.
const LONGEST_DATA: usize = 16 << 10;

/// Agrees with a client's proposal: the terms, and the reply's version data with its NUL.
///
/// # Errors
/// [`Refusal::Version`], [`Refusal::Capability`].
pub(crate) fn negotiate(
    server: &Capabilities,
    major: u16,
    minor: u16,
    data: &[u8],
) -> Result<(Terms, Vec<u8>), Refusal> {
    if major != 0 {
        return Err(Refusal::Version { major, minor });
    }
    let proposed = parse(data)?;
    let client = Capabilities {
        max_msg_fds: number32(&proposed, "max_msg_fds", UNNAMED.max_msg_fds)?,
        max_data_xfer_size: number32(&proposed, "max_data_xfer_size", UNNAMED.max_data_xfer_size)?,
        page_sizes: number(&proposed, "pgsizes", UNNAMED.page_sizes)?,
        max_dma_maps: number32(&proposed, "max_dma_maps", UNNAMED.max_dma_maps)?,
        write_multiple: match proposed.get("write_multiple") {
            None => UNNAMED.write_multiple,
            Some(value) => value.as_bool().ok_or(Refusal::Capability { name: "write_multiple" })?,
        },
    };
    if client.max_data_xfer_size == 0 {
        return Err(Refusal::Capability { name: "max_data_xfer_size" });
    }
    let terms = Terms {
        minor: minor.min(MINOR),
        client_max_msg_fds: client.max_msg_fds,
        client_max_data_xfer_size: client.max_data_xfer_size,
        server_max_msg_fds: server.max_msg_fds,
        server_max_data_xfer_size: server.max_data_xfer_size,
        page_sizes: client.page_sizes & server.page_sizes,
        max_dma_maps: client.max_dma_maps.min(server.max_dma_maps),
        write_multiple: client.write_multiple && server.write_multiple,
    };
    if terms.page_sizes == 0 {
        return Err(Refusal::Capability { name: "pgsizes" });
    }
    if terms.max_dma_maps == 0 {
        return Err(Refusal::Capability { name: "max_dma_maps" });
    }
    Ok((terms, reply(&terms, &proposed)))
}

/// The object under `capabilities`; an empty one where there is none, or no data at all.
fn parse(data: &[u8]) -> Result<Map<String, Value>, Refusal> {
    const MALFORMED: Refusal = Refusal::Capability { name: "capabilities" };
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let json = data.get(..end).unwrap_or_default();
    if json.is_empty() {
        return Ok(Map::new());
    }
    if json.len() > LONGEST_DATA {
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

fn number(capabilities: &Map<String, Value>, name: &'static str, unnamed: u64) -> Result<u64, Refusal> {
    match capabilities.get(name) {
        None => Ok(unnamed),
        Some(value) => value.as_u64().ok_or(Refusal::Capability { name }),
    }
}

/// A count or size; more than 32 bits can say is as good as all that they can.
fn number32(capabilities: &Map<String, Value>, name: &'static str, unnamed: u32) -> Result<u32, Refusal> {
    Ok(u32::try_from(number(capabilities, name, u64::from(unnamed))?).unwrap_or(u32::MAX))
}

/// What the client named, and what would be less than the client takes for granted.
fn reply(terms: &Terms, proposed: &Map<String, Value>) -> Vec<u8> {
    let mut capabilities = Map::new();
    let mut say = |name: &str, value: Value, less: bool| {
        if less || proposed.contains_key(name) {
            capabilities.insert(name.to_owned(), value);
        }
    };
    let descriptors = terms.server_max_msg_fds;
    say("max_msg_fds", descriptors.into(), descriptors < UNNAMED.max_msg_fds);
    let transfer = terms.server_max_data_xfer_size;
    say("max_data_xfer_size", transfer.into(), transfer < UNNAMED.max_data_xfer_size);
    say("pgsizes", terms.page_sizes.into(), false);
    say("max_dma_maps", terms.max_dma_maps.into(), terms.max_dma_maps < UNNAMED.max_dma_maps);
    say("write_multiple", terms.write_multiple.into(), false);
    let data = Value::Object(Map::from_iter([("capabilities".to_owned(), Value::Object(capabilities))]));
    let mut data = data.to_string().into_bytes();
    data.push(0);
    data
}
