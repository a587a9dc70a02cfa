//! A bootable disk: a partition table, a FAT file system with bootloader, kernel and initramfs, and a partition with known
//! blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::case::{Failure, Stage};
use crate::error::Error;
use crate::tool::run;

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Offset and size of the FAT partition in MiB.
const FAT: (u64, u64) = (1, 127);

/// Offset and size of the partition with known blocks in MiB.
pub(super) const DATA: (u64, u64) = (128, 256);

/// MiB of numbered blocks at the beginning of the second partition.
pub(super) const KNOWN: u64 = 8;

/// Their seed.
pub(super) const SEED: u64 = 1;

/// A partition type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// FAT, for a PC's BIOS.
    Fat = 0x0e,
    /// The EFI system partition.
    EfiSystem = 0xef,
    Linux = 0x83,
}

/// The disk.
#[derive(Clone, Debug)]
pub(super) struct BootDisk {
    pub(super) file: PathBuf,
    /// A file with the known blocks.
    pub(super) known: PathBuf,
}

impl BootDisk {
    /// Makes `name` with an empty FAT file system of the kind `fat`, and known blocks.
    pub(super) fn make(stage: &Stage<'_>, name: &str, fat: Kind) -> Result<Self, Failure> {
        let path = stage.file(name);
        let mut file = File::create(&path).map_err(Error::file(&path))?;
        let sector = first_sector(&[(fat, FAT), (Kind::Linux, DATA)]);
        file.set_len((DATA.0 + DATA.1) << 20).map_err(Error::file(&path))?;
        file.write_all(&sector).map_err(Error::file(&path))?;
        let disk = Self { file: path, known: stage.file("known") };
        let sectors = (FAT.1 << 20) / SECTOR;
        // mformat needs a geometry; this one divides the size.
        let hidden = (FAT.0 << 20) / SECTOR;
        disk.mtools(
            stage,
            "mformat",
            &["-T", &sectors.to_string(), "-h", "64", "-s", "32", "-H", &hidden.to_string()],
            &["::"],
        )?;
        let known = &disk.known;
        File::create(known).map_err(Error::file(known))?;
        let words = [KNOWN.to_string(), "128".to_owned(), SEED.to_string()];
        run(Command::new(stage.artifacts.guest_tool()?).arg("fill").arg(known).args(words))?;
        disk.put(DATA.0 << 20, &fs::read(known).map_err(Error::file(known))?)?;
        Ok(disk)
    }

    /// Writes `bytes` at `at`.
    pub(super) fn put(&self, at: u64, bytes: &[u8]) -> Result<(), Failure> {
        let written = OpenOptions::new().write(true).open(&self.file).and_then(|mut file| {
            file.seek(SeekFrom::Start(at))?;
            file.write_all(bytes)
        });
        Ok(written.map_err(Error::file(&self.file))?)
    }

    /// Makes the folder `name` of the FAT file system.
    pub(super) fn folder(&self, stage: &Stage<'_>, name: &str) -> Result<(), Failure> {
        self.mtools(stage, "mmd", &[], &[&format!("::{name}")])
    }

    /// Copies `source` to `place` of the FAT file system.
    pub(super) fn copy(&self, stage: &Stage<'_>, source: &Path, place: &str) -> Result<(), Failure> {
        self.mtools(stage, "mcopy", &[], &[&source.display().to_string(), &format!("::{place}")])
    }

    /// Writes `text` to `place` of the FAT file system.
    pub(super) fn write(&self, stage: &Stage<'_>, text: &str, place: &str) -> Result<(), Failure> {
        let source = stage.file("text");
        fs::write(&source, text).map_err(Error::file(&source))?;
        self.copy(stage, &source, place)
    }

    fn mtools(
        &self,
        stage: &Stage<'_>,
        program: &str,
        options: &[&str],
        rest: &[&str],
    ) -> Result<(), Failure> {
        let mut command = stage.artifacts.strangers()?.command("usr/bin/mtools")?;
        command.args(["-c", program, "-i", &format!("{}@@{}M", self.file.display(), FAT.0)]);
        run(command.args(options).args(rest))?;
        Ok(())
    }

    /// Makes the disk bootable with syslinux, by its own installer.
    pub(super) fn syslinux(&self, stage: &Stage<'_>) -> Result<(), Failure> {
        let root = stage.artifacts.strangers()?;
        let loader = root.file("usr/lib/syslinux/mbr/mbr.bin")?;
        self.put(0, &fs::read(&loader).map_err(Error::file(&loader))?)?;
        // The installer starts mtools by name.
        let folder = stage.file("mtools");
        fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
        for program in ["mattrib", "mcopy", "mmove"] {
            let script = folder.join(program);
            let command = root.command("usr/bin/mtools")?;
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
            let text = format!("#!/bin/sh\nexec {} -c {program} \"$@\"\n", words.join(" "));
            fs::write(&script, text).map_err(Error::file(&script))?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).map_err(Error::file(&script))?;
        }
        let mut command = root.command("usr/bin/syslinux")?;
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", folder.display()));
        run(command.args(["--install", "--offset", &(FAT.0 << 20).to_string()]).arg(&self.file))?;
        Ok(())
    }
}

/// The first sector with the partition table of `parts`: types, and offsets and sizes in MiB. The first partition is active.
fn first_sector(parts: &[(Kind, (u64, u64))]) -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    for (number, (kind, (begin, size))) in parts.iter().enumerate() {
        let sectors = |mib: u64| u32::try_from((mib << 20) / SECTOR).unwrap_or(u32::MAX).to_le_bytes();
        let entry = &mut sector[446 + 16 * number..][..16];
        entry[0] = if number == 0 { 0x80 } else { 0 };
        // Cylinders, heads and sectors out of range; the other fields of the entry count.
        entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[4] = *kind as u8;
        entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[8..12].copy_from_slice(&sectors(*begin));
        entry[12..16].copy_from_slice(&sectors(*size));
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_where_partitions_are() {
        let sector = first_sector(&[(Kind::EfiSystem, (1, 127)), (Kind::Linux, (128, 256))]);
        assert_eq!((sector[446], sector[450], sector[462], sector[466]), (0x80, 0xef, 0, 0x83));
        assert_eq!(sector[454..458], 2048_u32.to_le_bytes());
        assert_eq!(sector[470..474], (128_u32 * 2048).to_le_bytes());
        assert_eq!(sector[474..478], (256_u32 * 2048).to_le_bytes());
        assert_eq!(sector[510..], [0x55, 0xaa]);
    }
}
