//! Admin commands: what they ask for, and what is answered.
//!
//! [`Admin`] has everything that admin commands see and change but the I/O queues themselves: those are lanes'. A command that
//! needs a lane gives an [`Order`]; whoever drives the controller has it carried out and says how that went
//! ([`Admin::carried_out`]), which gives the answer.

mod data;
mod queues;

use std::sync::Arc;

use prereg::Iova;

use super::error_log::Failure;
use super::event::{Event, Events};
use super::feature::Features;
use super::identity::Identity;
use super::log_page::Health;
use super::memory::GuestMemory;
use super::runs::Runs;
use super::shadow::ShadowBuffers;
use super::shared::Shared;
use crate::spec::number::admin;
use crate::spec::{Command, DataPointer, Status};

/// What a lane has to do for a command to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
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
    /// All lanes use shadow doorbells.
    Shadow(ShadowBuffers),
    /// Everything written becomes durable.
    Flush,
}

/// What a command came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The answer: result and status.
    Answer(u32, Status),
    /// It waits, perhaps for ever.
    Held,
    /// An order is to be carried out.
    Order(Order),
}

/// An answer to a command that waited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Late {
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
    events: Events,
    late: Vec<Late>,
    changed: Vec<u32>,
    /// By number: the completion queue of a submission queue.
    submission: Vec<Option<u16>>,
    /// By number: whether there is a completion queue.
    completion: Vec<bool>,
    runs: Runs,
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
            events: Events::default(),
            late: Vec::new(),
            changed: Vec::new(),
            submission: vec![None; queues],
            completion: vec![false; queues],
            runs: Runs::default(),
        }
    }

    /// Back to what it was made as. Requests that waited are forgotten.
    pub fn reset(&mut self) {
        self.shared.reset();
        *self = Self::new(Arc::clone(&self.shared), self.identity.clone());
    }

    /// Something to tell the guest; [`late`](Self::late) has the answer it goes with.
    pub fn raise(&mut self, event: Event) {
        self.events.raise(event);
    }

    /// A namespace is not what it was.
    pub fn namespace_changed(&mut self, nsid: u32) {
        if !self.changed.contains(&nsid) {
            self.changed.push(nsid);
            self.changed.sort_unstable();
        }
        if self.features.wants_namespaces() {
            self.events.raise(Event::NamespaceChanged);
        }
    }

    /// The next answer to a command that waited.
    pub fn late(&mut self) -> Option<Late> {
        if let Some(late) = self.late.pop() {
            return Some(late);
        }
        let (cid, event) = self.events.take()?;
        Some(Late { cid, result: event.result(), status: Status::SUCCESS })
    }

    /// The commands that a completion queue's lane has to know.
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
    ) -> Verdict {
        match self.judge(command, cc, memory, health) {
            Ok(verdict) => verdict,
            Err(status) => self.refuse(command, status),
        }
    }

    /// An order of `command` was carried out, or refused.
    pub fn carried_out(
        &mut self,
        command: &Command,
        order: Order,
        how: Result<u32, Status>,
    ) -> (u32, Status) {
        let result = match how {
            Ok(result) => result,
            Err(status) => {
                self.note(command, status);
                return (0, status);
            }
        };
        match order {
            Order::CreateCompletion { id, .. } => self.completion[usize::from(id)] = true,
            Order::CreateSubmission { id, cq, .. } => self.submission[usize::from(id)] = Some(cq),
            Order::DeleteCompletion { id } => self.completion[usize::from(id)] = false,
            Order::DeleteSubmission { id, .. } => self.submission[usize::from(id)] = None,
            Order::Abort { .. } | Order::Shadow(_) | Order::Flush => {}
        }
        (result, Status::SUCCESS)
    }

    fn refuse(&self, command: &Command, status: Status) -> Verdict {
        self.note(command, status);
        Verdict::Answer(0, status)
    }

    fn note(&self, command: &Command, status: Status) {
        self.shared.errors().note(Failure {
            command: Some((0, command.cid())),
            status,
            nsid: command.nsid(),
            lba: 0,
        });
    }

    fn judge<M: GuestMemory>(
        &mut self,
        command: &Command,
        cc: u32,
        memory: &M,
        health: &dyn Fn() -> Health,
    ) -> Result<Verdict, Status> {
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
                let then = self.features.set(command, &self.shared, has_queues)?;
                if self.features.is_temperature_outside() && self.features.wants_temperature() {
                    self.events.raise(Event::Temperature);
                }
                self.follow(command, cc, memory, then)
            }
            admin::GET_FEATURES => {
                let then = self.features.get(command, &self.shared)?;
                self.follow(command, cc, memory, then)
            }
            admin::ASYNC_EVENT if self.events.request(command.cid()) => Ok(Verdict::Held),
            admin::ASYNC_EVENT => Err(Status::ASYNC_EVENT_LIMIT),
            _ => Self::doorbell_buffer(command, cc),
        }
    }

    fn abort(&mut self, command: &Command) -> Verdict {
        const NOT_ABORTED: u32 = 1;
        let (sq, cid) = ((command.dword(10) & 0xffff) as u16, (command.dword(10) >> 16) as u16);
        if sq == 0 {
            let found = self.events.abort(cid);
            if found {
                self.late.push(Late { cid, result: 0, status: Status::ABORT_REQUESTED });
            }
            return Verdict::Answer(if found { 0 } else { NOT_ABORTED }, Status::SUCCESS);
        }
        match self.completion_of(sq) {
            Some(cq) => Verdict::Order(Order::Abort { sq, cq, cid }),
            None => Verdict::Answer(NOT_ABORTED, Status::SUCCESS),
        }
    }
}
