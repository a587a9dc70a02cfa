//! Physical region pages (section 4.3): two entries, of which the second may point to a list, which may be chained.

use prereg::Iova;

use super::memory::GuestMemory;
use super::sg_list::SgList;
use crate::spec::Status;

/// Entries read at a time.
const BATCH: usize = 64;

/// Appends the memory of `bytes` of data to `sg_list`.
///
/// It ends even if a list points to itself: every list page but the first, which may start at its last entry, uses up at least
/// one page of the transfer.
///
/// # Errors
/// [`Status::PRP_OFFSET`] for an entry that is misaligned, [`Status::DATA_TRANSFER`] for a list that cannot be read.
pub(crate) fn walk<M: GuestMemory>(
    memory: &M,
    (first, second): (u64, u64),
    bytes: u64,
    page_shift: u32,
    sg_list: &mut SgList,
) -> Result<(), Status> {
    let page = 1u64 << page_shift;
    if first & 3 != 0 {
        return Err(Status::PRP_OFFSET);
    }
    let begun = bytes.min(page - (first & (page - 1)));
    sg_list.push_memory(first, begun);
    let mut left = bytes - begun;
    if left == 0 {
        return Ok(());
    }
    if left <= page {
        if second & (page - 1) != 0 {
            return Err(Status::PRP_OFFSET);
        }
        sg_list.push_memory(second, left);
        return Ok(());
    }
    if second & 7 != 0 {
        return Err(Status::PRP_OFFSET);
    }
    let mut list = second;
    loop {
        let slots = (page - (list & (page - 1))) / 8;
        let needed = left.div_ceil(page);
        // The last entry of a page points to the next list page, unless the data end here.
        let (entries, chained) = if needed > slots { (slots - 1, true) } else { (needed, false) };
        left = entries_of(memory, list, entries, left, page, sg_list)?;
        if !chained {
            return Ok(());
        }
        let mut next = [0; 8];
        read(memory, list.wrapping_add(entries * 8), &mut next)?;
        list = u64::from_le_bytes(next);
        if list & (page - 1) != 0 {
            return Err(Status::PRP_OFFSET);
        }
    }
}

fn entries_of<M: GuestMemory>(
    memory: &M,
    mut list: u64,
    mut entries: u64,
    mut left: u64,
    page: u64,
    sg_list: &mut SgList,
) -> Result<u64, Status> {
    let mut buffer = [0u8; BATCH * 8];
    while entries > 0 {
        let now = entries.min(BATCH as u64);
        let batch = &mut buffer[..now as usize * 8];
        read(memory, list, batch)?;
        for entry in batch.chunks_exact(8) {
            let mut raw = [0; 8];
            raw.copy_from_slice(entry);
            let entry = u64::from_le_bytes(raw);
            if entry & (page - 1) != 0 {
                return Err(Status::PRP_OFFSET);
            }
            let bytes = left.min(page);
            sg_list.push_memory(entry, bytes);
            left -= bytes;
        }
        // Wraps only after the last entry of the last page of the address space, where nothing more is read.
        list = list.wrapping_add(now * 8);
        entries -= now;
    }
    Ok(left)
}

fn read<M: GuestMemory>(memory: &M, iova: u64, into: &mut [u8]) -> Result<(), Status> {
    memory.read(Iova::new(iova), into).map_err(|_| Status::DATA_TRANSFER)
}
