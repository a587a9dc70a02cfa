//! One random operation: a verb and three words, from which the world it runs in draws every choice.
//!
//! The words are small and independent, so that a property test shrinks them and a fuzzer can change one alone.

use crate::random::{Random, mix};

macro_rules! verbs {
    ($($name:ident = $weight:literal, $doc:literal;)*) => {
        /// The kind of an operation.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Verb {
            $(#[doc = $doc] $name,)*
        }

        /// Every verb as often as its weight.
        const WEIGHTED: &[(Verb, u8)] = &[$((Verb::$name, $weight),)*];
    };
}

verbs! {
    Register = 14, "Registers a range, exact or odd, for a random holder; sometimes the host refuses.";
    RegisterNew = 2, "Registers a range that must not be registered yet.";
    RegisterDevice = 4, "Registers device memory.";
    Map = 14, "Maps one page of any size.";
    Unmap = 8, "Unmaps a mapping or a range with any translator.";
    Burst = 6, "Maps several pages in one burst, and keeps some.";
    MapList = 9, "Maps a list of pages.";
    UnmapList = 3, "Unmaps a list of mappings with any translator.";
    MapRange = 5, "Maps a range.";
    LookAtRange = 3, "Reads the runs of a live range mapping.";
    Check = 3, "Asks whether a page could be mapped.";
    NewTranslator = 5, "Makes a translator.";
    DropTranslator = 3, "Drops a translator.";
    Refresh = 2, "Refreshes a translator.";
    Unregister = 7, "Unregisters one registration.";
    UnregisterMany = 3, "Unregisters several, of any spaces.";
    DropRegistration = 4, "Drops a registration, mapped or not.";
    Drain = 4, "Drains a registration.";
    AskDraining = 2, "Asks a draining region whether it is done.";
    EndDraining = 2, "Waits for a draining region that is done, or drops the handle.";
    Share = 3, "Shares a region.";
    DropMapping = 5, "Drops a mapping or a range, on this thread or another one.";
    MarkDirty = 5, "Marks a page as written.";
    NewBlock = 2, "Makes a block of table entries.";
    SetEntry = 10, "Sets a table entry.";
    ClearEntry = 4, "Clears a table entry.";
    TakeEntry = 4, "Takes a mapping through a table entry.";
    DropBlock = 1, "Drops a block with its entries.";
    Find = 2, "Finds the region that holds a range.";
    DeviceAt = 1, "Finds device memory by host address.";
    AskRegistration = 3, "Asks a registration everything it knows.";
    Reap = 1, "Releases what is idle.";
    NewSpace = 1, "Makes another address space.";
    DropSpace = 1, "Drops an address space with everything alive in it.";
    Crowd = 2, "Registers many neighbours of one page.";
    Churn = 1, "Registers and unregisters a range many times.";
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// Its kind.
    pub verb: Verb,
    /// Selects the translator, space or object.
    pub a: u16,
    /// Selects the place.
    pub b: u16,
    /// Selects the variant.
    pub c: u16,
}

impl Op {
    /// The operation of any four words. Smaller words are simpler operations.
    #[must_use]
    pub fn new(verb: u8, a: u16, b: u16, c: u16) -> Self {
        let total: u32 = WEIGHTED.iter().map(|&(_, weight)| u32::from(weight)).sum();
        let mut at = u32::from(verb) * total / 256;
        for &(verb, weight) in WEIGHTED {
            match at.checked_sub(u32::from(weight)) {
                None => return Self { verb, a, b, c },
                Some(rest) => at = rest,
            }
        }
        Self { verb: Verb::Register, a, b, c }
    }

    /// The next operation of a random sequence.
    pub fn random(random: &mut Random) -> Self {
        let word = random.next();
        Self::new(word as u8, (word >> 8) as u16, (word >> 24) as u16, (word >> 40) as u16)
    }

    /// The operations that `bytes` spell, seven bytes each; the rest is left out.
    pub fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        let word = |low: u8, high: u8| u16::from_le_bytes([low, high]);
        bytes
            .chunks_exact(7)
            .map(move |b| Self::new(b[0], word(b[1], b[2]), word(b[3], b[4]), word(b[5], b[6])))
    }

    /// More choices than three words hold: a sequence that follows from them.
    #[must_use]
    pub fn choices(self) -> Random {
        Random::new(mix(u64::from(self.a) | u64::from(self.b) << 16 | u64::from(self.c) << 32, 7))
    }
}
