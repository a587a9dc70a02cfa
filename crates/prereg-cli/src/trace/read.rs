//! Reads a trace file, plain or zstd, detected by the first bytes.
//!
//! Text is decompressed as a stream and split into lines of bounded length, so a file needs no more memory than its records.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::error::{Problem, TraceError};
use super::parse::{Limits, Parser};
use super::record::Trace;

/// The first bytes of a zstd frame (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Bytes read and decompressed at a time.
const CHUNK: usize = 1 << 17;

/// Reads the trace at `path`.
///
/// # Errors
/// [`TraceError`]: the file cannot be opened or read, or is not a trace within `limits`.
pub fn read(path: &Path, limits: &Limits) -> Result<Trace, TraceError> {
    let file = path.display().to_string();
    let open =
        |problem: io::Error| TraceError { file: file.clone(), line: None, problem: Problem::Open(problem) };
    // Opening a folder succeeds; reading it fails, and the error would name a line.
    let input = File::open(path).map_err(open)?;
    if input.metadata().map_err(open)?.is_dir() {
        return Err(open(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let mut trace = read_from(input, &file, limits)?;
    trace.name = name(path);
    Ok(trace)
}

/// Reads a trace from `input`, plain or zstd. `file` is its name in messages.
///
/// # Errors
/// [`TraceError`], as [`read`].
pub fn read_from(mut input: impl Read, file: &str, limits: &Limits) -> Result<Trace, TraceError> {
    let fail = |line, problem| TraceError { file: file.to_owned(), line: Some(line), problem };
    let mut magic = Vec::with_capacity(ZSTD_MAGIC.len());
    (&mut input)
        .take(ZSTD_MAGIC.len() as u64)
        .read_to_end(&mut magic)
        .map_err(|error| fail(1, Problem::Read(error)))?;
    let whole = magic.as_slice().chain(input);
    let mut trace = if magic == ZSTD_MAGIC {
        let decoder =
            zstd::stream::read::Decoder::new(whole).map_err(|error| fail(1, Problem::Read(error)))?;
        lines(BufReader::with_capacity(CHUNK, decoder), limits)
    } else {
        lines(BufReader::with_capacity(CHUNK, whole), limits)
    }
    .map_err(|(line, problem)| fail(line, problem))?;
    file.clone_into(&mut trace.file);
    trace.name = name(Path::new(file));
    Ok(trace)
}

/// Parses every line of `input`.
fn lines(mut input: impl BufRead, limits: &Limits) -> Result<Trace, (u64, Problem)> {
    let mut parser = Parser::new(*limits);
    let mut line = Vec::new();
    let mut number = 0u64;
    loop {
        line.clear();
        // One byte more than the limit, to distinguish a line of exactly the limit from a longer one.
        let read = (&mut input)
            .take(limits.line_bytes as u64 + 2)
            .read_until(b'\n', &mut line)
            .map_err(|error| (number.max(1), Problem::Read(error)))?;
        if read == 0 {
            return parser.finish().map_err(|problem| (number.max(1), problem));
        }
        number += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() > limits.line_bytes {
            return Err((number, Problem::LongLine { limit: limits.line_bytes }));
        }
        let text = std::str::from_utf8(&line).map_err(|_| (number, Problem::NotText))?;
        parser.line(number, text).map_err(|problem| (number, problem))?;
    }
}

/// `nvme4k` of `some/folder/nvme4k.tce.zst`.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let name = name.strip_suffix(".zst").unwrap_or(&name);
    name.strip_suffix(".tce").unwrap_or(name).to_owned()
}
