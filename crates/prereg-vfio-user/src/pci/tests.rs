//! The driver's view.

use super::*;

const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x10,
    subsystem_vendor: 0,
    subsystem: 7,
    revision: 2,
    class: 0x01_08_02,
};
const PLACE: MsixLocation = MsixLocation { table: (0, 0x2000), pending: (0, 0x3000) };

fn full() -> ConfigSpace {
    ConfigBuilder::new(IDENTITY)
        .with_bar(0, Bar::memory64(16 << 10).prefetchable())
        .with_bar(2, Bar::memory32(4096))
        .with_bar(5, Bar::io(32))
        .with_intx()
        .with_power_management()
        .with_msi(4)
        .with_msix(64, PLACE)
        .with_express()
        .build()
        .unwrap()
}

fn get<const N: usize>(config: &ConfigSpace, offset: u64) -> [u8; N] {
    let mut bytes = [0; N];
    config.read(offset, &mut bytes);
    bytes
}

fn get16(config: &ConfigSpace, offset: u64) -> u16 {
    u16::from_le_bytes(get(config, offset))
}

fn get32(config: &ConfigSpace, offset: u64) -> u32 {
    u32::from_le_bytes(get(config, offset))
}

/// Walks the capability list like a driver.
fn capability(config: &ConfigSpace, id: u8) -> Option<u64> {
    let [mut at] = get(config, 0x34);
    for _ in 0..48 {
        if at == 0 {
            return None;
        }
        let [found, next] = get(config, at.into());
        if found == id {
            return Some(at.into());
        }
        at = next;
    }
    panic!("the list has no end");
}

#[test]
fn a_driver_finds_identity_and_capabilities() {
    let config = full();
    assert_eq!((get16(&config, 0), get16(&config, 2)), (0x1b36, 0x10));
    assert_eq!(get(&config, 8), [2, 0x02, 0x08, 0x01]);
    assert_eq!((get16(&config, 0x2c), get16(&config, 0x2e)), (0x1b36, 7));
    assert_eq!(get(&config, 0x3d), [1], "INTA");
    assert_eq!(get16(&config, 6) & 1 << 4, 1 << 4);
    let there: Vec<bool> = [1, 5, 0x10, 0x11, 9].map(|id| capability(&config, id).is_some()).into();
    assert_eq!(there, [true, true, true, true, false]);
    assert_eq!((config.bytes(), get32(&config, 0x100)), (4096, 0), "no extended capabilities");
    let plain = ConfigBuilder::new(IDENTITY).build().unwrap();
    assert_eq!((plain.bytes(), get(&plain, 0x34), get16(&plain, 6)), (256, [0], 0));
    assert_eq!(get::<4>(&plain, 254), [0; 4]);
    assert_eq!(get::<4>(&plain, u64::MAX - 1), [0; 4]);
}

#[test]
fn bars_say_their_size_and_keep_their_address() {
    let mut config = full();
    for (at, kind, size) in
        [(0x10, 0b1100, !0x3fff), (0x14, 0, !0), (0x18, 0, !0xfff), (0x1c, 0, 0), (0x24, 1, !0x1f)]
    {
        config.write(at, &[0xff; 4]);
        assert_eq!(get32(&config, at), size | kind, "{at:#x}");
    }
    assert!(config.write(0x10, &0x1234_5678u32.to_le_bytes()).bars);
    assert!(config.write(0x14, &9u32.to_le_bytes()).bars);
    assert!(!config.write(0x14, &9u32.to_le_bytes()).bars, "nothing new");
    assert_eq!(config.bar(0), Some(0x9_1234_4000));
    config.write(0x24, &0xc0ffu32.to_le_bytes());
    assert_eq!((config.bar(5), config.bar(1), config.bar(3)), (Some(0xc0e0), None, None));
}

#[test]
fn only_what_can_be_written_is() {
    let mut config = full();
    let before: [u8; 256] = get(&config, 0);
    config.write(0, &[0xff; 4]);
    config.write(8, &[0xff; 4]);
    config.write(0x2c, &[0xff; 16]);
    assert_eq!(get::<16>(&config, 0)[..4], before[..4]);
    assert_eq!(get::<16>(&config, 0x2c)[..14], before[0x2c..0x3a]);
    assert!(config.write(4, &[0xff, 0xff]).command);
    assert_eq!(get16(&config, 4), 0b101_0100_0111);
    config.write(0x3c, &[11, 9]);
    assert_eq!(get(&config, 0x3c), [11, 1]);
    config.write(4000, &[0xff; 200]);
    assert_eq!(get::<8>(&config, 4088), [0; 8]);
}

#[test]
fn the_command_register_says_what_the_device_may() {
    let mut config = full();
    assert!(!config.is_bus_master() && !config.is_memory_enabled() && !config.is_io_enabled());
    let written = config.write(4, &[0b111]);
    assert!(written.command && !written.interrupts);
    assert!(config.is_bus_master() && config.is_memory_enabled() && config.is_io_enabled());
    assert!(config.write(5, &[0b100]).interrupts && config.is_intx_disabled());
    config.set_intx_status(true);
    assert_eq!(get16(&config, 6), 1 << 4 | 1 << 3, "said even when it is disabled");
    config.write(6, &[0xff; 2]);
    assert_eq!(get16(&config, 6) & 1 << 3, 1 << 3);
    config.set_intx_status(false);
    assert_eq!(get16(&config, 6), 1 << 4);
}

#[test]
fn msi_is_set_up_by_its_driver() {
    let mut config = full();
    let at = capability(&config, 5).unwrap();
    assert_eq!(get16(&config, at + 2), 0b1_1000_0100, "four, wide, with masks");
    config.write(at + 4, &0xfee0_0003u32.to_le_bytes());
    config.write(at + 8, &1u32.to_le_bytes());
    config.write(at + 12, &0x4021u16.to_le_bytes());
    config.write(at + 16, &[0xff; 8]);
    let written = config.write(at + 2, &[0x71, 0xff]);
    assert!(written.interrupts && !written.command);
    let msi = config.msi().unwrap();
    assert_eq!((msi.enabled, msi.vectors, msi.masks), (true, 4, 0xf), "never more than it has");
    assert_eq!((msi.address, msi.data), (0x1_fee0_0000, 0x4021));
    assert!(config.is_intx_disabled());
    config.reset();
    assert!(!config.msi().unwrap().enabled && !config.is_intx_disabled());
}

#[test]
fn msi_x_points_to_its_table() {
    let mut config = full();
    let at = capability(&config, 0x11).unwrap();
    assert_eq!(
        (get16(&config, at + 2), get32(&config, at + 4), get32(&config, at + 8)),
        (63, 0x2000, 0x3000)
    );
    assert!(config.write(at + 3, &[0xc0]).interrupts);
    assert!(config.is_msix_enabled() && config.is_msix_masked());
    config.write(at + 2, &[0xff, 0x80]);
    assert_eq!(get16(&config, at + 2), 63 | 1 << 15);
}

#[test]
fn a_function_is_reset_by_its_driver() {
    let mut config = full();
    let at = capability(&config, 0x10).unwrap();
    assert_eq!(get32(&config, at + 4) & 1 << 28, 1 << 28);
    config.write(4, &[0b110]);
    assert!(!config.write(at + 8, &[0x10, 0x20]).reset);
    let written = config.write(at + 8, &[0x10, 0xa0]);
    assert!(written.reset && written.command);
    assert_eq!(get16(&config, at + 8), 0x2810, "and the bit reads as zero");
    assert!(!config.is_bus_master());
    assert!(!config.write(at + 10, &[0, 0x80]).reset, "the register beside it");
}

#[test]
fn power_states_come_and_go() {
    let mut config = full();
    let at = capability(&config, 1).unwrap();
    assert!(config.write(at + 4, &[3]).power);
    assert_eq!((config.power_state(), get16(&config, at + 4)), (3, 3 | 1 << 3));
    assert!(config.write(at + 4, &[0]).power);
    assert_eq!(config.power_state(), 0);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let new = || ConfigBuilder::new(IDENTITY);
    let bars = [
        (6, Bar::memory32(4096)),
        (0, Bar::memory32(4095)),
        (0, Bar::memory32(8)),
        (0, Bar::memory32(1 << 32)),
        (0, Bar::memory64(0)),
        (0, Bar::io(2)),
        (0, Bar::io(512)),
        (5, Bar::memory64(4096)),
    ];
    for (index, bar) in bars {
        let error = new().with_bar(index, bar).build().unwrap_err();
        assert_eq!(error, PciError::Bar { index, bytes: bar.bytes() });
    }
    let twice = new().with_bar(0, Bar::memory64(4096)).with_bar(1, Bar::memory32(4096));
    assert!(twice.build().is_err());
    for vectors in [0, 3, 64] {
        assert_eq!(new().with_msi(vectors).build().unwrap_err(), PciError::Vectors { count: vectors });
    }
    let with_bar = || new().with_bar(0, Bar::memory32(0x4000)).with_bar(1, Bar::io(128));
    for vectors in [0, 2049] {
        assert!(with_bar().with_msix(vectors, PLACE).build().is_err());
    }
    let places = [
        ((0, 0x2000), (0, 0x2008)),
        ((0, 0x2004), (0, 0x3000)),
        ((0, 0x3ff8), (0, 0)),
        ((1, 0), (0, 0)),
        ((2, 0), (0, 0)),
        ((9, 0), (0, 0)),
        ((0, !7), (0, 0)),
    ];
    for (table, pending) in places {
        assert!(
            with_bar().with_msix(64, MsixLocation { table, pending }).build().is_err(),
            "{table:?} {pending:?}"
        );
    }
    assert_eq!(new().with_express().with_express().build().unwrap_err(), PciError::Twice { id: 0x10 });
}

#[test]
fn a_vector_that_was_wanted_while_it_was_masked_is_sent_when_it_is_not() {
    let mut table = MsixTable::new(65);
    assert_eq!(table.vectors(), 65);
    assert!(table.message(64).unwrap().masked && table.message(65).is_none());
    let entry: Vec<u8> =
        [0xfee0_1003u32, 2, 0x55, 0xffff_ffff].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert!(table.write_table(64 * 16, &entry).is_empty());
    let message = MsixMessage { address: 0x2_fee0_1000, data: 0x55, masked: true };
    assert_eq!(table.message(64), Some(message));
    table.set_pending(64, true);
    table.set_pending(65, true);
    let mut pending = [0; 16];
    table.read_pending(0, &mut pending);
    assert_eq!((pending[8], table.is_pending(64), table.is_pending(65)), (1, true, false));
    assert_eq!(table.write_table(64 * 16 + 12, &[0; 4]), [64]);
    assert!(!table.is_pending(64) && table.write_table(64 * 16 + 12, &[0; 4]).is_empty());
    let mut word = [0; 4];
    table.read_table(64 * 16, &mut word);
    assert_eq!(u32::from_le_bytes(word), 0xfee0_1000);
    table.write_table(65 * 16, &[1; 64]);
    table.write_table(u64::MAX - 1, &[1; 4]);
    table.reset();
    assert!(table.message(64).unwrap().masked);
}
