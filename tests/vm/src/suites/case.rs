//! A case of a suite, and its environment.

use std::fs;
use std::path::{Path, PathBuf};

use super::artifacts::Artifacts;
use crate::error::Error;

/// A suite.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Suite {
    /// Guests with a disk from `prereg serve nvme`.
    Nvme,
    /// Third-party tools, firmware and bootloaders on such a disk.
    Strangers,
    /// VFIO of Debian's kernels under `prereg selftest`, prereg-vmm and the C library.
    Vfio,
    /// iommufd, which Debian's kernels do not have, under `prereg selftest`.
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

/// The reason for a case not passing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Machine(#[from] Error),
    #[error("{0}")]
    Check(String),
    /// This machine lacks something that the case needs; nothing was shown.
    #[error("{0}")]
    Skipped(String),
}

impl Failure {
    /// A check that failed.
    pub(crate) fn check(what: impl Into<String>) -> Self {
        Self::Check(what.into())
    }
}

/// The result of a case: a summary if it passed.
pub(crate) type Verdict = Result<String, Failure>;

/// Artifacts that a case needs besides emulators and the PC kernel. All are made before the first case runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Requirement {
    /// `prereg` for PCs.
    Program,
    /// `prereg` for PCs and guest-tool.
    Disk,
    /// As `Disk`, and the packages of the suite `strangers`.
    Strangers,
    /// `prereg` for POWER, and the POWER kernels.
    Power,
    /// The core's tests for POWER, and the POWER kernels.
    PowerTests,
    /// `prereg` for PCs, and a kernel with iommufd, built from source.
    Iommufd,
    /// The test of prereg-vmm for PCs.
    VmmTest,
    /// The test of the C library for PCs.
    CTest,
}

impl Requirement {
    /// Fetches the artifacts that do not come from this workspace.
    pub(crate) fn fetch(self, artifacts: &Artifacts) -> Result<(), Error> {
        match self {
            Self::Program | Self::Disk | Self::VmmTest | Self::CTest => Ok(()),
            Self::Strangers => artifacts.strangers().map(|_| ()),
            Self::Power | Self::PowerTests => artifacts.power().map(|_| ()),
            Self::Iommufd => artifacts.iommufd_kernel().map(|_| ()),
        }
    }

    /// Builds the artifacts of this workspace.
    pub(crate) fn build(self, artifacts: &Artifacts) -> Result<(), Error> {
        match self {
            Self::Disk | Self::Strangers => {
                artifacts.prereg().and_then(|_| artifacts.guest_tool()).map(|_| ())
            }
            Self::Program | Self::Iommufd => artifacts.prereg().map(|_| ()),
            Self::Power => artifacts.power_prereg().map(|_| ()),
            Self::PowerTests => artifacts.power_tests().map(|_| ()),
            Self::VmmTest => artifacts.vmm_test().map(|_| ()),
            Self::CTest => artifacts.c_test().map(|_| ()),
        }
    }
}

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) suite: Suite,
    pub(crate) requires: Requirement,
    pub(crate) name: &'static str,
    /// A short description of what the case shows.
    pub(crate) shows: &'static str,
    pub(crate) run: fn(&Stage<'_>) -> Verdict,
}

/// The environment of a case: the artifacts, and its own folder.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) artifacts: &'a Artifacts,
    /// Consoles, disks and logs; kept if the case fails.
    pub(crate) folder: PathBuf,
    /// The folder of sockets, with a short name, because socket addresses must be short.
    pub(crate) sockets: PathBuf,
}

impl<'a> Stage<'a> {
    /// Makes both folders empty.
    pub(crate) fn set(artifacts: &'a Artifacts, folder: &Path, sockets: &Path) -> Result<Self, Error> {
        for folder in [folder, sockets] {
            // Leftovers of an earlier run.
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

/// `Ok` if `held`, otherwise the failure with the message `what`.
pub(crate) fn ensure(held: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if held { Ok(()) } else { Err(Failure::Check(what())) }
}
