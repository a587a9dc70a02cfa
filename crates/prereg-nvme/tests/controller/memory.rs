//! Guest memory that is missing, is unmapped, is mapped again, or can only be reached by messages.

use prereg::{Access, Iova};
use prereg_linux::GuestMemory;
use prereg_nvme::spec::Status;
use prereg_vfio_user::client::OwnMemory;

use crate::driver::{
    DATA, Driver, FLUSH, LINUX, RAM, command, completion_at, submission_at, transfer, with_prp,
};
use crate::fixture::{Fixture, settings, until};

#[test]
fn queues_at_bad_addresses_are_refused() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    for (submission, completion) in
        [(RAM, completion_at(0)), (submission_at(0), RAM), (!0xfff, 0), (RAM - 0x1000, !0xfff)]
    {
        driver.write_u32(0x24, 0x0fff_0fff);
        driver.client.region_write(0, 0x28, &submission.to_le_bytes()).unwrap();
        driver.client.region_write(0, 0x30, &completion.to_le_bytes()).unwrap();
        driver.write_u32(0x14, LINUX);
        driver.await_status(3, 2);
        driver.disable();
    }
    driver.enable();
    for at in [RAM, 1 << 60, !0xfff, RAM - 0x1000] {
        let cq = with_prp(command(5, 0, &[(10, 63 << 16 | 1), (11, 3)]), at, 0);
        let status = driver.admin(cq).status;
        // 64 entries of 16 bytes; the last page of memory has less.
        assert_eq!(
            status,
            if at == RAM - 0x1000 { Status::SUCCESS } else { Status::DATA_TRANSFER },
            "{at:#x}"
        );
    }
    let sq = with_prp(command(1, 0, &[(10, 63 << 16 | 1), (11, 1 << 16 | 1)]), RAM - 0x800, 0);
    assert_eq!(driver.admin(sq).status, Status::PRP_OFFSET);
    drop(driver);
    fixture.settle();
}

#[test]
fn memory_with_queues_can_be_unmapped_and_mapped_again() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::ready(&fixture, 2);
    for round in 0..20 {
        assert_eq!(driver.run(1 + round % 2, FLUSH).status, Status::SUCCESS);
        // The reply comes at once although queues are held: they are released.
        driver.client.dma_unmap(Iova::new(0), RAM).unwrap();
        let descriptor = driver.ram.descriptor().unwrap().try_clone_to_owned().unwrap();
        let memory = Some((std::os::fd::AsFd::as_fd(&descriptor), 0));
        driver.client.dma_map(Iova::new(0), RAM, Access::ReadWrite, memory).unwrap();
    }
    // With a command in flight all the time.
    for round in 0..100u64 {
        driver.put(1, transfer(1, 1, round * 8, 8, DATA, 0));
        driver.ring(1);
        driver.client.dma_unmap_all().unwrap();
        let descriptor = driver.ram.descriptor().unwrap().try_clone_to_owned().unwrap();
        let memory = Some((std::os::fd::AsFd::as_fd(&descriptor), 0));
        driver.client.dma_map(Iova::new(0), RAM, Access::ReadWrite, memory).unwrap();
        let status = driver.take(1).status;
        assert!(matches!(status, Status::SUCCESS | Status::DATA_TRANSFER), "{status}");
    }
    drop(driver);
    fixture.settle();
}

#[test]
fn queues_unmapped_for_long_are_reported_and_continue_when_their_memory_returns() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    // The second queue has its own memory.
    let apart = GuestMemory::memfd("apart", 0x10_0000).unwrap();
    let place = Iova::new(1 << 32);
    driver
        .client
        .dma_map(place, 0x10_0000, Access::ReadWrite, apart.descriptor().map(|memory| (memory, 0)))
        .unwrap();
    driver.enable();
    driver.create_pair(1);
    let cq = with_prp(command(5, 0, &[(10, 31 << 16 | 2), (11, 3)]), place.raw(), 0);
    assert_eq!(driver.admin(cq).status, Status::SUCCESS);
    let sq = with_prp(command(1, 0, &[(10, 31 << 16 | 2), (11, 2 << 16 | 1)]), place.raw() + 0x1000, 0);
    assert_eq!(driver.admin(sq).status, Status::SUCCESS);
    let event = driver.put(0, command(0x0c, 0, &[]));
    driver.ring(0);
    driver.client.dma_unmap(place, 0x10_0000).unwrap();
    driver.ring_raw(4, 1);
    let told = driver.take(0);
    assert_eq!((told.cid, told.result), (event, 0x0001_0300), "a persistent internal error");
    assert_eq!(driver.io(FLUSH), Status::SUCCESS, "the other queue goes on");
    let phase = || {
        let mut byte = [0];
        apart.read(14, &mut byte).unwrap();
        byte[0] & 1
    };
    assert_eq!(phase(), 0);
    let memory = apart.descriptor().map(|memory| (memory, 0));
    driver.client.dma_map(place, 0x10_0000, Access::ReadWrite, memory).unwrap();
    until("the command that waited is answered, although nothing is rung", || phase() == 1);
    driver.disable();
    driver.enable();
    driver.create_pair(1);
    assert_eq!(driver.io(FLUSH), Status::SUCCESS);
    drop(driver);
    fixture.settle();
}

#[test]
fn memory_without_a_descriptor_is_reached_by_messages() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::ready(&fixture, 1);
    let remote = Iova::new(1 << 40);
    let data: Vec<u8> = (0..0x8000u32).map(|at| (at / 7) as u8).collect();
    driver.client.serve_from(OwnMemory::new(remote, data.clone()));
    driver.client.dma_map(remote, 0x8000, Access::ReadWrite, None).unwrap();
    let answer = |driver: &mut Driver, command: [u32; 16]| {
        driver.put(1, command);
        driver.ring(1);
        // The client serves the server's requests while it waits for a reply.
        until("a completion comes", || {
            driver.read_u32(0x1c);
            driver.peek(1).is_some()
        });
        driver.take(1).status
    };
    assert_eq!(
        answer(&mut driver, transfer(1, 1, 0, 16, remote.raw(), remote.raw() + 0x1000)),
        Status::SUCCESS
    );
    assert_eq!(answer(&mut driver, transfer(2, 1, 0, 16, DATA, DATA + 0x1000)), Status::SUCCESS);
    assert!(driver.get(DATA, 0x2000) == data[..0x2000]);
    assert_eq!(
        answer(&mut driver, transfer(5, 1, 0, 16, remote.raw(), remote.raw() + 0x1000)),
        Status::SUCCESS
    );
    // PRP lists too.
    driver.put_u64(DATA, remote.raw() + 0x3000);
    driver.put_u64(DATA + 8, remote.raw() + 0x4000);
    assert_eq!(answer(&mut driver, transfer(1, 1, 0, 24, remote.raw() + 0x2000, DATA)), Status::SUCCESS);
    drop(driver);
    fixture.settle();
}

#[test]
fn memory_that_the_device_may_not_write_is_not_written() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::ready(&fixture, 1);
    let apart = GuestMemory::memfd("apart", 0x1000).unwrap();
    let place = Iova::new(1 << 32);
    driver.client.dma_map(place, 0x1000, Access::Read, apart.descriptor().map(|memory| (memory, 0))).unwrap();
    assert_eq!(driver.io(transfer(1, 1, 0, 8, place.raw(), 0)), Status::SUCCESS);
    assert_eq!(driver.io(transfer(2, 1, 0, 8, place.raw(), 0)), Status::DATA_TRANSFER);
    let identify = with_prp(command(6, 0, &[(10, 1)]), place.raw(), 0);
    assert_eq!(driver.admin(identify).status, Status::DATA_TRANSFER);
}

#[test]
fn invalid_doorbells_do_no_harm() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::ready(&fixture, 2);
    let mut state = 1u32;
    for _ in 0..2000 {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let (offset, value) = (0x1000 + u64::from(state % 0x1000), state.rotate_left(9));
        let bytes = value.to_le_bytes();
        // Not the doorbells of the admin queue and the first queue, which must still work.
        if offset >= 0x1010 && !(0x1010..0x1018).contains(&offset) {
            let length = 1 + (state >> 20) as usize % 4;
            let _ = driver.client.region_write(0, offset, &bytes[..length]);
        }
    }
    let big = vec![0xff; 0x800];
    driver.client.region_write(0, 0x1800, &big).unwrap();
    assert_eq!(driver.run(2, FLUSH).status, Status::SUCCESS);
    assert_eq!(driver.run(1, FLUSH).status, Status::SUCCESS);
    drop(driver);
    fixture.settle();
}
