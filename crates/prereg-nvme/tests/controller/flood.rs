//! A guest that writes without waiting for replies: the server keeps no list of the writes, and the next client is served at
//! once.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::os::fd::AsFd;
use std::process::Command;

use prereg::{Access, Iova};
use prereg_vfio_user::client::{Client, Eventfd};
use prereg_vfio_user::wire::{
    Command as Message, Header, IrqAction, IrqSelection, MapMemory, RegionAccess, SetIrqs, UnmapMemory,
};

use crate::allocator::most_during;
use crate::driver::{Driver, FLUSH, LINUX};
use crate::fixture::{Fixture, settings};
use prereg_nvme::spec::Status;

/// Messages of a kind; a build without optimizations handles a million of all kinds in the time of the other tests.
const MESSAGES: usize = 100_000;
/// The most memory held for one client: the session's bound and its buffers.
const BOUND: usize = 2 << 20;

fn posted(command: Message, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    Header::command(1, command).without_reply().frame(&mut bytes, body);
    bytes
}

fn write(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let count = u32::try_from(data.len()).unwrap();
    posted(Message::REGION_WRITE, |out| RegionAccess { offset, region, count, data }.write(out))
}

/// Every kind of message that changes something, in pairs that undo each other where possible.
fn kinds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let (on, off) = (LINUX.to_le_bytes(), (LINUX & !1).to_le_bytes());
    let shut = (LINUX | 1 << 14).to_le_bytes();
    let irqs = |action, index, selection| {
        let set = SetIrqs { index, start: 0, count: 1, action, selection };
        posted(Message::DEVICE_SET_IRQS, |out| set.write(out))
    };
    let map = |iova| MapMemory { access: Access::ReadWrite, offset: 0, iova: Iova::new(iova), bytes: 0x1000 };
    let unmap = |iova| UnmapMemory::Range { iova: Iova::new(iova), bytes: 0x1000 };
    vec![
        ("enabling", vec![write(0, 0x14, &off), write(0, 0x14, &on)]),
        ("shutting down", vec![write(0, 0x14, &on), write(0, 0x14, &shut)]),
        ("interrupt masks", vec![write(0, 0x0c, &[0xff; 4]), write(0, 0x10, &[0xff; 4])]),
        ("admin queue registers", vec![write(0, 0x24, &[0x1f, 0, 0x1f, 0]), write(0, 0x28, &[0; 8])]),
        ("good doorbells", vec![write(0, 0x1000, &[0; 4]), write(0, 0x1004, &[0; 4])]),
        (
            "bad doorbells",
            vec![write(0, 0x1000, &[0xff; 4]), write(0, 0x1400, &[1; 4]), write(0, 0x1001, &[1; 4])],
        ),
        ("the MSI-X table", vec![write(0, 0x200c, &[1, 0, 0, 0]), write(0, 0x200c, &[0; 4])]),
        ("the command register", vec![write(7, 4, &[2, 0]), write(7, 4, &[6, 4])]),
        ("all of the configuration space", vec![write(7, 0, &[0xff; 64]), write(7, 0, &[0; 64])]),
        ("resets", vec![posted(Message::DEVICE_RESET, |_| ())]),
        (
            "maps",
            vec![
                posted(Message::DMA_MAP, |out| map(1 << 30).write(out)),
                posted(Message::DMA_UNMAP, |out| unmap(1 << 30).write(out)),
            ],
        ),
        ("unmaps of nothing", vec![posted(Message::DMA_UNMAP, |out| unmap(1 << 40).write(out))]),
        (
            "masks of interrupts",
            vec![irqs(IrqAction::Mask, 2, IrqSelection::All), irqs(IrqAction::Unmask, 2, IrqSelection::All)],
        ),
        ("interrupts by the client", vec![irqs(IrqAction::Trigger, 2, IrqSelection::All)]),
        ("eventfds taken away", vec![irqs(IrqAction::Trigger, 2, IrqSelection::Eventfds)]),
        ("refused messages", vec![posted(Message::new(77), |_| ()), write(0, u64::MAX - 8, &[1; 4])]),
    ]
}

const NAME: &str = "flood::a_flood_of_messages_needs_bounded_memory_and_the_next_client_is_served";
/// Set in the process that is measured.
const MEASURED: &str = "PREREG_FLOOD_MEASURED";

/// Runs in a process of its own: the other tests of this program allocate meanwhile.
#[test]
fn a_flood_of_messages_needs_bounded_memory_and_the_next_client_is_served() {
    if std::env::var_os(MEASURED).is_some() {
        return flood();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(MEASURED, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{failed}");
    print!("{said}");
}

fn flood() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    for (kind, messages) in kinds() {
        let mut driver = Driver::ready(&fixture, 1);
        let told = Eventfd::new().unwrap();
        driver.client.set_eventfds(2, 0, &[told.as_fd()]).unwrap();
        let batch: Vec<u8> = messages.iter().cycle().take(1000).flatten().copied().collect();
        let grown = most_during(|| {
            for _ in 0..MESSAGES / 1000 {
                driver.client.send_raw(&batch, &[]).unwrap();
            }
        });
        assert!(grown < BOUND, "{kind}: {grown} bytes more");
        drop(driver);
        let mut next = Driver::ready(&fixture, 1);
        assert_eq!(next.io(FLUSH), Status::SUCCESS, "after {kind}");
    }
    // Requests that were not executed do not delay the end.
    let mut last = Client::connect(&fixture.path).unwrap();
    last.send_raw(&write(0, 0x14, &LINUX.to_le_bytes()).repeat(1000), &[]).unwrap();
    drop(fixture);
}
