//! Recorded sessions, line by line: see `tests/sessions/README.md`.

use prereg::{Access, Iova};
use prereg_vfio_user::wire::{Command, Header, MapMemory, RegionAccess, RegionInfo, UnmapMemory, Version};

/// The text of a session.
pub(crate) fn log(name: &str) -> String {
    let path = format!("tests/sessions/{name}.log.zst");
    let log = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    String::from_utf8(log).unwrap()
}

/// A message of a session's log.
pub(crate) struct Line<'a> {
    pub(crate) from_client: bool,
    pub(crate) id: u16,
    pub(crate) command: Command,
    pub(crate) reply: bool,
    pub(crate) flags: u32,
    pub(crate) error: u32,
    pub(crate) size: usize,
    /// The decoded body.
    pub(crate) body: &'a str,
    pub(crate) fds: usize,
    pub(crate) text: &'a str,
}

impl<'a> Line<'a> {
    /// `None` for a line without a message.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
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
    pub(crate) fn field(&self, name: &str) -> u64 {
        let words = self.body.split_whitespace().filter_map(|word| word.split_once('='));
        let (_, value) =
            words.into_iter().find(|(key, _)| *key == name).unwrap_or_else(|| panic!("{}", self.text));
        if value.starts_with("0x") { hex(value) } else { value.parse().unwrap() }
    }

    /// The four numbers of `(1, 2, 3, 4)`.
    pub(crate) fn four(&self) -> [u32; 4] {
        let list = self.body.trim_matches(['(', ')']);
        list.split(", ").map(|number| number.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap()
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        let (_, digits) = self.body.rsplit_once("data=").unwrap();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.as_bytes().chunks(2).map(byte).collect()
    }

    pub(crate) fn access(&self) -> (u64, u32, u32) {
        (self.field("off"), self.field("region") as u32, self.field("count") as u32)
    }

    pub(crate) fn unmap(&self) -> UnmapMemory {
        UnmapMemory::Range { iova: Iova::new(self.field("addr")), bytes: self.field("size") }
    }

    /// The client's message, byte for byte.
    pub(crate) fn bytes(&self) -> Vec<u8> {
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
