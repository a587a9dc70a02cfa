//! Artifacts for the machines: emulators, kernels and guest programs, fetched or built once and kept in the cache.
//!
//! The emulators and some programs come from a Debian release whose QEMU is a vfio-user client, whatever release this machine
//! runs; so does the PC kernel. The POWER kernels are those of `cargo xtask oracle`.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::program::{self, Target};
use crate::cache::Cache;
use crate::debian::apt::{self, Apt, Source};
use crate::debian::image;
use crate::debian::modules::{Driver, Drivers};
use crate::debian::sysroot::{Dependency, Sysroot};
use crate::error::Error;
use crate::oracle::kernel::DistroKernel;
use crate::oracle::page_size::PageSize;

/// The emulators, programs for guests and disks, and programs that unpack kernels.
const PACKAGES: [&str; 8] = [
    "qemu-system-x86",
    "qemu-system-ppc",
    "qemu-system-data",
    "busybox-static",
    "e2fsprogs",
    "gzip",
    "xz-utils",
    "zstd",
];

/// Packages of the suite `strangers`: disk tools, firmware, bootloaders, and tools that put those on a disk.
const STRANGERS: [&str; 14] = [
    "btrfs-progs",
    "f2fs-tools",
    "fio",
    "grub-common",
    "grub-efi-amd64-bin",
    "kexec-tools",
    "mtools",
    "nvme-cli",
    "ovmf",
    "qemu-system-arm",
    "syslinux",
    "syslinux-common",
    "u-boot-qemu",
    "xfsprogs",
];

/// The architecture of PC guests. This machine's compiler builds programs for them.
const PC: &str = "amd64";

/// The architecture of POWER guests.
const POWER: &str = "ppc64el";

/// Suites with a QEMU that is a vfio-user client (10.1 and later), on a machine with the release `codename`.
fn suites(codename: &str) -> Vec<String> {
    match codename {
        "bookworm" | "trixie" => vec!["trixie".to_owned(), "trixie-backports".to_owned()],
        newer => vec![newer.to_owned()],
    }
}

/// The artifacts that exist or can be built on demand.
#[derive(Debug)]
pub(crate) struct Artifacts {
    cache: Cache,
    checkout: PathBuf,
    root: Sysroot,
    pc: Kernel,
    power: OnceCell<Power>,
    strangers: OnceCell<Sysroot>,
    built: Built,
}

/// The programs of this workspace, built once per run, so that all cases use the same ones.
#[derive(Debug, Default)]
struct Built {
    prereg: OnceCell<PathBuf>,
    guest_tool: OnceCell<PathBuf>,
    power_prereg: OnceCell<PathBuf>,
    power_tests: OnceCell<Vec<PathBuf>>,
    vmm_test: OnceCell<PathBuf>,
    c_test: OnceCell<PathBuf>,
}

/// The value of `cell`, made now if it is empty.
fn once<T: Clone>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    match cell.get() {
        Some(made) => Ok(made.clone()),
        None => make().map(|made| cell.get_or_init(|| made).clone()),
    }
}

/// A kernel with its modules.
#[derive(Clone, Debug)]
struct Kernel {
    image: PathBuf,
    /// The kernel image for bootloaders.
    packed: PathBuf,
    modules: PathBuf,
    release: String,
}

/// The POWER kernels, and the programs for them.
#[derive(Clone, Debug)]
pub(crate) struct Power {
    kernel: DistroKernel,
    busybox: PathBuf,
}

impl Artifacts {
    /// Fetches the artifacts that the cache does not have.
    pub(crate) fn fetch(cache: &Cache, checkout: &Path) -> Result<Self, Error> {
        let host = apt::architecture()?;
        if host != PC {
            return Err(Error::Format {
                place: PathBuf::from("this machine"),
                kind: "machine that can build programs for the guests",
                why: "the guests are PCs, and only a PC's compiler builds for them without more",
            });
        }
        let root = fetch_root(cache, "root", &PACKAGES)?;
        let (folder, release) = cache.filled("pc", |folder| fetch_kernel(folder, &root))?;
        let modules = folder.join("usr/lib/modules").join(&release).join("kernel");
        let packed = packed_kernel(&folder, &release)?;
        let pc = Kernel { image: folder.join("vmlinux"), packed, modules, release };
        let (cache, checkout) = (cache.clone(), checkout.to_owned());
        Ok(Self {
            cache,
            checkout,
            root,
            pc,
            power: OnceCell::new(),
            strangers: OnceCell::new(),
            built: Built::default(),
        })
    }

    /// The versions, for the first line of a run.
    pub(crate) fn description(&self) -> String {
        let version = self.emulator("qemu-system-x86_64").and_then(|mut qemu| {
            let said = crate::tool::run(qemu.arg("--version"))?;
            Ok(said.lines().next().unwrap_or_default().to_owned())
        });
        let version = version.unwrap_or_else(|error| error.to_string());
        format!("{version}, Linux {} for PCs", self.pc.release)
    }

    /// The folder of guest scripts.
    pub(crate) fn data(&self) -> PathBuf {
        self.checkout.join("conformance/vm")
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) fn root(&self) -> &Sysroot {
        &self.root
    }

    /// A command for a niced emulator.
    pub(crate) fn emulator(&self, program: &str) -> Result<Command, Error> {
        emulator_of(&self.root, program, &["usr/share/qemu", "usr/share/seabios"])
    }

    /// A command for the emulator of 64-bit ARM.
    pub(crate) fn arm_emulator(&self) -> Result<Command, Error> {
        emulator_of(self.strangers()?, "qemu-system-aarch64", &["usr/share/qemu"])
    }

    /// The packages of the suite `strangers`, fetched on first use.
    pub(crate) fn strangers(&self) -> Result<&Sysroot, Error> {
        if let Some(root) = self.strangers.get() {
            return Ok(root);
        }
        let root = fetch_root(&self.cache, "strangers", &STRANGERS)?;
        Ok(self.strangers.get_or_init(|| root))
    }

    /// The PC kernel image for bootloaders.
    pub(crate) fn pc_packed_kernel(&self) -> &Path {
        &self.pc.packed
    }

    pub(crate) fn pc_kernel(&self) -> &Path {
        &self.pc.image
    }

    /// Modules of the PC kernel in load order.
    pub(crate) fn pc_drivers(&self, names: &[&str]) -> Result<Vec<Driver>, Error> {
        Drivers::below(&self.pc.modules)?.with_dependencies(&self.root, names)
    }

    pub(crate) fn busybox(&self) -> Result<PathBuf, Error> {
        self.root.file("usr/bin/busybox")
    }

    /// The program at `path` of the unpacked packages with its libraries, as files for a guest.
    pub(crate) fn guest_program(&self, path: &str) -> Result<Vec<(String, PathBuf)>, Error> {
        let needed = self.root.program_with_dependencies(path)?;
        Ok(needed.into_iter().map(|Dependency { source, place }| (place, source)).collect())
    }

    /// The POWER kernels, fetched on first use.
    pub(crate) fn power(&self) -> Result<&Power, Error> {
        if let Some(power) = self.power.get() {
            return Ok(power);
        }
        let kernel = DistroKernel::fetch(&Cache::open("oracle")?)?;
        let (folder, _) = self.cache.filled("power", |folder| {
            // The release has it, so no backports are needed.
            let sources = sources()?.into_iter().take(1).collect::<Vec<_>>();
            println!("vm: fetches busybox-static for {POWER} of {}", suite_names(&sources));
            let apt = Apt::new(&folder.join("apt"), POWER, &sources)?;
            for package in apt.fetch(&["busybox-static".to_owned()])? {
                apt::unpack(&package, folder)?;
            }
            remove(&folder.join("apt"))?;
            Ok(String::new())
        })?;
        Ok(self.power.get_or_init(|| Power { kernel, busybox: folder.join("usr/bin/busybox") }))
    }

    /// Modules of a POWER kernel in load order.
    pub(crate) fn power_drivers(&self, page_size: PageSize, names: &[&str]) -> Result<Vec<Driver>, Error> {
        Drivers::below(&self.power()?.kernel.module_folder(page_size)?)?.with_dependencies(&self.root, names)
    }

    /// The program `prereg`, static, for PC guests and for this machine.
    pub(crate) fn prereg(&self) -> Result<PathBuf, Error> {
        once(&self.built.prereg, || {
            let manifest = self.checkout.join("Cargo.toml");
            program::build(&self.pc_target()?, &manifest, Some("prereg-cli"), "prereg")
        })
    }

    /// The program guest-tool, static, for PC guests.
    pub(crate) fn guest_tool(&self) -> Result<PathBuf, Error> {
        once(&self.built.guest_tool, || {
            let target = Target::pc(&self.checkout, self.cache.folder("target-guest-tool")?);
            program::build(&target, &self.data().join("guest-tool/Cargo.toml"), None, "guest-tool")
        })
    }

    /// The program `prereg`, static, for POWER guests.
    pub(crate) fn power_prereg(&self) -> Result<PathBuf, Error> {
        once(&self.built.power_prereg, || {
            let manifest = self.checkout.join("Cargo.toml");
            program::build(&self.power_target()?, &manifest, Some("prereg-cli"), "prereg")
        })
    }

    /// The core's test programs, static, for POWER guests.
    pub(crate) fn power_tests(&self) -> Result<Vec<PathBuf>, Error> {
        once(&self.built.power_tests, || {
            let manifest = self.checkout.join("Cargo.toml");
            program::tests(&self.power_target()?, &manifest, "prereg", &["--lib", "--tests"])
        })
    }

    /// The test of prereg-vmm on the kernel's VFIO, static, for PC guests.
    pub(crate) fn vmm_test(&self) -> Result<PathBuf, Error> {
        once(&self.built.vmm_test, || {
            let chosen = ["--features", "vfio-cdev", "--test", "vfio_device"];
            let manifest = self.checkout.join("Cargo.toml");
            let built = program::tests(&self.pc_target()?, &manifest, "prereg-vmm", &chosen)?;
            built.into_iter().next().ok_or_else(|| Error::Missing {
                place: manifest,
                what: "the test vfio_device of prereg-vmm".to_owned(),
                remedy: "cargo names no program for it",
            })
        })
    }

    /// The test of the C library on the kernel's VFIO, static, for PC guests.
    pub(crate) fn c_test(&self) -> Result<PathBuf, Error> {
        once(&self.built.c_test, || program::c_test(&self.pc_target()?, &self.checkout, "vfio_device"))
    }

    fn pc_target(&self) -> Result<Target, Error> {
        Ok(Target::pc(&self.checkout, self.cache.folder("target-pc")?))
    }

    fn power_target(&self) -> Result<Target, Error> {
        let tools = self.power()?.kernel.tools().clone();
        Ok(Target::power(&self.checkout, self.cache.folder("target-power")?, tools))
    }
}

impl Power {
    pub(crate) fn kernel(&self, page_size: PageSize) -> Result<PathBuf, Error> {
        self.kernel.image(page_size)
    }

    pub(crate) fn busybox(&self) -> &Path {
        &self.busybox
    }
}

/// A command for the emulator `program` in `root`, with its `data` folders.
fn emulator_of(root: &Sysroot, program: &str, data: &[&str]) -> Result<Command, Error> {
    let mut command = root.command_after(&["nice", "-n", "5"], &format!("usr/bin/{program}"))?;
    for folder in data {
        command.arg("-L").arg(root.file(folder)?);
    }
    // By default it looks next to its loader.
    command.env("QEMU_MODULE_DIR", root.file("usr/lib/x86_64-linux-gnu/qemu")?);
    Ok(command)
}

/// The suites of this machine's mirror that have the packages.
pub(crate) fn sources() -> Result<Vec<Source>, Error> {
    let machine = Source::of_machine()?;
    Ok(suites(&machine[0].suite).iter().map(|suite| machine[0].with_suite(suite)).collect())
}

fn suite_names(sources: &[Source]) -> String {
    sources.iter().map(|source| source.suite.as_str()).collect::<Vec<_>>().join(" and ")
}

/// Fetches the PC kernel into `folder`; returns its release, as in `uname -r`.
fn fetch_kernel(folder: &Path, root: &Sysroot) -> Result<String, Error> {
    let sources = sources()?;
    let newest = sources.last().cloned().into_iter().collect::<Vec<_>>();
    println!("vm: fetches the {PC} kernel of {}", suite_names(&newest));
    let apt = Apt::new(&folder.join("apt"), PC, &newest)?;
    let name = format!("linux-image-{PC}");
    let release = apt.depends(&name)?.iter().find_map(|need| release_of(need));
    let release = release.ok_or_else(|| Error::NoPackage { name, suite: suite_names(&newest) })?;
    let image = format!("linux-image-{release}");
    // Some releases split the package; then the one with this name is empty and depends on the others.
    let split = [format!("linux-binary-{release}"), format!("linux-modules-{release}")];
    let needs = apt.depends(&image)?;
    let mut wanted: Vec<String> = split.into_iter().filter(|part| needs.contains(part)).collect();
    if wanted.is_empty() {
        wanted.push(image);
    }
    for package in apt.fetch(&wanted)? {
        apt::unpack(&package, folder)?;
    }
    remove(&folder.join("apt"))?;
    image::unpack(root, &packed_kernel(folder, &release)?, &folder.join("vmlinux"))?;
    Ok(release)
}

/// The image of the kernel `release`, unpacked in `folder`.
fn packed_kernel(folder: &Path, release: &str) -> Result<PathBuf, Error> {
    let places = [format!("usr/lib/modules/{release}/vmlinuz"), format!("boot/vmlinuz-{release}")];
    let packed = places.iter().map(|place| folder.join(place)).find(|path| path.exists());
    packed.ok_or_else(|| Error::Missing {
        place: folder.to_owned(),
        what: places.join(" or "),
        remedy: "--fresh fetches it anew",
    })
}

/// Fetches `packages` with dependencies into the folder `name` of the cache, unless it has them.
fn fetch_root(cache: &Cache, name: &str, packages: &[&str]) -> Result<Sysroot, Error> {
    let (folder, architecture) = cache.filled(name, |folder| {
        let sources = sources()?;
        println!("vm: fetches {} of {}", packages.join(", "), suite_names(&sources));
        let apt = Apt::new(&folder.join("apt"), PC, &sources)?;
        for package in apt.fetch_with_dependencies(packages)? {
            apt::unpack(&package, folder)?;
        }
        remove(&folder.join("apt"))?;
        Ok(PC.to_owned())
    })?;
    Sysroot::at(&folder, &architecture)
}

/// The release of the kernel that the package without a version depends on.
fn release_of(need: &str) -> Option<String> {
    let release = need.strip_prefix("linux-image-")?;
    release.starts_with(|letter: char| letter.is_ascii_digit()).then(|| release.to_owned())
}

/// Removes archives after they were unpacked.
pub(crate) fn remove(folder: &Path) -> Result<(), Error> {
    fs::remove_dir_all(folder).map_err(Error::file(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_releases_take_their_emulator_from_backports() {
        assert_eq!(suites("bookworm"), ["trixie", "trixie-backports"]);
        assert_eq!(suites("trixie"), ["trixie", "trixie-backports"]);
        assert_eq!(suites("forky"), ["forky"]);
    }

    #[test]
    fn only_a_kernel_has_a_release() {
        assert_eq!(release_of("linux-image-7.3.4+deb13-amd64").as_deref(), Some("7.3.4+deb13-amd64"));
        assert_eq!(release_of("linux-image-amd64"), None);
        assert_eq!(release_of("linux-base-7.3.4+deb13-amd64"), None);
    }
}
