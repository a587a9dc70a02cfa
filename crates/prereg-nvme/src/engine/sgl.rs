//! Scatter gather lists (section 4.4): data blocks, bit buckets, and segments that lead to more descriptors.

use prereg::Iova;

use super::memory::GuestMemory;
use super::sg_list::SgList;
use crate::spec::Status;

/// SGLS of Identify Controller: dword alignment (bits 1:0 = 2), bit buckets (bit 16), and lists longer than the transfer (bit
/// 18).
pub(crate) const SUPPORT: u32 = 2 | 1 << 16 | 1 << 18;

const DESCRIPTOR: u64 = 16;
const BATCH: usize = 32;
/// Descriptors of one command at most: more than any transfer of whole blocks needs, and a limit for lists of empty blocks.
const MAX_DESCRIPTORS: u64 = 4096;

const DATA_BLOCK: u8 = 0;
const BIT_BUCKET: u8 = 1;
const SEGMENT: u8 = 2;
const LAST_SEGMENT: u8 = 3;

/// How bit buckets are treated. They leave data out only in transfers to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BitBuckets {
    /// Transfers to the guest: a bucket's data are left out.
    Count,
    /// Transfers from the guest: a bucket has no length.
    Ignore,
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    bytes: u64,
    kind: u8,
    sub: u8,
}

impl Descriptor {
    fn new(address: u64, second: u64) -> Self {
        let identifier = (second >> 56) as u8;
        Self { address, bytes: second & 0xffff_ffff, kind: identifier >> 4, sub: identifier & 0xf }
    }
}

/// Appends the memory of `bytes` of data to `sg_list`.
///
/// # Errors
/// [`Status::SGL_TYPE`], [`Status::SGL_SEGMENT`], [`Status::SGL_COUNT`], [`Status::SGL_GRANULARITY`],
/// [`Status::SGL_DATA_LENGTH`] for a list that is too short, and [`Status::DATA_TRANSFER`] for one that cannot be read.
pub(crate) fn walk<M: GuestMemory>(
    memory: &M,
    (first, second): (u64, u64),
    bytes: u64,
    buckets: BitBuckets,
    sg_list: &mut SgList,
) -> Result<(), Status> {
    let mut left = bytes;
    let mut seen = 0;
    let mut inline = Descriptor::new(first, second);
    if inline.kind != SEGMENT && inline.kind != LAST_SEGMENT {
        append(inline, &mut left, buckets, sg_list)?;
        return if left == 0 { Ok(()) } else { Err(Status::SGL_DATA_LENGTH) };
    }
    while left > 0 {
        match segment(memory, inline, &mut left, &mut seen, buckets, sg_list)? {
            Some(next) => inline = next,
            None if left > 0 => return Err(Status::SGL_DATA_LENGTH),
            None => {}
        }
    }
    Ok(())
}

/// Appends the descriptors of one segment; returns the next segment.
fn segment<M: GuestMemory>(
    memory: &M,
    from: Descriptor,
    left: &mut u64,
    seen: &mut u64,
    buckets: BitBuckets,
    sg_list: &mut SgList,
) -> Result<Option<Descriptor>, Status> {
    if from.sub != 0 {
        return Err(Status::SGL_TYPE);
    }
    if from.bytes == 0 || from.bytes % DESCRIPTOR != 0 {
        return Err(Status::SGL_SEGMENT);
    }
    let count = from.bytes / DESCRIPTOR;
    let mut buffer = [0u8; BATCH * DESCRIPTOR as usize];
    let mut at = 0;
    while at < count {
        let now = (count - at).min(BATCH as u64);
        *seen += now;
        if *seen > MAX_DESCRIPTORS {
            return Err(Status::SGL_COUNT);
        }
        let batch = &mut buffer[..(now * DESCRIPTOR) as usize];
        let address = from.address.checked_add(at * DESCRIPTOR).ok_or(Status::DATA_TRANSFER)?;
        memory.read(Iova::new(address), batch).map_err(|_| Status::DATA_TRANSFER)?;
        for (index, raw) in batch.chunks_exact(DESCRIPTOR as usize).enumerate() {
            let (mut first, mut second) = ([0; 8], [0; 8]);
            first.copy_from_slice(&raw[..8]);
            second.copy_from_slice(&raw[8..]);
            let descriptor = Descriptor::new(u64::from_le_bytes(first), u64::from_le_bytes(second));
            let is_last = at + index as u64 + 1 == count;
            let is_segment = matches!(descriptor.kind, SEGMENT | LAST_SEGMENT);
            if is_segment != (is_last && from.kind == SEGMENT) {
                return Err(Status::SGL_SEGMENT);
            }
            if is_segment {
                return Ok(Some(descriptor));
            }
            append(descriptor, left, buckets, sg_list)?;
            if *left == 0 {
                return Ok(None);
            }
        }
        at += now;
    }
    Ok(None)
}

fn append(
    descriptor: Descriptor,
    left: &mut u64,
    buckets: BitBuckets,
    sg_list: &mut SgList,
) -> Result<(), Status> {
    if descriptor.sub != 0 {
        return Err(Status::SGL_TYPE);
    }
    let bytes = descriptor.bytes.min(*left);
    match descriptor.kind {
        DATA_BLOCK => {
            if descriptor.address & 3 != 0 || descriptor.bytes & 3 != 0 {
                return Err(Status::SGL_GRANULARITY);
            }
            sg_list.push_memory(descriptor.address, bytes);
        }
        BIT_BUCKET if buckets == BitBuckets::Ignore => return Ok(()),
        BIT_BUCKET => {
            if descriptor.bytes & 3 != 0 {
                return Err(Status::SGL_GRANULARITY);
            }
            sg_list.push_bit_bucket(bytes);
        }
        _ => return Err(Status::SGL_TYPE),
    }
    *left -= bytes;
    Ok(())
}
