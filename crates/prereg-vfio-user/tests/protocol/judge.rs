//! Plays scripts of a client that sends anything and a server with any replies, and checks invariants. Used by the tests and by
//! the fuzzer.
//!
//! A script is bytes. Each step begins with one whose three low bits choose it:
//! - 0, 1, 2: the server receives. Two bytes of length, then the bytes; bits 3..6 are the number of descriptors, bit 6 says
//!   that some were lost.
//! - 3: the server replies to the request that the next byte chooses; bit 3 says with an error, bits 4 and 5 how much data.
//! - 4: the server sends some bytes, or all (the next byte).
//! - 5, 6: the server reads, or writes, memory of the client: one byte of page, two of length.
//! - 7: the server closes the session if all bits are set; else it replies to everything and sends it.
//!
//! At the end of the script the server replies to everything and sends it. Invariants:
//! - frames are well formed, and descriptors only begin one;
//! - every complete command that wants a reply gets exactly one, until the stream is lost or closed;
//! - no descriptor is held in the end, and a session with everything answered and sent wants to read on.

use std::collections::BTreeMap;
use std::rc::Rc;

use prereg::{Errno, Iova};
use prereg_vfio_user::wire::{Command, DeviceInfo, IoRegionKind, IoSubregion, SparseArea};
use prereg_vfio_user::{
    Action, Capabilities, IoRegion, IrqDescription, IrqTargets, Mmap, Region, Session, SessionError, Settings,
};

type Fd = Rc<()>;

/// Small limits of data and of skipped messages, so that scripts reach them.
const SETTINGS: Settings = Settings {
    capabilities: Capabilities {
        max_msg_fds: 4,
        max_data_xfer_size: 4096,
        page_sizes: !0xfff,
        max_dma_maps: 16,
        write_multiple: true,
    },
    held_bytes: 64 << 10,
    transfer_window: 1 << 10,
};

struct Judge {
    session: Session<Fd>,
    pool: Fd,
    pending: Vec<Action<Fd>>,
    /// All bytes that the client sent while they were read.
    input: Vec<u8>,
    /// All bytes sent to it, with the offsets of descriptors.
    output: Vec<u8>,
    places: Vec<usize>,
    over: Option<SessionError>,
    closed: bool,
}

/// The outcome of a script.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Whether the client ever sent a valid VERSION.
    pub(crate) negotiated: bool,
    /// Replies without an error, and with one.
    pub(crate) replies: (usize, usize),
    /// The error that ended the stream, if any.
    pub(crate) over: Option<SessionError>,
}

/// Plays a script.
///
/// # Panics
/// If an invariant does not hold.
pub(crate) fn judge(script: &[u8]) -> Verdict {
    let mut judge = Judge {
        session: Session::new(SETTINGS),
        pool: Rc::new(()),
        pending: Vec::new(),
        input: Vec::new(),
        output: Vec::new(),
        places: Vec::new(),
        over: None,
        closed: false,
    };
    let mut rest = script;
    while let Some(step) = byte(&mut rest) {
        match step & 7 {
            0..=2 => judge.receive(step, &mut rest),
            3 => {
                let choice = usize::from(byte(&mut rest).unwrap_or(0));
                if !judge.pending.is_empty() {
                    let action = judge.pending.remove(choice % judge.pending.len());
                    judge.answer(action, step);
                }
            }
            4 => {
                let most = byte(&mut rest).map_or(usize::MAX, usize::from);
                judge.send(if most == 255 { usize::MAX } else { most });
            }
            5 | 6 => judge.transfer(step, &mut rest),
            _ if step == 255 => judge.close(),
            _ => judge.settle(),
        }
    }
    judge.settle();
    let negotiated = judge.session.negotiated().is_some();
    if judge.over.is_none() && !judge.closed {
        assert!(judge.session.wants_bytes(), "everything is answered and sent: {:?}", judge.session);
    }
    let replies = judge.check_output();
    judge.close();
    assert!(judge.session.unsent().is_none());
    let Judge { session, pool, pending, over, .. } = judge;
    drop((session, pending));
    assert_eq!(Rc::strong_count(&pool), 1, "descriptors are left");
    Verdict { negotiated, replies, over }
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, more) = rest.split_first()?;
    *rest = more;
    Some(*first)
}

fn pair(rest: &mut &[u8]) -> usize {
    usize::from(byte(rest).unwrap_or(0)) | usize::from(byte(rest).unwrap_or(0)) << 8
}

impl Judge {
    fn receive(&mut self, step: u8, rest: &mut &[u8]) {
        let length = pair(rest).min(rest.len());
        let (bytes, more) = rest.split_at(length);
        *rest = more;
        let descriptors = vec![self.pool.clone(); usize::from(step >> 3 & 7)];
        let expected = self.over;
        let result = match step & 0x40 {
            0 => self.session.receive(bytes, descriptors),
            _ => self.session.receive_truncated(bytes, descriptors),
        };
        if self.closed {
            assert!(length == 0 || result.is_err());
        } else if let Some(expected) = expected {
            assert_eq!(result, Err(expected));
        } else {
            self.input.extend_from_slice(bytes);
            self.over = result.err();
            assert!(self.over.is_none() || !self.session.wants_bytes());
        }
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(action) = self.session.next_action() {
            self.pending.push(action);
        }
    }

    /// Replies with success or an error, and much or little data.
    fn answer(&mut self, action: Action<Fd>, how: u8) {
        let bad = how & 8 != 0;
        let amount = usize::from(how >> 4 & 3);
        fn or_error<T>(bad: bool, answer: T) -> Result<T, Errno> {
            if bad { Err(Errno::ENOSPC) } else { Ok(answer) }
        }
        let session = &mut self.session;
        let areas = |count| vec![SparseArea { offset: 0x1000, bytes: 0x1000 }; count];
        match action {
            Action::MapMemory { map, token, .. } => {
                assert!(map.bytes > 0 && map.bytes % 4096 == 0 && map.iova.raw() % 4096 == 0);
                session.reply(token, or_error(bad, ()));
            }
            Action::UnmapMemory { token, .. } => session.reply(token, or_error(bad, ())),
            Action::DescribeDevice { token } => {
                session.reply(token, or_error(bad, DeviceInfo { resets: true, regions: 9, irqs: 5 }));
            }
            Action::DescribeRegion { token, .. } => {
                let mmap =
                    Mmap { descriptor: self.pool.clone(), offset: 0, areas: areas(amount.saturating_sub(1)) };
                let mmap = Some(mmap).filter(|_| amount > 0);
                session.reply(
                    token,
                    or_error(bad, Region { bytes: 4096, readable: true, writable: false, mmap }),
                );
            }
            Action::DescribeIoDescriptors { token, .. } => {
                let kind = IoRegionKind::Eventfd { flags: 0, datamatch: 0 };
                let part = |descriptor| IoSubregion { offset: 0, bytes: 4, descriptor, kind };
                let descriptors = vec![self.pool.clone(); amount];
                let subregions = (0..amount as u32).map(part).collect();
                session.reply(token, or_error(bad, IoRegion { subregions, descriptors }));
            }
            Action::DescribeIrqs { token, .. } => {
                session.reply(token, or_error(bad, IrqDescription { flags: 9, count: 4 }));
            }
            Action::SetIrqs { count, targets, token, .. } => {
                match targets {
                    IrqTargets::Each(each) => assert_eq!(each.len(), count as usize),
                    IrqTargets::Eventfds(fds) => assert_eq!(fds.len(), count as usize),
                    IrqTargets::All | IrqTargets::NoEventfds => {}
                }
                session.reply(token, or_error(bad, ()));
            }
            Action::ReadRegion { count, token, .. } => {
                assert!((1..=4096).contains(&count));
                // The largest amount is one byte too much, which must become an error.
                let data = vec![0x11; (count as usize + 1) * (amount + 1) / 4];
                session.reply(token, or_error(bad, &data[..]));
            }
            Action::WriteRegion { data, token, .. } => {
                assert!((1..=4096).contains(&data.len()));
                session.reply(token, or_error(bad, ()));
            }
            Action::WriteRegions { writes, token } => {
                assert!(!writes.is_empty());
                session.reply(token, or_error(bad, writes.len() as u64));
            }
            Action::Reset { token } => session.reply(token, or_error(bad, ())),
            Action::Negotiated { token, .. } => session.reply(token, Ok(())),
            Action::TransferEnded { .. } | Action::Refused { .. } => {}
            other => panic!("nobody knows how to answer {other:?}"),
        }
        self.collect();
    }

    fn send(&mut self, most: usize) {
        let Some((bytes, descriptors)) = self.session.unsent() else { return };
        assert!(!bytes.is_empty());
        let sent = bytes.len().min(most);
        if !descriptors.is_empty() && sent > 0 {
            self.places.push(self.output.len());
        }
        self.output.extend_from_slice(&bytes[..sent]);
        self.session.sent(sent);
    }

    fn transfer(&mut self, step: u8, rest: &mut &[u8]) {
        let iova = Iova::new(u64::from(byte(rest).unwrap_or(0)) << 12);
        let bytes = pair(rest);
        let result = match step & 7 {
            5 => self.session.dma_read(iova, bytes),
            _ => self.session.dma_write(iova, &vec![0x22; bytes]),
        };
        let possible = self.session.negotiated().is_some() && self.over.is_none() && !self.closed;
        assert_eq!(result.is_ok(), possible && bytes > 0);
    }

    fn close(&mut self) {
        let _ = self.session.close();
        self.closed = true;
        self.collect();
    }

    fn settle(&mut self) {
        for action in std::mem::take(&mut self.pending) {
            self.answer(action, 0x10);
        }
        while self.session.unsent().is_some() {
            self.send(usize::MAX);
        }
    }

    /// Reads the output like a client.
    fn check_output(&self) -> (usize, usize) {
        let mut wanted = commands(&self.input);
        let (mut good, mut bad) = (0, 0);
        let (mut rest, mut at) = (&self.output[..], 0);
        let mut starts = Vec::new();
        while let Some(head) = rest.first_chunk::<16>() {
            let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
            let (id, number) =
                (u16::from_ne_bytes([head[0], head[1]]), u16::from_ne_bytes([head[2], head[3]]));
            let (size, flags, error) = (word(4) as usize, word(8), word(12));
            assert!(size >= 16, "a frame of {size} bytes");
            if rest.len() < size {
                break;
            }
            match flags {
                0 => {
                    let reads = number == Command::DMA_READ.number();
                    assert!(reads || number == Command::DMA_WRITE.number(), "the server commands {number}");
                    assert!(size <= 32 + SETTINGS.transfer_window as usize);
                    assert!(!reads || size == 32);
                }
                1 | 0x21 => {
                    let failed = flags != 1;
                    assert_eq!(error != 0, failed);
                    assert!(!failed || size == 16);
                    let count = wanted.get_mut(&(id, number));
                    let count = count.unwrap_or_else(|| panic!("nobody asked {number} as {id}"));
                    assert!(*count > 0, "{number} as {id} is answered twice");
                    *count -= 1;
                    *(if failed { &mut bad } else { &mut good }) += 1;
                }
                _ => panic!("flags {flags:#x}"),
            }
            starts.push(at);
            at += size;
            rest = &rest[size..];
        }
        if !self.closed {
            assert!(rest.is_empty(), "half a frame");
            // An unsupported VERSION ends the reading, so bytes after it stay unread.
            if !matches!(self.over, Some(SessionError::Version { .. })) {
                let unanswered: Vec<_> = wanted.iter().filter(|(_, count)| **count > 0).collect();
                assert!(unanswered.is_empty(), "no reply to {unanswered:?}");
            }
            assert!(self.places.iter().all(|place| starts.contains(place)), "descriptors inside a frame");
        }
        (good, bad)
    }
}

/// The commands of a stream that want a reply, by id and number, until frames cannot be distinguished any more.
fn commands(mut stream: &[u8]) -> BTreeMap<(u16, u16), usize> {
    let mut found = BTreeMap::new();
    while let Some(head) = stream.first_chunk::<16>() {
        let size = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let flags = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
        if size < 16 || size > stream.len() {
            break;
        }
        if flags & 0xf != 1 && flags & 0x10 == 0 {
            let key = (u16::from_ne_bytes([head[0], head[1]]), u16::from_ne_bytes([head[2], head[3]]));
            *found.entry(key).or_insert(0) += 1;
        }
        stream = &stream[size..];
    }
    found
}
