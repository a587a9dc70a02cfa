//! The controller's registers, without doorbells.
//!
//! Registers have 4 or 8 bytes. Other accesses work too: a read returns the bytes at its offset; a write is split into dwords,
//! and bytes that it leaves out keep their value (or are 0 in registers where 1 has an effect).

use prereg::Iova;

use crate::spec::register::{
    ACQ, AQA, ASQ, CAP, CC, CC_DEFINED, CC_ENABLE, CSTS, CSTS_FATAL, CSTS_READY, CSTS_SHUT, CSTS_SHUTDOWN,
    CSTS_SHUTTING, INTMC, INTMS, MAX_PAGE_SHIFT, VERSION, VS, arbitration, capabilities, command_set,
    page_shift, shutdown,
};

/// Addresses and sizes of the admin queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdminQueueConfig {
    /// The submission queue.
    pub submission: Iova,
    /// Its entries.
    pub submission_entries: u32,
    /// The completion queue.
    pub completion: Iova,
    /// Its entries.
    pub completion_entries: u32,
}

/// An action that a register write requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Start, then call [`Registers::ready`].
    Enable(AdminQueueConfig),
    /// Stop and reset all state, then call [`Registers::stopped`].
    Disable,
    /// Stop to fetch commands and flush all disks, then call [`Registers::shut_down`].
    Shutdown,
    /// These vectors were unmasked.
    Unmasked(u32),
    /// These vectors were masked.
    Masked(u32),
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Registers {
    capabilities: u64,
    mask: u32,
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    /// The controller stops: CSTS.RDY stays set until it has stopped.
    stopping: bool,
}

/// CAP.TO in half seconds. Stopping waits for the disks.
const TIMEOUT: u8 = 60;

impl Registers {
    /// Bytes of the registers before the doorbells.
    pub const BYTES: u64 = 0x1000;

    /// The state at power-on. `entries`: the most entries of a queue.
    #[must_use]
    pub fn new(entries: u32) -> Self {
        Self {
            capabilities: capabilities(entries, TIMEOUT),
            mask: 0,
            cc: 0,
            csts: 0,
            aqa: 0,
            asq: 0,
            acq: 0,
            stopping: false,
        }
    }

    /// Back to the state at power-on.
    pub fn reset(&mut self) {
        *self = Self { capabilities: self.capabilities, ..Self::new(2) };
    }

    /// CC.
    #[must_use]
    pub fn configuration(&self) -> u32 {
        self.cc
    }

    /// CSTS.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.csts
    }

    /// The vectors that INTMS and INTMC mask.
    #[must_use]
    pub fn mask(&self) -> u32 {
        self.mask
    }

    /// Reads the bytes at `offset`.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for (at, byte) in (offset..).zip(into) {
            let word = self.load(at & !3);
            *byte = word.to_le_bytes()[(at & 3) as usize];
        }
    }

    /// Writes the bytes at `offset`, and appends what follows, in order.
    pub fn write(&mut self, offset: u64, from: &[u8], effects: &mut Vec<Effect>) {
        let mut left = from;
        let mut at = offset;
        while !left.is_empty() {
            let within = (at & 3) as usize;
            let count = left.len().min(4 - within);
            let register = at & !3;
            let current = if matches!(register, INTMS | INTMC) { 0 } else { self.load(register) };
            let mut word = current.to_le_bytes();
            word[within..within + count].copy_from_slice(&left[..count]);
            self.store(register, u32::from_le_bytes(word), effects);
            left = &left[count..];
            at += count as u64;
        }
    }

    /// The controller started. Sets CSTS.RDY, unless the guest disabled it in the meantime.
    pub fn ready(&mut self) {
        if self.cc & CC_ENABLE != 0 && !self.stopping {
            self.csts |= CSTS_READY;
        }
    }

    /// The controller stopped: the state after a reset, but the admin queue registers stay. CSTS keeps what was written since
    /// the guest disabled it: the guest need not wait before it enables the controller or shuts it down.
    pub fn stopped(&mut self) {
        self.stopping = false;
        self.csts &= !CSTS_READY;
        self.mask = 0;
    }

    /// All data are durable.
    pub fn shut_down(&mut self) {
        if self.csts & CSTS_SHUTDOWN == CSTS_SHUTTING {
            self.csts = self.csts & !CSTS_SHUTDOWN | CSTS_SHUT;
        }
    }

    /// Sets CSTS.CFS, unless the guest disabled the controller in the meantime.
    pub fn fatal(&mut self) {
        if self.cc & CC_ENABLE != 0 && !self.stopping {
            self.csts |= CSTS_FATAL;
        }
    }

    /// Whether the guest shut the controller down, or never enabled it.
    pub(crate) fn is_safe_to_leave(&self) -> bool {
        self.csts & CSTS_SHUTDOWN == CSTS_SHUT || self.cc & CC_ENABLE == 0
    }

    fn load(&self, register: u64) -> u32 {
        let low = |value: u64| (value & 0xffff_ffff) as u32;
        let high = |value: u64| (value >> 32) as u32;
        match register {
            CAP => low(self.capabilities),
            0x04 => high(self.capabilities),
            VS => VERSION,
            INTMS | INTMC => self.mask,
            CC => self.cc,
            CSTS => self.csts,
            AQA => self.aqa,
            ASQ => low(self.asq),
            0x2c => high(self.asq),
            ACQ => low(self.acq),
            0x34 => high(self.acq),
            _ => 0,
        }
    }

    fn store(&mut self, register: u64, value: u32, effects: &mut Vec<Effect>) {
        /// Queues start at a multiple of 4 KiB, the smallest page.
        const PAGE: u64 = !0xfff;
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match register {
            INTMS => self.set_mask(self.mask | value, effects),
            INTMC => self.set_mask(self.mask & !value, effects),
            CC => self.configure(value & CC_DEFINED, effects),
            AQA => self.aqa = value & 0x0fff_0fff,
            ASQ => self.asq = low(self.asq) & PAGE,
            0x2c => self.asq = high(self.asq),
            ACQ => self.acq = low(self.acq) & PAGE,
            0x34 => self.acq = high(self.acq),
            _ => {}
        }
    }

    fn set_mask(&mut self, mask: u32, effects: &mut Vec<Effect>) {
        let before = std::mem::replace(&mut self.mask, mask);
        if before & !mask != 0 {
            effects.push(Effect::Unmasked(before & !mask));
        }
        if mask & !before != 0 {
            effects.push(Effect::Masked(mask & !before));
        }
    }

    fn configure(&mut self, cc: u32, effects: &mut Vec<Effect>) {
        let before = std::mem::replace(&mut self.cc, cc);
        match (before & CC_ENABLE != 0, cc & CC_ENABLE != 0) {
            (false, true) => self.enable(effects),
            (true, false) => {
                self.stopping = true;
                // A controller that failed to start is not ready: its guest does not wait for it, and sees no old CSTS.CFS.
                self.csts &= CSTS_READY;
                effects.push(Effect::Disable);
            }
            (true, true) => {
                // These bits may change only while the controller is disabled.
                const FIXED: u32 = 0x3ff0;
                self.cc = self.cc & !FIXED | before & FIXED;
            }
            (false, false) => {}
        }
        if shutdown(cc) != 0 && shutdown(before) == 0 {
            self.csts = self.csts & !CSTS_SHUTDOWN | CSTS_SHUTTING;
            effects.push(Effect::Shutdown);
        }
    }

    fn enable(&mut self, effects: &mut Vec<Effect>) {
        let queues = AdminQueueConfig {
            submission: Iova::new(self.asq),
            submission_entries: (self.aqa & 0xfff) + 1,
            completion: Iova::new(self.acq),
            completion_entries: (self.aqa >> 16 & 0xfff) + 1,
        };
        let page = (1u64 << page_shift(self.cc).min(MAX_PAGE_SHIFT)) - 1;
        let is_possible = command_set(self.cc) == 0
            && arbitration(self.cc) == 0
            && page_shift(self.cc) <= MAX_PAGE_SHIFT
            && queues.submission_entries >= 2
            && queues.completion_entries >= 2
            && (self.asq | self.acq) & page == 0;
        // Enabling ends an earlier shutdown.
        self.csts &= !CSTS_SHUTDOWN;
        if is_possible {
            effects.push(Effect::Enable(queues));
        } else {
            self.csts |= CSTS_FATAL;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AdminQueueConfig, Effect, Registers};
    use crate::spec::register::{ACQ, AQA, ASQ, CAP, CC, CSTS, INTMC, INTMS, VS};
    use prereg::Iova;

    /// CC as Linux sets it: enabled, entries of 64 and 16 bytes, pages of 4 KiB.
    const LINUX: u32 = 0x0046_0001;

    fn word(registers: &Registers, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        registers.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(registers: &mut Registers, offset: u64, value: u32) -> Vec<Effect> {
        let mut effects = Vec::new();
        registers.write(offset, &value.to_le_bytes(), &mut effects);
        effects
    }

    fn with_queues() -> Registers {
        let mut registers = Registers::new(1024);
        write(&mut registers, AQA, 0x001f_003f);
        let mut effects = Vec::new();
        registers.write(ASQ, &0x1_2345_6000u64.to_le_bytes(), &mut effects);
        registers.write(ACQ, &0x7000u64.to_le_bytes(), &mut effects);
        assert!(effects.is_empty());
        registers
    }

    #[test]
    fn enabling_gives_the_queues_that_were_set() {
        let mut registers = with_queues();
        let effects = write(&mut registers, CC, LINUX);
        let queues = AdminQueueConfig {
            submission: Iova::new(0x1_2345_6000),
            submission_entries: 64,
            completion: Iova::new(0x7000),
            completion_entries: 32,
        };
        assert_eq!(effects, [Effect::Enable(queues)]);
        assert_eq!(word(&registers, CSTS), 0, "not ready before it is");
        registers.ready();
        assert_eq!(word(&registers, CSTS), 1);
    }

    #[test]
    fn stopping_keeps_ready_until_it_is_done_and_the_queue_registers_for_good() {
        let mut registers = with_queues();
        write(&mut registers, CC, LINUX);
        registers.ready();
        write(&mut registers, INTMS, 5);
        assert_eq!(write(&mut registers, CC, LINUX & !1), [Effect::Disable]);
        assert_eq!(word(&registers, CSTS), 1);
        registers.stopped();
        assert_eq!((word(&registers, CSTS), word(&registers, INTMS)), (0, 0));
        assert_eq!(word(&registers, AQA), 0x001f_003f);
        assert_eq!(word(&registers, ASQ), 0x2345_6000);
    }

    #[test]
    fn a_configuration_that_cannot_work_is_fatal() {
        for cc in [LINUX | 1 << 4, LINUX | 5 << 7, LINUX | 1 << 11] {
            let mut registers = with_queues();
            assert_eq!(write(&mut registers, CC, cc), []);
            assert_eq!(word(&registers, CSTS), 2, "{cc:#x}");
        }
        let mut registers = Registers::new(1024);
        assert_eq!(write(&mut registers, CC, LINUX), [], "queues of one entry");
        assert_eq!(word(&registers, CSTS), 2);
        assert_eq!(write(&mut registers, CC, 0), [Effect::Disable], "the way out is a reset");
        registers.stopped();
        assert_eq!(word(&registers, CSTS), 0);
    }

    #[test]
    fn a_reset_ends_a_failure_at_once_and_leaves_what_is_asked_since() {
        let mut registers = with_queues();
        write(&mut registers, CC, LINUX);
        registers.fatal();
        assert_eq!(word(&registers, CSTS), 2, "not ready, so the guest does not wait for it to end");
        write(&mut registers, CC, 0);
        assert_eq!(word(&registers, CSTS), 0);
        registers.fatal();
        assert_eq!(word(&registers, CSTS), 0, "of before the reset, found late");
        write(&mut registers, CC, LINUX | 1 << 4);
        registers.stopped();
        assert_eq!(word(&registers, CSTS), 2, "of after the reset");
        // A shutdown in the same write as the reset.
        let mut registers = with_queues();
        write(&mut registers, CC, LINUX);
        registers.ready();
        assert_eq!(write(&mut registers, CC, 1 << 14), [Effect::Disable, Effect::Shutdown]);
        registers.stopped();
        registers.shut_down();
        assert_eq!(word(&registers, CSTS), 2 << 2);
    }

    #[test]
    fn a_shutdown_is_reported_in_two_steps_and_once() {
        let mut registers = with_queues();
        write(&mut registers, CC, LINUX);
        registers.ready();
        assert_eq!(write(&mut registers, CC, LINUX | 1 << 14), [Effect::Shutdown]);
        assert_eq!(word(&registers, CSTS), 1 | 1 << 2);
        assert_eq!(write(&mut registers, CC, LINUX | 1 << 14), []);
        registers.shut_down();
        assert_eq!(word(&registers, CSTS), 1 | 2 << 2);
        assert!(registers.is_safe_to_leave());
    }

    #[test]
    fn a_shutdown_without_a_controller_does_not_outlast_its_enabling() {
        let mut registers = with_queues();
        assert_eq!(write(&mut registers, CC, 1 << 14), [Effect::Shutdown]);
        registers.shut_down();
        assert_eq!(word(&registers, CSTS), 2 << 2);
        write(&mut registers, CC, LINUX);
        registers.ready();
        assert_eq!(word(&registers, CSTS), 1);
    }

    #[test]
    fn masks_are_set_and_cleared_bit_by_bit() {
        let mut registers = Registers::new(1024);
        assert_eq!(write(&mut registers, INTMS, 0b110), [Effect::Masked(0b110)]);
        assert_eq!(write(&mut registers, INTMC, 0b011), [Effect::Unmasked(0b010)]);
        assert_eq!((word(&registers, INTMS), word(&registers, INTMC)), (0b100, 0b100));
        assert_eq!(registers.mask(), 0b100);
    }

    #[test]
    fn odd_accesses_are_made_of_dwords() {
        let mut registers = with_queues();
        let mut bytes = [0; 8];
        registers.read(CAP, &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), crate::spec::register::capabilities(1024, super::TIMEOUT));
        let mut three = [0; 3];
        registers.read(VS + 1, &mut three);
        assert_eq!(three, [4, 1, 0]);
        let mut effects = Vec::new();
        registers.write(AQA + 2, &[0xff], &mut effects);
        assert_eq!(word(&registers, AQA), 0x00ff_003f, "a byte leaves the others");
        registers.write(INTMS + 1, &[1], &mut effects);
        assert_eq!(word(&registers, INTMS), 0x100);
        registers.write(VS, &[0xff; 4], &mut effects);
        registers.write(CAP, &[0xff; 8], &mut effects);
        assert_eq!(word(&registers, VS), 0x0001_0400, "read only");
    }

    #[test]
    fn what_is_fixed_while_enabled_stays() {
        let mut registers = with_queues();
        write(&mut registers, CC, LINUX);
        write(&mut registers, CC, LINUX | 3 << 7);
        assert_eq!(word(&registers, CC), LINUX);
    }
}
