//! A kernel with iommufd, which Debian's kernels do not have: built once from Debian's source package and kept in the cache.
//!
//! Its configuration is the smallest one plus `conformance/vm/iommufd.config`, without modules. Tools that this machine may
//! lack come from packages. Each configuration and version is a separate kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::artifacts::{Artifacts, remove, sources};
use crate::debian::apt::{self, Apt, Source};
use crate::error::Error;
use crate::tool::{Tools, run};

/// Tools of kbuild, besides a compiler, whose headers must be the machine's own.
const TOOLS: [&str; 6] = ["bc", "bison", "flex", "libelf-dev", "m4", "make"];

/// The package without a version, which depends on the newest version.
const SOURCE: &str = "linux-source";

impl Artifacts {
    /// The kernel, built on first use: 20 minutes on two processors.
    pub(crate) fn iommufd_kernel(&self) -> Result<PathBuf, Error> {
        let path = self.data().join("iommufd.config");
        let wanted = fs::read_to_string(&path).map_err(Error::file(&path))?;
        // The folder's name identifies the configuration.
        let name = format!("iommufd-{:016x}", digest(wanted.as_bytes()));
        let (folder, _) = self.cache().filled(&name, |folder| build(folder, &wanted))?;
        Ok(folder.join("vmlinux"))
    }
}

/// FNV-1a: configurations only need distinct names.
fn digest(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Builds the kernel in `folder`, removes everything else and returns the version.
fn build(folder: &Path, wanted: &str) -> Result<String, Error> {
    let host = apt::architecture()?;
    let newest: Vec<Source> = sources()?.last().cloned().into_iter().collect();
    let packages = folder.join("packages");
    let apt = Apt::new(&packages.join("apt"), &host, &newest)?;
    let version = apt.depends(SOURCE)?.iter().find_map(|need| version_of(need));
    let version = version.ok_or_else(|| Error::NoPackage {
        name: SOURCE.to_owned(),
        suite: newest.iter().map(|source| source.suite.as_str()).collect(),
    })?;
    println!("vm: fetches and builds Linux {version} with iommufd; this takes about 20 minutes, once");
    for package in apt.fetch(&[format!("{SOURCE}-{version}")])? {
        apt::unpack(&package, &packages)?;
    }
    let tree = folder.join("source");
    fs::create_dir_all(&tree).map_err(Error::file(&tree))?;
    let archive = packages.join(format!("usr/src/{SOURCE}-{version}.tar.xz"));
    run(Command::new("tar").arg("-C").arg(&tree).args(["--strip-components=1", "-xf"]).arg(&archive))?;
    remove(&packages)?;

    let root = folder.join("tools");
    let apt = Apt::new(&root.join("apt"), &host, &Source::of_machine()?)?;
    for package in apt.fetch_with_dependencies(&TOOLS)? {
        if !apt::is_libc(&package) {
            apt::unpack(&package, &root)?;
        }
    }
    let tools = Tools::at(&root, &apt::triplet(&host));
    let make = |goals: &[&str]| run(&mut kbuild(&tools, &root, &tree, goals, &host));
    make(&["tinyconfig"])?;
    let config = tree.join(".config");
    let tiny = fs::read_to_string(&config).map_err(Error::file(&config))?;
    // Later lines override earlier ones.
    fs::write(&config, format!("{tiny}\n{wanted}")).map_err(Error::file(&config))?;
    make(&["olddefconfig"])?;
    let got = fs::read_to_string(&config).map_err(Error::file(&config))?;
    if let Some(lost) = ESSENTIAL.iter().find(|option| !got.lines().any(|line| line == **option)) {
        return Err(Error::Missing {
            place: config,
            what: (*lost).to_owned(),
            remedy: "this version needs another option with it in conformance/vm/iommufd.config",
        });
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    make(&[&format!("-j{processors}"), "vmlinux"])?;
    let (built, kernel) = (tree.join("vmlinux"), folder.join("vmlinux"));
    fs::rename(&built, &kernel).map_err(Error::file(&built))?;
    remove(&tree)?;
    remove(&root)?;
    Ok(version)
}

/// Options without which the cases cannot work.
const ESSENTIAL: [&str; 5] = [
    "CONFIG_IOMMUFD=y",
    "CONFIG_VFIO_DEVICE_CDEV=y",
    "CONFIG_VFIO_PCI=y",
    "CONFIG_INTEL_IOMMU=y",
    "CONFIG_PVH=y",
];

/// `make` in the kernel's `tree`, niced.
fn kbuild(tools: &Tools, root: &Path, tree: &Path, goals: &[&str], host: &str) -> Command {
    let mut command = tools.command("nice");
    command.args(["-n", "19", "make", "-s", "-C"]).arg(tree).args(goals);
    let libraries = root.join("usr/lib").join(apt::triplet(host));
    // Behind the machine's folders, because only missing files should come from here.
    command.arg(format!("HOSTCFLAGS=-idirafter {}", root.join("usr/include").display()));
    command.arg(format!("HOSTLDFLAGS=-L{}", libraries.display()));
    command.env("BISON_PKGDATADIR", root.join("usr/share/bison")).env("M4", root.join("usr/bin/m4"));
    // An outer `make` would pass its flags.
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    command
}

/// The version of the source package that the one without a version depends on.
fn version_of(need: &str) -> Option<String> {
    let version = need.strip_prefix(SOURCE)?.strip_prefix('-')?;
    version.starts_with(|letter: char| letter.is_ascii_digit()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_the_one_with_a_version() {
        assert_eq!(version_of("linux-source-7.3").as_deref(), Some("7.3"));
        assert_eq!(version_of("linux-source"), None);
        assert_eq!(version_of("linux-base"), None);
    }

    #[test]
    fn other_configurations_have_other_names() {
        assert_ne!(digest(b"CONFIG_IOMMUFD=y"), digest(b"CONFIG_IOMMUFD=m"));
        assert_eq!(digest(b""), 0xcbf2_9ce4_8422_2325);
    }
}
