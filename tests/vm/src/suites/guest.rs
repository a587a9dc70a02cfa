//! A guest: its configuration, booting it, and the marks on its console.
//!
//! Every guest runs `conformance/vm/init` from an initramfs, which sets up the machine and runs the script of its case. A
//! console line `@@ WORD ...` is a mark; the last mark is `@@ end CODE`. In between, a script may wait for a line.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::artifacts::Artifacts;
use super::case::{Failure, Stage};
use crate::debian::modules::Driver;
use crate::error::Error;
use crate::machine::console::Machine;
use crate::machine::cpio::Archive;
use crate::machine::qmp::Qmp;
use crate::oracle::page_size::PageSize;

/// The beginning of a mark.
const MARK: &str = "@@ ";

/// Time limit from power-on to the case's script. Under emulation this takes 3 to 7 seconds of processor time, which a niced
/// guest on a busy machine may get only within minutes.
pub(crate) const BOOT: Duration = Duration::from_secs(600);

/// Time limit for QEMU to answer or to end.
const MONITOR: Duration = Duration::from_secs(60);

/// A kind of machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Board {
    /// q35, with Debian's kernel.
    Pc,
    /// q35, with a kernel built for this.
    PcWithKernel(PathBuf),
    /// powernv9, with Debian's kernel of this page size.
    Powernv(PageSize),
}

/// The backing of a PC's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ram {
    /// A memfd, whose descriptor a vfio-user server gets.
    Shared,
    /// Two memory nodes of half the size, each with its own memfd. The first processor is in the first node.
    TwoNodes,
    /// A memfd on hugetlbfs.
    Huge,
    /// Private memory, which a server accesses only by messages.
    Private,
}

impl Ram {
    /// The emulator's arguments for `mib` MiB of it.
    fn words(self, mib: u64) -> String {
        let memfd =
            |name: &str, mib: u64| format!("-object memory-backend-memfd,id={name},size={mib}M,share=on");
        match self {
            Self::Shared => format!("-machine memory-backend=ram {}", memfd("ram", mib)),
            Self::TwoNodes => {
                let nodes = ["node0", "node1"];
                let objects = nodes.map(|name| format!("{} -numa node,memdev={name}", memfd(name, mib / 2)));
                objects.join(" ")
            }
            Self::Huge => {
                format!("-machine memory-backend=ram {},hugetlb=on,hugetlbsize=2M", memfd("ram", mib))
            }
            Self::Private => {
                format!("-machine memory-backend=ram -object memory-backend-ram,id=ram,size={mib}M,share=off")
            }
        }
    }
}

/// The MiB of a size in the format of `-m`.
fn mib(memory: &str) -> Result<u64, Failure> {
    let size = memory.split(',').next().unwrap_or(memory);
    let parsed = match size.split_at_checked(size.len().saturating_sub(1)) {
        Some((number, "G")) => number.parse::<u64>().ok().and_then(|gib| gib.checked_mul(1024)),
        Some((number, "M")) => number.parse().ok(),
        _ => None,
    };
    parsed.ok_or_else(|| Failure::check(format!("{size} is no size in MiB or GiB, such as 512M")))
}

/// The loader of a PC's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Start {
    /// The emulator, with the initramfs of the case.
    Emulator,
    /// Firmware and a bootloader, from a disk of the case.
    Disk,
}

/// The configuration of a guest.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) board: Board,
    pub(crate) start: Start,
    pub(crate) ram: Ram,
    /// In the format of `-m`.
    pub(crate) memory: &'static str,
    pub(crate) cpus: u32,
    pub(crate) drivers: Vec<&'static str>,
    /// Further arguments of the emulator.
    pub(crate) words: Vec<String>,
    /// Further words of the kernel's command line.
    pub(crate) kernel_words: Vec<String>,
    /// Further files, by their path in the guest.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// The script of the case, in `conformance/vm/cases`.
    pub(crate) script: &'static str,
    /// Whether the machine may reboot.
    pub(crate) reboots: bool,
}

impl Guest {
    /// A small guest that runs `script`.
    pub(crate) fn new(board: Board, script: &'static str) -> Self {
        Self {
            memory: if matches!(board, Board::Powernv(_)) { "2G" } else { "512M" },
            board,
            start: Start::Emulator,
            ram: Ram::Shared,
            cpus: 1,
            drivers: Vec::new(),
            words: Vec::new(),
            kernel_words: Vec::new(),
            files: Vec::new(),
            script,
            reboots: false,
        }
    }

    /// Adds a device, written as QEMU's JSON.
    pub(crate) fn device(&mut self, device: &serde_json::Value) {
        self.words.extend(["-device".to_owned(), device.to_string()]);
    }

    /// Adds arguments of the emulator, separated by spaces.
    pub(crate) fn qemu_args(&mut self, words: &str) {
        self.words.extend(words.split_whitespace().map(str::to_owned));
    }

    /// Adds words to the kernel's command line, separated by spaces.
    pub(crate) fn kernel_args(&mut self, words: &str) {
        self.kernel_words.extend(words.split_whitespace().map(str::to_owned));
    }

    /// Boots the guest and waits until its script begins; `name` distinguishes the guests of a case.
    pub(crate) fn boot(&self, stage: &Stage<'_>, name: &str) -> Result<Booted, Failure> {
        let image = stage.file(&format!("{name}.cpio"));
        if self.start == Start::Emulator {
            fs::write(&image, self.initramfs(stage.artifacts)?).map_err(Error::file(&image))?;
        }
        let monitor = stage.socket(&format!("{name}.qmp"));
        let console = stage.file(&format!("{name}.console"));
        let mut command = match &self.board {
            Board::Pc | Board::PcWithKernel(_) => stage.artifacts.emulator("qemu-system-x86_64")?,
            Board::Powernv(_) => stage.artifacts.emulator("qemu-system-ppc64")?,
        };
        command.args(self.arguments(stage.artifacts, &image, &monitor)?);
        let machine = Machine::start(command, &console)?;
        let mut booted = Booted { machine, monitor: None, powers_off: self.is_pc() };
        booted.mark("begin", BOOT)?;
        booted.monitor = Some(Qmp::connect(&monitor, MONITOR)?);
        if !self.reboots && self.start == Start::Emulator {
            // It is not read again, and has several megabytes.
            fs::remove_file(&image).map_err(Error::file(&image))?;
        }
        Ok(booted)
    }

    fn is_pc(&self) -> bool {
        !matches!(self.board, Board::Powernv(_))
    }

    /// The emulator's arguments.
    fn arguments(&self, artifacts: &Artifacts, image: &Path, monitor: &Path) -> Result<Vec<String>, Failure> {
        let mut words: Vec<String> = Vec::new();
        let mut say = |text: &str| words.extend(text.split(' ').map(str::to_owned));
        if self.is_pc() {
            say("-nodefaults -no-user-config -machine q35 -cpu qemu64,+rdrand");
            say(&self.ram.words(mib(self.memory)?));
            say(if self.cpus > 1 { "-accel tcg,thread=multi" } else { "-accel tcg,thread=single" });
        } else {
            // `-nodefaults` would remove the host bridges.
            say("-machine powernv9 -accel tcg,thread=single -net none");
        }
        say(&format!("-smp {} -m {} -display none -serial stdio -monitor none", self.cpus, self.memory));
        if !self.reboots {
            say("-no-reboot");
        }
        words.extend(self.words.iter().cloned());
        let kernel = match &self.board {
            Board::Pc => artifacts.pc_kernel().to_owned(),
            Board::PcWithKernel(kernel) => kernel.clone(),
            Board::Powernv(page_size) => artifacts.power()?.kernel(*page_size)?,
        };
        words.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", monitor.display())]);
        if self.start == Start::Disk {
            return Ok(words);
        }
        words.extend(["-kernel".to_owned(), kernel.display().to_string()]);
        words.extend(["-initrd".to_owned(), image.display().to_string()]);
        words.extend(["-append".to_owned(), self.kernel_line()]);
        Ok(words)
    }

    /// The kernel's command line.
    pub(crate) fn kernel_line(&self) -> String {
        // The timer check needs ticks in time, which an emulated machine may not get.
        let console = if self.is_pc() { "no_timer_check console=ttyS0" } else { "console=hvc0" };
        let mut line =
            format!("{console} quiet loglevel=4 panic=-1 oops=panic rdinit=/init case={}", self.script);
        for word in &self.kernel_words {
            line.push(' ');
            line.push_str(word);
        }
        line
    }

    /// The guest's file system.
    pub(crate) fn initramfs(&self, artifacts: &Artifacts) -> Result<Vec<u8>, Failure> {
        let read = |path: &Path| fs::read(path).map_err(Error::file(path));
        let mut archive = Archive::new();
        let data = artifacts.data();
        archive.file("init", &read(&data.join("init"))?);
        archive.file("lib.sh", &read(&data.join("lib.sh"))?);
        // Some scripts source another one.
        let cases = data.join("cases");
        for entry in fs::read_dir(&cases).map_err(Error::file(&cases))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            archive.file_with_folders(&format!("cases/{name}"), &read(&entry.path())?);
        }
        let (busybox, drivers): (PathBuf, Vec<Driver>) = match &self.board {
            Board::Pc => (artifacts.busybox()?, artifacts.pc_drivers(&self.drivers)?),
            // This kernel has no modules.
            Board::PcWithKernel(_) => (artifacts.busybox()?, Vec::new()),
            Board::Powernv(page_size) => {
                let power = artifacts.power()?;
                (power.busybox().to_owned(), artifacts.power_drivers(*page_size, &self.drivers)?)
            }
        };
        archive.file_with_folders("bin/busybox", &read(&busybox)?);
        for (number, driver) in drivers.iter().enumerate() {
            archive.file_with_folders(&format!("modules/{number:02}-{}.ko", driver.name), &driver.bytes);
        }
        for (place, source) in &self.files {
            archive.file_with_folders(place, &read(source)?);
        }
        Ok(archive.finish())
    }
}

/// A guest that runs its script.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) machine: Machine,
    monitor: Option<Qmp<std::os::unix::net::UnixStream>>,
    powers_off: bool,
}

impl Booted {
    /// Waits for the mark `word` and returns the text behind it.
    ///
    /// # Errors
    /// [`Failure::Check`] if the script ends before.
    pub(crate) fn mark(&mut self, word: &str, limit: Duration) -> Result<String, Failure> {
        let found = self.machine.wait(limit, &format!("mark `{word}`"), |line| {
            let (found, rest) = parse_mark(line)?;
            (found == word || found == "end").then(|| (found.to_owned(), rest.to_owned()))
        })?;
        match found {
            (found, rest) if found == word => Ok(rest),
            (_, code) => Err(Failure::Check(format!(
                "the guest's script ended with {code} before its mark `{word}`{}",
                self.reason()
            ))),
        }
    }

    /// Types `word`, for which the script waits.
    pub(crate) fn reply(&mut self, word: &str) -> Result<(), Failure> {
        Ok(self.machine.type_line(word)?)
    }

    /// QEMU's monitor.
    ///
    /// # Errors
    /// [`Error::Monitor`] before the guest has booted.
    pub(crate) fn monitor(&mut self) -> Result<&mut Qmp<std::os::unix::net::UnixStream>, Failure> {
        self.monitor.as_mut().ok_or_else(|| Failure::check("the guest has not booted"))
    }

    /// Waits until the script has succeeded and the machine is off.
    pub(crate) fn finish(&mut self, limit: Duration) -> Result<(), Failure> {
        let code = self.mark("end", limit)?;
        if code != "0" {
            return Err(Failure::Check(format!("the guest's script ended with {code}{}", self.reason())));
        }
        if self.powers_off {
            self.machine.end(MONITOR)?;
        } else {
            // powernv takes longer to power off than to boot.
            self.machine.kill();
        }
        Ok(())
    }

    /// The reason that the script gave for its failure.
    fn reason(&self) -> String {
        let said = self.machine.seen().iter().rev().filter_map(|line| parse_mark(line));
        let reason = said.clone().find(|(word, _)| *word == "failed").map(|(_, rest)| rest);
        reason.map(|rest| format!(": {rest}")).unwrap_or_default()
    }

    /// The texts behind all marks `word` so far.
    pub(crate) fn marks<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        let lines = self.machine.seen().iter().filter_map(|line| parse_mark(line));
        lines.filter(move |(found, _)| *found == word).map(|(_, rest)| rest)
    }
}

/// The word and the text of a mark. Firmware and kernel may have begun the line.
fn parse_mark(line: &str) -> Option<(&str, &str)> {
    let (_, said) = line.split_once(MARK)?;
    let said = said.trim();
    Some(said.split_once(' ').unwrap_or((said, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_emulator_reads_them() {
        assert_eq!(mib("512M").ok(), Some(512));
        assert_eq!(mib("384M,slots=2,maxmem=4G").ok(), Some(384));
        assert_eq!(mib("7G").ok(), Some(7 << 10));
        for wrong in ["", "G", "7", "7k", "-1M"] {
            assert!(mib(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn two_nodes_share_the_memory() {
        let words = Ram::TwoNodes.words(512);
        assert_eq!(words.matches("size=256M").count(), 2);
        assert_eq!(words.matches("-numa node").count(), 2);
    }

    #[test]
    fn marks_are_found_wherever_a_line_has_them() {
        assert_eq!(parse_mark("@@ end 0"), Some(("end", "0")));
        assert_eq!(parse_mark("[  1.2] nvme: hello@@ hash abc def \r"), Some(("hash", "abc def")));
        assert_eq!(parse_mark("@@ ready"), Some(("ready", "")));
        assert_eq!(parse_mark("@@"), None);
        assert_eq!(parse_mark("plain"), None);
    }
}
