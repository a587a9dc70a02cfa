//! Writes an initramfs: a cpio archive of the kind "newc", as in the kernel's documentation of initramfs buffers.
//!
//! An entry is a header of 110 characters, the name and the contents, each padded to a multiple of four. All entries belong to
//! root and have time 0, so equal contents give equal archives.

use std::collections::BTreeSet;

/// An archive being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A folder; its parent must have been written before.
    pub(crate) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER, 2, &[]);
    }

    /// A file that root may read, write and execute.
    ///
    /// # Panics
    /// From 4 GiB: the format has 32 bits for the size.
    pub(crate) fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, FILE, 1, contents);
    }

    /// A file, preceded by those of its folders that this function has not yet written.
    ///
    /// # Panics
    /// As `file`.
    pub(crate) fn file_with_folders(&mut self, path: &str, contents: &[u8]) {
        for (at, _) in path.match_indices('/') {
            if self.folders.insert(path[..at].to_owned()) {
                self.folder(&path[..at]);
            }
        }
        self.file(path, contents);
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, 1, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, links: u32, contents: &[u8]) {
        let size = u32::try_from(contents.len()).expect("an initramfs file is smaller than 4 GiB");
        let length = u32::try_from(name.len() + 1).expect("a path is short");
        let number = self.entries;
        self.entries += 1;
        // inode, mode, owner, group, links, time, size, device (2), special device (2), length of the name, checksum
        let fields = [number, mode, 0, 0, links, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.fill();
        self.bytes.extend_from_slice(contents);
        self.fill();
    }

    fn fill(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_archive_ends_in_its_trailer() {
        let mut archive = Archive::new();
        archive.folder("dev");
        archive.file("init", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        // 110 bytes of header and "dev\0" make 114, padded to 116.
        assert_eq!(&bytes[110..116], b"dev\0\0\0");
        let file = &bytes[116..];
        assert_eq!(&file[..6], b"070701");
        assert_eq!(&file[14..22], b"000081ed", "a regular file with mode 755");
        assert_eq!(&file[54..62], b"00000005", "its size");
        assert_eq!(&file[94..102], b"00000005", "the length of its name with the zero");
        assert_eq!(&file[110..115], b"init\0");
        assert_eq!(&file[116..121], b"hello");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }

    #[test]
    fn folders_of_files_are_written_once() {
        let mut archive = Archive::new();
        archive.file_with_folders("usr/lib/a", b"");
        archive.file_with_folders("usr/lib/b", b"");
        let text = String::from_utf8(archive.finish()).expect("nothing binary");
        assert_eq!(text.matches("usr/lib\0").count(), 1);
        assert_eq!(text.matches("usr\0").count(), 1);
        assert!(text.find("usr\0") < text.find("usr/lib\0"), "the outer folder first");
    }
}
