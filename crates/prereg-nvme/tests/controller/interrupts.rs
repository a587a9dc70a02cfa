//! All kinds of interrupts and doorbells.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::os::fd::AsFd;
use std::time::Duration;

use prereg_nvme::controller::{DoorbellMode, InterruptKinds};
use prereg_nvme::spec::Status;
use prereg_vfio_user::client::Eventfd;
use prereg_vfio_user::wire::{IrqAction, IrqSelection, SetIrqs};

use crate::driver::{DATA, Driver, ENTRIES, FLUSH, command, transfer, with_prp};
use crate::fixture::{Fixture, settings, until};

const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;
/// Longer than any completion takes; a test that passes never waits for it.
const LONG: Duration = Duration::from_secs(60);

fn connect_eventfds(driver: &mut Driver, kind: u32, count: usize) -> Vec<Eventfd> {
    let eventfds: Vec<Eventfd> = (0..count).map(|_| Eventfd::new().unwrap()).collect();
    let lent: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
    driver.client.set_eventfds(kind, 0, &lent).unwrap();
    eventfds
}

#[test]
fn each_completion_queue_has_its_message() {
    for kind in [MSIX, MSI] {
        let Some(fixture) = Fixture::new(settings()) else { return };
        let mut driver = Driver::connect(&fixture);
        let eventfds = connect_eventfds(&mut driver, kind, 5);
        driver.enable();
        for id in 1..=4 {
            driver.create_pair(id);
        }
        assert!(eventfds[0].wait(LONG) >= 1, "the admin queue");
        for (queue, eventfd) in eventfds.iter().enumerate().skip(1) {
            driver.put(queue, FLUSH);
            driver.ring(queue);
            assert_eq!(eventfd.wait(LONG), 1);
            assert_eq!(driver.take(queue).status, Status::SUCCESS);
        }
        for eventfd in &eventfds[1..] {
            assert_eq!(eventfd.take(), 0, "and no other");
        }
    }
}

#[test]
fn a_message_without_an_eventfd_is_sent_later() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    let eventfds = connect_eventfds(&mut driver, MSIX, 2);
    driver.enable();
    driver.create_pair(1);
    driver.client.clear_irqs(MSIX).unwrap();
    driver.put(1, FLUSH);
    driver.ring(1);
    until("it is done", || driver.peek(1).is_some());
    let lent: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
    driver.client.set_eventfds(MSIX, 0, &lent).unwrap();
    assert_eq!(eventfds[1].wait(LONG), 1);
    driver.take(1);
}

#[test]
fn kinds_can_be_left_out() {
    for (intx, msi, msix) in
        [(true, false, false), (false, true, false), (false, false, true), (false, false, false)]
    {
        let mut settings = settings();
        settings.interrupts = InterruptKinds { intx, msi, msix };
        let Some(fixture) = Fixture::new(settings) else { return };
        let mut driver = Driver::connect(&fixture);
        let counts = [INTX, MSI, MSIX].map(|kind| driver.client.irq_info(kind).unwrap().count);
        assert_eq!(counts, [u32::from(intx), if msi { 8 } else { 0 }, if msix { 5 } else { 0 }]);
        let mut pin = [0];
        driver.client.region_read(7, 0x3d, &mut pin).unwrap();
        assert_eq!(pin[0], u8::from(intx));
        driver.enable();
        assert_eq!(driver.admin(with_prp(command(6, 0, &[(10, 1)]), DATA, 0)).status, Status::SUCCESS);
        let commands = driver.get(DATA, 4096)[257];
        assert_eq!(commands & 1 != 0, msi || msix, "Doorbell Buffer Config does not suit the pin");
        driver.create_pair_with(1, 0);
        assert_eq!(driver.io(FLUSH), Status::SUCCESS, "polled");
    }
}

pub(crate) fn unmask(driver: &mut Driver) {
    let set =
        SetIrqs { index: INTX, start: 0, count: 1, action: IrqAction::Unmask, selection: IrqSelection::All };
    driver.client.set_irqs(&set, &[]).unwrap();
}

#[test]
fn the_pin_is_up_until_heads_catch_up() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    let pin = connect_eventfds(&mut driver, INTX, 1);
    driver.enable();
    driver.create_pair_with(1, 0);
    assert!(pin[0].wait(LONG) >= 1);
    // As a driver does: consume everything, then unmask INTx.
    unmask(&mut driver);
    let status = |driver: &mut Driver| {
        let mut status = [0; 2];
        driver.client.region_read(7, 6, &mut status).unwrap();
        status[0] >> 3 & 1
    };
    assert_eq!((pin[0].take(), status(&mut driver)), (0, 0), "nothing is unread");
    driver.put(1, FLUSH);
    driver.put(1, FLUSH);
    driver.ring(1);
    until("both are done", || driver.peek(1).is_some());
    assert_eq!(pin[0].wait(LONG), 1);
    assert_eq!(driver.take(1).status, Status::SUCCESS);
    until("the second is done", || driver.peek(1).is_some());
    assert_eq!(status(&mut driver), 1);
    unmask(&mut driver);
    assert_eq!(pin[0].wait(LONG), 1, "one is unread, so it speaks again");
    driver.take(1);
    unmask(&mut driver);
    assert_eq!((status(&mut driver), pin[0].take()), (0, 0), "heads have caught up");
    // Masked by INTMS.
    driver.write_u32(0x0c, 1);
    driver.put(1, FLUSH);
    driver.ring(1);
    until("it is done", || driver.peek(1).is_some());
    // After a round trip on the admin queue the I/O thread has reported its interrupts.
    assert_eq!(status(&mut driver), 0);
    driver.write_u32(0x10, 1);
    assert_eq!(pin[0].wait(LONG), 1);
    assert_eq!(status(&mut driver), 1);
    driver.take(1);
    driver.disable();
    unmask(&mut driver);
    assert_eq!((status(&mut driver), pin[0].take()), (0, 0));
}

#[test]
fn a_thousand_interrupts_by_the_pin_lose_none_and_invent_none() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    let pin = connect_eventfds(&mut driver, INTX, 1);
    driver.enable();
    driver.create_pair_with(1, 0);
    driver.create_pair_with(2, 0);
    // The admin queue's interrupt.
    until("the admin queue is quiet", || {
        unmask(&mut driver);
        pin[0].take() == 0
    });
    for round in 0..500 {
        let batch = 1 + round % 3;
        for queue in 1..=2 {
            for _ in 0..batch {
                driver.put(queue, FLUSH);
            }
            driver.ring(queue);
        }
        let mut left = [batch, batch];
        while left != [0, 0] {
            assert!(pin[0].wait(LONG) > 0, "round {round}: {left:?} are missing");
            let mut taken = 0;
            for queue in 1..=2 {
                while driver.peek(queue).is_some() {
                    driver.take(queue);
                    left[queue - 1] -= 1;
                    taken += 1;
                }
            }
            assert!(taken > 0, "round {round}: an interrupt without a completion");
            unmask(&mut driver);
        }
    }
}

#[test]
fn mapped_doorbells_are_polled() {
    let mut settings = settings();
    settings.doorbells = DoorbellMode::Mapped;
    let Some(fixture) = Fixture::new(settings) else { return };
    let mut driver = Driver::connect(&fixture);
    driver.map_doorbells();
    driver.enable();
    driver.create_pair(1);
    driver.create_pair(2);
    for round in 0..200u64 {
        let queue = 1 + (round % 2) as usize;
        let data = driver.fill(DATA, 4096, round);
        assert_eq!(driver.run(queue, transfer(1, 1, round * 8, 8, DATA, 0)).status, Status::SUCCESS);
        driver.ram.write(DATA, &[0; 4096]).unwrap();
        assert_eq!(driver.run(queue, transfer(2, 1, round * 8, 8, DATA, 0)).status, Status::SUCCESS);
        assert!(driver.get(DATA, 4096) == data);
    }
    assert_eq!(fixture.model.snapshot()[0].doorbells, 0, "none came as a message");
    driver.ring_raw(2, 0xffff_ffff);
    driver.ring_raw(9, 77);
    let cid = driver.put(0, command(0x0c, 0, &[]));
    driver.ring(0);
    assert_eq!(driver.take(0).cid, cid, "an event: a value that cannot be");
    driver.ring(1);
    assert_eq!(driver.io(FLUSH), Status::SUCCESS);
    // After a reset the page is zero again.
    driver.disable();
    driver.enable();
    driver.create_pair(1);
    assert_eq!(driver.io(FLUSH), Status::SUCCESS);
}

#[test]
fn after_doorbell_buffer_config_a_driver_may_go_on_with_registers() {
    const SHADOW: u64 = 0x7_0000;
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::ready(&fixture, 2);
    let config = with_prp(command(0x7c, 0, &[]), SHADOW, SHADOW + 0x1000);
    assert_eq!(driver.admin(config).status, Status::SUCCESS);
    for round in 0..3 * ENTRIES {
        // Tails by register in both queues; the second one's heads by both, as some drivers do.
        assert_eq!(driver.run(1, FLUSH).status, Status::SUCCESS, "round {round}");
        driver.ram.write(SHADOW + 2 * 8 + 4, &driver.head(2).to_le_bytes()).unwrap();
        assert_eq!(driver.run(2, FLUSH).status, Status::SUCCESS, "round {round}");
    }
}

#[test]
fn shadow_doorbells_need_a_ring_only_when_it_was_asked_for() {
    const SHADOW: u64 = 0x7_0000;
    const EVENTS: u64 = 0x7_1000;
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::ready(&fixture, 2);
    assert_eq!(driver.admin(with_prp(command(0x7c, 0, &[]), SHADOW, EVENTS)).status, Status::SUCCESS);
    let word = |driver: &Driver, at: u64| {
        let bytes = driver.get(at, 4);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    };
    let mut rings = 0;
    for round in 0..300 {
        let queue = 1 + round % 2;
        let old = driver.tail(queue);
        for _ in 0..1 + round % 4 {
            driver.put(queue, FLUSH);
        }
        let (new, at) = (driver.tail(queue), queue as u64 * 8);
        driver.ram.write(SHADOW + at, &new.to_le_bytes()).unwrap();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let event = word(&driver, EVENTS + at);
        // With 16-bit arithmetic, as in the specification.
        if (new.wrapping_sub(event).wrapping_sub(1) & 0xffff) < (new.wrapping_sub(old) & 0xffff) {
            driver.ring(queue);
            rings += 1;
        }
        for taken in 0..1 + round % 4 {
            assert_eq!(driver.take(queue).status, Status::SUCCESS, "round {round}, {taken} taken");
            // Heads have shadow doorbells too.
            let head = driver.head(queue);
            driver.ram.write(SHADOW + at + 4, &head.to_le_bytes()).unwrap();
        }
    }
    assert!(rings > 0);
}
