//! The likely reasons for which a client left without having used its device.

use prereg::Errno;

use super::state::{DisconnectReason, RequestCounts};
use crate::request_error::SessionError;

/// The likely reason why a client could not attach.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachFailure {
    /// The device serves another client.
    #[error("another client is served; one at a time is, unless the disk is shared ({})", Errno::EBUSY)]
    Busy,
    /// Its VERSION was refused.
    #[error("its VERSION was refused ({errno})")]
    Rejected {
        /// The errno of the reply.
        errno: Errno,
    },
    /// It speaks another version of the protocol.
    #[error("it speaks version {major}.{minor} of the protocol, and 0.1 is spoken here")]
    Version {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// Requests of it were refused.
    #[error("refused were {}", requests.join(", "))]
    Refused {
        /// Some of the commands, each with a reason.
        requests: Vec<String>,
    },
    /// Nothing was refused, but the device has no mappable region, which the client may need.
    #[error(
        "it left after it read the regions, none of which can be mapped; some clients need one, such as SPDK's NVMe initiator"
    )]
    Unmappable,
}

prereg::debug_as_display!(AttachFailure);

/// Refused commands that are named.
const NAMED: usize = 4;

impl AttachFailure {
    /// The reason, from a client's end and its requests; `None` if it could attach. `is_mappable`: it has seen how to map a
    /// region.
    pub(crate) fn of(ending: &DisconnectReason, requests: &RequestCounts, is_mappable: bool) -> Option<Self> {
        match *ending {
            DisconnectReason::Broken(SessionError::Rejected { errno: Errno::EBUSY }) => {
                return Some(Self::Busy);
            }
            DisconnectReason::Broken(SessionError::Rejected { errno }) => {
                return Some(Self::Rejected { errno });
            }
            DisconnectReason::Broken(SessionError::Version { major, minor }) => {
                return Some(Self::Version { major, minor });
            }
            _ => {}
        }
        let performed = |name: &str| requests.commands.get(name).is_some_and(|counts| counts.performed > 0);
        // A device that was written to was attached, whatever else was refused.
        if performed("REGION_WRITE") || performed("REGION_WRITE_MULTI") {
            return None;
        }
        let refused: Vec<String> = requests
            .commands
            .iter()
            .flat_map(|(name, counts)| counts.refused.keys().map(move |reason| format!("{name}: {reason}")))
            .take(NAMED)
            .collect();
        if !refused.is_empty() {
            return Some(Self::Refused { requests: refused });
        }
        let has_looked = performed("DEVICE_GET_REGION_INFO");
        (*ending == DisconnectReason::Gone && has_looked && !is_mappable).then_some(Self::Unmappable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::CommandCounts;

    #[test]
    fn a_client_that_leaves_a_device_without_a_mappable_region_may_have_needed_one() {
        let mut requests = RequestCounts::default();
        let of = AttachFailure::of;
        assert_eq!(of(&DisconnectReason::Gone, &requests, false), None, "it did not look");
        requests.commands.entry("DEVICE_GET_REGION_INFO").or_default().performed = 1;
        assert_eq!(of(&DisconnectReason::Gone, &requests, true), None);
        assert_eq!(of(&DisconnectReason::Stopped, &requests, false), None);
        assert_eq!(of(&DisconnectReason::Gone, &requests, false), Some(AttachFailure::Unmappable));
        requests.commands.entry("REGION_WRITE").or_default().performed = 1;
        assert_eq!(of(&DisconnectReason::Gone, &requests, false), None);
    }

    #[test]
    fn a_client_that_used_its_device_could_attach() {
        let mut requests = RequestCounts::default();
        let of = |requests: &RequestCounts| AttachFailure::of(&DisconnectReason::Gone, requests, true);
        assert_eq!(of(&requests), None);
        let mut refused = CommandCounts::default();
        refused.refused.insert("argsz".to_owned(), 1);
        requests.commands.insert("DEVICE_GET_REGION_INFO", refused);
        let why = of(&requests).map(|failure| failure.to_string());
        assert_eq!(why.as_deref(), Some("refused were DEVICE_GET_REGION_INFO: argsz"));
        requests.commands.entry("REGION_WRITE").or_default().performed = 1;
        assert_eq!(of(&requests), None);
        let busy = DisconnectReason::Broken(SessionError::Rejected { errno: Errno::EBUSY });
        assert_eq!(AttachFailure::of(&busy, &requests, false), Some(AttachFailure::Busy));
    }
}
