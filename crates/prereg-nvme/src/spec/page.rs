//! A 4 KiB page of data for the guest: Identify structures and log pages are filled field by field.

/// 4096 bytes, zero until a field is put.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Page {
    bytes: Box<[u8]>,
}

impl Page {
    pub(crate) const BYTES: usize = 4096;

    pub(crate) fn zeroed() -> Self {
        Self { bytes: vec![0; Self::BYTES].into_boxed_slice() }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Puts `from` at `offset`. Bytes outside the page are dropped.
    pub(crate) fn put(&mut self, offset: usize, from: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(offset).zip(from) {
            *place = *byte;
        }
    }

    pub(crate) fn put_u8(&mut self, offset: usize, value: u8) {
        self.put(offset, &[value]);
    }

    pub(crate) fn put_u16(&mut self, offset: usize, value: u16) {
        self.put(offset, &value.to_le_bytes());
    }

    pub(crate) fn put_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    pub(crate) fn put_u64(&mut self, offset: usize, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }

    pub(crate) fn put_u128(&mut self, offset: usize, value: u128) {
        self.put(offset, &value.to_le_bytes());
    }

    /// Puts ASCII text, left justified, padded with spaces to `width`; other characters than printable ASCII become `_`.
    pub(crate) fn put_text(&mut self, offset: usize, width: usize, text: &str) {
        let mut field = vec![b' '; width];
        for (place, character) in field.iter_mut().zip(text.chars()) {
            let printable = character.is_ascii_graphic() || character == ' ';
            *place = if printable { character as u8 } else { b'_' };
        }
        self.put(offset, &field);
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = self.bytes.iter().filter(|byte| **byte != 0).count();
        f.debug_struct("Page").field("bytes_not_zero", &used).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Page;

    #[test]
    fn text_is_filled_with_spaces_and_kept_in_its_field() {
        let mut page = Page::zeroed();
        page.put_text(10, 4, "añb");
        page.put_text(20, 3, "longer");
        assert_eq!(&page.bytes()[10..15], b"a_b \0");
        assert_eq!(&page.bytes()[20..24], b"lon\0");
    }

    #[test]
    fn what_lies_outside_is_left_out() {
        let mut page = Page::zeroed();
        page.put_u64(4092, u64::MAX);
        page.put_u64(9999, u64::MAX);
        assert_eq!(&page.bytes()[4090..], &[0, 0, 255, 255, 255, 255]);
    }
}
