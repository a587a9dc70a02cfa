//! Random guests, and some by name.

use proptest::prelude::*;

use crate::judge::judge;

#[test]
fn a_guest_that_does_nothing_is_well() {
    judge(&[]);
    judge(&[1]);
}

#[test]
fn every_short_script_is_well() {
    for first in 0..=255u8 {
        for second in [0, 1, 7, 0x80, 0xff] {
            judge(&[1, first, second, first, second, 9, 9, 9, 9, first, second, 6, 31]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_guest_is_well(script in prop::collection::vec(any::<u8>(), 0..1500)) {
        judge(&script);
    }
}
