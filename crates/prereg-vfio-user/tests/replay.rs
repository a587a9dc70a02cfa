//! Recorded sessions of the real client: every message of QEMU is built again, understood, and answered with the frame
//! that the recorded server sent.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

use std::collections::BTreeMap;
use std::path::Path;

use prereg::{Access, Errno, Iova};
use prereg_vfio_user::wire::{
    Command, DeviceInfo, Header, IrqInfo, MapMemory, RegionAccess, RegionInfo, UnmapMemory, Version,
};
use prereg_vfio_user::{Action, IrqTargets, Irqs, Region, Session, Settings};

/// A message of a session's log.
struct Line<'a> {
    from_client: bool,
    id: u16,
    command: Command,
    reply: bool,
    flags: u32,
    error: u32,
    size: usize,
    /// The decoded body.
    body: &'a str,
    fds: usize,
    text: &'a str,
}

impl<'a> Line<'a> {
    /// `None` for a line that is no message.
    fn parse(text: &'a str) -> Option<Self> {
        let (head, tail) = text.split_once(" sz=")?;
        let mut words = head.split_whitespace().skip(1);
        let from_client = words.next()? == "C>S";
        let id = words.next()?.strip_prefix("id=")?.parse().unwrap();
        let command = command_named(words.next()?);
        let reply = words.next()? == "REPLY";
        let flags = hex(words.next()?.strip_prefix("fl=")?);
        let error =
            words.find_map(|word| word.strip_prefix("ERR=")).map_or(0, |error| error.parse().unwrap());
        let (size, body) = tail.split_once(' ').unwrap();
        let (body, fds) = match body.split_once(" FDS=[") {
            None => (body, 0),
            Some((body, list)) => (body, list.split(", ").count()),
        };
        let size = size.parse().unwrap();
        Some(Self { from_client, id, command, reply, flags: flags as u32, error, size, body, fds, text })
    }

    /// The number after `name=`.
    fn field(&self, name: &str) -> u64 {
        let words = self.body.split_whitespace().filter_map(|word| word.split_once('='));
        let (_, value) =
            words.into_iter().find(|(key, _)| *key == name).unwrap_or_else(|| panic!("{}", self.text));
        if value.starts_with("0x") { hex(value) } else { value.parse().unwrap() }
    }

    /// The four numbers of `(1, 2, 3, 4)`.
    fn four(&self) -> [u32; 4] {
        let list = self.body.trim_matches(['(', ')']);
        list.split(", ").map(|number| number.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap()
    }

    fn data(&self) -> Vec<u8> {
        let (_, digits) = self.body.rsplit_once("data=").unwrap();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.as_bytes().chunks(2).map(byte).collect()
    }

    fn access(&self) -> (u64, u32, u32) {
        (self.field("off"), self.field("region") as u32, self.field("count") as u32)
    }

    fn unmap(&self) -> UnmapMemory {
        UnmapMemory::Range { iova: Iova::new(self.field("addr")), bytes: self.field("size") }
    }

    /// The client's message, byte for byte.
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut header = Header::command(self.id, self.command);
        header.flags = self.flags;
        header.frame(&mut out, |out| match self.command {
            Command::VERSION => {
                let (_, json) = self.body.split_once(") ").unwrap();
                let mut data = json.as_bytes().to_vec();
                data.resize(self.size - 20, 0);
                Version { major: 0, minor: 0, data: &data }.write(out);
            }
            Command::DMA_MAP => {
                let access = Access::from_bits(self.field("flags")).unwrap();
                let (offset, iova, bytes) =
                    (self.field("off"), Iova::new(self.field("addr")), self.field("size"));
                MapMemory { access, offset, iova, bytes }.write(out);
            }
            Command::DMA_UNMAP => {
                assert_eq!(self.field("flags"), 0);
                self.unmap().write(out);
            }
            Command::DEVICE_GET_INFO | Command::DEVICE_GET_IRQ_INFO => {
                out.extend(self.four().iter().flat_map(|word| word.to_ne_bytes()));
            }
            Command::DEVICE_GET_REGION_INFO => {
                RegionInfo::write_command(self.field("idx") as u32, self.field("argsz") as u32, out);
            }
            Command::DEVICE_SET_IRQS => {
                let fields = ["argsz", "flags", "idx", "start", "count"];
                out.extend(fields.iter().flat_map(|name| (self.field(name) as u32).to_ne_bytes()));
                out.extend(self.data());
            }
            Command::REGION_READ | Command::REGION_WRITE => {
                let ((offset, region, count), data) = (self.access(), self.data());
                RegionAccess { offset, region, count, data: &data }.write(out);
            }
            Command::DEVICE_RESET => {}
            other => panic!("{other} is in no session"),
        });
        assert_eq!(out.len(), self.size, "{}", self.text);
        out
    }
}

fn hex(number: &str) -> u64 {
    u64::from_str_radix(number.strip_prefix("0x").unwrap(), 16).unwrap()
}

fn command_named(name: &str) -> Command {
    let full = match name {
        "GET_REGION_INFO" | "GET_IRQ_INFO" | "SET_IRQS" => format!("DEVICE_{name}"),
        _ => name.to_owned(),
    };
    (0..20)
        .map(Command::new)
        .find(|command| command.name() == Some(&full))
        .unwrap_or_else(|| panic!("{name}"))
}

/// What a session asked for and was answered.
#[derive(Default, PartialEq, Eq, Debug)]
struct Tally {
    messages: usize,
    replies: usize,
    /// Requests whose reply is not in the log: of accesses it has only the first.
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

    /// The action has what the message says.
    fn check(&mut self, line: &Line<'_>, action: &Action<usize>) {
        match action {
            Action::Negotiated(_) => assert_eq!(line.command, Command::VERSION),
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

    /// Says what the recorded server said, and compares the frame with the record.
    fn server_says(&mut self, line: &Line<'_>) {
        let Some(action) = self.pending.remove(&(line.id, line.command)) else {
            assert!([Command::REGION_READ, Command::REGION_WRITE].contains(&line.command), "{}", line.text);
            return;
        };
        let negotiated = matches!(action, Action::Negotiated(_));
        let errno = Errno::from_raw(line.error as i32);
        let failed = line.flags & 0x20 != 0;
        // One of the recorded servers has no errno for its failures; ours says EIO then.
        let error = if failed && line.error == 0 { 5 } else { line.error };
        let session = &mut self.session;
        match action {
            Action::Negotiated(_) => {}
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
                session.reply(token, Ok(Irqs { flags, count }));
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

/// The reply's body has what the record says.
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
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/sessions/{name}.log.zst"));
    let log = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    let log = String::from_utf8(log).unwrap();
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

/// Replays a session whole and in pieces; both must be the same.
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
