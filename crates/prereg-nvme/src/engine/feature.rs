//! Features (section 5.21.1).

use super::identify::TEMPERATURE;
use super::shared::Shared;
use crate::spec::number::{BROADCAST, feature};
use crate::spec::{Command, Status};

/// Bit 31 of dword 10 of Set Features: save. No feature is saveable.
const SAVE: u32 = 1 << 31;
/// Supported bits of Asynchronous Event Configuration: critical warnings, changed namespaces.
const EVENTS: u32 = 0xff | EVENT_NAMESPACE;
const EVENT_NAMESPACE: u32 = 1 << 8;
const EVENT_TEMPERATURE: u32 = 1 << 1;

/// The Select field of Get Features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Select {
    Current,
    Default,
    Capabilities,
}

/// An action that Set or Get Features requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FeatureEffect {
    /// Nothing: the result.
    Result(u32),
    /// All writes must become durable before the command ends: the write cache was disabled.
    Flush,
    /// Read the host identifier from guest memory: this many bytes.
    ReadHostIdentifier(u64),
    /// Write the host identifier to guest memory: this many bytes.
    WriteHostIdentifier(u64),
}

/// The features of a controller.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    arbitration: u32,
    over: u16,
    under: u16,
    /// Time Limited Error Recovery, by namespace.
    recovery: Vec<u16>,
    atomicity: u32,
    events: u32,
    /// Pairs of I/O queues granted.
    queues: u16,
    /// The host identifier, zero until it is set.
    pub(crate) host: [u8; 16],
}

impl Features {
    /// The values after a reset.
    pub(crate) fn new(shared: &Shared) -> Self {
        Self {
            arbitration: 4,
            over: TEMPERATURE + 50,
            under: 0,
            recovery: vec![0; shared.namespaces.count() as usize],
            atomicity: 0,
            events: 0,
            queues: shared.limits.io_queues,
            host: [0; 16],
        }
    }

    /// Pairs of I/O queues that the guest may create.
    pub(crate) fn queues(&self) -> u16 {
        self.queues
    }

    /// Whether the guest enabled namespace notices.
    pub(crate) fn wants_namespaces(&self) -> bool {
        self.events & EVENT_NAMESPACE != 0
    }

    /// Whether the temperature is outside its thresholds.
    pub(crate) fn is_temperature_outside(&self) -> bool {
        TEMPERATURE >= self.over || TEMPERATURE <= self.under
    }

    /// Whether the guest enabled temperature warnings.
    pub(crate) fn wants_temperature(&self) -> bool {
        self.events & EVENT_TEMPERATURE != 0
    }

    /// Set Features. `has_queues`: I/O queues exist.
    ///
    /// # Errors
    /// The status to complete with; nothing was changed.
    pub(crate) fn set(
        &mut self,
        command: &Command,
        shared: &Shared,
        has_queues: bool,
    ) -> Result<FeatureEffect, Status> {
        let (word, value) = (command.dword(10), command.dword(11));
        if !is_known((word & 0xff) as u8) {
            return Err(Status::INVALID_FIELD);
        }
        if word & SAVE != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        let id = (word & 0xff) as u8;
        let names_all = matches!(command.nsid(), 0 | BROADCAST);
        if !names_all && shared.namespaces.find(command.nsid()).is_none() {
            return Err(Status::INVALID_NAMESPACE);
        }
        if !names_all && id != feature::ERROR_RECOVERY {
            return Err(Status::NOT_NAMESPACE_SPECIFIC);
        }
        match id {
            feature::ARBITRATION => self.arbitration = value,
            // There is one power state, and the workload hint has no effect.
            feature::POWER if value & 0x1f == 0 => {}
            // All sensors (figure 276): there is only the composite temperature.
            feature::TEMPERATURE if value >> 16 & 0xf == 0xf && value >> 20 & 3 < 2 => {}
            feature::TEMPERATURE => *self.threshold(value)? = (value & 0xffff) as u16,
            // Reads of unwritten blocks are no error here, so DULBE (bit 16) is not supported.
            feature::ERROR_RECOVERY if value & 1 << 16 == 0 => {
                let recovery = (value & 0xffff) as u16;
                match command.nsid() {
                    0 => return Err(Status::INVALID_NAMESPACE),
                    BROADCAST => self.recovery.fill(recovery),
                    nsid => self.recovery[nsid as usize - 1] = recovery,
                }
            }
            feature::WRITE_CACHE => {
                let on = value & 1 != 0;
                let turned_off = shared.write_cache() && !on;
                shared.set_write_cache(on);
                if turned_off {
                    return Ok(FeatureEffect::Flush);
                }
            }
            feature::QUEUES => {
                let (submission, completion) = (value & 0xffff, value >> 16);
                if submission == 0xffff || completion == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                if has_queues {
                    return Err(Status::SEQUENCE);
                }
                let asked = submission.max(completion) + 1;
                self.queues = asked.min(u32::from(shared.limits.io_queues)) as u16;
                return Ok(FeatureEffect::Result(self.granted()));
            }
            feature::COALESCING => shared.set_coalescing(value),
            feature::VECTOR => {
                let vector = (value & 0xffff) as u16;
                if vector >= shared.limits.vectors {
                    return Err(Status::INVALID_FIELD);
                }
                shared.set_coalescing_exempt(vector, value & 1 << 16 != 0);
            }
            feature::ATOMICITY => self.atomicity = value & 1,
            feature::ASYNC_EVENTS => self.events = value & EVENTS,
            feature::HOST_IDENTIFIER => return Ok(FeatureEffect::ReadHostIdentifier(host_bytes(value))),
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(FeatureEffect::Result(0))
    }

    /// Get Features.
    ///
    /// # Errors
    /// The status to complete with.
    pub(crate) fn get(&self, command: &Command, shared: &Shared) -> Result<FeatureEffect, Status> {
        let (word, value) = (command.dword(10), command.dword(11));
        let id = (word & 0xff) as u8;
        let select = match word >> 8 & 7 {
            0 => Select::Current,
            // The saved value is the default, because nothing is saveable.
            1 | 2 => Select::Default,
            3 => Select::Capabilities,
            _ => return Err(Status::INVALID_FIELD),
        };
        if !is_known(id) {
            return Err(Status::INVALID_FIELD);
        }
        if select == Select::Capabilities {
            return Ok(FeatureEffect::Result(capabilities(id)));
        }
        if id == feature::HOST_IDENTIFIER {
            return Ok(FeatureEffect::WriteHostIdentifier(host_bytes(value)));
        }
        let now = match select {
            Select::Current => self,
            _ => &Self::new(shared),
        };
        let current = select == Select::Current;
        Ok(FeatureEffect::Result(match id {
            feature::ARBITRATION => now.arbitration,
            feature::TEMPERATURE => u32::from(*now.clone().threshold(value)?),
            feature::ERROR_RECOVERY => {
                let at = command.nsid().checked_sub(1).ok_or(Status::INVALID_NAMESPACE)?;
                u32::from(*now.recovery.get(at as usize).ok_or(Status::INVALID_NAMESPACE)?)
            }
            feature::WRITE_CACHE => u32::from(!current || shared.write_cache()),
            feature::QUEUES => now.granted(),
            feature::COALESCING if current => shared.coalescing(),
            feature::VECTOR => {
                let vector = (value & 0xffff) as u16;
                if vector >= shared.limits.vectors {
                    return Err(Status::INVALID_FIELD);
                }
                u32::from(vector) | u32::from(current && shared.is_coalescing_exempt(vector)) << 16
            }
            feature::ATOMICITY => now.atomicity,
            feature::ASYNC_EVENTS => now.events,
            _ => 0,
        }))
    }

    fn granted(&self) -> u32 {
        let last = u32::from(self.queues) - 1;
        last | last << 16
    }

    /// The composite temperature's threshold that `value` selects (figure 276). There are no other sensors.
    fn threshold(&mut self, value: u32) -> Result<&mut u16, Status> {
        match (value >> 16 & 0xf, value >> 20 & 3) {
            (0, 0) => Ok(&mut self.over),
            (0, 1) => Ok(&mut self.under),
            _ => Err(Status::INVALID_FIELD),
        }
    }
}

fn is_known(id: u8) -> bool {
    matches!(id, feature::ARBITRATION | feature::POWER | feature::HOST_IDENTIFIER)
        || (feature::TEMPERATURE..=feature::ASYNC_EVENTS).contains(&id)
}

/// Bit 0 saveable, bit 1 namespace specific, bit 2 changeable.
fn capabilities(id: u8) -> u32 {
    let by_namespace = id == feature::ERROR_RECOVERY;
    1 << 2 | u32::from(by_namespace) << 1
}

/// Bytes of the host identifier, by bit 0 of dword 11.
fn host_bytes(value: u32) -> u64 {
    if value & 1 == 0 { 8 } else { 16 }
}
