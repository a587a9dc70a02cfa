//! Data pointers: PRP lists and SGLs, valid ones against a model, invalid ones against their status.

use prereg_nvme::spec::Status;
use proptest::prelude::*;

use crate::world::{BLOCK, Guest, Machine, RAM, transfer};

const WRITE: u8 = 1;
const READ: u8 = 2;
const PAGE: u64 = 0x1000;
const DATA: u64 = 0x20_0000;
const LIST: u64 = 0x60_0000;

fn guest() -> Guest {
    let mut guest = Guest::over(Machine::with_transfer_shift(10));
    guest.create_pair(1);
    guest
}

/// Fills the disk with numbers that depend on the offset.
fn number(guest: &mut Guest) {
    for (at, chunk) in guest.machine.disks.inner().images[0].chunks_exact_mut(4).enumerate() {
        chunk.copy_from_slice(&(at as u32 ^ 0x5aa5_0000).to_le_bytes());
    }
}

/// Writes a PRP list of `pages` at `list`, chained at page ends.
fn put_list(guest: &Guest, mut list: u64, pages: &[u64]) {
    let mut next_list = LIST + 0x10_0000;
    let mut left = pages;
    while !left.is_empty() {
        let slots = ((PAGE - list % PAGE) / 8) as usize;
        let (now, chained) = if left.len() > slots { (slots - 1, true) } else { (left.len(), false) };
        for (at, page) in (0..).zip(&left[..now]) {
            guest.machine.ram.put_u64(list + at * 8, *page);
        }
        if chained {
            guest.machine.ram.put_u64(list + now as u64 * 8, next_list);
            list = next_list;
            next_list += PAGE;
        }
        left = &left[now..];
    }
}

/// The memory of a transfer of `bytes` at PRP `first` and then `pages`.
fn gathered(guest: &Guest, first: u64, pages: &[u64], bytes: u64) -> Vec<u8> {
    let begun = bytes.min(PAGE - first % PAGE);
    let mut data = guest.machine.ram.get(first, begun);
    for page in pages {
        let more = (bytes - data.len() as u64).min(PAGE);
        data.extend(guest.machine.ram.get(*page, more));
    }
    data
}

#[test]
fn every_length_and_offset_of_prps_lands_where_it_should() {
    let mut guest = guest();
    number(&mut guest);
    // Pages out of order, so that none are merged by chance; and in order, so that they are.
    let scattered: Vec<u64> = (0..1200).map(|at| DATA + (at * 7 % 1000) * PAGE).take(600).collect();
    for (blocks, offset, list_offset, in_order) in [
        (1, 0, 0, true),
        (8, 0, 0, true),
        (8, 512, 0, true),
        (9, 0, 0, true),
        (16, 0x800, 0, false),
        (17, 0x800, 0, false),
        (256, 4, 0, false),
        (2048, 0xffc, 0, false),
        (4096, 0, 0, true),
        (4096, 0xff8, 8, false),
        (4096, 0x200, 0xff8, false),
        (4096, 0x200, 0xff0, false),
        (24, 0, 0xff8, false),
    ] {
        let bytes = blocks * BLOCK;
        let first = DATA + 0x3f_0000 + offset;
        let begun = bytes.min(PAGE - offset);
        let count = (bytes - begun).div_ceil(PAGE) as usize;
        let pages: Vec<u64> = if in_order {
            (0..count as u64).map(|at| DATA + at * PAGE).collect()
        } else {
            scattered[..count].to_vec()
        };
        let second = match pages[..] {
            [] => 0xdead_beef,
            [page] => page,
            _ => {
                put_list(&guest, LIST + list_offset, &pages);
                LIST + list_offset
            }
        };
        let lba = 3;
        assert_eq!(guest.io(transfer(READ, 1, lba, blocks as u32, first, second)), Status::SUCCESS);
        let expected =
            guest.machine.disks.inner().images[0][(lba * BLOCK) as usize..][..bytes as usize].to_vec();
        // A page that was named twice has the last data.
        let is_once = pages.iter().all(|page| pages.iter().filter(|other| *other == page).count() == 1);
        if is_once {
            assert!(
                gathered(&guest, first, &pages, bytes) == expected,
                "{blocks} blocks, offset {offset:#x}"
            );
        }
        let seen = gathered(&guest, first, &pages, bytes);
        assert_eq!(guest.io(transfer(WRITE, 1, 4000, blocks as u32, first, second)), Status::SUCCESS);
        assert!(guest.machine.disks.inner().images[0][4000 * 512..][..bytes as usize] == seen);
        assert_eq!(guest.machine.poll_group.in_flight(), 0);
    }
}

#[test]
fn misaligned_prps_are_refused() {
    let mut guest = guest();
    let read = |first, second, blocks| transfer(READ, 1, 0, blocks, first, second);
    assert_eq!(guest.io(read(DATA + 1, 0, 1)), Status::PRP_OFFSET, "not a dword");
    assert_eq!(guest.io(read(DATA, DATA + 0x1004, 16)), Status::PRP_OFFSET, "a second page with an offset");
    assert_eq!(guest.io(read(DATA, LIST + 4, 24)), Status::PRP_OFFSET, "a list that is not of quadwords");
    guest.machine.ram.put_u64(LIST, DATA + 0x2000);
    guest.machine.ram.put_u64(LIST + 8, DATA + 0x3008);
    assert_eq!(guest.io(read(DATA, LIST, 24)), Status::PRP_OFFSET, "a page of a list with an offset");
    guest.machine.ram.put_u64(LIST + 0xff8, LIST + 8);
    assert_eq!(guest.io(read(DATA, LIST + 0xff8, 24)), Status::PRP_OFFSET, "a chained list with an offset");
    assert_eq!(guest.machine.disks.inner().done.len(), 0);
}

#[test]
fn a_list_that_points_to_itself_ends_with_the_transfer() {
    let mut guest = guest();
    for at in 0..512 {
        guest.machine.ram.put_u64(LIST + at * 8, LIST);
    }
    // A read would overwrite the list itself; a write only reads it.
    assert_eq!(guest.io(transfer(WRITE, 1, 0, 8192, DATA, LIST)), Status::SUCCESS);
    assert_eq!(guest.io(transfer(WRITE, 1, 0, 8192, DATA, LIST + 0xff8)), Status::SUCCESS);
}

#[test]
fn memory_that_is_not_there_is_a_data_transfer_error() {
    let mut guest = guest();
    let end = RAM as u64;
    assert_eq!(guest.io(transfer(READ, 1, 0, 1, end, 0)), Status::DATA_TRANSFER);
    assert_eq!(guest.io(transfer(READ, 1, 0, 16, DATA, !0xfff)), Status::DATA_TRANSFER);
    assert_eq!(guest.io(transfer(READ, 1, 0, 24, DATA, end)), Status::DATA_TRANSFER, "a list");
    assert_eq!(
        guest.io(transfer(READ, 1, 0, 24, DATA, u64::MAX - 7)),
        Status::DATA_TRANSFER,
        "at the very end"
    );
    guest.machine.ram.hole(DATA + 0x5000..DATA + 0x6000);
    put_list(&guest, LIST, &[DATA + 0x4000, DATA + 0x5000]);
    let holds = guest.machine.ram.holds();
    assert_eq!(guest.io(transfer(READ, 1, 0, 24, DATA, LIST)), Status::DATA_TRANSFER);
    assert_eq!(guest.machine.ram.holds(), holds, "earlier holds are released");
    assert_eq!(guest.machine.disks.inner().done.len(), 0);
}

const BLOCK_KIND: u8 = 0x00;
const BUCKET: u8 = 0x10;
const SEGMENT: u8 = 0x20;
const LAST: u8 = 0x30;

fn descriptor(address: u64, bytes: u32, kind: u8) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&address.to_le_bytes());
    raw[8..12].copy_from_slice(&bytes.to_le_bytes());
    raw[15] = kind;
    raw
}

fn sgl(opcode: u8, blocks: u32, address: u64, bytes: u32, kind: u8) -> [u32; 16] {
    let mut command = transfer(opcode, 1, 0, blocks, address, u64::from(bytes) | u64::from(kind) << 56);
    command[0] |= 1 << 14;
    command
}

fn put_segment(guest: &Guest, at: u64, descriptors: &[(u64, u32, u8)]) -> u32 {
    for (index, (address, bytes, kind)) in (0..).zip(descriptors) {
        guest.machine.ram.put(at + index * 16, &descriptor(*address, *bytes, *kind));
    }
    descriptors.len() as u32 * 16
}

#[test]
fn scatter_gather_lists_are_followed() {
    let mut guest = guest();
    number(&mut guest);
    let image = guest.machine.disks.inner().images[0].clone();
    assert_eq!(guest.io(sgl(READ, 2, DATA + 4, 1024, BLOCK_KIND)), Status::SUCCESS);
    assert_eq!(guest.machine.ram.get(DATA + 4, 1024), image[..1024]);
    // Two segments; blocks of odd lengths, an empty one, one longer than the rest.
    let last = put_segment(
        &guest,
        LIST + 0x1000,
        &[(DATA + 0x2000, 1000, BLOCK_KIND), (DATA + 0x4000, 10_000, BLOCK_KIND)],
    );
    let first = put_segment(
        &guest,
        LIST,
        &[
            (DATA, 300, BLOCK_KIND),
            (7, 0, BUCKET),
            (DATA + 0x1000, 0, BLOCK_KIND),
            (LIST + 0x1000, last, LAST),
        ],
    );
    assert_eq!(guest.io(sgl(READ, 4, LIST, first, SEGMENT)), Status::SUCCESS);
    assert_eq!(guest.machine.ram.get(DATA, 300), image[..300]);
    assert_eq!(guest.machine.ram.get(DATA + 0x2000, 1000), image[300..1300]);
    assert_eq!(guest.machine.ram.get(DATA + 0x4000, 748), image[1300..2048]);
    assert_eq!(guest.machine.ram.get(DATA + 0x4000 + 748, 4), [0; 4]);
}

#[test]
fn a_bit_bucket_leaves_data_out_of_a_read_and_is_nothing_in_a_write() {
    let mut guest = guest();
    number(&mut guest);
    let image = guest.machine.disks.inner().images[0].clone();
    let bytes = put_segment(
        &guest,
        LIST,
        &[(DATA, 512, BLOCK_KIND), (0, 1024, BUCKET), (DATA + 0x1000, 512, BLOCK_KIND)],
    );
    assert_eq!(guest.io(sgl(READ, 4, LIST, bytes, LAST)), Status::SUCCESS);
    assert_eq!(guest.machine.ram.get(DATA, 512), image[..512]);
    assert_eq!(guest.machine.ram.get(DATA + 0x1000, 512), image[1536..2048]);
    assert_eq!(guest.io(sgl(READ, 4, 0, 2048, BUCKET)), Status::SUCCESS, "nothing is wanted at all");
    assert_eq!(guest.io(sgl(WRITE, 2, LIST, bytes, LAST)), Status::SUCCESS);
    assert_eq!(guest.machine.disks.inner().images[0][..512], image[..512]);
    assert_eq!(guest.machine.disks.inner().images[0][512..1024], image[1536..2048]);
    let odd = put_segment(&guest, LIST, &[(DATA, 256, BLOCK_KIND), (0, 768, BUCKET)]);
    assert_eq!(guest.io(sgl(READ, 2, LIST, odd, LAST)), Status::SGL_DATA_LENGTH, "half a block");
}

#[test]
fn bad_scatter_gather_lists_have_their_status() {
    let mut guest = guest();
    assert_eq!(guest.io(sgl(READ, 2, DATA, 1020, BLOCK_KIND)), Status::SGL_DATA_LENGTH);
    assert_eq!(guest.io(sgl(READ, 2, DATA + 2, 1024, BLOCK_KIND)), Status::SGL_GRANULARITY);
    assert_eq!(guest.io(sgl(READ, 2, DATA, 1025, BLOCK_KIND)), Status::SGL_GRANULARITY);
    assert_eq!(guest.io(sgl(READ, 2, DATA, 1024, 0x40)), Status::SGL_TYPE, "keyed");
    assert_eq!(guest.io(sgl(READ, 2, DATA, 1024, 0x01)), Status::SGL_TYPE, "an offset");
    assert_eq!(guest.io(sgl(READ, 2, LIST, 0, LAST)), Status::SGL_SEGMENT);
    assert_eq!(guest.io(sgl(READ, 2, LIST, 24, SEGMENT)), Status::SGL_SEGMENT);
    assert_eq!(guest.io(sgl(READ, 2, RAM as u64, 32, LAST)), Status::DATA_TRANSFER);
    assert_eq!(guest.io(sgl(READ, 2, u64::MAX - 15, 32, LAST)), Status::DATA_TRANSFER);
    let one = [(DATA, 512, BLOCK_KIND)];
    let bytes = put_segment(&guest, LIST, &one);
    assert_eq!(guest.io(sgl(READ, 2, LIST, bytes, LAST)), Status::SGL_DATA_LENGTH, "too short");
    assert_eq!(guest.io(sgl(READ, 2, LIST, bytes, SEGMENT)), Status::SGL_SEGMENT, "leads nowhere");
    let bytes = put_segment(&guest, LIST, &[(LIST + 0x1000, 16, LAST), (DATA, 1024, BLOCK_KIND)]);
    assert_eq!(guest.io(sgl(READ, 2, LIST, bytes, SEGMENT)), Status::SGL_SEGMENT, "not at the end");
    let bytes = put_segment(&guest, LIST, &[(DATA, 512, BLOCK_KIND), (LIST, 32, LAST)]);
    assert_eq!(guest.io(sgl(READ, 2, LIST, bytes, LAST)), Status::SGL_SEGMENT, "after the last");
    assert_eq!(guest.machine.disks.inner().done.len(), 0);
}

#[test]
fn scatter_gather_lists_of_nothing_end() {
    let mut guest = guest();
    let bytes = put_segment(&guest, LIST, &[(DATA, 0, BLOCK_KIND), (LIST, 32, SEGMENT)]);
    assert_eq!(guest.io(sgl(READ, 2, LIST, bytes, SEGMENT)), Status::SGL_COUNT, "a circle");
    assert_eq!(guest.io(sgl(READ, 2, LIST, 0xffff_fff0, LAST)), Status::SGL_SEGMENT, "circle in a long list");
    for at in 0..0x8000 {
        guest.machine.ram.put(LIST + at * 16, &descriptor(DATA, 0, BLOCK_KIND));
    }
    assert_eq!(guest.io(sgl(READ, 2, LIST, 0x8_0000, LAST)), Status::SGL_COUNT, "too many");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any list of data blocks, split into segments anywhere, moves what one contiguous block would.
    #[test]
    fn any_cut_of_a_transfer_is_the_same_transfer(
        blocks in 1u32..32,
        cuts in prop::collection::vec(1u32..1500, 0..40),
        segments in prop::collection::vec(1usize..6, 0..20),
    ) {
        let mut guest = guest();
        number(&mut guest);
        let total = blocks * 512;
        let mut left = total;
        let mut data = Vec::new();
        let mut expected = Vec::new();
        let image = guest.machine.disks.inner().images[0].clone();
        for (at, cut) in cuts.iter().chain(&[total]).enumerate() {
            let bytes = (cut * 4).min(left);
            let address = DATA + (at as u64 * 3 % 41) * 0x2_0000 % 0x30_0000 + at as u64 * 0x2000 % 0x2_0000;
            data.push((address, bytes, BLOCK_KIND));
            let from = (total - left) as usize;
            expected.push((address, image[from..from + bytes as usize].to_vec()));
            left -= bytes;
        }
        let mut lists: Vec<Vec<(u64, u32, u8)>> = Vec::new();
        let mut rest = &data[..];
        for count in &segments {
            let (now, later) = rest.split_at((*count).min(rest.len()));
            if later.is_empty() {
                break;
            }
            lists.push(now.to_vec());
            rest = later;
        }
        lists.push(rest.to_vec());
        let mut next: Option<(u64, u32, u8)> = None;
        for (at, list) in lists.iter().enumerate().rev() {
            let mut list = list.clone();
            let kind = if next.is_some() { SEGMENT } else { LAST };
            list.extend(next);
            let place = LIST + at as u64 * 0x1000;
            let bytes = put_segment(&guest, place, &list);
            next = Some((place, bytes, kind));
        }
        let (place, bytes, kind) = next.unwrap();
        prop_assert_eq!(guest.io(sgl(READ, blocks, place, bytes, kind)), Status::SUCCESS);
        // Memory that was named twice has the last data.
        let is_once = |address: u64| expected.iter().filter(|(other, _)| *other == address).count() == 1;
        for (address, bytes) in expected.iter().filter(|(address, bytes)| is_once(*address) && bytes.len() < 0x2000) {
            prop_assert_eq!(&guest.machine.ram.get(*address, bytes.len() as u64), bytes);
        }
    }
}
