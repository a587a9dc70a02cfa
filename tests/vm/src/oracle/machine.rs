//! The emulated machines.
//!
//! The scenarios need a SPAPR IOMMU with devices in separate groups: powernv with an e1000e on each host bridge. powernv has no
//! huge pages under emulation; for 2 MiB pages it is pseries with the small built-in firmware and a CPU whose kernel uses the
//! radix MMU.

use std::path::Path;

/// A kind of machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Machine {
    Powernv8,
    Powernv9,
    Pseries,
}

impl Machine {
    /// The machine for a scenario set, by the set's name.
    pub(crate) fn of_set(name: &str) -> Self {
        if name.starts_with("huge2m") {
            Self::Pseries
        } else if name.starts_with("huge16m") {
            Self::Powernv8
        } else {
            Self::Powernv9
        }
    }

    /// Host bridges with a device: the groups of the scenarios.
    fn bridges(self) -> std::ops::Range<u32> {
        match self {
            Self::Powernv8 => 0..3,
            Self::Powernv9 => 0..4,
            // Bridge 0 is built in and has no device.
            Self::Pseries => 1..4,
        }
    }

    /// The emulator's arguments for a kernel and its initramfs.
    pub(crate) fn arguments(self, kernel: &Path, initramfs: &Path) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut say = |text: &str| words.extend(text.split(' ').map(str::to_owned));
        match self {
            Self::Powernv8 => say("-M powernv8"),
            Self::Powernv9 => say("-M powernv9"),
            // The emulator has none of the mitigations that the machine would announce.
            Self::Pseries => {
                say("-M pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off");
                say("-cpu power10 -vga none -nodefaults");
            }
        }
        say("-accel tcg,thread=single -smp 1 -m 2G -display none -serial stdio -monitor none");
        say("-net none -no-reboot");
        for bridge in self.bridges() {
            // Without `romfile=` the card needs a boot ROM that no package has.
            match self {
                Self::Powernv8 | Self::Powernv9 => say(&format!("-device e1000e,bus=pcie.{bridge},romfile=")),
                Self::Pseries => {
                    say(&format!("-device spapr-pci-host-bridge,index={bridge},id=phb{bridge}"));
                    say(&format!("-device e1000e,bus=phb{bridge}.0,romfile="));
                }
            }
        }
        let paths = [("-kernel", kernel), ("-initrd", initramfs)];
        words
            .extend(paths.into_iter().flat_map(|(word, path)| [word.to_owned(), path.display().to_string()]));
        words.push("-append".to_owned());
        words.push("console=hvc0 quiet loglevel=1 panic=-1 rdinit=/init".to_owned());
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_devices_on_bridges_of_their_own() {
        for (name, devices) in [("vfio", 4), ("huge16m", 3), ("huge2m", 3)] {
            let words = Machine::of_set(name).arguments(Path::new("k"), Path::new("i"));
            let buses: std::collections::BTreeSet<&String> =
                words.iter().filter(|word| word.starts_with("e1000e,bus=")).collect();
            assert_eq!(buses.len(), devices, "{name}: {words:?}");
            assert_eq!(words.iter().filter(|word| *word == "-M").count(), 1, "{name}");
            assert!(words.iter().all(|word| !word.is_empty()), "{name}: {words:?}");
        }
    }
}
