//! The NVMe subsystem that a server offers: disks, and a controller for each client.

use std::sync::Arc;
use std::thread;

use prereg::Errno;
use prereg_vfio_user::server::{Device, DeviceContext, DeviceFactory, Observer, Reporter};

use super::admin_channel::Message;
use super::admin_thread::AdminThread;
use super::device::Controller;
use super::event::NvmeEvent;
use super::settings::{NvmeError, NvmeSettings};
use super::shared::ControllerShared;
use super::stats::NvmeState;
use super::subsystem::Subsystem;
use crate::disk::{Changed, Disk, DiskError};
use crate::engine::identify::Identity;
use crate::engine::namespace::{Namespace, Namespaces};

/// A disk as a namespace.
#[derive(Clone)]
pub struct NvmeDisk {
    disk: Arc<dyn Disk>,
    uuid: Option<[u8; 16]>,
}

impl NvmeDisk {
    /// `disk`; its UUID is derived from the serial number and the namespace identifier.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, uuid: None }
    }

    /// Sets the UUID.
    #[must_use]
    pub fn with_uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = Some(uuid);
        self
    }
}

impl std::fmt::Debug for NvmeDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NvmeDisk").field("bytes", &self.disk.bytes()).field("uuid", &self.uuid).finish()
    }
}

/// An NVMe subsystem: disks, and a controller for each client.
pub struct NvmeModel {
    name: String,
    settings: NvmeSettings,
    disks: Vec<NvmeDisk>,
    subsystem: Arc<Subsystem>,
    observer: Option<Arc<dyn Observer<NvmeEvent>>>,
}

impl NvmeModel {
    /// A subsystem whose namespaces 1, 2, ... are `disks` in this order.
    ///
    /// # Errors
    /// [`NvmeError`].
    pub fn new(name: &str, disks: Vec<NvmeDisk>, settings: NvmeSettings) -> Result<Self, NvmeError> {
        settings.check()?;
        if disks.is_empty() || disks.len() > Namespaces::MAX {
            return Err(NvmeError::Disks { asked: disks.len(), most: Namespaces::MAX });
        }
        for (nsid, disk) in (1..).zip(&disks) {
            let shift = disk.disk.block_shift();
            if !matches!(shift, 9 | 12) {
                return Err(NvmeError::Block { nsid, shift });
            }
        }
        Ok(Self { name: name.to_owned(), settings, disks, subsystem: Arc::default(), observer: None })
    }

    /// Sets the receiver of the controllers' events.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn Observer<NvmeEvent>>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Checks whether disks changed their size, and reports it to the guests. Returns the namespaces that did, with their new sizes
    /// in bytes.
    ///
    /// # Errors
    /// [`DiskError`] of the first disk whose size is unknown; those before it were updated.
    pub fn refresh(&self) -> Result<Vec<(u32, u64)>, DiskError> {
        let mut changed = Vec::new();
        for (nsid, disk) in (1..).zip(&self.disks) {
            if let Changed::Bytes { now, .. } = disk.disk.refresh()? {
                changed.push((nsid, now));
                self.namespace_changed(nsid);
            }
        }
        Ok(changed)
    }

    /// Reports to the guests that a namespace changed: its size, or its contents by other means.
    pub fn namespace_changed(&self, nsid: u32) {
        let Some(disk) = (nsid as usize).checked_sub(1).and_then(|at| self.disks.get(at)) else { return };
        self.subsystem.for_each(|shared| {
            resize(shared, nsid, disk);
            shared.admin_channel.send_message(Message::NamespaceChanged(nsid));
        });
    }

    /// Statistics of all controllers.
    #[must_use]
    pub fn snapshot(&self) -> Vec<NvmeState> {
        self.subsystem.controllers().iter().map(|shared| NvmeState::of(shared)).collect()
    }

    fn is_read_only(&self) -> bool {
        self.disks.iter().all(|disk| disk.disk.read_only())
    }

    fn namespaces(&self) -> Namespaces {
        let namespace = |(nsid, disk): (u32, &NvmeDisk)| {
            let uuid = disk.uuid.unwrap_or_else(|| uuid_of(&self.settings.serial, nsid));
            let mut namespace = Namespace::new(disk.disk.bytes(), disk.disk.block_shift(), uuid);
            if disk.disk.read_only() {
                namespace = namespace.write_protected();
            }
            if disk.disk.discard_zeroes() {
                namespace = namespace.zero_when_deallocated();
            }
            namespace
        };
        Namespaces::new((1..).zip(&self.disks).map(namespace).collect())
    }
}

impl DeviceFactory for NvmeModel {
    fn name(&self) -> &str {
        &self.name
    }

    fn attach(&self, bus: DeviceContext) -> Result<Arc<dyn Device>, Errno> {
        let shares = self.settings.shared || self.is_read_only();
        let lease = Subsystem::attach_client(&self.subsystem, shares)?;
        let config = Controller::config_space(&self.settings)?;
        let disks = self.disks.iter().map(|disk| Arc::clone(&disk.disk)).collect();
        let events = Reporter::new(Arc::clone(&bus.source), self.observer.clone());
        let shared = ControllerShared::new(&bus, &self.settings, self.namespaces(), disks, events)?;
        let shared = Arc::new(shared);
        let identity = Identity {
            vendor: self.settings.pci.0,
            subsystem_vendor: self.settings.pci.0,
            serial: self.settings.serial.clone(),
            model: self.settings.model.clone(),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            uuid: uuid_of(&self.settings.serial, 0),
            controller: lease.number,
            // Clients deassert INTx at the next register access of the guest. A guest with shadow doorbells may make none for
            // long, and INTx would stay asserted without a cause.
            shadow_doorbells: self.settings.shadow_doorbells && self.settings.interrupts.has_messages(),
            shared: shares,
        };
        let (subsystem, counted) = (Arc::clone(&self.subsystem), Arc::downgrade(&shared));
        let health = move || counted.upgrade().map(|shared| subsystem.health(&shared)).unwrap_or_default();
        let admin_thread = AdminThread::new(Arc::clone(&shared), identity, Box::new(health));
        let admin_thread = thread::Builder::new()
            .name("nvme-admin".to_owned())
            .spawn(move || admin_thread.run())
            .map_err(|error| error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))?;
        self.subsystem.add_controller(&shared, |shared| {
            // Only the other controllers were told of a new size. This one's guest has read nothing yet.
            (1..).zip(&self.disks).for_each(|(nsid, disk)| resize(shared, nsid, disk));
        });
        Ok(Arc::new(Controller::new(shared, &self.settings, admin_thread, lease, config)))
    }
}

impl std::fmt::Debug for NvmeModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NvmeModel")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .field("disks", &self.disks)
            .finish_non_exhaustive()
    }
}

/// Sets a namespace's size from its disk. The list of controllers is locked: the last call sets the last size.
fn resize(shared: &ControllerShared, nsid: u32, disk: &NvmeDisk) {
    if let Some(namespace) = shared.engine.namespaces.find(nsid) {
        namespace.resize(disk.disk.bytes());
    }
}

/// A UUID (version 8) that is a function of its arguments.
fn uuid_of(serial: &str, nsid: u32) -> [u8; 16] {
    // 128-bit FNV-1a: an identifier, not a secret.
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = serial.bytes().chain(nsid.to_le_bytes());
    let mut hash = OFFSET;
    for byte in bytes {
        hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
    }
    let mut uuid = hash.to_be_bytes();
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests {
    use super::uuid_of;

    #[test]
    fn names_differ_by_serial_number_and_namespace() {
        let names = [uuid_of("a", 0), uuid_of("a", 1), uuid_of("b", 0), uuid_of("b", 1)];
        for (at, name) in names.iter().enumerate() {
            assert!(!names[at + 1..].contains(name));
            assert_eq!((name[6] >> 4, name[8] >> 6), (8, 2), "version and variant");
        }
        assert_eq!(uuid_of("a", 1), names[1]);
    }
}
