//! Debian's POWER kernels, their headers, and the tools to build for them and to run them.

use std::fs;
use std::path::{Path, PathBuf};

use super::page_size::PageSize;
use crate::cache::Cache;
use crate::debian::apt::{self, Apt, Source};
use crate::error::Error;
use crate::tool::Tools;

/// The architecture of the kernels.
const GUEST: &str = "ppc64el";

/// Tools for this machine: the emulator, a cross compiler, and kbuild's `make`.
const TOOLS: [&str; 4] = ["qemu-system-ppc", "gcc-powerpc64le-linux-gnu", "libc6-dev-ppc64el-cross", "make"];

/// Kernels, headers and tools, unpacked in the cache.
#[derive(Clone, Debug)]
pub(crate) struct DistroKernel {
    kernels: PathBuf,
    version: String,
    tools: Tools,
}

/// The suite with the kernel to use on a machine with the release `codename`.
///
/// VFIO of the 6.1 kernel in bookworm does not work on powernv; its backports have 6.12.
fn kernel_suite(codename: &str) -> String {
    if codename == "bookworm" { format!("{codename}-backports") } else { codename.to_owned() }
}

impl DistroKernel {
    /// Fetches the parts that the cache does not have.
    pub(crate) fn fetch(cache: &Cache) -> Result<Self, Error> {
        let host = apt::architecture()?;
        // With all dependencies except libc: the cache may outlive installed packages, or move to another machine.
        let (tools, _) = cache.filled("programs", |folder| {
            println!("oracle: fetches {}", TOOLS.join(", "));
            let sources = Source::of_machine()?;
            let apt = Apt::new(&folder.join("apt"), &host, &sources)?;
            for package in apt.fetch_with_dependencies(&TOOLS)? {
                if !apt::is_libc(&package) {
                    apt::unpack(&package, folder)?;
                }
            }
            Ok(host.clone())
        })?;
        let (kernels, version) = cache.filled("kernels", |folder| fetch_kernels(folder, &host))?;
        Ok(Self { kernels, version, tools: Tools::at(&tools, &apt::triplet(&host)) })
    }

    /// Debian's version of the kernels, as in their package names.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The output of `uname -r` on the kernel with such pages.
    fn release(&self, page_size: PageSize) -> String {
        format!("{}-{}", self.version, page_size.flavour())
    }

    /// The kernel image for the emulator.
    pub(crate) fn image(&self, page_size: PageSize) -> Result<PathBuf, Error> {
        let name = format!("vmlinux-{}", self.release(page_size));
        self.existing(&[format!("boot/{name}")], &name)
    }

    /// The headers of this kernel, for kbuild.
    pub(crate) fn headers(&self, page_size: PageSize) -> Result<PathBuf, Error> {
        let name = format!("usr/src/linux-headers-{}", self.release(page_size));
        self.existing(std::slice::from_ref(&name), &name)
    }

    /// The folder that the headers expect to be the root of the file system.
    pub(crate) fn root(&self) -> &Path {
        &self.kernels
    }

    /// The modules of VFIO, compressed.
    pub(crate) fn modules(&self, page_size: PageSize) -> Result<Vec<PathBuf>, Error> {
        let name = format!("lib/modules/{}/kernel/drivers/vfio", self.release(page_size));
        let folder = self.existing(&[name.clone(), format!("usr/{name}")], &name)?;
        let mut modules = Vec::new();
        for folder in [folder.join("pci"), folder] {
            let entries = fs::read_dir(&folder).map_err(Error::file(&folder))?;
            modules.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()));
        }
        modules.sort();
        Ok(modules)
    }

    /// The folder of all unpacked modules of this kernel.
    pub(crate) fn module_folder(&self, page_size: PageSize) -> Result<PathBuf, Error> {
        let name = format!("lib/modules/{}/kernel", self.release(page_size));
        self.existing(&[name.clone(), format!("usr/{name}")], &name)
    }

    fn existing(&self, paths: &[String], what: &str) -> Result<PathBuf, Error> {
        let found = paths.iter().map(|path| self.kernels.join(path)).find(|path| path.exists());
        found.ok_or_else(|| Error::Missing {
            place: self.kernels.clone(),
            what: what.to_owned(),
            remedy: "--fresh fetches it anew",
        })
    }
}

/// Fetches both kernels and the packages for building a module; returns their version.
fn fetch_kernels(folder: &Path, host: &str) -> Result<String, Error> {
    let sources = Source::of_machine()?;
    let release = &sources[0];
    let suite = kernel_suite(&release.suite);
    println!("oracle: fetches the {GUEST} kernels of {suite}");
    let source = [release.with_suite(&suite)];
    let guest = Apt::new(&folder.join("apt-guest"), GUEST, &source)?;
    // The package without a version depends on the newest version; headers and kbuild must have the same one.
    let name = format!("linux-image-{}", PageSize::Small.flavour());
    let depends = guest.depends(&name)?;
    let version = depends.iter().find_map(|name| {
        Some(
            name.strip_prefix("linux-image-")?
                .strip_suffix(PageSize::Small.flavour())?
                .strip_suffix('-')?
                .to_owned(),
        )
    });
    let version = version.ok_or(Error::NoPackage { name, suite })?;

    let mut wanted = vec![format!("linux-headers-{version}-common")];
    for page_size in PageSize::ALL {
        wanted.push(format!("linux-image-{version}-{}", page_size.flavour()));
        wanted.push(format!("linux-headers-{version}-{}", page_size.flavour()));
    }
    for package in guest.fetch(&wanted)? {
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("linux-image-") {
            // All drivers of both kernels would be several hundred megabytes.
            apt::unpack_some(&package, folder, &["./boot/vmlinu*", "*/kernel/drivers/vfio/*"])?;
        } else {
            apt::unpack(&package, folder)?;
        }
    }
    // kbuild's programs run on this machine, not in the guest.
    let kbuild = Apt::new(&folder.join("apt-host"), host, &source)?;
    for package in kbuild.fetch(&[format!("linux-kbuild-{version}")])? {
        apt::unpack(&package, folder)?;
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bookworm_takes_its_kernel_from_backports() {
        assert_eq!(kernel_suite("bookworm"), "bookworm-backports");
        assert_eq!(kernel_suite("trixie"), "trixie");
    }
}
