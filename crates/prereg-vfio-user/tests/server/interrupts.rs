//! DEVICE_SET_IRQS, and a device's interrupts.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use prereg_vfio_user::client::{Client, ClientError, Eventfd};
use prereg_vfio_user::server::IrqKind;
use prereg_vfio_user::wire::{IrqAction, IrqSelection, SetIrqs};

use crate::fixture::{Fixture, wrong_descriptors};

const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;
const ERR: u32 = 3;

fn eventfds(count: usize) -> Vec<Eventfd> {
    (0..count).map(|_| Eventfd::new().unwrap()).collect()
}

fn lent(eventfds: &[Eventfd]) -> Vec<BorrowedFd<'_>> {
    eventfds.iter().map(AsFd::as_fd).collect()
}

fn set(
    client: &mut Client,
    (index, start, count): (u32, u32, u32),
    action: IrqAction,
    selection: IrqSelection<'_>,
    eventfds: &[BorrowedFd<'_>],
) -> i32 {
    match client.set_irqs(&SetIrqs { index, start, count, action, selection }, eventfds) {
        Ok(()) => 0,
        Err(ClientError::Refused { errno, .. }) => errno.raw(),
        Err(other) => panic!("{other}"),
    }
}

use IrqAction::{Mask, Trigger, Unmask};
use IrqSelection::{All, Each, Eventfds};

#[test]
fn vectors_are_set_one_by_one_and_cleared_one_by_one() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    let told = eventfds(3);
    client.set_eventfds(MSIX, 5, &lent(&told)).unwrap();
    assert!(!interrupts.enabled(IrqKind::Msix, 4) && interrupts.enabled(IrqKind::Msix, 7));
    assert!(interrupts.trigger(IrqKind::Msix, 6) && !interrupts.trigger(IrqKind::Msix, 8));
    assert_eq!([told[0].take(), told[1].take(), told[2].take()], [0, 1, 0]);
    assert_eq!(set(&mut client, (MSIX, 6, 1), Trigger, Eventfds, &[]), 0);
    assert!(!interrupts.trigger(IrqKind::Msix, 6) && interrupts.trigger(IrqKind::Msix, 7));
    client.clear_irqs(MSIX).unwrap();
    assert!(!interrupts.trigger(IrqKind::Msix, 7));
    client.clear_irqs(MSIX).unwrap();
}

#[test]
fn a_client_can_trigger_its_own_eventfds() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let told = eventfds(4);
    assert_eq!(set(&mut client, (MSI, 0, 4), Trigger, All, &[]), 22, "nobody is told");
    client.set_eventfds(MSI, 0, &lent(&told)).unwrap();
    assert_eq!(set(&mut client, (MSI, 1, 2), Trigger, All, &[]), 0);
    assert_eq!(set(&mut client, (MSI, 0, 4), Trigger, Each(&[1, 0, 1, 0]), &[]), 0);
    assert_eq!([0, 1, 2, 3].map(|at: usize| told[at].take()), [1, 1, 2, 0]);
}

#[test]
fn what_vfio_refuses_is_refused() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let two = eventfds(2);
    let two = lent(&two);
    for index in [ERR, 4] {
        assert_eq!(set(&mut client, (index, 0, 1), Mask, All, &[]), 25, "no mask of {index}");
        assert_eq!(set(&mut client, (index, 0, 1), Unmask, All, &[]), 25);
    }
    for index in [MSI, MSIX] {
        assert_eq!(
            set(&mut client, (index, 0, 1), Unmask, Eventfds, &two[..1]),
            25,
            "a message has no switch"
        );
    }
    for range in [(MSI, 4, 1), (MSI, 3, 2), (MSIX, 64, 1), (ERR, 1, 1), (INTX, 1, 1), (5, 0, 1)] {
        assert_eq!(set(&mut client, range, Trigger, All, &[]), 22, "{range:?}");
    }
    assert_eq!(set(&mut client, (MSI, 3, 2), Trigger, Eventfds, &two), 22);
    assert_eq!(set(&mut client, (u32::MAX, 0, 0), Trigger, All, &[]), 22);
}

#[test]
fn descriptors_that_are_no_eventfds_are_refused_and_closed() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let good = Eventfd::new().unwrap();
    for (kind, wrong) in wrong_descriptors(fixture.folder.path()) {
        if kind == "eventfd" {
            continue;
        }
        assert_eq!(client.set_eventfds(MSIX, 0, &[wrong.as_fd()]).unwrap_err().errno().raw(), 22, "{kind}");
        let both = [good.as_fd(), wrong.as_fd()];
        assert_eq!(client.set_eventfds(MSIX, 0, &both).unwrap_err().errno().raw(), 22);
        let unmask = set(&mut client, (INTX, 0, 1), Unmask, Eventfds, &[wrong.as_fd()]);
        assert_eq!(unmask, 22, "{kind}");
    }
    assert!(!fixture.probes.device(0).bus.interrupts.enabled(IrqKind::Msix, 0), "all of them or none");
}

#[test]
fn intx_is_sent_once_until_it_is_unmasked_and_again_if_it_is_still_asserted() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    let told = Eventfd::new().unwrap();
    interrupts.set_level(true);
    client.set_eventfds(INTX, 0, &[told.as_fd()]).unwrap();
    assert_eq!(told.take(), 1, "asserted before anybody was told");
    interrupts.set_level(true);
    assert_eq!(told.take(), 0, "it masked itself");
    assert_eq!(set(&mut client, (INTX, 0, 1), Unmask, All, &[]), 0);
    assert_eq!(told.take(), 1, "still asserted");
    interrupts.set_level(false);
    assert_eq!(set(&mut client, (INTX, 0, 1), Unmask, Each(&[1]), &[]), 0);
    assert_eq!(told.take(), 0);
    assert_eq!(set(&mut client, (INTX, 0, 1), Mask, All, &[]), 0);
    interrupts.set_level(true);
    assert_eq!(told.take(), 0, "masked by the client");
    assert_eq!(set(&mut client, (INTX, 0, 1), Unmask, Each(&[0]), &[]), 0);
    assert_eq!(told.take(), 0, "a 0 unmasks nothing");
    assert_eq!(set(&mut client, (INTX, 0, 1), Unmask, All, &[]), 0);
    assert_eq!(told.take(), 1);
}

#[test]
fn intx_is_unmasked_by_an_eventfd_as_well() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    let (told, unmask) = (Eventfd::new().unwrap(), Eventfd::new().unwrap());
    client.set_eventfds(INTX, 0, &[told.as_fd()]).unwrap();
    assert_eq!(set(&mut client, (INTX, 0, 1), Unmask, Eventfds, &[unmask.as_fd()]), 0);
    interrupts.set_level(true);
    assert_eq!(told.take(), 1);
    for _ in 0..3 {
        unmask.add();
        assert_eq!(told.wait(Duration::from_secs(60)), 1, "still asserted");
    }
    interrupts.set_level(false);
    unmask.add();
    client.device_info().unwrap();
    assert_eq!(set(&mut client, (INTX, 0, 1), Unmask, Eventfds, &[]), 0);
    client.clear_irqs(INTX).unwrap();
    interrupts.set_level(true);
    assert_eq!(told.take(), 0);
}

#[test]
fn intx_is_masked_by_an_eventfd_as_well() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    let [told, mask, unmask] = [0, 1, 2].map(|_| Eventfd::new().unwrap());
    client.set_eventfds(INTX, 0, &[told.as_fd()]).unwrap();
    assert_eq!(set(&mut client, (INTX, 0, 1), Mask, Eventfds, &[mask.as_fd()]), 0);
    assert_eq!(set(&mut client, (INTX, 0, 1), Unmask, Eventfds, &[unmask.as_fd()]), 0);
    mask.add();
    // The thread that waits for requests sees the eventfd with the next request at the latest.
    client.device_info().unwrap();
    interrupts.set_level(true);
    assert_eq!(told.take(), 0, "masked");
    unmask.add();
    assert_eq!(told.wait(Duration::from_secs(60)), 1);
}

#[test]
fn messages_are_masked_and_unmasked_one_by_one() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    for (index, kind) in [(MSI, IrqKind::Msi), (MSIX, IrqKind::Msix)] {
        let told = eventfds(4);
        client.set_eventfds(index, 0, &lent(&told)).unwrap();
        assert_eq!(set(&mut client, (index, 1, 2), Mask, All, &[]), 0);
        for vector in 0..4 {
            assert!(interrupts.trigger(kind, vector));
        }
        assert_eq!([0, 1, 2, 3].map(|at: usize| told[at].take()), [1, 0, 0, 1]);
        assert_eq!(
            [0, 1, 2, 3].map(|vector| interrupts.is_pending(kind, vector)),
            [false, true, true, false]
        );
        assert_eq!(set(&mut client, (index, 0, 4), Unmask, Each(&[1, 0, 1, 1]), &[]), 0);
        assert_eq!([0, 1, 2, 3].map(|at: usize| told[at].take()), [0, 0, 1, 0]);
        assert!(interrupts.is_pending(kind, 1) && !interrupts.is_pending(kind, 2));
        assert_eq!(set(&mut client, (index, 0, 4), Unmask, All, &[]), 0);
        assert_eq!(told[1].take(), 1);
    }
}

#[test]
fn a_message_without_an_eventfd_waits_for_one_and_is_one_message() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    for _ in 0..1_000_000 {
        assert!(!interrupts.trigger(IrqKind::Msix, 63));
    }
    assert!(!interrupts.trigger(IrqKind::Msix, 64) && !interrupts.is_pending(IrqKind::Msix, 64), "not there");
    client.clear_irqs(MSIX).unwrap();
    assert!(interrupts.is_pending(IrqKind::Msix, 63), "turned off and on again to change another");
    let told = Eventfd::new().unwrap();
    client.set_eventfds(MSIX, 63, &[told.as_fd()]).unwrap();
    assert_eq!(told.take(), 1);
    // With another event to wait for.
    interrupts.set_device_masks(IrqKind::Msix, |vector| vector == 63);
    assert!(interrupts.trigger(IrqKind::Msix, 63));
    assert_eq!(set(&mut client, (MSIX, 63, 1), Mask, All, &[]), 0);
    interrupts.set_device_masks(IrqKind::Msix, |_| false);
    assert_eq!(told.take(), 0, "still masked by the client");
    assert_eq!(set(&mut client, (MSIX, 63, 1), Unmask, All, &[]), 0);
    assert_eq!(told.take(), 1);
    interrupts.set_device_masks(IrqKind::Msix, |_| true);
    interrupts.trigger(IrqKind::Msix, 63);
    interrupts.clear_pending();
    interrupts.set_device_masks(IrqKind::Msix, |_| false);
    assert_eq!(told.take(), 0, "forgotten by a reset");
}

#[test]
fn no_message_is_lost_while_its_eventfd_is_replaced_again_and_again() {
    const ROUNDS: u64 = 2000;
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    let pair = eventfds(2);
    let mut told = 0;
    for round in 0..ROUNDS {
        let trigger = || assert!(interrupts.trigger(IrqKind::Msix, 0) || round == 0);
        let before = told;
        std::thread::scope(|scope| {
            scope.spawn(trigger);
            client.set_eventfds(MSIX, 0, &[pair[(round % 2) as usize].as_fd()]).unwrap();
        });
        told += pair[0].take() + pair[1].take();
        assert_eq!(told, before + 1, "round {round}");
    }
}

#[test]
fn errors_and_requests_have_one_line_each() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    let told = Eventfd::new().unwrap();
    for (index, kind) in [(ERR, IrqKind::Err), (4, IrqKind::Req)] {
        client.set_eventfds(index, 0, &[told.as_fd()]).unwrap();
        assert!(interrupts.trigger(kind, 0));
        assert_eq!(told.take(), 1);
        assert_eq!(set(&mut client, (index, 0, 1), Trigger, Eventfds, &[]), 0);
        assert!(!interrupts.trigger(kind, 0));
    }
}

#[test]
fn a_full_eventfd_blocks_no_thread() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    let told = Eventfd::new().unwrap();
    client.set_eventfds(MSIX, 0, &[told.as_fd()]).unwrap();
    use std::io::Write;
    let mut file = std::fs::File::from(told.as_fd().try_clone_to_owned().unwrap());
    file.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    assert!(interrupts.trigger(IrqKind::Msix, 0));
    drop(client);
    fixture.settle();
    assert!(!interrupts.trigger(IrqKind::Msix, 0), "nobody is told when the client is gone");
}

#[test]
fn a_full_eventfd_that_is_made_to_wait_afterwards_holds_no_thread_up() {
    use std::io::Write;
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    let told = Eventfd::new().unwrap();
    client.set_eventfds(MSIX, 0, &[told.as_fd()]).unwrap();
    let another = || told.as_fd().try_clone_to_owned().unwrap();
    std::fs::File::from(another()).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    // The flag belongs to the open file, so it changes for the server too; this call sets it on descriptors of any kind.
    std::os::unix::net::UnixStream::from(another()).set_nonblocking(false).unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        interrupts.trigger(IrqKind::Msix, 0);
        done.send(()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(60)), Ok(()), "the trigger waits for the client");
    assert!(told.take() >= u64::MAX - 1);
}

#[test]
fn one_eventfd_does_not_both_signal_and_unmask_intx() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let (both, other) = (Eventfd::new().unwrap(), Eventfd::new().unwrap());
    client.set_eventfds(INTX, 0, &[both.as_fd()]).unwrap();
    assert_eq!(set(&mut client, (INTX, 0, 1), Unmask, Eventfds, &[both.as_fd()]), 22);
    assert_eq!(set(&mut client, (INTX, 0, 1), Mask, Eventfds, &[both.as_fd()]), 0, "masking ends by itself");
    assert_eq!(set(&mut client, (INTX, 0, 1), Unmask, Eventfds, &[other.as_fd()]), 0);
    assert_eq!(set(&mut client, (INTX, 0, 1), Trigger, Eventfds, &[other.as_fd()]), 22);
    client.set_eventfds(INTX, 0, &[both.as_fd()]).unwrap();
}
