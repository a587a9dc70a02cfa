//! Queues: wrapping, filling up, losing their memory, being deleted and reset with commands in flight.

use prereg::Iova;
use prereg_nvme::engine::async_event::AsyncEvent;
use prereg_nvme::spec::Status;

use crate::doorbells::use_shadow;
use crate::world::{ENTRIES, Guest, command, completion_at, submission_at, transfer, with_prp};

const WRITE: u8 = 1;
const READ: u8 = 2;
const DATA: u64 = 0x20_0000;
const FLUSH: [u32; 16] = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn queues_wrap_many_times() {
    let mut guest = Guest::with_queues(2);
    for round in 0..200u32 {
        let at = 1 + (round % 2) as usize;
        let batch = 1 + round % (ENTRIES - 1);
        let cids: Vec<u16> = (0..batch).map(|_| guest.put(at, FLUSH)).collect();
        guest.ring(at);
        guest.machine.run();
        let mut head = 0;
        for cid in cids {
            let end = guest.take(at).unwrap();
            assert_eq!((end.cid, end.status), (cid, Status::SUCCESS));
            head = u32::from(end.sq_head);
        }
        assert_eq!(head, guest.pairs[at].tail);
        assert_eq!(guest.take(at), None);
    }
}

#[test]
fn several_submission_queues_may_have_one_completion_queue() {
    let mut guest = Guest::with_queues(1);
    let size = (ENTRIES - 1) << 16 | 2;
    let sq = command(0x01, 0, &[(10, size), (11, 1 << 16 | 1)]);
    assert_eq!(guest.admin(with_prp(sq, submission_at(2), 0)).status, Status::SUCCESS);
    guest.pairs.push(crate::world::Pair { id: 2, tail: 0, head: 0, phase: true });
    let cids = [guest.put(1, FLUSH), guest.put(2, FLUSH)];
    guest.ring(1);
    guest.ring(2);
    guest.machine.run();
    let mut ends = [guest.take(1).unwrap(), guest.take(1).unwrap()].map(|end| (end.sq_id, end.cid));
    ends.sort_unstable();
    assert_eq!(ends, [(1, cids[0]), (2, cids[1])]);
    let delete = guest.admin(command(0x04, 0, &[(10, 1)])).status;
    assert_eq!(delete, Status::QUEUE_DELETION, "two queues are answered there");
}

#[test]
fn a_full_completion_queue_is_waited_for() {
    let mut guest = Guest::with_queues(1);
    let mut ended = 0;
    for _ in 0..3 {
        for _ in 0..ENTRIES - 1 {
            guest.put(1, FLUSH);
        }
        guest.ring(1);
        guest.machine.run();
        // The first round fills the queue; then one entry is consumed at a time.
        if guest.peek(1).is_some() {
            while guest.peek(1).is_some() {
                guest.take(1);
                ended += 1;
                guest.machine.run();
            }
        }
    }
    assert_eq!(ended, 3 * (ENTRIES - 1));
    // Without heads, no more than fits is posted, and nothing is overwritten.
    for _ in 0..ENTRIES - 1 {
        guest.put(1, FLUSH);
    }
    guest.ring(1);
    guest.machine.run();
    let first = guest.peek(1).unwrap();
    guest.put(1, FLUSH);
    guest.put(1, FLUSH);
    guest.ring(1);
    guest.machine.run();
    assert_eq!(guest.peek(1), Some(first));
    assert!(!guest.machine.signals.is_empty());
}

#[test]
fn a_full_disk_queue_is_waited_for_and_its_commands_can_be_aborted() {
    let mut guest = Guest::with_queues(1);
    guest.machine.disks.inner().room = 2;
    guest.machine.disks.inner().stuck = true;
    let cids: Vec<u16> = (0..5).map(|lba| guest.put(1, transfer(WRITE, 1, lba, 1, DATA, 0))).collect();
    guest.ring(1);
    guest.machine.run();
    assert_eq!(guest.take(1), None);
    let abort =
        |guest: &mut Guest, cid: u16| guest.admin(command(0x08, 0, &[(10, u32::from(cid) << 16 | 1)])).result;
    assert_eq!(abort(&mut guest, cids[0]), 1, "begun");
    assert_eq!(abort(&mut guest, cids[3]), 0);
    let end = guest.take(1).unwrap();
    assert_eq!((end.cid, end.status), (cids[3], Status::ABORT_REQUESTED));
    guest.machine.disks.inner().stuck = false;
    guest.machine.run();
    let ends: Vec<u16> = std::iter::from_fn(|| guest.take(1)).map(|end| end.cid).collect();
    assert_eq!(ends, [cids[0], cids[1], cids[2], cids[4]]);
    assert_eq!(guest.machine.disks.inner().done.len(), 4);
}

#[test]
fn deleting_a_submission_queue_waits_for_what_has_begun_and_aborts_the_rest() {
    let mut guest = Guest::with_queues(1);
    guest.machine.disks.inner().room = 1;
    guest.machine.disks.inner().stuck = true;
    let cids = [0, 1].map(|lba| guest.put(1, transfer(WRITE, 1, lba, 1, DATA, 0)));
    guest.ring(1);
    guest.machine.run();
    guest.put(0, command(0x00, 0, &[(10, 1)]));
    guest.ring(0);
    guest.machine.run();
    assert_eq!(guest.take(0), None, "not deleted yet");
    assert!(
        guest.machine.admin_queue.may_sleep() && guest.machine.poll_group.may_sleep(),
        "waiting costs no processor time"
    );
    let end = guest.take(1).unwrap();
    assert_eq!((end.cid, end.status), (cids[1], Status::ABORTED_BY_DELETION));
    guest.machine.disks.inner().stuck = false;
    guest.machine.run();
    assert_eq!(guest.take(1).unwrap().cid, cids[0]);
    assert_eq!(guest.take(0).unwrap().status, Status::SUCCESS);
    guest.machine.ring(2, 3);
    guest.machine.run();
    assert_eq!(guest.machine.disks.inner().done.len(), 1);
}

#[test]
fn a_submission_queue_is_deleted_although_its_completion_queue_is_full() {
    let mut guest = Guest::with_queues(1);
    for _ in 0..2 {
        for _ in 0..ENTRIES - 1 {
            guest.put(1, FLUSH);
        }
        guest.ring(1);
        guest.machine.run();
    }
    assert_eq!(guest.admin(command(0x00, 0, &[(10, 1)])).status, Status::SUCCESS);
    assert_eq!(guest.admin(command(0x04, 0, &[(10, 1)])).status, Status::SUCCESS);
}

#[test]
fn a_reset_waits_for_requests_in_flight_and_completes_none() {
    let mut guest = Guest::with_queues(1);
    guest.machine.disks.inner().room = 1;
    guest.machine.disks.inner().stuck = true;
    for lba in 0..3 {
        guest.put(1, transfer(READ, 1, lba, 1, DATA, 0));
    }
    guest.ring(1);
    guest.machine.run();
    guest.machine.write_u32(0x14, 0);
    guest.machine.run();
    assert_eq!(guest.machine.read_u32(0x1c), 1, "still ready: a transfer is under way");
    assert_eq!(guest.machine.ram.holds(), 1, "its memory, and nothing else");
    guest.machine.disks.inner().stuck = false;
    guest.machine.run();
    assert_eq!(guest.machine.read_u32(0x1c), 0);
    assert_eq!((guest.machine.ram.holds(), guest.take(1)), (0, None));
    guest.machine.ring(2, 1);
    guest.enable(0x0046_0001);
    guest.create_pair(1);
    assert_eq!(guest.io(FLUSH), Status::SUCCESS);
}

#[test]
fn a_shutdown_makes_everything_durable() {
    let mut guest = Guest::with_queues(1);
    guest.machine.disks.inner().stuck = true;
    guest.machine.write_u32(0x14, 0x0046_0001 | 1 << 14);
    guest.machine.run();
    assert_eq!(guest.machine.read_u32(0x1c), 1 | 1 << 2, "under way");
    guest.machine.disks.inner().stuck = false;
    guest.machine.run();
    assert_eq!(guest.machine.read_u32(0x1c), 1 | 2 << 2, "done");
    assert_eq!(guest.machine.disks.inner().done.len(), 3, "every disk");
}

#[test]
fn holds_of_queues_are_released_and_taken_again() {
    let mut guest = Guest::with_queues(1);
    guest.io(FLUSH);
    let holds = guest.machine.ram.holds();
    assert_eq!(holds, 4, "two pairs");
    guest.machine.poll_group.release_in(Iova::new(submission_at(1) + 64), 1);
    assert_eq!(guest.machine.ram.holds(), holds - 1);
    guest.machine.poll_group.release_in(Iova::new(0), 0);
    guest.machine.admin_queue.release_in(Iova::new(0), 0);
    assert_eq!(guest.machine.ram.holds(), 0);
    assert_eq!(guest.io(FLUSH), Status::SUCCESS);
    assert!(guest.machine.ram.holds() >= 2);
}

#[test]
fn holds_taken_while_memory_goes_are_not_kept() {
    let mut guest = Guest::with_queues(1);
    guest.machine.poll_group.release_in(Iova::new(0), 0);
    guest.machine.admin_queue.release_in(Iova::new(0), 0);
    guest.machine.ram.settle(false);
    assert_eq!(guest.io(FLUSH), Status::SUCCESS);
    assert_eq!(use_shadow(&mut guest), Status::SUCCESS);
    assert!(guest.machine.admin_queue.may_sleep() && guest.machine.poll_group.may_sleep());
    assert_eq!(guest.machine.ram.holds(), 0);
    guest.machine.ram.settle(true);
    assert_eq!(guest.io(FLUSH), Status::SUCCESS);
    assert!(guest.machine.ram.holds() > 0);
}

#[test]
fn a_queue_whose_memory_comes_back_goes_on() {
    for range in [submission_at(1)..submission_at(1) + 0x1000, completion_at(1)..completion_at(1) + 0x1000] {
        let mut guest = Guest::with_queues(1);
        guest.machine.poll_group.release_in(Iova::new(0), 0);
        guest.machine.ram.hole(range);
        let cid = guest.put(1, FLUSH);
        guest.ring(1);
        guest.machine.run();
        assert_eq!(guest.take(1), None);
        assert_eq!(
            guest.admin(command(0x06, 0, &[(10, 0x77)])).status,
            Status::INVALID_FIELD,
            "others go on"
        );
        guest.machine.ram.mend();
        guest.machine.pass(200_000_000);
        guest.machine.run();
        assert_eq!(guest.take(1).unwrap().cid, cid);
        assert_eq!(guest.machine.events, []);
    }
}

#[test]
fn a_queue_whose_memory_comes_back_late_goes_on_by_itself() {
    for (at, range) in [
        (1, submission_at(1)..submission_at(1) + 0x1000),
        (1, completion_at(1)..completion_at(1) + 0x1000),
        (0, submission_at(0)..submission_at(0) + 0x1000),
        (0, completion_at(0)..completion_at(0) + 0x1000),
    ] {
        let mut guest = Guest::with_queues(1);
        guest.machine.poll_group.release_in(Iova::new(0), 0);
        guest.machine.admin_queue.release_in(Iova::new(0), 0);
        guest.machine.ram.hole(range.clone());
        let cid = guest.put(at, command(0, 1, &[]));
        guest.ring(at);
        let mut polled = 0;
        for _ in 0..60 {
            guest.machine.run();
            // The controller says when to poll again.
            let until = guest.machine.until.expect("it looks again");
            assert!(until > guest.machine.now, "it does not spin");
            guest.machine.now = until;
            polled += 1;
        }
        assert!(guest.machine.now > 3_000_000_000, "{} after {polled}", guest.machine.now);
        assert_eq!(guest.take(at), None);
        guest.machine.ram.mend();
        guest.machine.run();
        assert_eq!(guest.take(at).map(|done| done.cid), Some(cid), "{range:x?}");
        guest.machine.run();
        assert_eq!(guest.machine.until, None, "nothing waits any more");
    }
}

#[test]
fn a_queue_whose_memory_stays_away_is_reported() {
    let mut guest = Guest::with_queues(1);
    guest.machine.poll_group.release_in(Iova::new(0), 0);
    guest.machine.ram.hole(submission_at(1)..submission_at(1) + 0x1000);
    let cid = guest.put(0, command(0x0c, 0, &[]));
    guest.ring(0);
    guest.put(1, FLUSH);
    guest.ring(1);
    for _ in 0..300 {
        guest.machine.pass(10_000_000);
        guest.machine.step();
    }
    assert_eq!(guest.machine.events, [AsyncEvent::PersistentInternalError], "once");
    let told = guest.take(0).unwrap();
    assert_eq!((told.cid, told.result), (cid, 0x0001_0300));
}

#[test]
fn interrupts_come_with_completions_and_by_their_vector() {
    let mut guest = Guest::with_queues(2);
    guest.machine.signals.clear();
    guest.io(FLUSH);
    guest.run(2, FLUSH);
    assert_eq!(guest.machine.signals, [(1, 1), (2, 2)]);
}

#[test]
fn interrupts_are_put_together_until_there_are_enough_or_time_is_up() {
    let mut guest = Guest::with_queues(1);
    // Four entries, or 1 ms.
    guest.admin(command(0x09, 0, &[(10, 8), (11, 10 << 8 | 3)]));
    guest.machine.signals.clear();
    for _ in 0..3 {
        guest.put(1, FLUSH);
        guest.ring(1);
        guest.machine.run();
    }
    assert_eq!(guest.machine.signals, []);
    guest.put(1, FLUSH);
    guest.ring(1);
    guest.machine.run();
    assert_eq!(guest.machine.signals, [(1, 1)]);
    guest.put(1, FLUSH);
    guest.ring(1);
    guest.machine.run();
    assert_eq!(guest.machine.signals.len(), 1);
    guest.machine.pass(1_000_000);
    guest.machine.run();
    assert_eq!(guest.machine.signals.len(), 2);
    // A vector can be excluded.
    guest.admin(command(0x09, 0, &[(10, 9), (11, 1 << 16 | 1)]));
    guest.machine.signals.clear();
    guest.put(1, FLUSH);
    guest.ring(1);
    guest.machine.run();
    assert_eq!(guest.machine.signals, [(1, 1)]);
}
