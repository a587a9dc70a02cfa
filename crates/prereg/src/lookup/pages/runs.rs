//! The contiguous runs of a range in order: the content of a scatter-gather list.

use super::{Layout, PageTable};
use crate::addr::{HostAddr, UserAddr};

impl PageTable {
    /// The contiguous runs of the `bytes` bytes from `ua` on, all inside the region.
    #[inline]
    pub(crate) fn runs_within(&self, ua: UserAddr, bytes: u64) -> RunsWithin<'_> {
        let offset = ua.raw() - self.first.raw();
        let frames = match &self.layout {
            Layout::Narrow { frames, .. } if bytes > 0 => {
                let shift = self.granule.get();
                &frames[(offset >> shift) as usize..=((offset + (bytes - 1)) >> shift) as usize]
            }
            _ => &[],
        };
        RunsWithin { table: self, frames, inside: offset & self.granule.mask(), ua, left: bytes }
    }
}

/// An iterator over contiguous runs.
pub(crate) struct RunsWithin<'a> {
    table: &'a PageTable,
    /// Page numbers not yet returned, if the table has such; then nothing else of it is read.
    frames: &'a [u32],
    /// Bytes of the first page that lie before the range.
    inside: u64,
    ua: UserAddr,
    left: u64,
}

impl Iterator for RunsWithin<'_> {
    type Item = (HostAddr, u64);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let Some((&first, mut rest)) = self.frames.split_first() else { return self.next_run() };
        let mut last = first;
        while let Some((&next, others)) = rest.split_first() {
            // Wider than a frame number, so the last one has no successor.
            if u64::from(last) + 1 != u64::from(next) {
                break;
            }
            (last, rest) = (next, others);
        }
        let shift = self.table.granule.get();
        let count = (self.frames.len() - rest.len()) as u64;
        let bytes = ((count << shift) - self.inside).min(self.left);
        let host = (u64::from(first) << shift) | self.inside;
        self.frames = rest;
        self.inside = 0;
        self.left -= bytes;
        Some((HostAddr::new(host), bytes))
    }
}

impl RunsWithin<'_> {
    /// The next run, by search of the table.
    fn next_run(&mut self) -> Option<(HostAddr, u64)> {
        if self.left == 0 {
            return None;
        }
        let (host, bytes) = self.table.run_within(self.ua, self.left);
        self.left -= bytes;
        // Past the end of the range only when nothing is left.
        self.ua = UserAddr::new(self.ua.raw().wrapping_add(bytes));
        Some((host, bytes))
    }
}
