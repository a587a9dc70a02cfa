//! Builds the module by which the guest program calls the kernel's region functions.

use std::fs;
use std::path::{Path, PathBuf};

use super::kernel::DistroKernel;
use super::page_size::PageSize;
use crate::cache::{Cache, write_changed};
use crate::error::Error;
use crate::tool::run;

const MODULE: &str = "mm_iommu_test.ko";

/// Builds the module in `source` for the kernel with such pages.
///
/// # Errors
/// [`Error::Failed`] with the output of `make`.
pub(crate) fn build(
    source: &Path,
    cache: &Cache,
    kernel: &DistroKernel,
    page_size: PageSize,
) -> Result<PathBuf, Error> {
    let folder = cache.folder(&format!("door-{}", page_size.name()))?;
    // kbuild writes next to the source.
    for entry in fs::read_dir(source).map_err(Error::file(source))?.flatten() {
        let path = entry.path();
        let text = fs::read(&path).map_err(Error::file(&path))?;
        write_changed(&folder.join(entry.file_name()), &text)?;
    }
    let headers = kernel.headers(page_size)?;
    point_to(&headers.join("Makefile"), kernel.root())?;
    let mut make = kernel.tools().command("make");
    make.arg("-s").arg("-C").arg(&headers).arg(format!("M={}", folder.display()));
    // Type information would need a program that is not among the headers.
    make.args([
        "ARCH=powerpc",
        "CROSS_COMPILE=powerpc64le-linux-gnu-",
        "CONFIG_DEBUG_INFO_BTF_MODULES=",
        "modules",
    ]);
    // An outer `make` would pass its flags.
    run(make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL"))?;
    Ok(folder.join(MODULE))
}

/// Changes the makefile of the headers, which includes another one by its installed path, to include the unpacked one.
fn point_to(makefile: &Path, root: &Path) -> Result<(), Error> {
    let text = fs::read_to_string(makefile).map_err(Error::file(makefile))?;
    write_changed(makefile, redirected(&text, root).as_bytes())
}

fn redirected(text: &str, root: &Path) -> String {
    let line = |line: &str| match line.strip_prefix("include /usr/") {
        Some(rest) => format!("include {}/usr/{rest}\n", root.display()),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_path_is_redirected_once() {
        let once = redirected("include /usr/src/headers/Makefile\nall:\n", Path::new("/cache"));
        assert_eq!(once, "include /cache/usr/src/headers/Makefile\nall:\n");
        assert_eq!(redirected(&once, Path::new("/cache")), once);
    }
}
