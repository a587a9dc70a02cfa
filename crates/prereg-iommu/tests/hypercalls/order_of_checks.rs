//! Calls with several faults: the result shows which check comes first, under each rule set.
//!
//! The window has 16 pages of 4 KiB at bus address 0x10_0000 and one live entry, number 3. Each row starts from there.

use prereg::{BusAddr, Granule, GuestAddr, PageShift};
use prereg_iommu::{HReturn, Hypercall, Rules, Tce};

use crate::guest::*;

const OK: HReturn = HReturn::SUCCESS;
const PARAMETER: HReturn = HReturn::PARAMETER;
const TOO_HARD: HReturn = HReturn::TOO_HARD;

const START: u64 = 0x10_0000;
const LIVE: u64 = START + 0x3000;
const LAST: u64 = START + 0xf000;
const END: u64 = START + 0x1_0000;
const NO_RAM: u64 = 1 << 46;
const NO_TABLE: u64 = 0x42;

/// The values that a row leaves, by entry number, besides the live one.
type Left = &'static [(u64, u64)];

const KEPT: Left = &[(3, G | 3)];

struct Row {
    what: &'static str,
    call: Hypercall,
    /// The list at `LIST`.
    list: &'static [u64],
    /// KVM's handler alone, and the values it leaves.
    fast: (HReturn, Left),
    /// QEMU alone, and the values it leaves.
    slow: (HReturn, Left),
}

const fn row(what: &'static str, call: Hypercall, fast: (HReturn, Left), slow: (HReturn, Left)) -> Row {
    Row { what, call, list: &[], fast, slow }
}

const fn listed(
    what: &'static str,
    call: Hypercall,
    list: &'static [u64],
    fast: (HReturn, Left),
    slow: (HReturn, Left),
) -> Row {
    Row { what, call, list, fast, slow }
}

fn to(liobn: u64, call: Hypercall) -> Hypercall {
    match call {
        Hypercall::Get { ioba, .. } => Hypercall::Get { liobn, ioba },
        Hypercall::Put { ioba, tce, .. } => Hypercall::Put { liobn, ioba, tce },
        Hypercall::PutIndirect { ioba, list, pages, .. } => {
            Hypercall::PutIndirect { liobn, ioba, list, pages }
        }
        Hypercall::Stuff { ioba, tce, pages, .. } => Hypercall::Stuff { liobn, ioba, tce, pages },
    }
}

fn rows() -> Vec<Row> {
    let refused = (PARAMETER, KEPT);
    let too_hard = (TOO_HARD, KEPT);
    let nothing = (OK, KEPT);
    vec![
        // The table comes first.
        row("put: no table, bad ioba, bad value", to(NO_TABLE, put(1, NO_RAM | 3)), too_hard, refused),
        row("put: liobn wider than 32 bits", to(1 << 32 | u64::from(LIOBN), put(LIVE, 0)), too_hard, refused),
        row("get: no table, bad ioba", to(NO_TABLE, get(1)), too_hard, refused),
        row("stuff: no table, bad value and count", to(NO_TABLE, stuff(1, 3, u64::MAX)), too_hard, refused),
        row("indirect: no table, bad list and count", to(NO_TABLE, indirect(1, 8, 513)), too_hard, refused),
        // Then the bus address.
        row("put: below the window", put(START - 0x1000, NO_RAM | 3), refused, refused),
        row("put: one past the end, bad value", put(END, NO_RAM | 3), refused, refused),
        row(
            "put: off a page, bad value",
            put(START + 1, NO_RAM | 3),
            refused,
            (OK, &[(0, NO_RAM | 3), (3, G | 3)]),
        ),
        row("put: off a page", put(START + 0xfff, G | 1), refused, (OK, &[(0, G | 1), (3, G | 3)])),
        row("get: off a page", get(START + 0x3abc), refused, nothing),
        row("get: one past the end", get(END), refused, refused),
        // Then the value.
        row("put: beyond memory", put(LIVE, NO_RAM | 3), too_hard, (OK, &[(3, NO_RAM | 3)])),
        row("put: low bits set", put(LIVE, G | 0xabf), too_hard, (OK, &[(3, G | 0xabf)])),
        row("put: all ones", put(LIVE, u64::MAX), too_hard, (OK, &[(3, u64::MAX)])),
        row("put: poison beyond memory", put(LIVE, NO_RAM), (OK, &[(3, NO_RAM)]), (OK, &[(3, NO_RAM)])),
        row("put: clear", put(LIVE, 0), (OK, &[]), (OK, &[])),
        // Stuff: table, range, value.
        row("stuff: nothing", stuff(LIVE, 0, 0), nothing, refused),
        row("stuff: nothing, at the end", stuff(END, 0, 0), nothing, refused),
        row("stuff: nothing, past the end", stuff(END + 0x1000, 0, 0), refused, refused),
        row("stuff: nothing, value with permission", stuff(LIVE, 3, 0), refused, refused),
        row("stuff: off a page", stuff(LIVE + 8, 0, 1), refused, (OK, &[])),
        row("stuff: value with permission", stuff(LIVE, G | 1, 1), refused, (OK, &[(3, G | 1)])),
        row("stuff: whole table", stuff(START, 0, 16), (OK, &[]), (OK, &[])),
        row("stuff: one more than the table", stuff(START, 0, 17), refused, refused),
        row("stuff: runs over the end", stuff(LIVE, 0, 14), refused, (PARAMETER, &[])),
        row(
            "stuff: poison runs over the end",
            stuff(LAST, 0x5000, 3),
            refused,
            (PARAMETER, &[(3, G | 3), (15, 0x5000)]),
        ),
        row("stuff: count all ones", stuff(LIVE, 0, u64::MAX), refused, refused),
        row("stuff: count wraps", stuff(LIVE, 0, 1 << 52), refused, refused),
        row("stuff: past the end and value with permission", stuff(END, 3, 1), refused, refused),
        // Indirect: table, count, list, range, list's memory, values.
        row("indirect: 513 pages, list off a page, off a page", indirect(1, LIST + 8, 513), refused, refused),
        row("indirect: count all ones", indirect(LIVE, LIST, u64::MAX), refused, refused),
        row("indirect: list off a page, beyond memory", indirect(LIVE, NO_RAM + 8, 1), refused, refused),
        row("indirect: off a page, list beyond memory", indirect(LIVE + 8, NO_RAM, 1), refused, (OK, &[])),
        row("indirect: past the end, list beyond memory", indirect(END, NO_RAM, 1), refused, refused),
        row("indirect: list beyond memory", indirect(LIVE, NO_RAM, 1), too_hard, (OK, &[])),
        row("indirect: nothing", indirect(LIVE, LIST, 0), nothing, refused),
        row("indirect: nothing, list beyond memory", indirect(LIVE, NO_RAM, 0), too_hard, refused),
        row("indirect: nothing, at the end", indirect(END, LIST, 0), nothing, refused),
        row("indirect: nothing, past the end", indirect(END + 0x1000, LIST, 0), refused, refused),
        listed(
            "indirect: runs over the end",
            indirect(LAST, LIST, 3),
            &[G | 1, G | 3, G | 3],
            refused,
            (PARAMETER, &[(3, G | 3), (15, G | 1)]),
        ),
        listed(
            "indirect: second value beyond memory",
            indirect(LIVE, LIST, 3),
            &[G | 1, NO_RAM | 3, G | 2],
            too_hard,
            (OK, &[(3, G | 1), (4, NO_RAM | 3), (5, G | 2)]),
        ),
        listed(
            "indirect: second value is poison",
            indirect(LIVE, LIST, 3),
            &[G | 1, G + 0x9000, G | 2],
            (OK, &[(3, G | 1), (4, G + 0x9000), (5, G | 2)]),
            (OK, &[(3, G | 1), (4, G + 0x9000), (5, G | 2)]),
        ),
        listed(
            "indirect: second value is poison beyond memory",
            indirect(LIVE, LIST, 3),
            &[G | 1, NO_RAM, G | 2],
            (PARAMETER, &[(3, G | 1)]),
            (OK, &[(3, G | 1), (4, NO_RAM), (5, G | 2)]),
        ),
    ]
}

/// Memory at guest address 0 too, as in a real guest: a zero in a list must be in a slot.
fn guest(rules: Rules) -> Guest {
    let mut guest = Guest::bare(Granule::K4, rules);
    guest.register(A, RAM);
    let mut slots = slots();
    slots.insert(GuestAddr::new(0), prereg::UserAddr::new(A + (1 << 30)), 0x1_0000).unwrap();
    guest.calls.replace_slots(slots);
    guest.create(window(START, PageShift::K4, 16));
    guest.attach(PageShift::K4);
    assert_eq!(guest.call(put(LIVE, G | 3)).code, OK);
    guest
}

#[track_caller]
fn assert_left(guest: &mut Guest, left: Left, what: &str) {
    let table = guest.hardware().remove(0);
    for index in 0..16 {
        let value = left.iter().find(|&&(at, _)| at == index).map_or(0, |&(_, value)| value);
        assert_eq!(guest.value(START + index * 0x1000), value, "{what}: value {index}");
        // A hardware entry is live exactly if its value has a permission and its page is memory.
        let page = value & !0xfff;
        let mapped = value & 3 != 0 && (G..G + RAM).contains(&page);
        let seen = table.view(index).map(|entry| (entry.ua.raw(), entry.access.bits()));
        assert_eq!(seen, mapped.then(|| (A + (page - G), value & 3)), "{what}: mapping {index}");
    }
    assert_eq!(guest.mapped(), table.live(), "{what}");
}

#[test]
fn kvms_handlers_check_in_this_order() {
    for row in rows() {
        let mut guest = guest(Rules::Kvm);
        guest.lists.0.insert(LIST, row.list.to_vec());
        assert_eq!(guest.fast(row.call), row.fast.0, "{}", row.what);
        assert_left(&mut guest, row.fast.1, row.what);
        guest.end();
    }
}

#[test]
fn qemu_checks_in_this_order() {
    for row in rows() {
        let mut guest = guest(Rules::Qemu);
        guest.lists.0.insert(LIST, row.list.to_vec());
        let reply = guest.call(row.call);
        assert_eq!((reply.code, reply.fell_back_to_userspace), (row.slow.0, false), "{}", row.what);
        assert_left(&mut guest, row.slow.1, row.what);
        guest.end();
    }
}

#[test]
fn what_kvm_finds_too_hard_ends_as_qemu_would_end_it() {
    for row in rows() {
        let mut guest = guest(Rules::Kvm);
        guest.lists.0.insert(LIST, row.list.to_vec());
        let reply = guest.call(row.call);
        let fell_back_to_userspace = row.fast.0 == TOO_HARD;
        let (code, left) = if fell_back_to_userspace { row.slow } else { row.fast };
        assert_eq!(
            (reply.code, reply.fell_back_to_userspace),
            (code, fell_back_to_userspace),
            "{}",
            row.what
        );
        assert_left(&mut guest, left, row.what);
        guest.end();
    }
}

#[test]
fn a_list_has_512_values_at_most_whatever_the_window_could_take() {
    for rules in [Rules::Kvm, Rules::Qemu] {
        let mut guest = Guest::bare(Granule::K4, rules);
        guest.register(A, RAM);
        guest.create(window(START, PageShift::K4, 1024));
        guest.attach(PageShift::K4);
        guest.lists.0.insert(LIST, vec![G | 3; 1024]);
        for (pages, code, mapped) in
            [(513, PARAMETER, 0), (1024, PARAMETER, 0), (512, OK, 512), (513, PARAMETER, 512)]
        {
            let reply = guest.call(indirect(START, LIST, pages));
            assert_eq!(
                (reply.code, reply.fell_back_to_userspace, guest.mapped()),
                (code, false, mapped),
                "{pages} {rules:?}"
            );
        }
        guest.end();
    }
}

#[test]
fn a_read_answers_with_the_whole_value() {
    let mut guest = guest(Rules::Kvm);
    for value in [G | 0xabf, u64::MAX, 1, NO_RAM, 0] {
        assert_eq!(guest.call(put(START, value)).code, OK);
        let read = guest.call(get(START));
        assert_eq!((read.code, read.value), (OK, Some(Tce::new(value))));
    }
    let rounded = guest.calls.slow(&mut guest.translator, &guest.lists, get(LIVE + 0x123));
    assert_eq!(rounded.value, Some(Tce::new(G | 3)));
    let failed = guest.call(to(NO_TABLE, get(LIVE)));
    assert_eq!((failed.code, failed.value, failed.fell_back_to_userspace), (PARAMETER, None, true));
    let window = *guest.calls.tables().next().unwrap().geometry();
    assert_eq!(window.start(), BusAddr::new(START));
    guest.end();
}
