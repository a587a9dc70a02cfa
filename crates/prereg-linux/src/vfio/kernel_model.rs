//! A model of the kernel for tests. It records what is open, attached, mapped and registered, replies as
//! `linux/vfio.h`, `linux/iommufd.h` and real kernels do, and can fail the nth request.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Errno, PinError, UserRange};

use super::bar::Bar;
use super::host::VfioHost;
use super::kernel::{self, Argument, Descriptor, Kernel, Request};
use super::sysfs::tests::tree;
use super::type1_limits::tests::{ranges, reply};
use super::uapi::{
    GROUP_VIABLE, GroupStatus, HwptAlloc, IoasAlloc, IoasCopy, IoasIovaRanges, IoasMap, IoasUnmap, MapDma,
    RegisterMemory, SpaprInfo, TceCreate, TceRemove, UapiStruct, UnmapDma, u32_at,
};

/// State of the model.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Requests and opens so far.
    pub(crate) calls: u64,
    /// The number of the call to fail, and its error.
    pub(crate) refuse: Option<(u64, Errno)>,
    /// Requests of this name return a positive number and do nothing.
    pub(crate) fake_success: Option<&'static str>,
    /// Open descriptors.
    pub(crate) open: u32,
    /// First address and length of type1 mappings.
    pub(crate) mapped: BTreeMap<u64, u64>,
    /// Registered ranges.
    pub(crate) registered: BTreeSet<(u64, u64)>,
    /// Entries of SPAPR windows: user address by bus address.
    pub(crate) entries: BTreeMap<u64, u64>,
    /// Created windows: start and length.
    pub(crate) windows: BTreeMap<u64, u64>,
    default_window: bool,
    /// IOASes of iommufd by ID: length and user address by first I/O address.
    pub(crate) ioases: BTreeMap<u32, BTreeMap<u64, (u64, u64)>>,
    /// IOASes with a page table.
    pub(crate) with_hwpt: BTreeSet<u32>,
    pub(crate) attached: u32,
    /// Whether this kernel cannot allocate page tables without attaching a device.
    pub(crate) no_hwpt_alloc: bool,
    /// The most type1 mappings.
    pub(crate) budget: usize,
    /// Page sizes of a type1 container's IOMMU.
    pub(crate) page_sizes: u64,
    numbers: i32,
}

/// The kernel model.
#[derive(Clone, Debug)]
pub(crate) struct KernelModel {
    state: Arc<Mutex<State>>,
    /// Allowed ranges of type1 containers and IOASes; if empty, containers are of type SPAPR.
    allowed: Arc<Vec<(u64, u64)>>,
}

#[derive(Debug)]
struct ModelDescriptor {
    model: KernelModel,
    name: String,
    number: i32,
}

pub(crate) const WINDOW: u64 = 0x4000_0000;
pub(crate) const HIGH: u64 = 1 << 59;

impl KernelModel {
    pub(crate) fn new(allowed: &[(u64, u64)]) -> Self {
        let state = State {
            default_window: true,
            budget: 65_535,
            page_sizes: 0x4020_1000,
            numbers: 100,
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(state)), allowed: Arc::new(allowed.to_vec()) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host with this kernel and the sysfs tree of the tests. The folder must outlive the host.
    pub(crate) fn host(&self) -> (tempfile::TempDir, VfioHost) {
        let (root, sysfs) = tree();
        (root, VfioHost { kernel: Arc::new(self.clone()), sysfs })
    }

    /// Fails the `nth` call from now on.
    pub(crate) fn fail_nth(&self, nth: u64, errno: Errno) {
        let mut state = self.state();
        state.refuse = Some((state.calls + nth, errno));
    }

    /// Stops injecting failures; returns whether one was injected.
    pub(crate) fn refused(&self) -> bool {
        let mut state = self.state();
        let calls = state.calls;
        state.refuse.take().is_some_and(|(at, _)| calls >= at)
    }

    fn call(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let mut state = self.state();
        state.calls += 1;
        match state.refuse {
            Some((at, errno)) if at == state.calls => Err(errno),
            _ => Ok(state),
        }
    }

    fn opened(&self, state: &mut State, name: &str) -> Arc<dyn Descriptor> {
        state.open += 1;
        state.numbers += 1;
        Arc::new(ModelDescriptor { model: self.clone(), name: name.to_owned(), number: state.numbers })
    }
}

impl Kernel for KernelModel {
    fn open(&self, path: &Path) -> Result<Arc<dyn Descriptor>, Errno> {
        let mut state = self.call()?;
        Ok(self.opened(&mut state, &path.display().to_string()))
    }

    fn prefault(&self, _range: UserRange) -> Result<(), PinError> {
        Ok(())
    }

    fn unpinnable_reason(&self, range: UserRange) -> PinError {
        PinError::Fault { ua: range.first(), why: "the model says so" }
    }
}

/// Whether `[first, first + bytes)` intersects a mapping.
fn meets<T: Copy>(mapped: &BTreeMap<u64, T>, first: u64, bytes: u64, length: impl Fn(T) -> u64) -> bool {
    let below = mapped.range(..first + bytes).next_back();
    below.is_some_and(|(&start, &value)| start + length(value) > first)
}

impl State {
    fn map_type1(&mut self, map: MapDma, allowed: &[(u64, u64)]) -> Result<i32, Errno> {
        let last = map.iova + (map.size - 1);
        if !allowed.iter().any(|range| range.0 <= map.iova && last <= range.1) {
            return Err(Errno::EINVAL);
        }
        if meets(&self.mapped, map.iova, map.size, |bytes| bytes) {
            return Err(Errno::EEXIST);
        }
        if self.mapped.len() >= self.budget {
            return Err(Errno::ENOSPC);
        }
        self.mapped.insert(map.iova, map.size);
        Ok(0)
    }

    fn unmap_type1(&mut self, unmap: &mut UnmapDma) -> Result<i32, Errno> {
        let inside: Vec<u64> =
            self.mapped.range(unmap.iova..unmap.iova + unmap.size).map(|(&first, _)| first).collect();
        unmap.size = inside.iter().filter_map(|first| self.mapped.remove(first)).sum();
        Ok(0)
    }

    /// As in current kernels, registrations are checked page by page and their ends are not.
    fn map_entries(&mut self, map: MapDma) -> Result<i32, Errno> {
        let known = |ua: u64| self.registered.iter().any(|&(first, bytes)| first <= ua && ua < first + bytes);
        for page in 0..map.size / 4096 {
            if !known(map.vaddr + page * 4096) {
                for undone in 0..page {
                    self.entries.remove(&(map.iova + undone * 4096));
                }
                return Err(Errno::EINVAL);
            }
            self.entries.insert(map.iova + page * 4096, map.vaddr + page * 4096);
        }
        Ok(0)
    }

    fn reply(&mut self, model: &KernelModel, request: Request, bytes: &mut [u8]) -> Result<i32, Errno> {
        fn with<T: UapiStruct>(
            bytes: &mut [u8],
            change: impl FnOnce(&mut T) -> Result<i32, Errno>,
        ) -> Result<i32, Errno> {
            let mut value = T::read(bytes);
            let result = change(&mut value);
            value.write(bytes);
            result
        }
        match request.name {
            "VFIO_GROUP_GET_STATUS" => with(bytes, |status: &mut GroupStatus| {
                status.flags = GROUP_VIABLE;
                Ok(0)
            }),
            "VFIO_IOMMU_GET_INFO" => {
                let left = 65_535u32.to_ne_bytes().to_vec();
                let full = reply(3, self.page_sizes, &[(1, ranges(&model.allowed)), (3, left)]);
                let fits = full.len().min(bytes.len());
                bytes[..fits].copy_from_slice(&full[..fits]);
                Ok(0)
            }
            "VFIO_IOMMU_SPAPR_TCE_GET_INFO" => with(bytes, |info: &mut SpaprInfo| {
                (info.flags, info.dma32_window_size) = (1, WINDOW as u32);
                (info.pgsizes, info.windows, info.levels) = (0x11000, 2, 5);
                Ok(0)
            }),
            "VFIO_IOMMU_MAP_DMA" => with(bytes, |map: &mut MapDma| {
                if model.allowed.is_empty() {
                    self.map_entries(*map)
                } else {
                    self.map_type1(*map, &model.allowed)
                }
            }),
            "VFIO_IOMMU_UNMAP_DMA" => with(bytes, |unmap: &mut UnmapDma| {
                if model.allowed.is_empty() {
                    let end = unmap.iova + unmap.size;
                    self.entries.retain(|&at, _| at < unmap.iova || at >= end);
                    Ok(0)
                } else {
                    self.unmap_type1(unmap)
                }
            }),
            "VFIO_IOMMU_SPAPR_REGISTER_MEMORY" => with(bytes, |memory: &mut RegisterMemory| {
                let fresh = self.registered.insert((memory.vaddr, memory.size));
                if fresh { Ok(0) } else { Err(Errno::EBUSY) }
            }),
            // Current kernels return 0 for memory that is still mapped.
            "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY" => with(bytes, |memory: &mut RegisterMemory| {
                let known = self.registered.remove(&(memory.vaddr, memory.size));
                if known { Ok(0) } else { Err(Errno::ENOENT) }
            }),
            "VFIO_IOMMU_SPAPR_TCE_CREATE" => with(bytes, |create: &mut TceCreate| {
                let start = if self.default_window || self.windows.contains_key(&0) { HIGH } else { 0 };
                if self.windows.contains_key(&start) {
                    return Err(Errno::ENOSPC);
                }
                self.windows.insert(start, create.window_size);
                create.start_addr = start;
                Ok(0)
            }),
            "VFIO_IOMMU_SPAPR_TCE_REMOVE" => with(bytes, |remove: &mut TceRemove| {
                if self.windows.remove(&remove.start_addr).is_some() {
                    return Ok(0);
                }
                let default = remove.start_addr == 0 && std::mem::take(&mut self.default_window);
                if default { Ok(0) } else { Err(Errno::EINVAL) }
            }),
            "VFIO_DEVICE_ATTACH_IOMMUFD_PT" => {
                self.attached += 1;
                Ok(0)
            }
            "VFIO_DEVICE_DETACH_IOMMUFD_PT" => {
                self.attached -= 1;
                Ok(0)
            }
            "IOMMU_IOAS_ALLOC" => with(bytes, |alloc: &mut IoasAlloc| {
                alloc.out_ioas_id = self.ioases.len() as u32 + 1;
                self.ioases.insert(alloc.out_ioas_id, BTreeMap::new());
                Ok(0)
            }),
            "IOMMU_HWPT_ALLOC" => with(bytes, |alloc: &mut HwptAlloc| {
                if self.no_hwpt_alloc {
                    return Err(Errno::EOPNOTSUPP);
                }
                self.with_hwpt.insert(alloc.pt_id);
                Ok(0)
            }),
            "IOMMU_IOAS_MAP" => with(bytes, |map: &mut IoasMap| {
                let space = self.ioases.get_mut(&map.ioas_id).ok_or(Errno::ENOENT)?;
                if meets(space, map.iova, map.length, |(bytes, _)| bytes) {
                    return Err(Errno::EEXIST);
                }
                space.insert(map.iova, (map.length, map.user_va));
                Ok(0)
            }),
            "IOMMU_IOAS_COPY" => with(bytes, |copy: &mut IoasCopy| {
                let source = self.ioases.get(&copy.src_ioas_id).ok_or(Errno::ENOENT)?;
                let (&first, &(length, ua)) =
                    source.range(..=copy.src_iova).next_back().ok_or(Errno::ENOENT)?;
                if copy.src_iova + copy.length > first + length {
                    return Err(Errno::ENOENT);
                }
                let ua = ua + (copy.src_iova - first);
                let target = self.ioases.get_mut(&copy.dst_ioas_id).ok_or(Errno::ENOENT)?;
                if meets(target, copy.dst_iova, copy.length, |(bytes, _)| bytes) {
                    return Err(Errno::EEXIST);
                }
                target.insert(copy.dst_iova, (copy.length, ua));
                Ok(0)
            }),
            "IOMMU_IOAS_UNMAP" => with(bytes, |unmap: &mut IoasUnmap| {
                let space = self.ioases.get_mut(&unmap.ioas_id).ok_or(Errno::ENOENT)?;
                let exact = space.get(&unmap.iova).is_some_and(|&(bytes, _)| bytes == unmap.length);
                if !exact {
                    return Err(Errno::ENOENT);
                }
                space.remove(&unmap.iova);
                Ok(0)
            }),
            _ => Ok(0),
        }
    }
}

impl Descriptor for ModelDescriptor {
    fn number(&self) -> i32 {
        self.number
    }

    fn ioctl(&self, request: Request, argument: Argument<'_>) -> Result<i32, Errno> {
        let mut state = self.model.call()?;
        if state.fake_success == Some(request.name) {
            return Ok(3);
        }
        match argument {
            Argument::Struct(bytes) => {
                assert_eq!(u32_at(bytes, 0), Some(bytes.len() as u32), "{request:?}");
                state.reply(&self.model, request, bytes)
            }
            Argument::StructWithList { bytes, list, .. } => {
                let mut ask = IoasIovaRanges::read(bytes);
                ask.out_iova_alignment = 4096;
                let room = ask.num_iovas as usize;
                ask.num_iovas = self.model.allowed.len() as u32;
                ask.write(bytes);
                if self.model.allowed.len() > room {
                    return Err(Errno::from_raw(90));
                }
                for (pair, range) in list.chunks_exact_mut(2).zip(self.model.allowed.iter()) {
                    (pair[0], pair[1]) = *range;
                }
                Ok(0)
            }
            _ if request == kernel::CHECK_EXTENSION => Ok(1),
            _ => Ok(0),
        }
    }

    fn ioctl_fd(&self, _request: Request, argument: Argument<'_>) -> Result<Arc<dyn Descriptor>, Errno> {
        let Argument::Text(text) = argument else { return Err(Errno::EINVAL) };
        let mut state = self.model.call()?;
        Ok(self.model.opened(&mut state, &text.to_string_lossy()))
    }

    fn read_at(&self, _offset: u64, _into: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::EIO)
    }

    fn write_at(&self, _offset: u64, _from: &[u8]) -> Result<usize, Errno> {
        Err(Errno::EIO)
    }

    fn map(&self, _offset: u64, _bytes: u64) -> Result<Bar, Errno> {
        Err(Errno::EIO)
    }
}

impl Drop for ModelDescriptor {
    fn drop(&mut self) {
        let mut state = self.model.state();
        state.open -= 1;
        // State that is released with the last descriptor.
        match self.name.as_str() {
            "/dev/vfio/vfio" => {
                state.mapped.clear();
                state.entries.clear();
                state.registered.clear();
                state.windows.clear();
                state.default_window = true;
            }
            "/dev/iommu" => {
                state.ioases.clear();
                state.with_hwpt.clear();
            }
            _ => {}
        }
    }
}
