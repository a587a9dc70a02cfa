//! Admin commands that create and delete queues: checks, and the operations.

use prereg::Iova;

use super::{Admin, Outcome, QueueOp};
use crate::engine::shadow::ShadowBuffers;
use crate::spec::register::{completion_shift, page_shift, submission_shift};
use crate::spec::{Command, Status};

impl Admin {
    /// A valid I/O queue identifier.
    pub(super) fn queue_id(&self, raw: u32) -> Result<u16, Status> {
        let id = (raw & 0xffff) as u16;
        if id == 0 || id > self.features.queues() { Err(Status::QUEUE_IDENTIFIER) } else { Ok(id) }
    }

    pub(super) fn queue_entries(&self, command: &Command) -> Result<u32, Status> {
        let entries = (command.dword(10) >> 16) + 1;
        if entries < 2 || entries > self.shared.limits.entries {
            Err(Status::QUEUE_SIZE)
        } else {
            Ok(entries)
        }
    }

    /// The address of a queue: contiguous and page aligned.
    pub(super) fn queue_memory(command: &Command, cc: u32) -> Result<Iova, Status> {
        const CONTIGUOUS: u32 = 1;
        if command.dword(11) & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        page_aligned(command.quad(6), cc).ok_or(Status::PRP_OFFSET)
    }

    pub(super) fn create_completion(&self, command: &Command, cc: u32) -> Result<Outcome, Status> {
        const INTERRUPTS: u32 = 1 << 1;
        let id = self.queue_id(command.dword(10))?;
        if self.completion[usize::from(id)] {
            return Err(Status::QUEUE_IDENTIFIER);
        }
        let entries = self.queue_entries(command)?;
        if completion_shift(cc) != 4 {
            return Err(Status::QUEUE_SIZE);
        }
        let iova = Self::queue_memory(command, cc)?;
        let vector = (command.dword(11) >> 16) as u16;
        let interrupts = command.dword(11) & INTERRUPTS != 0;
        if interrupts && vector >= self.shared.limits.vectors {
            return Err(Status::INTERRUPT_VECTOR);
        }
        let vector = interrupts.then_some(vector);
        Ok(Outcome::Op(QueueOp::CreateCompletion { id, entries, iova, vector }))
    }

    pub(super) fn create_submission(&self, command: &Command, cc: u32) -> Result<Outcome, Status> {
        let id = self.queue_id(command.dword(10))?;
        if self.submission[usize::from(id)].is_some() {
            return Err(Status::QUEUE_IDENTIFIER);
        }
        let cq = self.queue_id(command.dword(11) >> 16)?;
        if !self.completion[usize::from(cq)] {
            return Err(Status::COMPLETION_QUEUE_INVALID);
        }
        let entries = self.queue_entries(command)?;
        if submission_shift(cc) != 6 {
            return Err(Status::QUEUE_SIZE);
        }
        let iova = Self::queue_memory(command, cc)?;
        Ok(Outcome::Op(QueueOp::CreateSubmission { id, cq, entries, iova }))
    }

    pub(super) fn delete_completion(&self, command: &Command) -> Result<Outcome, Status> {
        let id = self.queue_id(command.dword(10))?;
        if !self.completion[usize::from(id)] {
            return Err(Status::QUEUE_IDENTIFIER);
        }
        if self.submission.contains(&Some(id)) {
            return Err(Status::QUEUE_DELETION);
        }
        Ok(Outcome::Op(QueueOp::DeleteCompletion { id }))
    }

    pub(super) fn delete_submission(&self, command: &Command) -> Result<Outcome, Status> {
        let id = self.queue_id(command.dword(10))?;
        let cq = self.completion_of(id).ok_or(Status::QUEUE_IDENTIFIER)?;
        Ok(Outcome::Op(QueueOp::DeleteSubmission { id, cq }))
    }

    pub(super) fn doorbell_buffer(command: &Command, cc: u32) -> Result<Outcome, Status> {
        let doorbells = page_aligned(command.quad(6), cc).ok_or(Status::INVALID_FIELD)?;
        let events = page_aligned(command.quad(8), cc).ok_or(Status::INVALID_FIELD)?;
        if doorbells == events {
            return Err(Status::INVALID_FIELD);
        }
        Ok(Outcome::Op(QueueOp::Shadow(ShadowBuffers { doorbells, events, bytes: 1 << page_shift(cc) })))
    }
}

fn page_aligned(raw: u64, cc: u32) -> Option<Iova> {
    (raw & ((1 << page_shift(cc)) - 1) == 0).then(|| Iova::new(raw))
}
