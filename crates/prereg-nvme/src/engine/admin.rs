//! Admin commands: what they ask for, and what is answered.
//!
//! [`Admin`] has everything that admin commands see and change but the I/O queues themselves: those are poll_groups'. A command that
//! needs a poll_group gives an [`QueueOp`]; whoever drives the controller has it carried out and says how that went
//! ([`Admin::op_done`]), which gives the answer.

mod data;
mod queues;

use std::sync::Arc;

use prereg::Iova;

use super::async_event::{AsyncEvent, AsyncEvents};
use super::error_log::Failure;
use super::feature::Features;
use super::identify::Identity;
use super::log_page::Health;
use super::memory::GuestMemory;
use super::sg_list::SgList;
use super::shadow::ShadowBuffers;
use super::shared::Shared;
use crate::spec::number::admin;
use crate::spec::{Command, DataPointer, Status};

/// What a poll_group has to do for a command to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueOp {
    /// Make a completion queue.
    CreateCompletion {
        /// Its number.
        id: u16,
        /// Its length.
        entries: u32,
        /// Where it is.
        iova: Iova,
        /// Its interrupt.
        vector: Option<u16>,
    },
    /// Make a submission queue.
    CreateSubmission {
        /// Its number.
        id: u16,
        /// Its completion queue, which exists.
        cq: u16,
        /// Its length.
        entries: u32,
        /// Where it is.
        iova: Iova,
    },
    /// Take a completion queue away; nothing uses it.
    DeleteCompletion {
        /// Its number.
        id: u16,
    },
    /// Take a submission queue away, once its commands have ended.
    DeleteSubmission {
        /// Its number.
        id: u16,
        /// Its completion queue.
        cq: u16,
    },
    /// Abort a command if that is still possible. Said to be done with 0, else with 1.
    Abort {
        /// Its queue.
        sq: u16,
        /// The queue's completion queue.
        cq: u16,
        /// The command.
        cid: u16,
    },
    /// All poll_groups use shadow doorbells.
    Shadow(ShadowBuffers),
    /// Everything written becomes durable.
    Flush,
}

/// What a command came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The answer: result and status.
    Complete(u32, Status),
    /// It waits, perhaps for ever.
    Pending,
    /// An op is to be carried out.
    Op(QueueOp),
}

/// An answer to a command that waited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AerCompletion {
    /// The command.
    pub cid: u16,
    /// Its result.
    pub result: u32,
    /// Its status.
    pub status: Status,
}

/// The state that admin commands work on.
#[derive(Debug)]
pub struct Admin {
    shared: Arc<Shared>,
    identity: Identity,
    features: Features,
    events: AsyncEvents,
    aer_completions: Vec<AerCompletion>,
    changed: Vec<u32>,
    /// By number: the completion queue of a submission queue.
    submission: Vec<Option<u16>>,
    /// By number: whether there is a completion queue.
    completion: Vec<bool>,
    sg_list: SgList,
}

impl Admin {
    /// As after a reset.
    #[must_use]
    pub fn new(shared: Arc<Shared>, identity: Identity) -> Self {
        let queues = usize::from(shared.limits.io_queues) + 1;
        Self {
            features: Features::new(&shared),
            shared,
            identity,
            events: AsyncEvents::default(),
            aer_completions: Vec::new(),
            changed: Vec::new(),
            submission: vec![None; queues],
            completion: vec![false; queues],
            sg_list: SgList::default(),
        }
    }

    /// Back to what it was made as. Requests that waited are forgotten.
    pub fn reset(&mut self) {
        self.shared.reset();
        *self = Self::new(Arc::clone(&self.shared), self.identity.clone());
    }

    /// Something to tell the guest; [`aer_completion`](Self::aer_completion) has the answer it goes with.
    pub fn raise(&mut self, event: AsyncEvent) {
        self.events.raise(event);
    }

    /// A namespace is not what it was.
    pub fn namespace_changed(&mut self, nsid: u32) {
        if !self.changed.contains(&nsid) {
            self.changed.push(nsid);
            self.changed.sort_unstable();
        }
        if self.features.wants_namespaces() {
            self.events.raise(AsyncEvent::NamespaceChanged);
        }
    }

    /// The next answer to a command that waited.
    pub fn next_aer_completion(&mut self) -> Option<AerCompletion> {
        if let Some(aer_completion) = self.aer_completions.pop() {
            return Some(aer_completion);
        }
        let (cid, event) = self.events.take()?;
        Some(AerCompletion { cid, result: event.result(), status: Status::SUCCESS })
    }

    /// The commands that a completion queue's poll_group has to know.
    #[must_use]
    pub fn completion_of(&self, sq: u16) -> Option<u16> {
        self.submission.get(usize::from(sq)).copied().flatten()
    }

    /// Executes `command`; `cc` is the configuration that the guest set.
    pub fn execute<M: GuestMemory>(
        &mut self,
        command: &Command,
        cc: u32,
        memory: &M,
        health: &dyn Fn() -> Health,
    ) -> Outcome {
        match self.dispatch(command, cc, memory, health) {
            Ok(outcome) => outcome,
            Err(status) => self.fail(command, status),
        }
    }

    /// An op of `command` was carried out, or refused.
    pub fn op_done(&mut self, command: &Command, op: QueueOp, how: Result<u32, Status>) -> (u32, Status) {
        let result = match how {
            Ok(result) => result,
            Err(status) => {
                self.log_error(command, status);
                return (0, status);
            }
        };
        match op {
            QueueOp::CreateCompletion { id, .. } => self.completion[usize::from(id)] = true,
            QueueOp::CreateSubmission { id, cq, .. } => self.submission[usize::from(id)] = Some(cq),
            QueueOp::DeleteCompletion { id } => self.completion[usize::from(id)] = false,
            QueueOp::DeleteSubmission { id, .. } => self.submission[usize::from(id)] = None,
            QueueOp::Abort { .. } | QueueOp::Shadow(_) | QueueOp::Flush => {}
        }
        (result, Status::SUCCESS)
    }

    fn fail(&self, command: &Command, status: Status) -> Outcome {
        self.log_error(command, status);
        Outcome::Complete(0, status)
    }

    fn log_error(&self, command: &Command, status: Status) {
        self.shared.errors().push(Failure {
            command: Some((0, command.cid())),
            status,
            nsid: command.nsid(),
            lba: 0,
        });
    }

    fn dispatch<M: GuestMemory>(
        &mut self,
        command: &Command,
        cc: u32,
        memory: &M,
        health: &dyn Fn() -> Health,
    ) -> Result<Outcome, Status> {
        let opcode = command.opcode();
        let is_known = matches!(
            opcode,
            admin::DELETE_SQ
                | admin::CREATE_SQ
                | admin::GET_LOG_PAGE
                | admin::DELETE_CQ
                | admin::CREATE_CQ
                | admin::IDENTIFY
                | admin::ABORT
                | admin::SET_FEATURES
                | admin::GET_FEATURES
                | admin::ASYNC_EVENT
        ) || opcode == admin::DOORBELL_BUFFER && self.identity.shadow_doorbells;
        if !is_known {
            return Err(Status::INVALID_OPCODE);
        }
        // Admin commands come one by one, and on PCI Express they have PRPs (section 4.1).
        if command.fuse() != 0 || !matches!(command.data(), DataPointer::Prp(..)) {
            return Err(Status::INVALID_FIELD);
        }
        match opcode {
            admin::DELETE_SQ => self.delete_submission(command),
            admin::CREATE_SQ => self.create_submission(command, cc),
            admin::DELETE_CQ => self.delete_completion(command),
            admin::CREATE_CQ => self.create_completion(command, cc),
            admin::GET_LOG_PAGE => self.log_page(command, cc, memory, health),
            admin::IDENTIFY => self.identify(command, cc, memory),
            admin::ABORT => Ok(self.abort(command)),
            admin::SET_FEATURES => {
                let has_queues =
                    self.completion.contains(&true) || self.submission.iter().any(Option::is_some);
                let effect = self.features.set(command, &self.shared, has_queues)?;
                if self.features.is_temperature_outside() && self.features.wants_temperature() {
                    self.events.raise(AsyncEvent::Temperature);
                }
                self.apply_effect(command, cc, memory, effect)
            }
            admin::GET_FEATURES => {
                let effect = self.features.get(command, &self.shared)?;
                self.apply_effect(command, cc, memory, effect)
            }
            admin::ASYNC_EVENT if self.events.request(command.cid()) => Ok(Outcome::Pending),
            admin::ASYNC_EVENT => Err(Status::ASYNC_EVENT_LIMIT),
            _ => Self::doorbell_buffer(command, cc),
        }
    }

    fn abort(&mut self, command: &Command) -> Outcome {
        const NOT_ABORTED: u32 = 1;
        let (sq, cid) = ((command.dword(10) & 0xffff) as u16, (command.dword(10) >> 16) as u16);
        if sq == 0 {
            let found = self.events.abort(cid);
            if found {
                self.aer_completions.push(AerCompletion { cid, result: 0, status: Status::ABORT_REQUESTED });
            }
            return Outcome::Complete(if found { 0 } else { NOT_ABORTED }, Status::SUCCESS);
        }
        match self.completion_of(sq) {
            Some(cq) => Outcome::Op(QueueOp::Abort { sq, cq, cid }),
            None => Outcome::Complete(NOT_ABORTED, Status::SUCCESS),
        }
    }
}
