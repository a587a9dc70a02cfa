//! IOMMU faults in the kernel's log.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// The part of the kernel's log after this was opened.
#[derive(Debug)]
pub(super) struct FaultLog {
    file: Option<File>,
}

/// Words in fault messages of IOMMU drivers.
const WORDS: [&str; 5] = ["DMAR:", "IO_PAGE_FAULT", "arm-smmu", "virtio_iommu", "EEH:"];

impl FaultLog {
    /// The log from now on; empty for a user without permission to read it.
    pub(super) fn from_now() -> Self {
        let open = || {
            let mut file =
                OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
            file.seek(SeekFrom::End(0)).ok()?;
            Some(file)
        };
        Self { file: open() }
    }

    /// A line that reports a fault, preferably with an address.
    pub(super) fn best(&mut self) -> Option<String> {
        let file = self.file.as_mut()?;
        let mut best = None;
        let mut record = [0; 8192];
        // Each read returns a record; EAGAIN is the end, EPIPE an overwritten record.
        for _ in 0..10_000 {
            match file.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    if let Some(line) = fault_in(&text) {
                        if line.contains("addr") || line.contains(" at 0x") {
                            return Some(line);
                        }
                        best = Some(line);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => break,
            }
        }
        best
    }
}

/// The message of a record (`level,number,time,flags;message`) that reports a fault.
fn fault_in(record: &str) -> Option<String> {
    let (_, message) = record.split_once(';')?;
    let line = message.lines().next()?;
    let reports = WORDS.iter().any(|word| line.contains(word)) && line.to_lowercase().contains("fault")
        || line.contains("EEH: ");
    reports.then(|| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_about_faults_are_found() {
        let fault =
            "3,812,9934,-;DMAR: [DMA Write NO_PASID] Request device [00:04.0] fault addr 0x100000\n KEY=x\n";
        assert!(fault_in(fault).unwrap().ends_with("fault addr 0x100000"));
        assert!(
            fault_in("3,1,1,-;vfio-pci 0000:00:04.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x1]")
                .is_some()
        );
        for line in ["", "6,1,1,-;DMAR: Host address width 39", "6,1,1,-;page fault in sh", "no record"] {
            assert_eq!(fault_in(line), None, "{line:?}");
        }
        assert_eq!(FaultLog { file: None }.best(), None);
    }
}
