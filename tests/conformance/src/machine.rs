//! The machines of the recorded answers, and state there that outlives a process: groups, the pool of huge pages.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use prereg::PageShift;
use prereg_iommu::container::{Container, Platform};
use prereg_scenario::script::Script;

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Bare-metal POWER9: four groups, no huge pages for user memory
    PowerNv9,
    /// Bare-metal POWER8: three groups, 16 MiB huge pages
    PowerNv8,
    /// A guest of a POWER hypervisor: three groups, 2 MiB huge pages
    Pseries,
}

impl Machine {
    /// The machine that a script's first comments name, or else the bare-metal POWER9.
    #[must_use]
    pub fn of_script(script: &Script) -> Self {
        script.comments.iter().find_map(|comment| Self::named_in(comment)).unwrap_or(Self::PowerNv9)
    }

    fn named_in(comment: &str) -> Option<Self> {
        let names = [(Self::PowerNv8, "powernv8"), (Self::Pseries, "pseries"), (Self::PowerNv9, "powernv9")];
        names.into_iter().find(|(_, name)| comment.contains(name)).map(|(machine, _)| machine)
    }

    /// The properties of its IOMMU.
    #[must_use]
    pub const fn platform(self) -> Platform {
        match self {
            Self::PowerNv9 => Platform::POWERNV,
            Self::PowerNv8 => Platform::POWERNV8,
            Self::Pseries => Platform::PSERIES,
        }
    }

    const fn groups(self) -> usize {
        match self {
            Self::PowerNv9 => 4,
            Self::PowerNv8 | Self::Pseries => 3,
        }
    }

    /// The huge pages for user memory.
    #[must_use]
    pub const fn huge_pages(self) -> Option<PageShift> {
        match self {
            Self::PowerNv9 => None,
            Self::PowerNv8 => Some(PageShift::M16),
            Self::Pseries => Some(PageShift::M2),
        }
    }

    /// The slice of the address space around `at` in which all pages must have one size, if there are such slices: its first
    /// byte and its length.
    pub(super) const fn slice(self, at: u64) -> Option<(u64, u64)> {
        let bytes: u64 = if at < 1 << 32 { 1 << 28 } else { 1 << 40 };
        match self {
            Self::PowerNv8 => Some((at & !(bytes - 1), bytes)),
            Self::PowerNv9 | Self::Pseries => None,
        }
    }

    /// Main memory in bytes.
    pub(super) const RAM: u64 = 2 << 30;
    /// The longest page list that fits into main memory.
    pub(super) const LARGEST_LIST: u64 = Self::RAM - (64 << 20);
    /// Huge pages in the pool.
    const POOL: u64 = 16;
}

/// State that the processes of a scenario share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) machine: Machine,
    opened: RefCell<Vec<bool>>,
    huge_left: Cell<u64>,
    containers: Cell<u64>,
}

impl Shared {
    pub(super) fn new(machine: Machine) -> Rc<Self> {
        Rc::new(Self {
            machine,
            opened: RefCell::new(vec![false; machine.groups()]),
            huge_left: Cell::new(Machine::POOL),
            containers: Cell::new(0),
        })
    }

    /// Takes huge pages out of the pool; `false` if there are too few.
    pub(super) fn take_huge(&self, pages: u64) -> bool {
        let left = self.huge_left.get().checked_sub(pages);
        if let Some(left) = left {
            self.huge_left.set(left);
        }
        left.is_some()
    }

    pub(super) fn open_container(&self) -> Rc<OpenFile> {
        self.containers.set(self.containers.get() + 1);
        Rc::new(OpenFile::Container(Box::new(ContainerFile {
            container: RefCell::new(Container::new(self.containers.get())),
            outlived: Cell::new(false),
        })))
    }

    pub(super) fn has_group(&self, number: u64) -> bool {
        usize::try_from(number).is_ok_and(|number| number < self.opened.borrow().len())
    }

    /// Opens group `number`; `None` if it is already open.
    pub(super) fn open_group(self: &Rc<Self>, number: u64) -> Option<Rc<OpenFile>> {
        let number = usize::try_from(number).ok()?;
        let mut opened = self.opened.borrow_mut();
        let slot = opened.get_mut(number).filter(|open| !**open)?;
        *slot = true;
        let group =
            GroupFile { shared: self.clone(), number, container: RefCell::new(None), users: Cell::new(0) };
        Some(Rc::new(OpenFile::Group(group)))
    }
}

/// An open file; descriptors share it after `dup` and `fork`.
#[derive(Debug)]
pub(super) enum OpenFile {
    Container(Box<ContainerFile>),
    Group(GroupFile),
    #[expect(dead_code, reason = "an open device is there for what closing it does")]
    Device(DeviceFile),
}

impl OpenFile {
    pub(super) fn container(&self) -> Option<&RefCell<Container>> {
        match self {
            Self::Container(file) => Some(&file.container),
            _ => None,
        }
    }

    /// Whether mappings of this container outlived a group of it.
    pub(super) fn has_outlived(&self) -> bool {
        matches!(self, Self::Container(file) if file.outlived.get())
    }

    pub(super) fn group(&self) -> Option<&GroupFile> {
        match self {
            Self::Group(group) => Some(group),
            _ => None,
        }
    }
}

/// An open container.
#[derive(Debug)]
pub(super) struct ContainerFile {
    container: RefCell<Container>,
    /// Whether mappings were live when one of several groups left.
    outlived: Cell<bool>,
}

/// An open group. It keeps its container open, and leaves it when closed.
#[derive(Debug)]
pub(super) struct GroupFile {
    shared: Rc<Shared>,
    pub(super) number: usize,
    pub(super) container: RefCell<Option<Rc<OpenFile>>>,
    /// Number of its open devices.
    pub(super) users: Cell<u32>,
}

impl GroupFile {
    /// The properties of its IOMMU.
    pub(super) fn platform(&self) -> Platform {
        self.shared.machine.platform()
    }

    /// Takes the group out of its container; `false` if it is in none.
    pub(super) fn leave(&self) -> bool {
        let Some(file) = self.container.take() else { return false };
        if let OpenFile::Container(file) = &*file {
            let mut container = file.container.borrow_mut();
            // There are only a few groups.
            container.detach(self.number as u32);
            let live = container.windows().any(|(_, table)| table.live() > 0);
            file.outlived.set(!container.groups().is_empty() && (live || file.outlived.get()));
        }
        true
    }
}

impl Drop for GroupFile {
    fn drop(&mut self) {
        self.leave();
        if let Some(open) = self.shared.opened.borrow_mut().get_mut(self.number) {
            *open = false;
        }
    }
}

/// An open device: it keeps its group open and in its container.
#[derive(Debug)]
pub(super) struct DeviceFile {
    group: Rc<OpenFile>,
}

impl DeviceFile {
    pub(super) fn new(group: &Rc<OpenFile>) -> Self {
        if let Some(group) = group.group() {
            group.users.set(group.users.get() + 1);
        }
        Self { group: group.clone() }
    }
}

impl Drop for DeviceFile {
    fn drop(&mut self) {
        if let Some(group) = self.group.group() {
            group.users.set(group.users.get() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_comments_name_the_machine() {
        for (text, machine) in [
            ("# needs 2M HugeTLB: pseries machine (radix)\n\nscenario a\n", Machine::Pseries),
            ("# a title\n# recorded on powernv8\nscenario a\n", Machine::PowerNv8),
            ("# a title\nscenario a\n# powernv8\n", Machine::PowerNv9),
        ] {
            assert_eq!(Machine::of_script(&Script::parse(text)), machine, "{text}");
        }
    }
}
