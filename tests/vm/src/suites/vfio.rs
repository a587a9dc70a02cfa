//! VFIO of Debian's kernels: a device does DMA to memory that was registered once, driven by `prereg selftest`, by prereg-vmm's
//! adapter, and by a C program.
//!
//! The device is QEMU's `edu`, which copies between its buffer and the bus on command. On a PC it is behind each of QEMU's
//! IOMMUs, on POWER behind powernv's, with 4 KiB and 64 KiB pages. For iommufd the kernel is built from source.

use std::path::PathBuf;
use std::time::Duration;

use super::case::{Case, Requirement, Stage, Suite, Verdict};
use super::guest::{Board, Booted, Guest};
use crate::oracle::page_size::PageSize;

pub(crate) const CASES: &[Case] = &[
    Case {
        suite: Suite::Vfio,
        requires: Requirement::Program,
        name: "vfio-intel",
        shows: "type1 behind intel-iommu, as root and as an ordinary user; io_uring as root",
        run: |stage| {
            let line = "intel_iommu=on backend=vfio-type1 also=io-uring";
            pc(stage, "-device intel-iommu,intremap=on", line)
        },
    },
    Case {
        suite: Suite::Vfio,
        requires: Requirement::Program,
        name: "vfio-amd",
        shows: "type1 behind amd-iommu",
        run: |stage| pc(stage, "-device amd-iommu,dma-remap=on", "unsafe_interrupts backend=vfio-type1"),
    },
    Case {
        suite: Suite::Vfio,
        requires: Requirement::Program,
        name: "vfio-virtio",
        shows: "type1 behind virtio-iommu",
        run: |stage| pc(stage, "-device virtio-iommu-pci", "unsafe_interrupts backend=vfio-type1"),
    },
    Case {
        suite: Suite::Vfio,
        requires: Requirement::VmmTest,
        name: "vfio-vmm",
        shows: "PinnedVfio over a type1 container: DMA, EBUSY, unmaps, devices that leave and arrive",
        run: |stage| program(stage, stage.artifacts.vmm_test()?),
    },
    Case {
        suite: Suite::Vfio,
        requires: Requirement::CTest,
        name: "vfio-c",
        shows: "type1 through the C library, in a container of its own and in the caller's",
        run: |stage| program(stage, stage.artifacts.c_test()?),
    },
    Case {
        suite: Suite::Vfio,
        requires: Requirement::Power,
        name: "vfio-spapr-4k",
        shows: "SPAPR TCE v2 on a kernel with 4 KiB pages",
        run: |stage| power(stage, PageSize::Small),
    },
    Case {
        suite: Suite::Vfio,
        requires: Requirement::Power,
        name: "vfio-spapr-64k",
        shows: "SPAPR TCE v2 on a kernel with 64 KiB pages",
        run: |stage| power(stage, PageSize::Large),
    },
    Case {
        suite: Suite::Vfio,
        requires: Requirement::PowerTests,
        name: "core-power-4k",
        shows: "the core's tests on a kernel of POWER with 4 KiB pages",
        run: |stage| core(stage, PageSize::Small),
    },
    Case {
        suite: Suite::Vfio,
        requires: Requirement::PowerTests,
        name: "core-power-64k",
        shows: "the core's tests on a kernel of POWER with 64 KiB pages",
        run: |stage| core(stage, PageSize::Large),
    },
    Case {
        suite: Suite::Iommufd,
        requires: Requirement::Iommufd,
        name: "iommufd-intel",
        shows: "iommufd behind intel-iommu, as root and as an ordinary user",
        run: |stage| {
            let kernel = stage.artifacts.iommufd_kernel()?;
            let line = "intel_iommu=on backend=iommufd";
            on(stage, Board::PcWithKernel(kernel), "-device intel-iommu,intremap=on", line)
        },
    },
];

/// Time limit of a self test. A DMA of `edu` takes 100 ms.
const LIMIT: Duration = Duration::from_secs(300);

/// Time limit of all tests of the core, under emulation.
const TESTS: Duration = Duration::from_secs(900);

fn pc(stage: &Stage<'_>, iommu: &str, line: &str) -> Verdict {
    on(stage, Board::Pc, iommu, line)
}

fn on(stage: &Stage<'_>, board: Board, iommu: &str, line: &str) -> Verdict {
    let mut guest = Guest::new(board, "vfio");
    guest.drivers = vec!["virtio_iommu", "vfio_pci", "vfio_iommu_type1"];
    guest.qemu_args(iommu);
    guest.qemu_args("-device edu,id=edu");
    guest.kernel_args(line);
    guest.files.push(("bin/prereg".to_owned(), stage.artifacts.prereg()?));
    finished(stage, &guest)
}

/// Runs a test program in a guest with two devices.
fn program(stage: &Stage<'_>, program: PathBuf) -> Verdict {
    let mut guest = Guest::new(Board::Pc, "vfio-program");
    guest.drivers = vec!["vfio_pci", "vfio_iommu_type1"];
    guest.qemu_args("-device intel-iommu,intremap=on -device edu -device edu");
    guest.kernel_args("intel_iommu=on");
    guest.files.push(("bin/vfio-program".to_owned(), program));
    finished(stage, &guest)
}

fn power(stage: &Stage<'_>, page_size: PageSize) -> Verdict {
    let mut guest = Guest::new(Board::Powernv(page_size), "vfio");
    guest.drivers = vec!["vfio_spapr_eeh", "vfio_iommu_spapr_tce", "vfio_pci"];
    guest.qemu_args("-device edu,bus=pcie.0");
    guest.kernel_args("backend=vfio-spapr-v2");
    guest.files.push(("bin/prereg".to_owned(), stage.artifacts.power_prereg()?));
    finished(stage, &guest)
}

fn finished(stage: &Stage<'_>, guest: &Guest) -> Verdict {
    let mut booted = guest.boot(stage, "guest")?;
    booted.finish(LIMIT)?;
    Ok(seen(&booted))
}

fn core(stage: &Stage<'_>, page_size: PageSize) -> Verdict {
    let mut guest = Guest::new(Board::Powernv(page_size), "tests");
    for program in stage.artifacts.power_tests()? {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        guest.files.push((format!("tests/{name}"), program));
    }
    let mut booted = guest.boot(stage, "guest")?;
    booted.finish(TESTS)?;
    Ok(seen(&booted))
}

/// The guest's summaries of its runs, and the tables that they print.
fn seen(booted: &Booted) -> String {
    let runs = booted.marks("seen").collect::<Vec<_>>().join("; ");
    let tables: String = booted.marks("table").map(|line| format!("\n         {line}")).collect();
    runs + &tables
}
