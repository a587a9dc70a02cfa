//! Admin commands that move data to or from the guest.

use super::{Admin, Outcome, QueueOp};
use crate::engine::feature::FeatureEffect;
use crate::engine::log_page::{self, Health};
use crate::engine::memory::GuestMemory;
use crate::engine::sg_list::SgEntry;
use crate::engine::{identify, prp};
use crate::spec::number::{BROADCAST, cns, log};
use crate::spec::register::page_shift;
use crate::spec::{Command, Page, Status};

/// Command Set Identifier of the NVM command set, bits 31:24 of dword 11 of Identify.
const NVM_COMMAND_SET: u32 = 0;

impl Admin {
    /// Executes what has to follow Set or Get Features.
    pub(super) fn apply_effect<M: GuestMemory>(
        &mut self,
        command: &Command,
        cc: u32,
        memory: &M,
        effect: FeatureEffect,
    ) -> Result<Outcome, Status> {
        match effect {
            FeatureEffect::Result(result) => Ok(Outcome::Complete(result, Status::SUCCESS)),
            FeatureEffect::Flush => Ok(Outcome::Op(QueueOp::Flush)),
            FeatureEffect::ReadHostIdentifier(bytes) => {
                self.locate(command, cc, memory, bytes)?;
                let mut host = [0; 16];
                let mut left = &mut host[..bytes as usize];
                for entry in self.sg_list.entries() {
                    if let SgEntry::Memory { iova, bytes } = entry {
                        let (piece, rest) = left.split_at_mut((*bytes as usize).min(left.len()));
                        memory.read(*iova, piece).map_err(|_| Status::DATA_TRANSFER)?;
                        left = rest;
                    }
                }
                self.features.host = host;
                Ok(Outcome::Complete(0, Status::SUCCESS))
            }
            FeatureEffect::WriteHostIdentifier(bytes) => {
                let host = self.features.host;
                self.copy_to_guest(command, cc, memory, &host[..bytes as usize])
            }
        }
    }

    pub(super) fn identify<M: GuestMemory>(
        &mut self,
        command: &Command,
        cc: u32,
        memory: &M,
    ) -> Result<Outcome, Status> {
        let nsid = command.nsid();
        let namespaces = &self.shared.namespaces;
        let is_nvm = command.dword(11) >> 24 == NVM_COMMAND_SET;
        let named = || namespaces.find(nsid).ok_or(Status::INVALID_NAMESPACE);
        let page = match (command.dword(10) & 0xff) as u8 {
            cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => identify::namespace(&self.identity, named()?),
            cns::CONTROLLER => identify::controller(&self.identity, &self.shared.limits, namespaces),
            cns::ACTIVE | cns::ALLOCATED if nsid >= BROADCAST - 1 => return Err(Status::INVALID_NAMESPACE),
            cns::ACTIVE | cns::ALLOCATED => identify::list(namespaces, nsid),
            cns::DESCRIPTORS => identify::descriptors(named()?),
            cns::ATTACHED_CONTROLLERS => {
                named()?;
                identify::controllers(&self.identity, (command.dword(10) >> 16) as u16)
            }
            // Two structures of NVMe 2.0 that Linux asks every controller for: a namespace without metadata, and no limits of
            // the NVM command set beyond MDTS. An error status would leave an entry in the error log at each start.
            cns::COMMAND_SET_NAMESPACE if is_nvm => {
                named()?;
                Page::zeroed()
            }
            cns::COMMAND_SET_CONTROLLER if is_nvm => Page::zeroed(),
            cns::CONTROLLERS => identify::controllers(&self.identity, (command.dword(10) >> 16) as u16),
            _ => return Err(Status::INVALID_FIELD),
        };
        self.copy_to_guest(command, cc, memory, page.bytes())
    }

    pub(super) fn log_page<M: GuestMemory>(
        &mut self,
        command: &Command,
        cc: u32,
        memory: &M,
        health: &dyn Fn() -> Health,
    ) -> Result<Outcome, Status> {
        const RETAIN: u32 = 1 << 15;
        let word = command.dword(10);
        let id = (word & 0xff) as u8;
        let all_read_only = self.shared.namespaces.iter().all(|(_, namespace)| namespace.is_read_only());
        let page = match id {
            log::ERROR => self.shared.errors().page(),
            log::SMART if !matches!(command.nsid(), 0 | BROADCAST) => return Err(Status::INVALID_FIELD),
            log::SMART => log_page::smart(
                &health(),
                self.shared.errors().count(),
                self.features.is_temperature_outside(),
                all_read_only && self.shared.namespaces.count() > 0,
            ),
            log::FIRMWARE => log_page::firmware(&self.identity.firmware),
            log::CHANGED_NAMESPACES => log_page::changed(&self.changed),
            log::EFFECTS => log_page::effects(self.identity.shadow_doorbells),
            _ => return Err(Status::LOG_PAGE),
        };
        let words = u64::from(word >> 16 | (command.dword(11) & 0xffff) << 16) + 1;
        let (bytes, offset) = (words * 4, command.quad(12));
        if offset % 4 != 0 || offset > page.len() as u64 || bytes > self.shared.limits.max_transfer_bytes() {
            return Err(Status::INVALID_FIELD);
        }
        // Bytes beyond the page read zero.
        let mut data = page[offset as usize..].to_vec();
        data.resize(bytes as usize, 0);
        let outcome = self.copy_to_guest(command, cc, memory, &data)?;
        if word & RETAIN == 0 {
            self.events.log_was_read(id);
            if id == log::CHANGED_NAMESPACES {
                self.changed.clear();
            }
        }
        Ok(outcome)
    }

    /// Puts the memory of `bytes` of a command's data into `sg_list`.
    pub(super) fn locate<M: GuestMemory>(
        &mut self,
        command: &Command,
        cc: u32,
        memory: &M,
        bytes: u64,
    ) -> Result<(), Status> {
        self.sg_list.clear();
        let pointers = (command.quad(6), command.quad(8));
        prp::walk(memory, pointers, bytes, page_shift(cc), &mut self.sg_list)
    }

    /// Copies `data` to the command's memory.
    pub(super) fn copy_to_guest<M: GuestMemory>(
        &mut self,
        command: &Command,
        cc: u32,
        memory: &M,
        data: &[u8],
    ) -> Result<Outcome, Status> {
        self.locate(command, cc, memory, data.len() as u64)?;
        let mut left = data;
        for entry in self.sg_list.entries() {
            if let SgEntry::Memory { iova, bytes } = entry {
                let (piece, rest) = left.split_at((*bytes as usize).min(left.len()));
                memory.write(*iova, piece).map_err(|_| Status::DATA_TRANSFER)?;
                left = rest;
            }
        }
        Ok(Outcome::Complete(0, Status::SUCCESS))
    }
}
