//! Messages that libvfio-user, the library behind most servers, accepts, and that are accepted here.
//!
//! Clients are written for that library, so everything that it accepts is accepted here, except for the rows that say
//! `Stricter`. A row is a message of a client, with its number of descriptors.

use prereg_vfio_user::Action;
use prereg_vfio_user::wire::Command;

use crate::client::{Client, command};

/// The fate of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Here {
    /// Both accept it.
    Taken,
    /// Both refuse it.
    Refused,
    /// The library accepts it; refused here for this reason.
    Stricter(&'static str),
    /// The library refuses it; accepted here for this reason.
    Milder(&'static str),
}

use Here::{Milder, Refused, Stricter, Taken};

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A body of `bytes` bytes that begins with `start`; the rest is leftover data of the client's buffer.
fn buffer(start: &[u32], bytes: usize) -> Vec<u8> {
    let mut body = words(start);
    body.resize(bytes, 0xa5);
    body
}

/// `argsz`, `flags`, then offset, address and length of a map.
fn map(argsz: u32, flags: u32, tail: usize) -> Vec<u8> {
    buffer(&[argsz, flags, 0, 0, 0x10_0000, 0, 0x1000, 0], 32 + tail)
}

fn unmap(argsz: u32, flags: u32, bytes: u32, tail: usize) -> Vec<u8> {
    let start = if flags & 2 == 0 { 0x10_0000 } else { 0 };
    buffer(&[argsz, flags, start, 0, bytes, 0], 24 + tail)
}

fn access(count: u32, data: usize) -> Vec<u8> {
    buffer(&[0, 0, 0, count], 16 + data)
}

fn rows() -> Vec<(Command, &'static str, Vec<u8>, u32, Here)> {
    const NONE: u32 = 1;
    const BOOL: u32 = 2;
    const EVENTFD: u32 = 4;
    const TRIGGER: u32 = 32;
    let irqs = |argsz, flags, count, tail: usize| buffer(&[argsz, flags, 2, 0, count], 20 + tail);
    let map_row = |what, body, fds, here| (Command::DMA_MAP, what, body, fds, here);
    let unmap_row = |what, body, fds, here| (Command::DMA_UNMAP, what, body, fds, here);
    let device = |what, body, fds, here| (Command::DEVICE_GET_INFO, what, body, fds, here);
    let region = |what, body, fds, here| (Command::DEVICE_GET_REGION_INFO, what, body, fds, here);
    let io = |what, body, fds, here| (Command::DEVICE_GET_REGION_IO_FDS, what, body, fds, here);
    let irq = |what, body, fds, here| (Command::DEVICE_GET_IRQ_INFO, what, body, fds, here);
    let set = |what, body, fds, here| (Command::DEVICE_SET_IRQS, what, body, fds, here);
    let read = |what, body, fds, here| (Command::REGION_READ, what, body, fds, here);
    let write = |what, body, fds, here| (Command::REGION_WRITE, what, body, fds, here);
    let reset = |what, body, fds, here| (Command::DEVICE_RESET, what, body, fds, here);
    let unneeded = Milder("a descriptor that is not needed harms nobody");
    vec![
        map_row("with memory", map(32, 3, 0), 1, Taken),
        map_row("without memory", map(32, 3, 0), 0, Taken),
        map_row("two descriptors", map(32, 3, 0), 2, Taken),
        map_row("a tail", map(48, 3, 16), 1, Taken),
        map_row("argsz beyond the body", map(u32::MAX, 3, 0), 1, Taken),
        map_row("to be mapped", map(32, 3 | 4, 0), 1, Taken),
        map_row("by file access", map(32, 3 | 8, 0), 1, Taken),
        map_row("to be mapped, without memory", map(32, 3 | 4, 0), 0, Refused),
        map_row("unknown flags", map(32, 3 | 16, 0), 1, Refused),
        map_row(
            "no access",
            map(32, 0, 0),
            1,
            Stricter("VFIO refuses it too: a device could do nothing there"),
        ),
        map_row("argsz below the fixed part", map(31, 3, 0), 1, Refused),
        map_row("a short body", buffer(&[32, 3], 31), 1, Refused),
        unmap_row("a range", unmap(24, 0, 0x1000, 0), 0, Taken),
        unmap_row("a descriptor", unmap(24, 0, 0x1000, 0), 1, Taken),
        unmap_row("a tail and a descriptor", unmap(40, 0, 0x1000, 16), 1, Taken),
        unmap_row("a long tail", unmap(4096, 0, 0x1000, 4072), 0, Taken),
        unmap_row("everything", unmap(24, 2, 0, 0), 0, Taken),
        unmap_row("everything, of some length", unmap(24, 2, 0x1000, 0), 0, Refused),
        unmap_row("unknown flags", unmap(24, 4, 0x1000, 0), 0, Refused),
        unmap_row(
            "a dirty bitmap",
            unmap(48, 1, 0x1000, 24),
            0,
            Stricter("dirty pages are not tracked, and migration is not offered"),
        ),
        unmap_row("argsz below the fixed part", unmap(23, 0, 0x1000, 0), 0, Refused),
        unmap_row("a short body", buffer(&[24, 0], 23), 0, Refused),
        device("16 bytes", words(&[16, 0, 0, 0]), 0, Taken),
        device("values in the reply's fields", words(&[16, 7, 8, 9]), 0, Taken),
        device("a large buffer", buffer(&[4064, 0, 0, 0], 4064), 0, Taken),
        device("a descriptor", words(&[16, 0, 0, 0]), 1, Taken),
        device("argsz below the fixed part", words(&[15, 0, 0, 0]), 0, Refused),
        device("a short body", words(&[16, 0, 0]), 0, Refused),
        region("32 bytes", buffer(&[32, 0, 0, 0, 0, 0, 0, 0], 32), 0, Taken),
        region("a buffer of 4,064 bytes", buffer(&[0xfe0, 0, 0, 0, 0, 0, 0, 0], 4064), 0, Taken),
        region("values in the reply's fields", words(&[32, 1, 0, 2, 3, 4, 5, 6]), 0, Taken),
        region("a descriptor", words(&[32, 0, 0, 0, 0, 0, 0, 0]), 3, Taken),
        region("argsz below the fixed part", words(&[31, 0, 0, 0, 0, 0, 0, 0]), 0, Refused),
        region("a short body", buffer(&[32, 0, 0], 31), 0, Refused),
        io("16 bytes", words(&[16, 0, 0, 0]), 0, Taken),
        io("a large buffer", buffer(&[1024, 0, 0, 0], 1024), 1, Taken),
        io("flags", words(&[16, 1, 0, 0]), 0, Refused),
        io("a count", words(&[16, 0, 0, 1]), 0, Refused),
        io("argsz below the fixed part", words(&[15, 0, 0, 0]), 0, Refused),
        io(
            "argsz beyond any message",
            words(&[u32::MAX, 0, 0, 0]),
            0,
            Milder("it is room, and room is not used up"),
        ),
        irq("16 bytes", words(&[16, 0, 0, 0]), 0, Taken),
        irq("a large buffer with values", buffer(&[64, 5, 0, 6], 64), 1, Taken),
        irq("argsz below the fixed part", words(&[15, 0, 0, 0]), 0, Refused),
        set("none", irqs(20, NONE | TRIGGER, 1, 0), 0, Taken),
        set("none with a tail", irqs(24, NONE | TRIGGER, 1, 4), 0, Taken),
        set("none with a descriptor", irqs(20, NONE | TRIGGER, 1, 0), 1, unneeded),
        set("booleans", irqs(22, BOOL | TRIGGER, 2, 2), 0, Taken),
        set("booleans that argsz leaves out", irqs(20, BOOL | TRIGGER, 2, 2), 0, Taken),
        set("booleans with a descriptor", irqs(22, BOOL | TRIGGER, 2, 2), 1, unneeded),
        set("fewer booleans than counted", irqs(22, BOOL | TRIGGER, 3, 2), 0, Refused),
        set("more booleans than counted", irqs(23, BOOL | TRIGGER, 2, 3), 0, Refused),
        set("eventfds", irqs(20, EVENTFD | TRIGGER, 2, 0), 2, Taken),
        set("eventfds with a tail", irqs(28, EVENTFD | TRIGGER, 2, 8), 2, Taken),
        set("eventfds taken away", irqs(20, EVENTFD | TRIGGER, 2, 0), 0, Taken),
        set("an eventfd too few", irqs(20, EVENTFD | TRIGGER, 2, 0), 1, Refused),
        set("an eventfd too many", irqs(20, EVENTFD | TRIGGER, 2, 0), 3, Refused),
        set("a kind turned off", irqs(20, NONE | TRIGGER, 0, 0), 0, Taken),
        set("two actions", irqs(20, NONE | TRIGGER | 8, 1, 0), 0, Refused),
        set("two kinds of data", irqs(20, NONE | BOOL | TRIGGER, 1, 0), 0, Refused),
        set(
            "unknown flags",
            irqs(20, 64 | NONE | TRIGGER, 1, 0),
            0,
            Stricter("VFIO refuses it too: what they ask for would not be done"),
        ),
        set("argsz below the fixed part", irqs(19, NONE | TRIGGER, 1, 0), 0, Refused),
        set("a short body", buffer(&[20, NONE | TRIGGER, 2, 0], 19), 0, Refused),
        read("4 bytes", access(4, 0), 0, Taken),
        read("a tail and a descriptor", access(4, 4), 1, Taken),
        read("nothing", access(0, 0), 0, Stricter("an access of no bytes is none")),
        read("more than the server moves", access((1 << 20) + 1, 0), 0, Refused),
        read("a short body", buffer(&[0, 0, 0], 15), 0, Refused),
        write("4 bytes", access(4, 4), 0, Taken),
        write("a descriptor", access(4, 4), 1, Taken),
        write("more data than counted", access(4, 5), 0, Refused),
        write("less data than counted", access(4, 3), 0, Refused),
        write("nothing", access(0, 0), 0, Stricter("an access of no bytes is none")),
        reset("a header", Vec::new(), 0, Taken),
        reset("a body and a descriptor", vec![0; 40], 1, Taken),
        (
            Command::new(16),
            "features of migration",
            words(&[16, 1, 0, 0]),
            0,
            Stricter("migration is not offered"),
        ),
    ]
}

#[test]
fn every_message_that_the_library_takes_is_taken() {
    for (number, what, body, fds, here) in rows() {
        let mut client = Client::new();
        let sent = client.pool.fds(fds);
        client.session.receive(&command(7, number, &body), sent).unwrap();
        let actions = client.actions();
        let refused = actions.iter().any(|action| matches!(action, Action::Refused { .. }));
        assert_eq!(refused, matches!(here, Refused | Stricter(_)), "{number:?} {what}: {actions:?}");
        assert_eq!(actions.len(), 1);
        drop(actions);
        assert_eq!(client.pool.held(), 0, "{number:?} {what}: descriptors are left");
        let frames = client.frames().len();
        assert_eq!(frames, usize::from(refused), "a refusal is answered at once");
        // The stream continues with the next message.
        assert!(matches!(client.action(&command(8, Command::DEVICE_RESET, &[]), 0), Action::Reset { .. }));
    }
}

#[test]
fn descriptors_that_were_lost_matter_only_to_a_message_that_uses_them() {
    for (number, body, lost) in [
        (Command::DMA_MAP, map(32, 3, 0), true),
        (Command::DEVICE_SET_IRQS, buffer(&[20, 0x24, 2, 0, 1], 20), true),
        (Command::DMA_UNMAP, unmap(24, 0, 0x1000, 0), false),
        (Command::DEVICE_GET_REGION_INFO, words(&[32, 0, 0, 0, 0, 0, 0, 0]), false),
        (Command::REGION_WRITE, access(4, 4), false),
    ] {
        let mut client = Client::new();
        client.session.receive_truncated(&command(7, number, &body), []).unwrap();
        let refused = matches!(client.actions()[..], [Action::Refused { .. }]);
        assert_eq!(refused, lost, "{number:?}");
    }
}
