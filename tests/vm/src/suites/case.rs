//! A case: one thing that is shown with a machine, and what it gets to work with.

use std::fs;
use std::path::{Path, PathBuf};

use super::artifacts::Artifacts;
use crate::error::Error;

/// Cases that belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Suite {
    /// Guests with a disk from `prereg serve nvme`.
    Nvme,
    /// Foreign tools, firmware and bootloaders on such a disk.
    Strangers,
    /// DistroKernel kernels' VFIO under `prereg selftest`.
    Vfio,
    /// The same over iommufd, which no kernel kernel has.
    Iommufd,
}

impl Suite {
    pub(crate) const ALL: [Self; 4] = [Self::Nvme, Self::Strangers, Self::Vfio, Self::Iommufd];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nvme => "nvme",
            Self::Strangers => "strangers",
            Self::Vfio => "vfio",
            Self::Iommufd => "iommufd",
        }
    }
}

/// Why a case did not pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Machine(#[from] Error),
    #[error("{0}")]
    Check(String),
    /// This machine lacks what the case needs, and cannot get it; nothing was shown.
    #[error("{0}")]
    Skipped(String),
}

impl Failure {
    /// A case that came to its end and found something wrong.
    pub(crate) fn check(what: impl Into<String>) -> Self {
        Self::Check(what.into())
    }
}

/// What a case says when it passed: what was seen, in a few words.
pub(crate) type Verdict = Result<String, Failure>;

/// What a case needs beside emulators and the PC's kernel. All is there before the first case begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Requirement {
    /// `prereg` for PCs.
    Program,
    /// The same and the program that drives disks.
    Disk,
    /// As `Disk`, and the packages of the strangers.
    Strangers,
    /// `prereg` for POWER, and its kernels.
    Power,
    /// The core's tests for POWER, and its kernels.
    PowerTests,
    /// `prereg` for PCs, and a kernel with iommufd, to be built.
    Iommufd,
}

impl Requirement {
    /// What cannot be had from this workspace.
    pub(crate) fn fetch(self, artifacts: &Artifacts) -> Result<(), Error> {
        match self {
            Self::Program | Self::Disk => Ok(()),
            Self::Strangers => artifacts.strangers().map(|_| ()),
            Self::Power | Self::PowerTests => artifacts.power().map(|_| ()),
            Self::Iommufd => artifacts.iommufd_kernel().map(|_| ()),
        }
    }

    /// What is built from it.
    pub(crate) fn build(self, artifacts: &Artifacts) -> Result<(), Error> {
        match self {
            Self::Disk | Self::Strangers => {
                artifacts.prereg().and_then(|_| artifacts.guest_tool()).map(|_| ())
            }
            Self::Program | Self::Iommufd => artifacts.prereg().map(|_| ()),
            Self::Power => artifacts.power_prereg().map(|_| ()),
            Self::PowerTests => artifacts.power_tests().map(|_| ()),
        }
    }
}

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) suite: Suite,
    pub(crate) requires: Requirement,
    pub(crate) name: &'static str,
    /// What is shown, in half a line.
    pub(crate) shows: &'static str,
    pub(crate) run: fn(&Stage<'_>) -> Verdict,
}

/// What a case works with: the artifacts, and a folder of its own.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) artifacts: &'a Artifacts,
    /// Consoles, disks and logs; kept when the case fails.
    pub(crate) folder: PathBuf,
    /// Sockets: a folder with a short name, as their addresses must be short.
    pub(crate) sockets: PathBuf,
}

impl<'a> Stage<'a> {
    /// Makes both folders empty.
    pub(crate) fn set(artifacts: &'a Artifacts, folder: &Path, sockets: &Path) -> Result<Self, Error> {
        for folder in [folder, sockets] {
            // What an earlier run left.
            let _ = fs::remove_dir_all(folder);
            fs::create_dir_all(folder).map_err(Error::file(folder))?;
        }
        Ok(Self { artifacts, folder: folder.to_owned(), sockets: sockets.to_owned() })
    }

    /// The file `name` of this case.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The address of the socket `name`.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }
}

/// `Ok` when `held`, otherwise the failure `what` says.
pub(crate) fn ensure(held: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if held { Ok(()) } else { Err(Failure::Check(what())) }
}
