//! Clients that send anything, checked by the judge.

use std::path::Path;

use prereg_vfio_user::wire::{Command, Header};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::client::{QEMU, version};
use crate::judge::judge;

/// A step of the judge's script in which the server receives `bytes`.
fn receive(how: u8, bytes: &[u8]) -> Vec<u8> {
    let mut step = vec![how & !7];
    step.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    step.extend_from_slice(bytes);
    step
}

/// Numbers that are valid somewhere, or nearly.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => prop::sample::select(vec![0, 1, 2, 3, 4, 8, 16, 20, 24, 32, 36, 0x21, 0x24, 4096, 8192]),
        1 => prop::sample::select(vec![15, 17, 31, 33, 0xfff, 0x1001, 1 << 20, 1 << 31, u32::MAX]),
        1 => any::<u32>(),
    ]
}

/// A message of a known or unknown command, with a body of such numbers; its size is mostly right.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let flags =
        prop_oneof![8 => Just(0_u32), 2 => Just(0x10), 1 => Just(1), 1 => Just(0x21), 1 => any::<u32>()];
    let body = prop_oneof![
        8 => vec(word(), 0..12),
        1 => vec(word(), 1020..1040),
    ];
    let size = prop_oneof![40 => Just(0_i32), 1 => -20..20, 1 => Just(60 << 20), 1 => Just(i32::MAX)];
    (0..4_u16, 0..20_u16, flags, body, size, 0..4_usize).prop_map(|(id, number, flags, body, size, cut)| {
        let mut bytes = Vec::new();
        let header = Header { id, command: Command::new(number), size: 0, flags, error: 0 };
        header.frame(&mut bytes, |out| out.extend(body.iter().flat_map(|word| word.to_ne_bytes())));
        if size != 0 {
            let wrong = (bytes.len() as u32).saturating_add_signed(size);
            bytes[4..8].copy_from_slice(&wrong.to_ne_bytes());
        }
        bytes.truncate(bytes.len() - if size == 0 { 0 } else { cut });
        bytes
    })
}

fn step() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => (any::<u8>(), message()).prop_map(|(how, bytes)| receive(how & 0x38 & (how >> 2), &bytes)),
        2 => (any::<u8>(), vec(message(), 1..5)).prop_map(|(how, list)| receive(how, &list.concat())),
        // One message in parts.
        2 => (any::<u8>(), message(), any::<prop::sample::Index>()).prop_map(|(how, bytes, at)| {
            let (first, second) = bytes.split_at(at.index(bytes.len()));
            [receive(how & 0x18, first), receive(how & 0x20, second)].concat()
        }),
        1 => vec(any::<u8>(), 0..40),
        3 => any::<(u8, u8)>().prop_map(|(how, which)| vec![how & !7 | 3, which]),
        2 => any::<u8>().prop_map(|most| vec![4, most]),
        2 => any::<[u8; 4]>().prop_map(|[how, a, b, c]| vec![5 + (how & 1), a, b, c & 15]),
        1 => Just(vec![7]),
    ]
}

fn hello() -> Vec<u8> {
    receive(0, &version(0, 0, 0, QEMU))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_client_is_borne(polite: bool, steps in vec(step(), 0..60)) {
        let script = [if polite { hello() } else { Vec::new() }, steps.concat()].concat();
        judge(&script);
    }

    #[test]
    fn any_bytes_are_borne(script in vec(any::<u8>(), 0..600)) {
        judge(&script);
        judge(&[hello(), script].concat());
    }
}

#[test]
fn the_judge_sees_good_replies_and_bad() {
    let mut bytes = Vec::new();
    Header::command(1, Command::DEVICE_RESET).frame(&mut bytes, |_| ());
    Header::command(2, Command::new(44)).frame(&mut bytes, |_| ());
    let verdict = judge(&[hello(), receive(0, &bytes)].concat());
    assert!(verdict.negotiated);
    assert_eq!(verdict.replies, (2, 1));
    assert_eq!(verdict.over, None);
    let verdict = judge(&[hello(), receive(0, &[0; 16])].concat());
    assert!(verdict.over.is_some());
}

#[test]
fn the_fuzzers_seeds_are_sessions() {
    let folder = Path::new("../../fuzz/seeds/vfio_user");
    let mut seeds = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let verdict = judge(&std::fs::read(&path).unwrap());
        assert!(verdict.negotiated && verdict.replies.0 > 1, "{}: {verdict:?}", path.display());
        seeds += 1;
    }
    assert!(seeds >= 3);
}
