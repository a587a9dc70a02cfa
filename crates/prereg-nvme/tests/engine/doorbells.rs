//! Doorbells by register and shadow doorbells, alone, together and in turn.

use prereg::Iova;
use prereg_nvme::engine::async_event::AsyncEvent;
use prereg_nvme::engine::doorbell::SETTLE_TIME;
use prereg_nvme::spec::Status;

use crate::world::{ENTRIES, Guest, command, with_prp};

const FLUSH: [u32; 16] = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const SHADOW: u64 = 0x18_0000;
const EVENTS: u64 = 0x18_1000;

pub(crate) fn use_shadow(guest: &mut Guest) -> Status {
    guest.admin(with_prp(command(0x7c, 0, &[]), SHADOW, EVENTS)).status
}

#[test]
fn shadow_doorbells_replace_doorbells() {
    let mut guest = Guest::with_queues(1);
    guest.io(FLUSH);
    assert_eq!(use_shadow(&mut guest), Status::SUCCESS);
    assert_eq!(guest.machine.ram.get_u32(SHADOW + 8), 1, "begins where the queue is");
    let cid = guest.put(1, FLUSH);
    guest.machine.ram.put(SHADOW + 8, &2u32.to_le_bytes());
    guest.machine.run();
    assert_eq!(guest.take(1).unwrap().cid, cid, "nothing was rung");
    guest.machine.ram.put(SHADOW + 12, &2u32.to_le_bytes());
    guest.machine.run();
    assert!(guest.machine.poll_group.may_sleep());
    assert_eq!(guest.machine.ram.get_u32(EVENTS + 8), 2, "ring at the next one");
    assert_eq!(guest.machine.ram.get_u32(EVENTS + 12), 2);
    guest.put(1, FLUSH);
    guest.machine.ram.put(SHADOW + 8, &3u32.to_le_bytes());
    assert!(!guest.machine.poll_group.may_sleep(), "what came before the question is seen");
    guest.machine.run();
    // A queue that is created later starts at 0 whatever the buffer had.
    guest.machine.ram.put(SHADOW + 16, &7u32.to_le_bytes());
    guest.create_pair(2);
    assert_eq!(guest.machine.ram.get_u32(SHADOW + 16), 0);
    assert_eq!(guest.machine.events, []);
}

/// Writes a shadow doorbell.
fn set_word(guest: &Guest, doorbell: usize, value: u32) {
    guest.machine.ram.put(SHADOW + doorbell as u64 * 4, &value.to_le_bytes());
}

#[test]
fn the_admin_queue_is_rung_by_register_or_by_memory() {
    let mut guest = Guest::with_queues(0);
    set_word(&guest, 0, 0x77);
    use_shadow(&mut guest);
    let identify = command(0x06, 0, &[(10, 0x77)]);
    for round in 0..40 {
        if round % 20 < 10 {
            assert_eq!(guest.admin(identify).status, Status::INVALID_FIELD);
        } else {
            guest.put(0, identify);
            set_word(&guest, 0, guest.pairs[0].tail);
            guest.machine.run();
            assert_eq!(guest.take(0).unwrap().status, Status::INVALID_FIELD, "round {round}");
        }
        guest.machine.run();
        assert!(guest.machine.admin_queue.may_sleep());
        assert_eq!(guest.machine.ram.get_u32(EVENTS), guest.pairs[0].tail, "ring at the next one");
        if round % 20 == 19 {
            // It changes to registers while idle.
            guest.put(0, identify);
            guest.ring(0);
            guest.machine.run();
            guest.machine.pass(SETTLE_TIME);
            guest.machine.run();
            guest.take(0).unwrap();
        }
    }
    assert_eq!(guest.machine.events, []);
}

#[test]
fn after_doorbell_buffer_config_registers_count_too() {
    let mut guest = Guest::with_queues(1);
    use_shadow(&mut guest);
    for round in 0..5 * ENTRIES {
        let cid = guest.put(1, FLUSH);
        guest.ring(1);
        guest.machine.run();
        assert_eq!(guest.take(1).map(|done| done.cid), Some(cid), "round {round}");
        // Some drivers write both for heads.
        if round % 3 == 0 {
            set_word(&guest, 3, guest.pairs[1].head);
        }
    }
    assert_eq!(guest.machine.events, []);
}

#[test]
fn a_head_by_register_makes_room_after_heads_by_memory() {
    let mut guest = Guest::with_queues(1);
    use_shadow(&mut guest);
    for round in 0..6 * (ENTRIES - 1) {
        let cid = guest.put(1, FLUSH);
        guest.ring(1);
        guest.machine.run();
        let done = guest.peek(1);
        assert_eq!(done.map(|done| done.cid), Some(cid), "round {round}");
        let pair = &mut guest.pairs[1];
        pair.head = (pair.head + 1) % ENTRIES;
        pair.phase ^= pair.head == 0;
        let head = pair.head;
        match round % 7 {
            2 => set_word(&guest, 3, head),
            5 => {
                guest.machine.ring(3, head);
                guest.machine.run();
                guest.machine.pass(SETTLE_TIME);
            }
            _ => {}
        }
    }
}

#[test]
fn a_register_write_that_comes_late_executes_nothing_again() {
    let mut guest = Guest::with_queues(1);
    use_shadow(&mut guest);
    for round in 1..100u32 {
        guest.put(1, FLUSH);
        guest.put(1, FLUSH);
        set_word(&guest, 2, guest.pairs[1].tail);
        guest.machine.run();
        guest.take(1).unwrap();
        guest.take(1).unwrap();
        set_word(&guest, 3, guest.pairs[1].head);
        // The posted write of the first command arrives only now.
        guest.machine.ring(2, (guest.pairs[1].tail + ENTRIES - 1) % ENTRIES);
        guest.machine.run();
        guest.machine.pass(2 * SETTLE_TIME);
        guest.machine.run();
        assert_eq!(guest.take(1), None, "round {round}");
    }
    assert_eq!(guest.machine.events, []);
}

#[test]
fn a_driver_may_change_between_memory_and_registers() {
    let mut guest = Guest::with_queues(1);
    use_shadow(&mut guest);
    for round in 0..60 {
        let cid = guest.put(1, FLUSH);
        if round % 10 < 5 {
            set_word(&guest, 2, guest.pairs[1].tail);
        } else {
            guest.ring(1);
        }
        guest.machine.run();
        if round % 10 == 5 {
            assert_eq!(guest.peek(1), None);
            assert!(guest.machine.poll_group.may_sleep());
            guest.machine.pass(SETTLE_TIME);
            guest.machine.run();
        }
        assert_eq!(guest.take(1).map(|done| done.cid), Some(cid), "round {round}");
        set_word(&guest, 3, guest.pairs[1].head);
    }
    assert_eq!(guest.machine.events, []);
}

#[test]
fn shadow_doorbells_that_cannot_be_are_refused() {
    let mut guest = Guest::with_queues(1);
    for (doorbells, events, expected) in [
        (SHADOW + 8, EVENTS, Status::INVALID_FIELD),
        (SHADOW, EVENTS + 8, Status::INVALID_FIELD),
        (SHADOW, SHADOW, Status::INVALID_FIELD),
        (SHADOW, 0xffff_ffff_f000, Status::DATA_TRANSFER),
    ] {
        assert_eq!(guest.admin(with_prp(command(0x7c, 0, &[]), doorbells, events)).status, expected);
    }
    assert_eq!(guest.io(FLUSH), Status::SUCCESS, "doorbells go on");
}

#[test]
fn invalid_shadow_doorbells_are_reported_and_ignored() {
    let mut guest = Guest::with_queues(1);
    use_shadow(&mut guest);
    for value in [99, u32::MAX, ENTRIES] {
        guest.machine.ram.put(SHADOW + 8, &value.to_le_bytes());
        guest.machine.run();
        assert!(guest.machine.poll_group.may_sleep(), "a rejected value keeps no thread awake");
    }
    assert_eq!(guest.machine.events, [AsyncEvent::InvalidDoorbellValue; 3]);
    let cid = guest.put(1, FLUSH);
    guest.machine.ram.put(SHADOW + 8, &1u32.to_le_bytes());
    guest.machine.run();
    assert_eq!(guest.take(1).unwrap().cid, cid);
}

#[test]
fn a_head_that_was_refused_is_not_taken_the_second_time() {
    let mut guest = Guest::with_queues(1);
    use_shadow(&mut guest);
    for (value, told) in [(99, 1), (0, 1), (99, 1), (u32::MAX, 2), (99, 3), (0, 3)] {
        set_word(&guest, 3, value);
        guest.machine.run();
        assert_eq!(guest.machine.events.len(), told, "{value}");
        assert!(!guest.machine.shared.queue_table.has_unread(1), "{value}: nothing was put");
    }
}

#[test]
fn shadow_doorbells_that_go_leave_the_doorbells() {
    let mut guest = Guest::with_queues(1);
    use_shadow(&mut guest);
    guest.machine.poll_group.release_in(Iova::new(SHADOW), 0x2000);
    guest.machine.ram.hole(SHADOW..SHADOW + 0x2000);
    assert_eq!(guest.io(FLUSH), Status::SUCCESS);
    assert!(guest.machine.poll_group.may_sleep());
}
