//! Unpacks the kernel in a bzImage, as the x86 boot protocol defines it.
//!
//! An emulated processor needs a second to unpack its kernel; QEMU starts the ELF file directly. The header of a bzImage (from
//! offset 0x1f1) has the number of setup sectors and the place of the compressed payload: a zstd, xz or gzip stream, followed
//! by the unpacked size in four bytes.

use std::fs;
use std::path::Path;

use super::sysroot::Sysroot;
use crate::error::Error;
use crate::tool::run_into;

/// A compression of Debian's kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Packing {
    Zstd,
    Xz,
    Gzip,
}

/// The compressed part of a bzImage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Payload<'a> {
    packing: Packing,
    stream: &'a [u8],
}

/// Unpacks the kernel in `image` to `elf`, with programs of `root`.
///
/// # Errors
/// [`Error::Format`] if `image` is no bzImage with a known compression.
pub(crate) fn unpack(root: &Sysroot, image: &Path, elf: &Path) -> Result<(), Error> {
    let bytes = fs::read(image).map_err(Error::file(image))?;
    let payload = Payload::of(&bytes).map_err(|why| Error::Format {
        place: image.to_owned(),
        kind: "kernel that can be unpacked",
        why,
    })?;
    let program = match payload.packing {
        Packing::Zstd => "usr/bin/zstd",
        Packing::Xz => "usr/bin/xz",
        Packing::Gzip => "usr/bin/gzip",
    };
    let mut command = root.command(program)?;
    let kernel = run_into(command.args(["-d", "-c"]), payload.stream)?;
    fs::write(elf, kernel).map_err(Error::file(elf))
}

impl<'a> Payload<'a> {
    fn of(image: &'a [u8]) -> Result<Self, &'static str> {
        let number = |at: usize| {
            let field = image.get(at..at + 4)?;
            usize::try_from(u32::from_le_bytes(field.try_into().ok()?)).ok()
        };
        if image.get(0x202..0x206) != Some(b"HdrS") {
            return Err("it has no setup header");
        }
        let short = "it is shorter than its header says";
        let sectors = match image.get(0x1f1) {
            // As the protocol requires: old images have 0 in this field.
            Some(0) => 4,
            Some(sectors) => usize::from(*sectors),
            None => return Err(short),
        };
        let begin = (sectors + 1) * 512 + number(0x248).ok_or(short)?;
        let end = begin.checked_add(number(0x24c).ok_or(short)?).ok_or(short)?;
        let stream = image.get(begin..end).and_then(|packed| packed.get(..packed.len().checked_sub(4)?));
        let stream = stream.ok_or(short)?;
        let packing = match stream {
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
            [0x1f, 0x8b, ..] => Packing::Gzip,
            _ => return Err("its payload is packed in none of zstd, xz and gzip"),
        };
        Ok(Self { packing, stream })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A setup sector, the header in its place, and a payload 16 bytes into the rest.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * 512 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len() + 4).expect("short");
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&99_u32.to_le_bytes());
        image
    }

    #[test]
    fn the_payload_is_found_without_the_size_behind_it() {
        let packed = [0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3];
        assert_eq!(Payload::of(&image(&packed)), Ok(Payload { packing: Packing::Zstd, stream: &packed }));
        assert!(Payload::of(&image(b"plain")).is_err(), "not packed");
    }

    #[test]
    fn what_is_no_image_or_cut_short_is_refused() {
        let whole = image(&[0x1f, 0x8b, 8]);
        for length in 0..whole.len() {
            assert!(Payload::of(&whole[..length]).is_err(), "{length} bytes");
        }
        assert!(Payload::of(&whole).is_ok());
        let mut wide = whole;
        wide[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Payload::of(&wide).is_err(), "a length beyond the end");
    }
}
