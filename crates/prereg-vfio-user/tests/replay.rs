//! Recorded sessions of QEMU: every message is built again, parsed, and answered with the frame of the recorded server.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod recorded;

use std::collections::BTreeMap;

use prereg::Errno;
use prereg_vfio_user::wire::{Command, DeviceInfo, Header, IrqInfo, RegionAccess, RegionInfo, UnmapMemory};
use prereg_vfio_user::{Action, IrqDescription, IrqTargets, Region, Session, Settings};
use recorded::Line;

/// Counts of a session's requests and replies.
#[derive(Default, PartialEq, Eq, Debug)]
struct Tally {
    messages: usize,
    replies: usize,
    /// Requests whose reply is not in the log, which has only the first of equal accesses.
    unanswered: usize,
    maps: usize,
    memories: usize,
    unmaps: usize,
}

struct Replay {
    session: Session<usize>,
    pending: BTreeMap<(u16, Command), Action<usize>>,
    tally: Tally,
}

impl Replay {
    fn client_says(&mut self, line: &Line<'_>, piece: usize) {
        let bytes = line.bytes();
        let pieces = bytes.chunks(piece);
        let last = pieces.len() - 1;
        for (index, piece) in pieces.enumerate() {
            let fds = if index == last { line.fds } else { 0 };
            self.session.receive(piece, 0..fds).unwrap();
        }
        let action = self.session.next_action().unwrap_or_else(|| panic!("nothing came of {}", line.text));
        assert!(self.session.next_action().is_none());
        self.tally.messages += 1;
        self.check(line, &action);
        if line.flags & 0x10 == 0 {
            let before = self.pending.insert((line.id, line.command), action);
            self.tally.unanswered += usize::from(before.is_some());
        }
    }

    /// Checks the action against the message.
    fn check(&mut self, line: &Line<'_>, action: &Action<usize>) {
        match action {
            Action::Negotiated { .. } => assert_eq!(line.command, Command::VERSION),
            Action::MapMemory { map, memory, .. } => {
                assert_eq!(map.iova.raw(), line.field("addr"));
                assert_eq!((map.offset, map.bytes), (line.field("off"), line.field("size")));
                assert_eq!(memory.is_some(), line.fds == 1);
                self.tally.maps += 1;
                self.tally.memories += line.fds;
            }
            Action::UnmapMemory { unmap, .. } => {
                assert_eq!(*unmap, line.unmap());
                self.tally.unmaps += 1;
            }
            Action::DescribeDevice { .. } => assert_eq!(line.command, Command::DEVICE_GET_INFO),
            Action::DescribeRegion { index, .. } => assert_eq!(u64::from(*index), line.field("idx")),
            Action::DescribeIrqs { index, .. } => assert_eq!(*index, line.four()[2]),
            Action::SetIrqs { index, start, count, targets, .. } => {
                let said = (line.field("idx"), line.field("start"), line.field("count"));
                assert_eq!((u64::from(*index), u64::from(*start), u64::from(*count)), said);
                let expected = match (line.field("flags"), line.fds) {
                    (0x21, 0) => IrqTargets::All,
                    (0x24, 0) => IrqTargets::NoEventfds,
                    (0x24, fds) => IrqTargets::Eventfds((0..fds).collect()),
                    other => panic!("{other:?}"),
                };
                assert_eq!(*targets, expected);
            }
            Action::ReadRegion { region, offset, count, .. } => {
                assert_eq!((*offset, *region, *count), line.access());
            }
            Action::WriteRegion { region, offset, data, .. } => {
                assert_eq!((*offset, *region, data.len() as u32), line.access());
                assert_eq!(*data, line.data());
            }
            Action::Reset { .. } => assert_eq!(line.command, Command::DEVICE_RESET),
            other => panic!("{} became {other:?}", line.text),
        }
    }

    /// Sends the recorded reply, and compares the frame with the record.
    fn server_says(&mut self, line: &Line<'_>) {
        let Some(action) = self.pending.remove(&(line.id, line.command)) else {
            assert!([Command::REGION_READ, Command::REGION_WRITE].contains(&line.command), "{}", line.text);
            return;
        };
        let negotiated = matches!(action, Action::Negotiated { .. });
        let errno = Errno::from_raw(line.error as i32);
        let failed = line.flags & 0x20 != 0;
        // One of the recorded servers has no errno for its failures; this one sends EIO.
        let error = if failed && line.error == 0 { 5 } else { line.error };
        let session = &mut self.session;
        match action {
            Action::Negotiated { token, .. } => session.reply(token, Ok(())),
            Action::MapMemory { token, .. } => session.reply(token, Ok(())),
            Action::UnmapMemory { token, .. } => {
                session.reply(token, if failed { Err(errno) } else { Ok(()) });
            }
            Action::DescribeDevice { token } => {
                let [_, flags, regions, irqs] = line.four();
                session.reply(token, Ok(DeviceInfo { resets: flags & 1 != 0, regions, irqs }));
            }
            Action::DescribeRegion { token, .. } => {
                let flags = line.field("flags");
                let (readable, writable) = (flags & 1 != 0, flags & 2 != 0);
                session
                    .reply(token, Ok(Region { bytes: line.field("size"), readable, writable, mmap: None }));
            }
            Action::DescribeIrqs { token, .. } => {
                let [_, flags, _, count] = line.four();
                session.reply(token, Ok(IrqDescription { flags, count }));
            }
            Action::SetIrqs { token, .. } => session.reply(token, Ok(())),
            Action::ReadRegion { token, .. } => {
                let mut data = line.data();
                data.resize(line.access().2 as usize, 0);
                session.reply(token, Ok(&data));
            }
            Action::WriteRegion { token, .. } => session.reply(token, Ok(())),
            Action::Reset { token } => session.reply(token, Ok(())),
            other => panic!("{other:?}"),
        }
        let (frame, fds) = self.session.unsent().unwrap();
        assert!(fds.is_empty());
        let header = Header::read(frame.first_chunk().unwrap());
        assert_eq!((header.id, header.command), (line.id, line.command));
        assert_eq!((header.flags, header.error), (line.flags, error), "{}", line.text);
        assert_eq!(header.size as usize, frame.len(), "one frame");
        let body = &frame[16..];
        if negotiated {
            assert!(frame.len() <= 214, "QEMU has no room for a longer reply than its command");
            assert!(body.ends_with(b"}\0"));
        } else {
            assert_eq!(frame.len(), line.size, "{}", line.text);
            check_body(line, body);
        }
        let sent = frame.len();
        self.session.sent(sent);
        self.tally.replies += 1;
    }
}

/// Checks the body of a reply against the record.
fn check_body(line: &Line<'_>, body: &[u8]) {
    match line.command {
        _ if line.flags & 0x20 != 0 => assert!(body.is_empty()),
        Command::DMA_UNMAP => {
            assert_eq!(line.field("argsz"), 24);
            assert_eq!(UnmapMemory::read(body), Ok(line.unmap()));
        }
        Command::DEVICE_GET_INFO => {
            let [argsz, flags, regions, irqs] = line.four();
            assert_eq!((argsz, flags & 2), (16, 2));
            assert_eq!(DeviceInfo::read(body), Ok(DeviceInfo { resets: flags & 1 != 0, regions, irqs }));
        }
        Command::DEVICE_GET_REGION_INFO => {
            let info = RegionInfo::read(body).unwrap();
            let said = (
                u64::from(info.argsz),
                u64::from(info.flags),
                u64::from(info.index),
                info.bytes,
                info.offset,
            );
            let fields = ["argsz", "flags", "idx", "size", "off"].map(|name| line.field(name));
            assert_eq!(<[u64; 5]>::from(said), fields);
        }
        Command::DEVICE_GET_IRQ_INFO => {
            let [_, flags, index, count] = line.four();
            assert_eq!(IrqInfo::read(body), Ok(IrqInfo { index, flags, count }));
        }
        Command::REGION_READ | Command::REGION_WRITE => {
            let access = RegionAccess::read(body).unwrap();
            assert_eq!((access.offset, access.region, access.count), line.access());
            assert!(access.data.starts_with(&line.data()));
        }
        _ => assert!(body.is_empty()),
    }
}

fn replay(name: &str, piece: usize) -> Tally {
    let log = recorded::log(name);
    let mut replay = Replay {
        session: Session::new(Settings::default()),
        pending: BTreeMap::new(),
        tally: Tally::default(),
    };
    for line in log.lines().filter_map(Line::parse) {
        match (line.from_client, line.reply) {
            (true, false) => replay.client_says(&line, piece),
            (false, true) => replay.server_says(&line),
            _ => panic!("{}", line.text),
        }
    }
    replay.tally.unanswered += replay.pending.len();
    assert!(
        replay
            .pending
            .keys()
            .all(|(_, command)| [Command::REGION_READ, Command::REGION_WRITE].contains(command))
    );
    assert_eq!(replay.session.close(), Ok(()));
    replay.tally
}

/// Replays a session at once and in parts; both must have equal results.
fn expect(name: &str, expected: &Tally) {
    for piece in [usize::MAX, 1, 7] {
        let tally = replay(name, piece);
        assert_eq!(tally, *expected, "{name} in pieces of {piece}");
        println!("{name}: {tally:?}");
    }
}

#[test]
fn a_disk_with_msi_x() {
    let (messages, replies, unanswered) = (424, 239, 0);
    expect("nvme-msix", &Tally { messages, replies, unanswered, maps: 18, memories: 13, unmaps: 12 });
}

#[test]
fn a_disk() {
    let (messages, replies, unanswered) = (134, 122, 0);
    expect("nvme-plain", &Tally { messages, replies, unanswered, maps: 18, memories: 13, unmaps: 12 });
}

#[test]
fn a_disk_behind_an_iommu() {
    let (messages, replies, unanswered) = (4358, 4346, 0);
    expect("nvme-viommu", &Tally { messages, replies, unanswered, maps: 2118, memories: 2112, unmaps: 2136 });
}

#[test]
fn a_guest_that_is_reset() {
    let (messages, replies, unanswered) = (153, 153, 0);
    expect("reset", &Tally { messages, replies, unanswered, maps: 29, memories: 24, unmaps: 23 });
}

#[test]
fn memory_that_is_plugged_and_unplugged() {
    let (messages, replies, unanswered) = (129, 129, 0);
    expect("memory-hotplug", &Tally { messages, replies, unanswered, maps: 21, memories: 15, unmaps: 13 });
}

#[test]
fn memory_that_grows_and_shrinks() {
    let (messages, replies, unanswered) = (383, 383, 0);
    expect("virtio-mem", &Tally { messages, replies, unanswered, maps: 274, memories: 269, unmaps: 14 });
}
