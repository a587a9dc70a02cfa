//! Binary requests: numbers, `argsz`, flags, lengths, and results written in place.

use prereg::{Errno, UserAddr};
use prereg_iommu::container::{Argument, Command, Container, Version};
use proptest::prelude::*;

use crate::fixture::{A, K4, Process, User, W1, group, number};

const REGISTER: u32 = 0x3b75;
const UNREGISTER: u32 = 0x3b76;
const MAP: u32 = 0x3b71;
const UNMAP: u32 = 0x3b72;
const INFO: u32 = 0x3b70;
const CREATE: u32 = 0x3b77;
const REMOVE: u32 = 0x3b78;

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn ask(user: &mut User<'_>, command: u32, bytes: &mut [u8]) -> Result<u64, Errno> {
    number(user.container.ioctl(&user.process.owner, command, Argument::Bytes(bytes)))
}

fn request(argsz: u32, flags: u32, words: &[u64]) -> Vec<u8> {
    [words32(&[argsz, flags]), words64(words)].concat()
}

#[test]
fn numbers_are_those_of_the_header_in_both_encodings() {
    for (raw, command) in [
        (0x3b64, Command::GetApiVersion),
        (0x3b65, Command::CheckExtension),
        (0x3b66, Command::SetIommu),
        (INFO, Command::SpaprTceGetInfo),
        (MAP, Command::MapDma),
        (UNMAP, Command::UnmapDma),
        (0x3b73, Command::Enable),
        (0x3b74, Command::Disable),
        (REGISTER, Command::SpaprRegisterMemory),
        (UNREGISTER, Command::SpaprUnregisterMemory),
        (CREATE, Command::SpaprTceCreate),
        (REMOVE, Command::SpaprTceRemove),
    ] {
        assert_eq!(Command::from_raw(raw), Some(command));
        assert_eq!(Command::from_raw(raw | 0x2000_0000), Some(command));
        assert_eq!(command.raw(), raw);
    }
    assert_eq!(Command::from_raw(0x3b79), None);
    assert_eq!(Command::from_raw(0x4000_3b75), None);
    assert_eq!(Command::from_raw(0), None);
}

#[test]
fn a_whole_life_in_bytes() {
    let process = Process::new();
    let mut user = User { process: &process, container: Container::new(1) };
    let number_of = |user: &mut User<'_>, command, value| {
        number(user.container.ioctl(&process.owner, command, Argument::Value(value)))
    };
    assert_eq!(number_of(&mut user, 0x3b65, 7), Ok(1));
    assert_eq!(number_of(&mut user, 0x3b65, 3), Ok(0));
    assert_eq!(number_of(&mut user, 0x3b66, 7), Err(Errno::EINVAL));
    user.container.attach(group(0)).unwrap();
    assert_eq!(number_of(&mut user, 0x3b66, 3), Err(Errno::ENODEV));
    assert_eq!(number_of(&mut user, 0x3b66, 5), Err(Errno::EINVAL));
    assert_eq!(number_of(&mut user, 0x3b66, 7), Ok(0));

    let mut info = [words32(&[32, 9]), vec![0xff; 24]].concat();
    assert_eq!(ask(&mut user, INFO, &mut info), Ok(0));
    let expected = [words32(&[32, 1, 0, 0x8000_0000]), words64(&[0x4021_1000]), words32(&[2, 5])].concat();
    assert_eq!(info, expected);

    let bytes = 16 * K4;
    assert_eq!(ask(&mut user, REGISTER, &mut request(24, 0, &[A, bytes])), Ok(0));
    let mut create =
        [words32(&[40, 0, 16, 0]), words64(&[1 << 30]), words32(&[1, 0]), words64(&[0])].concat();
    assert_eq!(ask(&mut user, CREATE, &mut create), Ok(0));
    assert_eq!(create[32..], words64(&[W1]));
    assert_eq!(ask(&mut user, MAP, &mut request(32, 3, &[A, 0, bytes])), Ok(0));
    assert_eq!(ask(&mut user, UNREGISTER, &mut request(24, 0, &[A, bytes])), Err(Errno::EBUSY));
    assert_eq!(ask(&mut user, UNMAP, &mut request(24, 0, &[0, bytes])), Ok(0));
    assert_eq!(ask(&mut user, REMOVE, &mut request(16, 0, &[W1])), Ok(0));
    assert_eq!(ask(&mut user, UNREGISTER, &mut request(24, 0, &[A, bytes])), Ok(0));
    drop(user);
    process.host.assert_clean();
}

#[test]
fn scenario_62_bad_structs_bind_the_container_all_the_same() {
    let (process, other) = (Process::new(), Process::new());
    for bad in [request(23, 0, &[A, K4]), request(24, 1, &[A, K4]), vec![0; 23], Vec::new()] {
        let mut user = User::new(&process, 0);
        let expected = if bad.len() < 24 { Errno::EFAULT } else { Errno::EINVAL };
        assert_eq!(ask(&mut user, REGISTER, &mut bad.clone()), Err(expected));
        let mut theirs = User { process: &other, container: user.container };
        assert_eq!(ask(&mut theirs, REGISTER, &mut request(24, 0, &[A, K4])), Err(Errno::EPERM));
    }
    assert_eq!((process.locked(), other.locked()), (0, 0));
}

#[test]
fn every_struct_is_checked_for_its_length_its_argsz_and_its_flags() {
    let process = Process::new();
    for (command, least) in
        [(REGISTER, 24), (UNREGISTER, 24), (MAP, 32), (UNMAP, 24), (CREATE, 40), (REMOVE, 16)]
    {
        let mut user = User::new(&process, 0);
        user.register(A, 1).unwrap();
        let mut short = vec![0xff; least - 1];
        assert_eq!(ask(&mut user, command, &mut short), Err(Errno::EFAULT), "{command:#x}");
        let mut bytes = vec![0; least];
        bytes[..4].copy_from_slice(&(least as u32 - 1).to_ne_bytes());
        assert_eq!(ask(&mut user, command, &mut bytes), Err(Errno::EINVAL), "{command:#x}");
        bytes[..8].copy_from_slice(&words32(&[least as u32, 4]));
        assert_eq!(ask(&mut user, command, &mut bytes), Err(Errno::EINVAL), "{command:#x}");
        // A longer struct of a later version.
        let mut long = vec![0xee; least + 100];
        long[..least].fill(0);
        long[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_ne!(ask(&mut user, command, &mut long), Err(Errno::EFAULT), "{command:#x}");
        assert!(long[least..].iter().all(|&byte| byte == 0xee));
    }
    process.host.assert_clean();
}

#[test]
fn scenario_99_info_is_as_long_as_argsz() {
    let process = Process::new();
    let mut user = User::new(&process, 0);
    for (argsz, expected, answered) in [
        (12, Err(Errno::EINVAL), 0),
        (15, Err(Errno::EINVAL), 0),
        (16, Ok(0), 16),
        (31, Ok(0), 16),
        (32, Ok(0), 32),
    ] {
        let mut bytes = [words32(&[argsz]), vec![0xee; 60]].concat();
        assert_eq!(ask(&mut user, INFO, &mut bytes), expected);
        let untouched = bytes.iter().rev().take_while(|&&byte| byte == 0xee).count();
        assert_eq!(bytes.len() - untouched, if answered == 0 { 4 } else { answered });
    }
    assert_eq!(ask(&mut user, INFO, &mut words32(&[32, 0, 0, 0])), Err(Errno::EFAULT));
    assert_eq!(ask(&mut user, INFO, &mut []), Err(Errno::EFAULT));
    let mut v1 = User::of(&process, 1, Version::V1);
    let mut bytes = request(32, 0, &[0, 7, 7]);
    assert_eq!(ask(&mut v1, INFO, &mut bytes), Ok(0));
    assert_eq!(bytes[4..], [words32(&[0, 0, 0x8000_0000]), words64(&[0, 0])].concat());
}

#[test]
fn unknown_requests_are_enotty_and_einval_without_an_iommu() {
    let process = Process::new();
    let mut user = User::new(&process, 0);
    assert_eq!(ask(&mut user, 0x1234_5678, &mut []), Err(Errno::ENOTTY));
    user.container.detach(0);
    assert_eq!(ask(&mut user, 0x1234_5678, &mut []), Err(Errno::EINVAL));
    assert_eq!(ask(&mut user, 0x3b64, &mut []), Ok(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 400 }))]

    /// Any bytes return an errno or success, and nothing is left at the end.
    #[test]
    fn any_bytes_are_answered(
        requests in proptest::collection::vec(
            (
                prop_oneof![
                    prop::sample::select(vec![INFO, MAP, UNMAP, REGISTER, UNREGISTER, CREATE, REMOVE, 0x3b66, 0x3b73]),
                    any::<u32>(),
                ],
                proptest::collection::vec(
                    prop_oneof![
                        4 => prop::sample::select(vec![
                            0, 1, 12, 16, 40, K4, 16 * K4, A, A + K4, A + 8 * K4, 40 << 32 | 40, 40, 3 << 32 | 40, W1,
                            1 << 30, u64::MAX, u64::MAX - K4 + 1, 1 << 63,
                        ]),
                        1 => any::<u64>(),
                    ],
                    0..8,
                ),
                0usize..8,
            ),
            1..30,
        )
    ) {
        let process = Process::new();
        let mut user = User::new(&process, 0);
        for (command, words, cut) in requests {
            let mut bytes = words64(&words);
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = ask(&mut user, command, &mut bytes);
            let entries = user.live();
            let regions = process.owner.space().snapshot().regions;
            let mapped: u64 = regions.iter().map(|region| region.mapped).sum();
            prop_assert_eq!(mapped, entries);
        }
        drop(user);
        process.host.assert_clean();
        prop_assert!(process.owner.space().find(UserAddr::new(A), 1).is_none());
    }
}
