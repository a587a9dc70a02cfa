//! DEVICE_SET_IRQS: every kind of data with every action, and invalid combinations.

use prereg_vfio_user::wire::{Command, IrqAction};
use prereg_vfio_user::{Action, IrqTargets};

use crate::client::{Client, command};

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

fn set(argsz: u32, flags: u32, start: u32, count: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        [argsz, flags, 2, start, count].iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(data);
    command(3, Command::DEVICE_SET_IRQS, &bytes)
}

#[test]
fn every_kind_of_data_goes_with_every_action() {
    let mut client = Client::new();
    for (bit, expected) in
        [(MASK, IrqAction::Mask), (UNMASK, IrqAction::Unmask), (TRIGGER, IrqAction::Trigger)]
    {
        let sent = [
            (set(20, NONE | bit, 1, 3, &[]), 0, "All"),
            (set(23, BOOL | bit, 1, 3, &[0, 1, 255]), 0, "Each([false, true, true])"),
            (set(20, EVENTFD | bit, 1, 3, &[]), 3, "Eventfds([fd0, fd1, fd2])"),
            (set(20, EVENTFD | bit, 1, 3, &[]), 0, "NoEventfds"),
        ];
        for (bytes, fds, name) in sent {
            let action = client.action(&bytes, fds);
            let Action::SetIrqs { index: 2, start: 1, count: 3, action, targets, token } = action else {
                panic!()
            };
            assert_eq!(action, expected);
            assert_eq!(format!("{targets:?}"), name);
            client.session.reply(token, Ok(()));
            assert_eq!(client.frame().header.size, 16);
        }
    }
    assert_eq!(client.pool.held(), 0);
}

#[test]
fn a_count_of_nothing_turns_the_kind_off() {
    let mut client = Client::new();
    let action = client.action(&set(20, NONE | TRIGGER, 0, 0, &[]), 0);
    assert!(matches!(action, Action::SetIrqs { start: 0, count: 0, targets: IrqTargets::All, .. }));
    for (flags, start) in [
        (NONE | MASK, 0),
        (NONE | UNMASK, 0),
        (NONE | TRIGGER, 1),
        (BOOL | TRIGGER, 0),
        (EVENTFD | TRIGGER, 0),
    ] {
        assert_eq!(client.refusal(&set(20, flags, start, 0, &[]), 0), 22, "{flags:#x} from {start}");
    }
}

#[test]
fn flags_are_one_kind_of_data_and_one_action() {
    let mut client = Client::new();
    for flags in 0..128_u32 {
        let good = (flags & 7).count_ones() == 1 && (flags & 0x38).count_ones() == 1 && flags < 64;
        if !good {
            assert_eq!(client.refusal(&set(20, flags, 0, 1, &[]), 0), 22, "{flags:#x}");
        }
    }
}

#[test]
fn wrong_sizes_and_counts_are_refused() {
    let mut client = Client::new();
    for (bytes, fds, why) in [
        (set(19, NONE | TRIGGER, 0, 1, &[]), 0, "argsz"),
        (set(22, BOOL | TRIGGER, 0, 1, &[1, 1]), 0, "more data than counted"),
        (set(24, BOOL | TRIGGER, 0, u32::MAX, &[1]), 0, "less data than counted"),
        (set(20, NONE | TRIGGER, u32::MAX, 1, &[]), 0, "past the last number"),
        (set(20, EVENTFD | TRIGGER, 0, 2, &[]), 1, "a descriptor too few"),
        (set(20, EVENTFD | TRIGGER, 0, 1, &[]), 2, "a descriptor too many"),
        (set(20, EVENTFD | TRIGGER, 0, 17, &[]), 17, "more descriptors than a message has"),
        (command(3, Command::DEVICE_SET_IRQS, &[0; 19]), 0, "a short body"),
    ] {
        assert_eq!(client.refusal(&bytes, fds), 22, "{why}");
    }
}
