//! VFIO of stock kernels: `prereg selftest` makes a device do DMA to memory that was registered once.
//!
//! The device is QEMU's `edu`, which copies between its own buffer and the bus as it is told. On a PC it stands behind
//! each of the IOMMUs that QEMU has; on POWER behind powernv's, with 4 KiB and with 64 KiB pages. For iommufd the kernel is
//! one of our own.

use std::time::Duration;

use super::case::{Case, Needs, Stage, Suite, Verdict};
use super::guest::{Board, Booted, Guest};
use crate::oracle::granule::Granule;

pub(crate) const CASES: &[Case] = &[
    Case {
        suite: Suite::Vfio,
        needs: Needs::Program,
        name: "vfio-intel",
        shows: "type1 behind intel-iommu, as root and as an ordinary user",
        run: |stage| pc(stage, "-device intel-iommu,intremap=on", "intel_iommu=on backend=vfio-type1"),
    },
    Case {
        suite: Suite::Vfio,
        needs: Needs::Program,
        name: "vfio-amd",
        shows: "type1 behind amd-iommu",
        run: |stage| pc(stage, "-device amd-iommu,dma-remap=on", "unsafe_interrupts backend=vfio-type1"),
    },
    Case {
        suite: Suite::Vfio,
        needs: Needs::Program,
        name: "vfio-virtio",
        shows: "type1 behind virtio-iommu",
        run: |stage| pc(stage, "-device virtio-iommu-pci", "unsafe_interrupts backend=vfio-type1"),
    },
    Case {
        suite: Suite::Vfio,
        needs: Needs::Power,
        name: "vfio-spapr-4k",
        shows: "SPAPR TCE v2 on a kernel with 4 KiB pages",
        run: |stage| power(stage, Granule::Small),
    },
    Case {
        suite: Suite::Vfio,
        needs: Needs::Power,
        name: "vfio-spapr-64k",
        shows: "SPAPR TCE v2 on a kernel with 64 KiB pages",
        run: |stage| power(stage, Granule::Large),
    },
    Case {
        suite: Suite::Vfio,
        needs: Needs::PowerTests,
        name: "core-power-4k",
        shows: "the core's tests on a kernel of POWER with 4 KiB pages",
        run: |stage| core(stage, Granule::Small),
    },
    Case {
        suite: Suite::Vfio,
        needs: Needs::PowerTests,
        name: "core-power-64k",
        shows: "the core's tests on a kernel of POWER with 64 KiB pages",
        run: |stage| core(stage, Granule::Large),
    },
    Case {
        suite: Suite::Iommufd,
        needs: Needs::Iommufd,
        name: "iommufd-intel",
        shows: "iommufd behind intel-iommu, as root and as an ordinary user",
        run: |stage| {
            let kernel = stage.parts.iommufd_kernel()?;
            let line = "intel_iommu=on backend=iommufd";
            on(stage, Board::PcWithKernel(kernel), "-device intel-iommu,intremap=on", line)
        },
    },
];

/// The longest that a self test may take. A DMA of `edu` takes 100 ms.
const LIMIT: Duration = Duration::from_secs(300);

/// The longest that all tests of the core may take, under emulation.
const TESTS: Duration = Duration::from_secs(900);

fn pc(stage: &Stage<'_>, iommu: &str, line: &str) -> Verdict {
    on(stage, Board::Pc, iommu, line)
}

fn on(stage: &Stage<'_>, board: Board, iommu: &str, line: &str) -> Verdict {
    let mut guest = Guest::new(board, "vfio");
    guest.drivers = vec!["virtio_iommu", "vfio_pci", "vfio_iommu_type1"];
    guest.say(iommu);
    guest.say("-device edu,id=edu");
    guest.tell(line);
    guest.files.push(("bin/prereg".to_owned(), stage.parts.prereg()?));
    let mut booted = guest.boot(stage, "guest")?;
    booted.finish(LIMIT)?;
    Ok(seen(&booted))
}

fn power(stage: &Stage<'_>, granule: Granule) -> Verdict {
    let mut guest = Guest::new(Board::Powernv(granule), "vfio");
    guest.drivers = vec!["vfio_spapr_eeh", "vfio_iommu_spapr_tce", "vfio_pci"];
    guest.say("-device edu,bus=pcie.0");
    guest.tell("backend=vfio-spapr-v2");
    guest.files.push(("bin/prereg".to_owned(), stage.parts.power_prereg()?));
    let mut booted = guest.boot(stage, "guest")?;
    booted.finish(LIMIT)?;
    Ok(seen(&booted))
}

fn core(stage: &Stage<'_>, granule: Granule) -> Verdict {
    let mut guest = Guest::new(Board::Powernv(granule), "tests");
    for program in stage.parts.power_tests()? {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        guest.files.push((format!("tests/{name}"), program));
    }
    let mut booted = guest.boot(stage, "guest")?;
    booted.finish(TESTS)?;
    Ok(seen(&booted))
}

/// What the guest says about its runs, and the tables that they print.
fn seen(booted: &Booted) -> String {
    let runs = booted.marks("seen").collect::<Vec<_>>().join("; ");
    let tables: String = booted.marks("table").map(|line| format!("\n         {line}")).collect();
    runs + &tables
}
