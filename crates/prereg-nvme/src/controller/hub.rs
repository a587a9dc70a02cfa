//! What the threads of a controller share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prereg::{Errno, Iova};
use prereg_vfio_user::server::{DeviceContext, Sparse};

use super::doorbells::MappedDoorbells;
use super::guest::Guest;
use super::inbox::{Inbox, Message};
use super::line::Line;
use super::mailbox::{Mailbox, ToWorker};
use super::notices::Notices;
use super::settings::{DoorbellMode, NvmeSettings};
use crate::disk::Disk;
use crate::engine::board::{Board, Doorbells, TrappedDoorbells};
use crate::engine::counters::{Counters, Totals};
use crate::engine::event::Event;
use crate::engine::namespace::Namespaces;
use crate::engine::registers::Registers;
use crate::engine::shared::{Limits, Shared};

/// The clerk, where a lane is named.
pub(super) const CLERK: u32 = u32::MAX;

/// A worker from outside.
#[derive(Debug)]
pub(super) struct WorkerEnd {
    pub(super) mailbox: Mailbox,
    pub(super) counters: Arc<Counters>,
}

/// What the threads of a controller share.
pub(super) struct Hub {
    pub(super) shared: Arc<Shared>,
    pub(super) guest: Guest,
    pub(super) notices: Arc<Notices>,
    pub(super) line: Line,
    pub(super) inbox: Inbox,
    pub(super) workers: Vec<WorkerEnd>,
    pub(super) disks: Vec<Arc<dyn Disk>>,
    /// How doorbells can be mapped, if they can.
    pub(super) mapped: Option<Sparse>,
    /// The client was told how, so doorbells may ring without a message.
    offered: AtomicBool,
    /// The function may reach memory.
    masters: AtomicBool,
    pub(super) doorbells_rung: AtomicU64,
    registers: Mutex<Registers>,
    began: Instant,
}

impl Hub {
    /// For a client. The namespaces are those of `disks`, in this order.
    ///
    /// # Errors
    /// The system's number: no eventfds, no memory for doorbells.
    pub(super) fn new(
        bus: &DeviceContext,
        settings: &NvmeSettings,
        namespaces: Namespaces,
        disks: Vec<Arc<dyn Disk>>,
    ) -> Result<Self, Errno> {
        let queues = settings.io_queues + 1;
        let maps = match settings.doorbells {
            DoorbellMode::Auto => !bus.negotiated.write_multiple,
            DoorbellMode::Trapped => false,
            DoorbellMode::Mapped => true,
        };
        let (doorbells, mapped): (Box<dyn Doorbells>, _) = if maps {
            let doorbells = MappedDoorbells::new()?;
            let sparse = doorbells.sparse();
            (Box::new(doorbells), Some(sparse))
        } else {
            (Box::new(TrappedDoorbells::new(queues)), None)
        };
        let limits = Limits {
            io_queues: settings.io_queues,
            entries: settings.entries,
            vectors: settings.vectors(),
            transfer_shift: settings.transfer_shift,
        };
        let shared = Arc::new(Shared::new(limits, namespaces, Board::new(queues, doorbells)));
        let notices = Arc::new(Notices::default());
        let workers = (0..settings.workers)
            .map(|_| Ok(WorkerEnd { mailbox: Mailbox::new(disks.len())?, counters: Arc::default() }));
        Ok(Self {
            guest: Guest::new(bus.dma.clone(), Arc::clone(&notices)),
            line: Line::new(bus.interrupts.clone(), Arc::clone(&shared)),
            workers: workers.collect::<Result<_, Errno>>()?,
            registers: Mutex::new(Registers::new(settings.entries)),
            shared,
            notices,
            inbox: Inbox::default(),
            disks,
            mapped,
            offered: AtomicBool::new(false),
            masters: AtomicBool::new(true),
            doorbells_rung: AtomicU64::new(0),
            began: Instant::now(),
        })
    }

    /// Nanoseconds since the controller was made.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The registers.
    pub(super) fn registers(&self) -> MutexGuard<'_, Registers> {
        // Every access leaves them whole.
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a reset of the registers, and of the interrupt mask with them: one that the guest wrote before is not left in force.
    pub(super) fn reset_registers(&self, how: impl FnOnce(&mut Registers)) {
        let mut registers = self.registers();
        how(&mut registers);
        self.line.set_mask(registers.mask());
    }

    /// The client asked how to map the doorbells.
    pub(super) fn offer_doorbells(&self) {
        // Relaxed: the wake that follows makes the sleeping thread look again.
        self.offered.store(true, Ordering::Relaxed);
        self.inbox.wake();
    }

    /// Whether doorbells may ring without a message.
    pub(super) fn has_silent_doorbells(&self) -> bool {
        self.offered.load(Ordering::Relaxed)
    }

    /// Whether the function may reach memory.
    pub(super) fn may_bus_master(&self) -> bool {
        // SeqCst: a thread that goes to sleep says so before it loads this, and `set_master` stores before it looks for sleepers.
        self.masters.load(Ordering::SeqCst)
    }

    /// The guest let the function reach memory, or forbade it.
    pub(super) fn set_master(&self, may: bool) {
        if self.masters.swap(may, Ordering::SeqCst) != may && may {
            self.inbox.wake();
            self.workers.iter().for_each(|worker| worker.mailbox.wake());
        }
    }

    /// A doorbell was written.
    pub(super) fn ring(&self, at: usize, value: u32) {
        // Relaxed: a number by itself.
        self.doorbells_rung.fetch_add(1, Ordering::Relaxed);
        match self.shared.board.ring(at, value) {
            Ok(Some(CLERK)) => self.inbox.wake(),
            Ok(Some(worker)) => {
                if let Some(worker) = self.workers.get(worker as usize) {
                    worker.mailbox.wake();
                }
            }
            Ok(None) => {}
            Err(bad) => self.inbox.tell(Message::Event(Event::from(bad))),
        }
        if at % 2 == 1 && self.line.uses_pin() {
            self.line.taken((at / 2) as u16);
        }
    }

    /// Memory is about to be unmapped.
    pub(super) fn unmapping(&self, iova: Iova, bytes: u64) {
        for lane in self.notices.announce(iova, bytes) {
            let workers = match lane {
                Some(CLERK) => &[],
                Some(worker) => self.workers.get(worker as usize).map_or(&[][..], std::slice::from_ref),
                None => &self.workers[..],
            };
            for worker in workers {
                worker.mailbox.post(ToWorker::GiveBack(iova, bytes));
            }
            if matches!(lane, None | Some(CLERK)) {
                self.inbox.tell(Message::GiveBack(iova, bytes));
            }
        }
    }

    /// What all workers counted.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for worker in &self.workers {
            totals.add(&worker.counters.totals());
        }
        totals
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("workers", &self.workers.len())
            .field("disks", &self.disks.len())
            .finish_non_exhaustive()
    }
}
