//! Machines that boot from the disk: firmware and bootloader drive it themselves.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::super::case::{Case, Failure, Requirement, Stage, Suite, Verdict, ensure};
use super::super::guest::{Guest, Ram, Start};
use super::super::nvme::disk::{self, AFTER, LIMIT, device};
use super::super::server::{Controller, Server, Setup};
use super::boot_disk::{BootDisk, DATA, KNOWN, Kind, SEED};
use crate::error::Error;
use crate::machine::console::Machine;
use crate::tool::run;

pub(super) const CASES: &[Case] = &[
    case("strangers-ovmf-grub", "OVMF, GRUB and Linux from the disk", ovmf),
    case("strangers-seabios-syslinux", "SeaBIOS, syslinux and Linux from the disk", seabios),
    case("strangers-u-boot", "U-Boot scans, reads, loads a file and writes", u_boot),
];

const fn case(name: &'static str, shows: &'static str, run: fn(&Stage<'_>) -> Verdict) -> Case {
    Case { suite: Suite::Strangers, requires: Requirement::Strangers, name, shows, run }
}

/// Modules of GRUB for finding a file on a FAT partition and starting Linux.
const GRUB_MODULES: [&str; 9] =
    ["part_msdos", "fat", "search", "search_fs_file", "linux", "serial", "terminal", "echo", "boot"];

/// A guest that boots from a disk, and that disk with kernel and initramfs.
fn from_disk(stage: &Stage<'_>, fat: Kind) -> Result<(Guest, BootDisk), Failure> {
    let mut guest = disk::guest(stage, "firmware")?;
    guest.drivers.extend(["vfat", "nls_cp437", "nls_ascii"]);
    guest.start = Start::Disk;
    guest.device(&device(stage, "nvme"));
    let disk = BootDisk::make(stage, "disk", fat)?;
    let image = stage.file("initrd");
    std::fs::write(&image, guest.initramfs(stage.artifacts)?).map_err(Error::file(&image))?;
    disk.copy(stage, &image, "/initrd")?;
    disk.copy(stage, stage.artifacts.pc_packed_kernel(), "/vmlinuz")?;
    Ok((guest, disk))
}

/// Boots `guest` from `disk`, and compares the data it read and wrote. `loader` is in the bootloader's output.
fn started(stage: &Stage<'_>, guest: &Guest, disk: &BootDisk, loader: &str) -> Verdict {
    let server = serve(stage, disk)?;
    let mut booted = guest.boot(stage, "guest")?;
    let said = booted.machine.seen().iter().any(|line| line.contains(loader));
    ensure(said, || format!("the kernel came, and nothing said {loader} before"))?;
    booted.finish(LIMIT)?;
    server.stop()?;
    for (name, path) in [("vmlinuz", stage.artifacts.pc_packed_kernel()), ("initrd", &stage.file("initrd"))] {
        let ours = run(Command::new("sha256sum").arg(path))?;
        let guests = booted.marks("sum").filter_map(|mark| mark.split_once(' '));
        let guests = guests.filter(|(file, _)| *file == name).map(|(_, sum)| sum).next().unwrap_or_default();
        ensure(!guests.is_empty() && ours.starts_with(guests), || {
            format!("{name} has the sum {guests} in the guest, and is {ours}")
        })?;
    }
    known(stage, disk, DATA.0, AFTER.0, AFTER.1)?;
    Ok("kernel and initramfs read right, 32 MiB written".to_owned())
}

fn serve(stage: &Stage<'_>, disk: &BootDisk) -> Result<Server, Failure> {
    let controller = Controller::new(stage.socket("nvme"), &disk.file, "");
    Server::start(stage, &Setup { controllers: vec![controller], ..Setup::default() })
}

/// Checks `count` numbered blocks on the disk from offset `mib` MiB.
fn known(stage: &Stage<'_>, disk: &BootDisk, mib: u64, count: u64, seed: u64) -> Result<(), Failure> {
    let part = stage.file("part");
    let mut copy = Command::new("dd");
    copy.arg(format!("if={}", disk.file.display())).arg(format!("of={}", part.display()));
    run(copy.args(["bs=1M", "status=none", &format!("skip={mib}"), &format!("count={}", count / 256)]))?;
    run(Command::new(stage.artifacts.guest_tool()?)
        .arg("verify")
        .arg(&part)
        .args([count.to_string(), seed.to_string()]))?;
    Ok(())
}

fn ovmf(stage: &Stage<'_>) -> Verdict {
    let (mut guest, disk) = from_disk(stage, Kind::EfiSystem)?;
    let root = stage.artifacts.strangers()?;
    let config = stage.file("grub.cfg");
    let lines = format!(
        "serial --unit=0 --speed=115200\nterminal_output serial\nsearch.file /vmlinuz root\necho @@ grub\n\
         linux /vmlinuz {}\ninitrd /initrd\nboot\n",
        guest.kernel_line()
    );
    std::fs::write(&config, lines).map_err(Error::file(&config))?;
    let grub = stage.file("grub.efi");
    let mut make = root.command("usr/bin/grub-mkimage")?;
    make.args(["-O", "x86_64-efi", "-p", "/", "-d"]).arg(root.file("usr/lib/grub/x86_64-efi")?);
    run(make.arg("-c").arg(&config).arg("-o").arg(&grub).args(GRUB_MODULES))?;
    disk.folder(stage, "/EFI")?;
    disk.folder(stage, "/EFI/BOOT")?;
    disk.copy(stage, &grub, "/EFI/BOOT/BOOTX64.EFI")?;
    let variables = stage.file("variables");
    copy(&root.file("usr/share/OVMF/OVMF_VARS_4M.fd")?, &variables)?;
    let code = root.file("usr/share/OVMF/OVMF_CODE_4M.fd")?;
    guest.qemu_args(&format!("-drive if=pflash,format=raw,unit=0,readonly=on,file={}", code.display()));
    guest.qemu_args(&format!("-drive if=pflash,format=raw,unit=1,file={}", variables.display()));
    started(stage, &guest, &disk, "@@ grub")
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::copy(from, to).map_err(Error::file(from))?;
    Ok(())
}

fn seabios(stage: &Stage<'_>) -> Verdict {
    let (mut guest, disk) = from_disk(stage, Kind::Fat)?;
    // Without KVM the emulator does not notice writes of another process to shared memory: it would run code translated before
    // the bootloader was read. Private memory is written by the emulator itself.
    guest.ram = Ram::Private;
    let lines = format!(
        "SERIAL 0 115200\nDEFAULT linux\nLABEL linux\n  KERNEL /vmlinuz\n  INITRD /initrd\n  APPEND {}\n",
        guest.kernel_line()
    );
    disk.write(stage, &lines, "/syslinux.cfg")?;
    disk.syslinux(stage)?;
    started(stage, &guest, &disk, "SYSLINUX")
}

/// U-Boot's addresses for blocks and for a file. Its machine's memory begins at 1 GiB.
const BLOCKS_AT: u64 = 0x4800_0000;
const FILE_AT: u64 = 0x4c00_0000;

/// Offset in MiB of U-Boot's writes.
const WRITTEN: u64 = DATA.0 + 64;

fn u_boot(stage: &Stage<'_>) -> Verdict {
    let disk = BootDisk::make(stage, "disk", Kind::EfiSystem)?;
    disk.copy(stage, &disk.known, "/known")?;
    let server = serve(stage, &disk)?;
    let mut command = stage.artifacts.arm_emulator()?;
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    command.args([
        "-monitor",
        "none",
        "-machine",
        "virt,memory-backend=ram",
        "-cpu",
        "cortex-a57",
        "-m",
        "512M",
    ]);
    command.args(["-object", "memory-backend-memfd,id=ram,size=512M,share=on"]);
    command.arg("-bios").arg(stage.artifacts.strangers()?.file("usr/lib/u-boot/qemu_arm64/u-boot.bin")?);
    command.args(["-device", &device(stage, "nvme").to_string()]);
    let mut console = Console(Machine::start(command, &stage.file("guest.console"))?);
    console.prompt()?;
    let bytes = KNOWN << 20;
    let (sectors, begin, target) = (bytes / 512, DATA.0 << 11, WRITTEN << 11);
    for line in [
        "nvme scan".to_owned(),
        "nvme info".to_owned(),
        format!("nvme read {BLOCKS_AT:#x} {begin:#x} {sectors:#x}"),
        format!("fatload nvme 0:1 {FILE_AT:#x} known"),
        format!("cmp.b {BLOCKS_AT:#x} {FILE_AT:#x} {bytes:#x}"),
        format!("nvme write {BLOCKS_AT:#x} {target:#x} {sectors:#x}"),
    ] {
        console.command(&line)?;
    }
    console.0.kill();
    server.stop()?;
    known(stage, &disk, WRITTEN, bytes / 4096, SEED)?;
    Ok(format!("{KNOWN} MiB read by blocks and as a file, and written"))
}

/// U-Boot's console.
struct Console(Machine);

/// Time limit of a command.
const COMMAND: Duration = Duration::from_secs(300);

impl Console {
    /// Interrupts the automatic boot.
    fn prompt(&mut self) -> Result<(), Failure> {
        // The last complete line before it waits for a key.
        self.0.wait(COMMAND, "U-Boot", |line| line.contains("Net:").then_some(()))?;
        Ok(self.0.type_line("")?)
    }

    /// Runs `line`, which must succeed.
    fn command(&mut self, line: &str) -> Result<(), Failure> {
        self.0.type_line(&format!("{line}; echo @@ done $?"))?;
        // The echo of the typed line follows the prompt, so it is not at the beginning of a line.
        let code =
            self.0.wait(COMMAND, line, |said| Some(said.strip_prefix("@@ done ")?.trim().to_owned()))?;
        ensure(code == "0", || format!("U-Boot says {code} to {line}"))
    }
}
