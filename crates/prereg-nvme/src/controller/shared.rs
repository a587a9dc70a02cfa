//! The state that the threads of a controller share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prereg::{Errno, Iova};
use prereg_vfio_user::server::{DeviceContext, Reporter, Sparse};

use super::admin_channel::{AdminChannel, Message};
use super::doorbells::MappedDoorbells;
use super::event::NvmeEvent;
use super::guest::Guest;
use super::io_channel::{IoChannel, IoMsg};
use super::irq::Irq;
use super::settings::{DoorbellMode, NvmeSettings};
use super::unmap_watch::UnmapWatch;
use crate::disk::Disk;
use crate::engine::async_event::AsyncEvent;
use crate::engine::counters::{Counters, Totals};
use crate::engine::namespace::Namespaces;
use crate::engine::queue_table::{Doorbells, QueueTable, TrappedDoorbells};
use crate::engine::registers::Registers;
use crate::engine::shared::{Limits, Shared};

/// The admin thread, in the place of a poll group's number.
pub(super) const ADMIN_THREAD: u32 = u32::MAX;

/// The shared state of one I/O thread.
#[derive(Debug)]
pub(super) struct IoThreadHandle {
    pub(super) io_channel: IoChannel,
    pub(super) counters: Arc<Counters>,
}

/// The state that the threads of a controller share.
pub(super) struct ControllerShared {
    pub(super) engine: Arc<Shared>,
    pub(super) guest: Guest,
    pub(super) unmap_watch: Arc<UnmapWatch>,
    pub(super) irq: Irq,
    pub(super) admin_channel: AdminChannel,
    pub(super) io_threads: Vec<IoThreadHandle>,
    pub(super) disks: Vec<Arc<dyn Disk>>,
    /// How clients map doorbells, if they can.
    pub(super) mapped: Option<Sparse>,
    /// The client asked how, so doorbell writes may not be trapped.
    doorbells_offered: AtomicBool,
    /// DeviceContext mastering is enabled.
    bus_master: AtomicBool,
    pub(super) doorbells_rung: AtomicU64,
    pub(super) events: Reporter<NvmeEvent>,
    registers: Mutex<Registers>,
    began: Instant,
}

impl ControllerShared {
    /// For a client. The namespaces are `disks`, in this order.
    ///
    /// # Errors
    /// The system's error number: no eventfds, no memory for doorbells.
    pub(super) fn new(
        bus: &DeviceContext,
        settings: &NvmeSettings,
        namespaces: Namespaces,
        disks: Vec<Arc<dyn Disk>>,
        events: Reporter<NvmeEvent>,
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
        let engine = Arc::new(Shared::new(limits, namespaces, QueueTable::new(queues, doorbells)));
        let unmap_watch = Arc::new(UnmapWatch::default());
        let io_threads = (0..settings.workers).map(|_| {
            Ok(IoThreadHandle { io_channel: IoChannel::new(disks.len())?, counters: Arc::default() })
        });
        Ok(Self {
            guest: Guest::new(bus.dma.clone(), Arc::clone(&unmap_watch)),
            irq: Irq::new(bus.interrupts.clone(), Arc::clone(&engine)),
            io_threads: io_threads.collect::<Result<_, Errno>>()?,
            registers: Mutex::new(Registers::new(settings.entries)),
            engine,
            unmap_watch,
            admin_channel: AdminChannel::default(),
            disks,
            mapped,
            doorbells_offered: AtomicBool::new(false),
            bus_master: AtomicBool::new(true),
            doorbells_rung: AtomicU64::new(0),
            events,
            began: Instant::now(),
        })
    }

    /// Nanoseconds since the controller was made.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The registers.
    pub(super) fn registers(&self) -> MutexGuard<'_, Registers> {
        // Every access leaves them consistent.
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails the controller until its guest resets it.
    pub(super) fn fatal(&self, cause: &'static str) {
        self.registers().fatal();
        self.events.report(&NvmeEvent::Fatal { cause });
    }

    /// Resets the registers, and the interrupt mask with them: an earlier mask must not stay in force.
    pub(super) fn reset_registers(&self, how: impl FnOnce(&mut Registers)) {
        let mut registers = self.registers();
        how(&mut registers);
        self.irq.set_mask(registers.mask());
    }

    /// The client asked how to map the doorbells.
    pub(super) fn offer_doorbells(&self) {
        // Relaxed: the wake that follows makes the sleeping thread look again.
        self.doorbells_offered.store(true, Ordering::Relaxed);
        self.admin_channel.wake();
    }

    /// Whether doorbells have to be polled.
    pub(super) fn polls_doorbells(&self) -> bool {
        self.doorbells_offered.load(Ordering::Relaxed)
    }

    /// Whether bus mastering is enabled.
    pub(super) fn may_bus_master(&self) -> bool {
        // SeqCst: a thread stores that it sleeps before it loads this, and `set_master` stores before it looks for sleeping
        // threads.
        self.bus_master.load(Ordering::SeqCst)
    }

    /// The guest enabled or disabled bus mastering.
    pub(super) fn set_master(&self, may: bool) {
        if self.bus_master.swap(may, Ordering::SeqCst) != may && may {
            self.admin_channel.wake();
            self.io_threads.iter().for_each(|io_thread| io_thread.io_channel.wake());
        }
    }

    /// A doorbell write was trapped.
    pub(super) fn ring(&self, at: usize, value: u32) {
        // Relaxed: an independent number.
        self.doorbells_rung.fetch_add(1, Ordering::Relaxed);
        match self.engine.queue_table.ring(at, value) {
            Ok(Some(ADMIN_THREAD)) => self.admin_channel.wake(),
            Ok(Some(io_thread)) => {
                if let Some(io_thread) = self.io_threads.get(io_thread as usize) {
                    io_thread.io_channel.wake();
                }
            }
            Ok(None) => {}
            Err(bad) => self.admin_channel.send_message(Message::AsyncEvent(AsyncEvent::from(bad))),
        }
        if at % 2 == 1 && self.irq.uses_pin() {
            self.irq.head_written((at / 2) as u16);
        }
    }

    /// Memory is about to be unmapped.
    pub(super) fn unmapping(&self, iova: Iova, bytes: u64) {
        for poll_group in self.unmap_watch.announce(iova, bytes) {
            let io_threads = match poll_group {
                Some(ADMIN_THREAD) => &[],
                Some(io_thread) => {
                    self.io_threads.get(io_thread as usize).map_or(&[][..], std::slice::from_ref)
                }
                None => &self.io_threads[..],
            };
            for io_thread in io_threads {
                io_thread.io_channel.send(IoMsg::Release(iova, bytes));
            }
            if matches!(poll_group, None | Some(ADMIN_THREAD)) {
                self.admin_channel.send_message(Message::Release(iova, bytes));
            }
        }
    }

    /// The sum of all I/O threads' counters.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for io_thread in &self.io_threads {
            totals.add(&io_thread.counters.totals());
        }
        totals
    }
}

impl std::fmt::Debug for ControllerShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControllerShared")
            .field("io_threads", &self.io_threads.len())
            .field("disks", &self.disks.len())
            .finish_non_exhaustive()
    }
}
