//! REGION_READ, REGION_WRITE, REGION_WRITE_MULTI.

use prereg::Errno;
use prereg_vfio_user::client::ClientError;
use prereg_vfio_user::wire::RegionWrite;

use crate::fixture::{BAR_BYTES, CONFIG, Fixture, HOOK, ROM, WRITE_ONLY, until};

fn errno(result: Result<impl Sized, ClientError>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(ClientError::Refused { errno, .. }) => errno.raw(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn what_is_written_can_be_read() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for bytes in [1, 2, 4, 8, 3, 4096, BAR_BYTES as usize] {
        let data: Vec<u8> = (0..bytes).map(|byte| byte as u8 ^ bytes as u8).collect();
        client.region_write(0, BAR_BYTES - bytes as u64, &data).unwrap();
        let mut back = vec![0; bytes];
        client.region_read(0, BAR_BYTES - bytes as u64, &mut back).unwrap();
        assert_eq!(back, data);
    }
}

#[test]
fn nothing_outside_of_a_region_reaches_the_device() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut four = [0; 4];
    for (region, offset) in [
        (0, BAR_BYTES - 3),
        (0, BAR_BYTES),
        (0, u64::MAX - 4),
        (1, 0),
        (9, 0),
        (u32::MAX, 0),
        (CONFIG, 0x1000),
    ] {
        assert_eq!(errno(client.region_read(region, offset, &mut four)), 22, "{region} {offset:#x}");
        assert_eq!(errno(client.region_write(region, offset, &four)), 22);
    }
    assert_eq!(errno(client.region_read(0, u64::MAX - 2, &mut four)), 22, "an end beyond 2^64");
    assert_eq!(errno(client.region_read(WRITE_ONLY, 0, &mut four)), 22);
    assert_eq!(errno(client.region_write(ROM, 0, &four)), 22);
    client.region_read(ROM, 0x7fc, &mut four).unwrap();
    assert_eq!(four, [6; 4]);
    assert!(fixture.probes.device(0).calls.lock().unwrap().is_empty());
}

#[test]
fn a_devices_errno_is_the_clients() {
    let fixture = Fixture::new();
    fixture.probes.hook(|_, offset, _| Err(Errno::from_raw(offset as i32)));
    let mut client = fixture.client();
    assert_eq!(errno(client.region_read(HOOK, 0, &mut [0; 4])), 5);
    for number in [1, 16, 110] {
        assert_eq!(errno(client.region_write(HOOK, number, &[0; 4])), number as i32);
    }
    assert_eq!(errno(client.region_write(HOOK, 0, &[0; 4])), 5, "a failure is never taken for success");
}

#[test]
fn posted_writes_are_performed_in_their_order_and_not_answered() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for value in 0..100u32 {
        client.region_post(0, 0, &value.to_le_bytes()).unwrap();
    }
    client.region_post(1, 0, &[0]).unwrap(); // refused, and not answered either
    let mut last = [0; 4];
    client.region_read(0, 0, &mut last).unwrap();
    assert_eq!(u32::from_le_bytes(last), 99);
}

#[test]
fn many_writes_stop_at_the_first_that_fails() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let write = |region, offset, byte| RegionWrite::new(region, offset, &[byte; 2]).unwrap();
    let done = client.write_multi(vec![write(0, 0, 1), write(0, 2, 2), write(0, 0, 3)]).unwrap();
    assert_eq!(done, 3);
    let mut back = [0; 4];
    client.region_read(0, 0, &mut back).unwrap();
    assert_eq!(back, [3, 3, 2, 2]);
    let done = client.write_multi(vec![write(0, 0, 4), write(ROM, 0, 5), write(0, 0, 6)]).unwrap();
    assert_eq!(done, 1);
    client.region_read(0, 0, &mut back).unwrap();
    assert_eq!(back, [4, 4, 2, 2]);
    assert_eq!(errno(client.write_multi(vec![write(ROM, 0, 5), write(0, 0, 6)])), 22);
}

#[test]
fn requests_are_counted_by_command_and_rejections_by_reason() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.region_write(0, 0, &[1]).unwrap();
    errno(client.region_write(1, 0, &[1]));
    errno(client.region_write(0, 0, &[]));
    let state = fixture.snapshot();
    let writes = &state.requests.commands["REGION_WRITE"];
    assert_eq!((writes.performed, writes.refused["EINVAL"], writes.refused["size"]), (2, 1, 1));
    assert_eq!(state.clients[0].requests.commands["VERSION"].performed, 1);
    drop(client);
    fixture.settle();
    let state = fixture.snapshot();
    assert_eq!(state.requests.commands["REGION_WRITE"].performed, 2, "also when the client is gone");
    assert_eq!(state.disconnects["left"], 1);
}

#[test]
fn a_device_that_panics_takes_only_its_client_down() {
    let fixture = Fixture::new();
    fixture.probes.hook(|_, _, _| panic!("a device must not, and this one does"));
    let (mut one, mut other) = (fixture.client(), fixture.client());
    assert_eq!(one.region_write(HOOK, 0, &[1]).unwrap_err(), ClientError::Closed);
    other.region_write(0, 0, &[1]).unwrap();
    until("it is gone", || fixture.snapshot().disconnects.get("device-panicked") == Some(&1));
    assert!(fixture.probes.device(0).said("gone"));
    other.device_info().unwrap();
}
