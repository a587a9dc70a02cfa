//! Admin commands.
//!
//! [`Admin`] has all state of admin commands but the I/O queues, which belong to poll groups. A command that needs a poll group
//! returns a [`QueueOp`]; the caller has it executed and reports the result to [`Admin::op_done`], which gives the completion.

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

/// An operation of a poll group for an admin command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueOp {
    /// Create a completion queue.
    CreateCompletion {
        /// Queue identifier.
        id: u16,
        /// Entries.
        entries: u32,
        /// Address of the queue.
        iova: Iova,
        /// Interrupt vector.
        vector: Option<u16>,
    },
    /// Create a submission queue.
    CreateSubmission {
        /// Queue identifier.
        id: u16,
        /// Its completion queue, which exists.
        cq: u16,
        /// Entries.
        entries: u32,
        /// Address of the queue.
        iova: Iova,
    },
    /// Delete a completion queue that no submission queue uses.
    DeleteCompletion {
        /// Queue identifier.
        id: u16,
    },
    /// Delete a submission queue once its commands have ended.
    DeleteSubmission {
        /// Queue identifier.
        id: u16,
        /// Its completion queue.
        cq: u16,
    },
    /// Abort a command that has not started. The result is 0 if it was aborted, else 1.
    Abort {
        /// Its submission queue.
        sq: u16,
        /// That queue's completion queue.
        cq: u16,
        /// Command identifier.
        cid: u16,
    },
    /// Use shadow doorbells, in all poll groups.
    Shadow(ShadowBuffers),
    /// Make all writes durable.
    Flush,
}

/// The outcome of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It is complete: result and status.
    Complete(u32, Status),
    /// It stays pending, perhaps for ever: an asynchronous event request.
    Pending,
    /// An operation has to be executed first.
    Op(QueueOp),
}

/// The completion of an asynchronous event request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AerCompletion {
    /// Command identifier.
    pub(crate) cid: u16,
    /// Result, dword 0.
    pub(crate) result: u32,
    /// Status.
    pub(crate) status: Status,
}

/// The state of admin commands.
#[derive(Debug)]
pub struct Admin {
    shared: Arc<Shared>,
    identity: Identity,
    features: Features,
    events: AsyncEvents,
    aer_completions: Vec<AerCompletion>,
    changed: Vec<u32>,
    /// The completion queue of each submission queue, by identifier.
    submission: Vec<Option<u16>>,
    /// Whether each completion queue exists, by identifier.
    completion: Vec<bool>,
    sg_list: SgList,
}

impl Admin {
    /// The state after a reset.
    pub(crate) fn new(shared: Arc<Shared>, identity: Identity) -> Self {
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

    /// Resets the state. Pending asynchronous event requests are dropped.
    pub(crate) fn reset(&mut self) {
        self.shared.reset();
        *self = Self::new(Arc::clone(&self.shared), self.identity.clone());
    }

    /// Reports an event to the guest; [`next_aer_completion`](Self::next_aer_completion) has the completion.
    pub fn raise(&mut self, event: AsyncEvent) {
        self.events.raise(event);
    }

    /// Reports that a namespace changed.
    pub fn namespace_changed(&mut self, nsid: u32) {
        if !self.changed.contains(&nsid) {
            self.changed.push(nsid);
            self.changed.sort_unstable();
        }
        if self.features.wants_namespaces() {
            self.events.raise(AsyncEvent::NamespaceChanged);
        }
    }

    /// The next completion of an asynchronous event request.
    pub(crate) fn next_aer_completion(&mut self) -> Option<AerCompletion> {
        if let Some(aer_completion) = self.aer_completions.pop() {
            return Some(aer_completion);
        }
        let (cid, event) = self.events.take()?;
        Some(AerCompletion { cid, result: event.result(), status: Status::SUCCESS })
    }

    /// The completion queue of submission queue `sq`.
    pub(crate) fn completion_of(&self, sq: u16) -> Option<u16> {
        self.submission.get(usize::from(sq)).copied().flatten()
    }

    /// Executes `command`; `cc` is the CC register.
    pub(crate) fn execute<M: GuestMemory>(
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

    /// Records the result of `command`'s operation; returns the result and status of the completion.
    pub(crate) fn op_done(
        &mut self,
        command: &Command,
        op: QueueOp,
        how: Result<u32, Status>,
    ) -> (u32, Status) {
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
        // Admin commands are not fused, and use PRPs on PCI Express (section 4.1).
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
