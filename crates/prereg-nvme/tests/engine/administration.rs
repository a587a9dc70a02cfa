//! Admin commands: their results, and that they have no other effects.

use prereg_nvme::engine::async_event::AsyncEvent;
use prereg_nvme::spec::Status;

use crate::world::{Guest, command, completion_at, submission_at, with_prp};

const PAGE: u64 = 0x20_0000;

fn identify(guest: &mut Guest, cns: u32, nsid: u32) -> Result<Vec<u8>, Status> {
    guest.machine.ram.put(PAGE, &[0xaa; 4096]);
    let status = guest.admin(with_prp(command(0x06, nsid, &[(10, cns)]), PAGE, 0)).status;
    if status.is_success() { Ok(guest.machine.ram.get(PAGE, 4096)) } else { Err(status) }
}

fn word(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

fn log(guest: &mut Guest, id: u32, bytes: u32, offset: u64, flags: u32) -> Result<Vec<u8>, Status> {
    let words = bytes / 4 - 1;
    let fields =
        [(10, id | flags | words << 16), (11, words >> 16), (12, offset as u32), (13, (offset >> 32) as u32)];
    guest.machine.ram.put(PAGE, &vec![0xaa; bytes as usize]);
    let status = guest.admin(with_prp(command(0x02, 0xffff_ffff, &fields), PAGE, PAGE + 0x1000)).status;
    if status.is_success() { Ok(guest.machine.ram.get(PAGE, u64::from(bytes))) } else { Err(status) }
}

fn set(guest: &mut Guest, id: u32, value: u32) -> (u32, Status) {
    let done = guest.admin(command(0x09, 0, &[(10, id), (11, value)]));
    (done.result, done.status)
}

fn get(guest: &mut Guest, id: u32, select: u32, value: u32) -> (u32, Status) {
    let done = guest.admin(command(0x0a, 0, &[(10, id | select << 8), (11, value)]));
    (done.result, done.status)
}

#[test]
fn identify_controller_has_the_capabilities() {
    let mut guest = Guest::enabled();
    let page = identify(&mut guest, 1, 0).unwrap();
    assert_eq!(&page[4..24], b"S1                  ");
    assert_eq!(&page[24..35], b"prereg NVMe");
    assert_eq!(page[77], 5, "MDTS");
    assert_eq!(word(&page, 80), 0x0001_0400, "VER");
    assert_eq!(page[111], 1, "an I/O controller");
    assert_eq!((page[512], page[513]), (0x66, 0x44), "entry sizes");
    assert_eq!(word(&page, 516), 3, "namespaces");
    assert_eq!(page[525], 7, "a write cache, and flushes of all namespaces");
    assert_eq!(word(&page, 536) & 3, 2, "SGLs of dwords");
    assert_eq!(&page[768..799], b"nqn.2014-08.org.nvmexpress:uuid");
}

#[test]
fn namespaces_are_described_and_listed() {
    let mut guest = Guest::enabled();
    let first = identify(&mut guest, 0, 1).unwrap();
    assert_eq!(word(&first, 0), 8192, "NSZE in blocks");
    assert_eq!((word(&first, 128) >> 16 & 0xff, first[99]), (9, 0));
    assert_eq!(first[33] & 0xf, 9, "deallocated blocks read zero, and Write Zeroes may deallocate");
    let second = identify(&mut guest, 0, 2).unwrap();
    assert_eq!((second[99], second[33]), (1, 8), "write protected");
    let third = identify(&mut guest, 0, 3).unwrap();
    assert_eq!((word(&third, 0), word(&third, 128) >> 16 & 0xff), (1024, 12));
    for (cns, from, expected) in [(2, 0, [1, 2, 3, 0]), (2, 1, [2, 3, 0, 0]), (0x10, 2, [3, 0, 0, 0])] {
        let list = identify(&mut guest, cns, from).unwrap();
        assert_eq!([0, 4, 8, 12].map(|at| word(&list, at)), expected);
    }
    for (page, preferred) in [(&first, 7), (&third, 0)] {
        let fields = [64, 66, 68, 70, 72].map(|at| word(page, at) & 0xffff);
        assert_eq!(fields, [preferred; 5], "NPWG to NOWS: 4 KiB, NOWS a multiple of NPWG");
    }
    let names = identify(&mut guest, 3, 2).unwrap();
    assert_eq!((&names[..4], &names[4..20], names[20]), (&[3, 16, 0, 0][..], &[2; 16][..], 0));
    let controllers = identify(&mut guest, 0x13, 0).unwrap();
    assert_eq!(word(&controllers, 0), 0x0001_0001, "one, number 1");
}

#[test]
fn what_linux_asks_at_its_start_leaves_no_error_log_entry() {
    let mut guest = Guest::enabled();
    assert_eq!(identify(&mut guest, 6, 0).unwrap(), [0; 4096], "no limits of the NVM command set");
    assert_eq!(identify(&mut guest, 5, 1).unwrap(), [0; 4096], "no metadata");
    let entries = log(&mut guest, 1, 4096, 0, 0).unwrap();
    assert!(entries.iter().all(|byte| *byte == 0));
    assert_eq!(identify(&mut guest, 5, 4), Err(Status::INVALID_NAMESPACE));
    for cns in [5, 6] {
        let other = with_prp(command(0x06, 1, &[(10, cns), (11, 2 << 24)]), PAGE, 0);
        assert_eq!(guest.admin(other).status, Status::INVALID_FIELD, "another command set");
    }
}

#[test]
fn namespaces_that_are_not_there_are_refused() {
    let mut guest = Guest::enabled();
    for (cns, nsid) in [(0, 0), (0, 4), (0, 0xffff_ffff), (3, 0), (3, 9), (2, 0xffff_ffff), (2, 0xffff_fffe)]
    {
        assert_eq!(
            identify(&mut guest, cns, nsid),
            Err(Status::INVALID_NAMESPACE),
            "CNS {cns}, NSID {nsid:#x}"
        );
    }
    assert_eq!(identify(&mut guest, 0x77, 0), Err(Status::INVALID_FIELD));
}

#[test]
fn data_go_where_prps_say_and_nowhere_else() {
    let mut guest = Guest::enabled();
    let (first, second) = (PAGE + 0x400, PAGE + 0x5000);
    guest.machine.ram.put(PAGE, &[0xaa; 0x6000]);
    let done = guest.admin(with_prp(command(0x06, 0, &[(10, 1)]), first, second));
    assert_eq!(done.status, Status::SUCCESS);
    assert_eq!(guest.machine.ram.get(PAGE + 0x3ff, 1), [0xaa]);
    assert_eq!(guest.machine.ram.get(first + 4, 2), b"S1");
    assert_eq!(guest.machine.ram.get(PAGE + 0x1000, 4), [0xaa; 4], "not the next page, but the second");
    assert_eq!(guest.machine.ram.get(second + 0x400, 1), [0xaa]);
    let done = guest.admin(with_prp(command(0x06, 0, &[(10, 1)]), 0xffff_ffff_f000, 0));
    assert_eq!(done.status, Status::DATA_TRANSFER);
    let done = guest.admin(with_prp(command(0x06, 0, &[(10, 1)]), PAGE + 2, PAGE));
    assert_eq!(done.status, Status::PRP_OFFSET);
    let mut sgl = command(0x06, 0, &[(10, 1)]);
    sgl[0] |= 1 << 14;
    assert_eq!(guest.admin(sgl).status, Status::INVALID_FIELD, "admin commands have PRPs");
}

#[test]
fn unknown_commands_are_refused() {
    let mut guest = Guest::enabled();
    for opcode in [0x10, 0x11, 0x14, 0x18, 0x80, 0x84, 0xc0, 0xff] {
        assert_eq!(guest.admin(command(opcode, 0, &[])).status, Status::INVALID_OPCODE, "{opcode:#x}");
    }
    let mut fused = command(0x06, 0, &[]);
    fused[0] |= 1 << 8;
    assert_eq!(guest.admin(fused).status, Status::INVALID_FIELD);
}

#[test]
fn queues_are_created_only_as_they_can_be() {
    let mut guest = Guest::enabled();
    let mut cq = |id: u32, size: u32, flags: u32, at: u64| {
        guest.admin(with_prp(command(0x05, 0, &[(10, size << 16 | id), (11, flags)]), at, 0)).status
    };
    let at = completion_at(1);
    assert_eq!(cq(0, 15, 3, at), Status::QUEUE_IDENTIFIER);
    assert_eq!(cq(5, 15, 3, at), Status::QUEUE_IDENTIFIER, "one more than there can be");
    assert_eq!(cq(1, 0, 3, at), Status::QUEUE_SIZE);
    assert_eq!(cq(1, 64, 3, at), Status::QUEUE_SIZE);
    assert_eq!(cq(1, 15, 2, at), Status::INVALID_FIELD, "not contiguous");
    assert_eq!(cq(1, 15, 3, at + 8), Status::PRP_OFFSET);
    assert_eq!(cq(1, 15, 5 << 16 | 3, at), Status::INTERRUPT_VECTOR);
    assert_eq!(cq(1, 15, 3, 0xffff_ffff_f000), Status::DATA_TRANSFER, "memory that is not there");
    assert_eq!(cq(1, 15, 5 << 16 | 1, at), Status::SUCCESS, "no vector is looked at without interrupts");
    assert_eq!(cq(1, 15, 3, at), Status::QUEUE_IDENTIFIER, "twice");
    let mut sq = |id: u32, cq: u32, size: u32, flags: u32, at: u64| {
        guest
            .admin(with_prp(command(0x01, 0, &[(10, size << 16 | id), (11, cq << 16 | flags)]), at, 0))
            .status
    };
    let at = submission_at(1);
    assert_eq!(sq(0, 1, 15, 1, at), Status::QUEUE_IDENTIFIER);
    assert_eq!(sq(1, 0, 15, 1, at), Status::QUEUE_IDENTIFIER);
    assert_eq!(sq(1, 2, 15, 1, at), Status::COMPLETION_QUEUE_INVALID);
    assert_eq!(sq(1, 1, 0, 1, at), Status::QUEUE_SIZE);
    assert_eq!(sq(1, 1, 15, 0, at), Status::INVALID_FIELD);
    assert_eq!(sq(1, 1, 15, 1, at | 0x800), Status::PRP_OFFSET);
    assert_eq!(sq(1, 1, 15, 1, 0x7fff_f000), Status::DATA_TRANSFER);
    assert_eq!(sq(1, 1, 15, 1, at), Status::SUCCESS);
    assert_eq!(sq(1, 1, 15, 1, at), Status::QUEUE_IDENTIFIER);
    let mut delete = |opcode: u8, id: u32| guest.admin(command(opcode, 0, &[(10, id)])).status;
    assert_eq!(delete(0x04, 1), Status::QUEUE_DELETION, "in use");
    assert_eq!(delete(0x00, 2), Status::QUEUE_IDENTIFIER);
    assert_eq!(delete(0x00, 1), Status::SUCCESS);
    assert_eq!(delete(0x00, 1), Status::QUEUE_IDENTIFIER);
    assert_eq!(delete(0x04, 1), Status::SUCCESS);
    assert_eq!(delete(0x04, 1), Status::QUEUE_IDENTIFIER);
}

#[test]
fn queues_need_entry_sizes_in_the_configuration() {
    let mut guest = Guest::enabled();
    guest.machine.write_u32(0x14, 1);
    let cq = with_prp(command(0x05, 0, &[(10, 15 << 16 | 1), (11, 3)]), completion_at(1), 0);
    assert_eq!(guest.admin(cq).status, Status::QUEUE_SIZE);
    guest.machine.write_u32(0x14, 0x0046_0001);
    assert_eq!(guest.admin(cq).status, Status::SUCCESS);
}

#[test]
fn the_number_of_queues_is_granted_up_to_the_limit_and_before_there_are_any() {
    let mut guest = Guest::enabled();
    assert_eq!(get(&mut guest, 7, 0, 0), (0x0003_0003, Status::SUCCESS));
    assert_eq!(set(&mut guest, 7, 0x0001_0001), (0x0001_0001, Status::SUCCESS));
    assert_eq!(set(&mut guest, 7, 0x0063_0063), (0x0003_0003, Status::SUCCESS));
    assert_eq!(set(&mut guest, 7, 0xffff), (0, Status::INVALID_FIELD));
    guest.create_pair(1);
    assert_eq!(set(&mut guest, 7, 0x0001_0001), (0, Status::SEQUENCE));
    assert_eq!(get(&mut guest, 7, 3, 0), (4, Status::SUCCESS), "changeable, not saveable");
}

#[test]
fn features_keep_what_was_set_and_know_their_defaults() {
    let mut guest = Guest::enabled();
    for (id, value, default) in [(1, 0x0707_0703, 4), (8, 0x0a03, 0), (0xa, 1, 0), (0xb, 0x1ff, 0), (6, 0, 1)]
    {
        assert_eq!(get(&mut guest, id, 0, 0), (default, Status::SUCCESS), "feature {id:#x}");
        assert_eq!(set(&mut guest, id, value), (0, Status::SUCCESS));
        assert_eq!(get(&mut guest, id, 0, 0), (value, Status::SUCCESS), "feature {id:#x}");
        assert_eq!(get(&mut guest, id, 1, 0), (default, Status::SUCCESS));
        assert_eq!(get(&mut guest, id, 2, 0), (default, Status::SUCCESS));
    }
    assert_eq!(set(&mut guest, 4, 400), (0, Status::SUCCESS));
    assert_eq!(set(&mut guest, 4, 1 << 20 | 100), (0, Status::SUCCESS));
    assert_eq!(get(&mut guest, 4, 0, 0), (400, Status::SUCCESS));
    assert_eq!(get(&mut guest, 4, 0, 1 << 20), (100, Status::SUCCESS));
    assert_eq!(set(&mut guest, 4, 3 << 16), (0, Status::INVALID_FIELD), "a sensor that there is not");
    assert_eq!(
        set(&mut guest, 4, 0xf << 16 | 7),
        (0, Status::SUCCESS),
        "all sensors, of which there are none"
    );
    assert_eq!(get(&mut guest, 4, 0, 0), (400, Status::SUCCESS));
    assert_eq!(get(&mut guest, 4, 0, 0xf << 16), (0, Status::INVALID_FIELD), "they can only be set together");
    assert_eq!(set(&mut guest, 9, 1 << 16 | 4), (0, Status::SUCCESS));
    assert_eq!(get(&mut guest, 9, 0, 4), (1 << 16 | 4, Status::SUCCESS));
    assert_eq!(get(&mut guest, 9, 0, 3), (3, Status::SUCCESS));
    assert_eq!(set(&mut guest, 9, 5), (0, Status::INVALID_FIELD));
    assert_eq!(get(&mut guest, 9, 0, 5), (0, Status::INVALID_FIELD), "a vector that there is not");
    assert_eq!(get(&mut guest, 9, 1, 0xffff), (0, Status::INVALID_FIELD));
    assert_eq!(set(&mut guest, 2, 1), (0, Status::INVALID_FIELD), "a power state that there is not");
    assert_eq!(set(&mut guest, 0x0c, 1), (0, Status::INVALID_FIELD), "unknown");
    assert_eq!(set(&mut guest, 6 | 1 << 31, 1), (0, Status::NOT_SAVEABLE));
    assert_eq!(guest.admin(command(0x09, 1, &[(10, 6), (11, 1)])).status, Status::NOT_NAMESPACE_SPECIFIC);
    let recovery = |guest: &mut Guest, nsid| guest.admin(command(0x0a, nsid, &[(10, 5)])).result;
    assert_eq!(guest.admin(command(0x09, 2, &[(10, 5), (11, 7)])).status, Status::SUCCESS);
    assert_eq!((recovery(&mut guest, 1), recovery(&mut guest, 2)), (0, 7));
    assert_eq!(guest.admin(command(0x09, 0xffff_ffff, &[(10, 5), (11, 9)])).status, Status::SUCCESS);
    assert_eq!((recovery(&mut guest, 1), recovery(&mut guest, 3)), (9, 9));
}

#[test]
fn a_reset_forgets_features() {
    let mut guest = Guest::enabled();
    set(&mut guest, 6, 0);
    set(&mut guest, 8, 0x0a03);
    guest.machine.write_u32(0x14, 0);
    guest.machine.run();
    assert_eq!(guest.machine.read_u32(0x1c), 0);
    guest.enable(0x0046_0001);
    assert_eq!(get(&mut guest, 6, 0, 0), (1, Status::SUCCESS));
    assert_eq!(get(&mut guest, 8, 0, 0), (0, Status::SUCCESS));
}

#[test]
fn the_host_identifier_is_kept() {
    let mut guest = Guest::enabled();
    let host = core::array::from_fn::<u8, 16, _>(|at| at as u8 + 1);
    guest.machine.ram.put(PAGE, &host);
    let done = guest.admin(with_prp(command(0x09, 0, &[(10, 0x81), (11, 1)]), PAGE, 0));
    assert_eq!(done.status, Status::SUCCESS);
    guest.machine.ram.put(PAGE, &[0; 16]);
    let done = guest.admin(with_prp(command(0x0a, 0, &[(10, 0x81), (11, 1)]), PAGE, 0));
    assert_eq!((done.status, guest.machine.ram.get(PAGE, 16)), (Status::SUCCESS, host.to_vec()));
    guest.admin(with_prp(command(0x0a, 0, &[(10, 0x81)]), PAGE + 32, 0));
    assert_eq!(guest.machine.ram.get(PAGE + 32, 9), [1, 2, 3, 4, 5, 6, 7, 8, 0]);
}

#[test]
fn turning_the_write_cache_off_makes_everything_durable_first() {
    let mut guest = Guest::enabled();
    assert_eq!(set(&mut guest, 6, 0), (0, Status::SUCCESS));
    let flushed: Vec<u32> = guest.machine.disks.inner().done.iter().map(|(nsid, _)| *nsid).collect();
    assert_eq!(flushed, [1, 2, 3]);
    set(&mut guest, 6, 0);
    assert_eq!(guest.machine.disks.inner().done.len(), 3, "it was off already");
}

#[test]
fn log_pages_are_read_in_parts() {
    let mut guest = Guest::enabled();
    let firmware = log(&mut guest, 3, 512, 0, 0).unwrap();
    assert_eq!((firmware[0], &firmware[8..13]), (1, &b"0.1.0"[..]));
    assert_eq!(log(&mut guest, 3, 8, 8, 0).unwrap(), firmware[8..16]);
    let beyond = log(&mut guest, 3, 1024, 256, 0).unwrap();
    assert_eq!((&beyond[..256], &beyond[256..]), (&firmware[256..], &[0; 768][..]));
    assert_eq!(log(&mut guest, 3, 8, 516, 0), Err(Status::INVALID_FIELD), "begins behind the end");
    assert_eq!(log(&mut guest, 3, 8, 2, 0), Err(Status::INVALID_FIELD), "not a dword");
    assert_eq!(log(&mut guest, 0x80, 8, 0, 0), Err(Status::LOG_PAGE));
    assert_eq!(log(&mut guest, 5, 4096, 0, 0).unwrap()[1024 + 4], 3, "Write changes content");
    // The longest possible length: 16 GiB.
    let huge = command(0x02, 0, &[(10, 3 | 0xffff << 16), (11, 0xffff)]);
    assert_eq!(guest.admin(with_prp(huge, PAGE, PAGE)).status, Status::INVALID_FIELD);
    let by_namespace = command(0x02, 1, &[(10, 2 | 127 << 16)]);
    assert_eq!(guest.admin(with_prp(by_namespace, PAGE, 0)).status, Status::INVALID_FIELD);
}

#[test]
fn failures_are_in_the_error_log() {
    let mut guest = Guest::enabled();
    assert!(log(&mut guest, 1, 64, 0, 0).unwrap().iter().all(|byte| *byte == 0));
    let refused = guest.admin(command(0xff, 5, &[]));
    let entry = log(&mut guest, 1, 64, 0, 0).unwrap();
    assert_eq!((entry[0], entry[10], entry[24]), (1, refused.cid as u8, 5), "number, command, namespace");
    assert_eq!(u16::from_le_bytes([entry[12], entry[13]]) >> 1, Status::INVALID_OPCODE.bits());
    let health = log(&mut guest, 2, 512, 0, 0).unwrap();
    assert_eq!((health[0], u16::from_le_bytes([health[1], health[2]]), health[176]), (0, 298, 1));
}

#[test]
fn events_wait_for_requests_up_to_the_limit() {
    let mut guest = Guest::enabled();
    set(&mut guest, 0xb, 0x1ff);
    let waiting: Vec<u16> = (0..4).map(|_| guest.put(0, command(0x0c, 0, &[]))).collect();
    guest.ring(0);
    guest.machine.run();
    assert_eq!(guest.take(0), None, "held");
    assert_eq!(guest.admin(command(0x0c, 0, &[])).status, Status::ASYNC_EVENT_LIMIT);
    guest.machine.admin_queue.admin().namespace_changed(2);
    guest.machine.admin_queue.admin().namespace_changed(3);
    guest.machine.run();
    let told = guest.take(0).unwrap();
    assert_eq!((told.cid, told.result, told.status), (waiting[0], 0x0004_0002, Status::SUCCESS));
    assert_eq!(guest.take(0), None, "once until the log is read");
    let retained = log(&mut guest, 4, 16, 0, 1 << 15).unwrap();
    assert_eq!([word(&retained, 0), word(&retained, 4), word(&retained, 8)], [2, 3, 0]);
    assert_eq!(log(&mut guest, 4, 16, 0, 0).unwrap(), retained);
    assert_eq!(word(&log(&mut guest, 4, 16, 0, 0).unwrap(), 0), 0, "read, and forgotten");
    guest.machine.admin_queue.admin().namespace_changed(1);
    guest.machine.run();
    assert_eq!(guest.take(0).unwrap().cid, waiting[1]);
}

#[test]
fn namespace_events_are_reported_only_if_enabled() {
    let mut guest = Guest::enabled();
    guest.put(0, command(0x0c, 0, &[]));
    guest.ring(0);
    guest.machine.admin_queue.admin().namespace_changed(2);
    guest.machine.run();
    assert_eq!(guest.take(0), None);
}

#[test]
fn a_threshold_below_the_temperature_is_reported() {
    let mut guest = Guest::enabled();
    set(&mut guest, 0xb, 1 << 1);
    let cid = guest.put(0, command(0x0c, 0, &[]));
    guest.ring(0);
    guest.machine.run();
    let set_cid = guest.put(0, command(0x09, 0, &[(10, 4), (11, 290)]));
    guest.ring(0);
    guest.machine.run();
    let mut told: Vec<_> =
        [guest.take(0).unwrap(), guest.take(0).unwrap()].map(|one| (one.cid, one.result)).into();
    told.sort_unstable();
    assert_eq!(told, [(cid, 0x0002_0101), (set_cid, 0)]);
    assert_eq!(log(&mut guest, 2, 512, 0, 0).unwrap()[0], 2, "a critical warning");
}

#[test]
fn a_request_for_events_can_be_aborted() {
    let mut guest = Guest::enabled();
    let cid = guest.put(0, command(0x0c, 0, &[]));
    guest.ring(0);
    guest.machine.run();
    let abort = guest.put(0, command(0x08, 0, &[(10, u32::from(cid) << 16)]));
    guest.ring(0);
    guest.machine.run();
    let mut ends: Vec<_> =
        [guest.take(0).unwrap(), guest.take(0).unwrap()].map(|one| (one.cid, one.result, one.status)).into();
    ends.sort_by_key(|(cid, ..)| *cid);
    assert_eq!(ends, [(cid, 0, Status::ABORT_REQUESTED), (abort, 0, Status::SUCCESS)]);
    let nothing = guest.admin(command(0x08, 0, &[(10, 0x1234 << 16 | 3)]));
    assert_eq!((nothing.status, nothing.result), (Status::SUCCESS, 1), "not aborted");
}

#[test]
fn invalid_doorbells_are_reported_and_change_nothing() {
    let mut guest = Guest::with_queues(1);
    let cid = guest.put(0, command(0x0c, 0, &[]));
    guest.ring(0);
    guest.machine.run();
    guest.machine.ring(3 * 2, 1);
    guest.machine.run();
    let told = guest.take(0).unwrap();
    assert_eq!((told.cid, told.result), (cid, 0x0001_0000), "a register of no queue");
    let cid = guest.put(0, command(0x0c, 0, &[]));
    guest.ring(0);
    log(&mut guest, 1, 64, 0, 0).unwrap();
    guest.machine.ring(2, 99);
    guest.machine.run();
    let told = guest.take(0).unwrap();
    assert_eq!((told.cid, told.result), (cid, 0x0001_0100), "a value out of range");
    assert_eq!(guest.io(command(0, 1, &[])), Status::SUCCESS);
    // The tail moves back, which in a ring is a queue that is more than full.
    log(&mut guest, 1, 64, 0, 0).unwrap();
    guest.machine.ring(3, 9);
    guest.machine.run();
    assert_eq!(guest.machine.events, [AsyncEvent::InvalidDoorbellValue], "a head beyond what was put");
    assert_eq!(guest.io(command(0, 1, &[])), Status::SUCCESS);
}

#[test]
fn admin_queues_that_are_not_there_are_fatal() {
    let mut guest = Guest::enabled();
    guest.machine.write_u32(0x14, 0);
    guest.machine.run();
    guest.machine.write(0x28, &0xffff_ffff_0000u64.to_le_bytes());
    guest.machine.write_u32(0x14, 0x0046_0001);
    guest.machine.run();
    assert_eq!(guest.machine.read_u32(0x1c), 2, "CFS, not ready");
    assert_eq!(guest.machine.ram.holds(), 0);
    guest.machine.write_u32(0x14, 0);
    guest.machine.run();
    guest.enable(0x0046_0001);
}

#[test]
fn an_admin_queue_whose_memory_goes_for_good_is_fatal_after_a_while() {
    let mut guest = Guest::enabled();
    guest.put(0, command(0x06, 0, &[(10, 1)]));
    guest.machine.ram.hole(submission_at(0)..submission_at(0) + 0x1000);
    guest.machine.admin_queue.release_in(prereg::Iova::new(submission_at(0)), 0x1000);
    guest.ring(0);
    for _ in 0..200 {
        guest.machine.pass(10_000_000);
        guest.machine.step();
    }
    assert_eq!(guest.machine.read_u32(0x1c), 3, "CFS");
}
