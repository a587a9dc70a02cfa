/* Tables, guests and their hypercalls, SPAPR containers by ioctl, IOVA maps. */
#include "simulated_host.h"
#include <linux/vfio.h>

#define LIOBN 0x80000000u

static void tables_and_hypercalls(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_space *space = simulated_host_space(&simulated);
	prereg_registration *ram = NULL;
	prereg_translator *reader = NULL;
	prereg_table *table = NULL, *bad = NULL;
	prereg_guest *guest = NULL;
	struct prereg_geometry shape = { sizeof(shape), 0, 64, 12, 0 }, got;
	struct prereg_entry entry;
	struct prereg_mapping mapping;
	struct prereg_reply reply;
	struct prereg_lookup lookup;
	struct prereg_call call;
	uint64_t times = 0, cleared;
	uint32_t access;

	SIZED(got);
	SIZED(entry);
	SIZED(reply);
	SIZED(lookup);
	EXPECT(prereg_register(space, RAM, 256 * PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_translator_new(space, NULL, &reader, &why) == 0);
	EXPECT(prereg_table_new(space, &shape, 4, &table, &why) == 0);
	EXPECT(prereg_table_geometry(table, &got) == 0 && got.entries == 64 && got.shift == 12 && got.start == 0);
	shape.entries = 0;
	EXPECT(prereg_table_new(space, &shape, 4, &bad, &why) == -EINVAL && bad == NULL);
	EXPECT(prereg_table_prepare(table, 0, 64, &why) == 0 && prereg_table_prepare(table, 60, 5, &why) == -EINVAL);
	EXPECT(prereg_table_memory_bytes(table) > 0);
	EXPECT(prereg_table_check(table, reader, RAM, &why) == 0);
	EXPECT(prereg_table_check(table, reader, RAM - PAGE, &why) == -EFAULT);
	EXPECT(prereg_table_set(table, reader, 5, RAM + PAGE, PREREG_ACCESS_READ, NULL, &why) == 0);
	EXPECT(prereg_table_set(table, reader, 64, RAM, PREREG_ACCESS_READ, NULL, &why) == -EINVAL);
	EXPECT(prereg_table_set_run(table, reader, 10, 4, RAM, 3, &why) == 0 && prereg_table_live(table) == 5);
	EXPECT(prereg_table_set_run(table, reader, 10, 4, RAM + 254 * PAGE, 3, &why) == -EFAULT);
	EXPECT(prereg_table_live(table) == 1);
	EXPECT(prereg_table_inspect(table, 5, &entry) == 1 && entry.ua == RAM + PAGE);
	EXPECT(entry.access == PREREG_ACCESS_READ);
	EXPECT(prereg_table_inspect(table, 6, &entry) == 0);
	EXPECT(prereg_table_take(table, reader, 5, &mapping, &access, &why) == 1 && access == PREREG_ACCESS_READ);
	EXPECT(mapping.hpa == FRAME(1) && mapping.ua == RAM + PAGE);
	EXPECT(prereg_unmap(reader, &mapping) == 0);
	EXPECT(prereg_table_take(table, reader, 6, &mapping, &access, &why) == 0);
	EXPECT(prereg_table_clear(table, reader, 0, 64, &cleared, &why) == 0 && cleared == 1);
	EXPECT(prereg_table_clear(table, reader, 0, 65, &cleared, &why) == -EINVAL);

	EXPECT(prereg_guest_new(7, &guest, &why) == -EINVAL && guest == NULL);
	EXPECT(prereg_guest_new(PREREG_RULES_KVM, &guest, &why) == 0);
	EXPECT(prereg_guest_add_memory(guest, 0, RAM, 256 * PAGE, &why) == 0);
	EXPECT(prereg_guest_add_memory(guest, PAGE, RAM, PAGE, &why) == -EEXIST);
	EXPECT(prereg_guest_add_memory(guest, 0x1000000, RAM, PAGE, &why) == 0);
	EXPECT(prereg_guest_remove_memory(guest, 0x1000000, &why) == 0);
	EXPECT(prereg_guest_remove_memory(guest, 0x1000000, &why) == -ENOENT);
	EXPECT(prereg_guest_translate(guest, 0x1234, 4) == RAM + 0x1234 && prereg_guest_translate(guest, 1 << 24, 1) == 0);
	shape.entries = 64;
	EXPECT(prereg_guest_create_table(guest, LIOBN, &shape, &why) == 0);
	EXPECT(prereg_guest_create_table(guest, LIOBN, &shape, &why) == -EBUSY);
	EXPECT(prereg_guest_attach(guest, LIOBN, table, &times, &why) == 0 && times == 1);
	EXPECT(prereg_guest_attach(guest, LIOBN, table, &times, &why) == 0 && times == 2);
	EXPECT(prereg_guest_attach(guest, 1, table, &times, &why) == -ENOENT);
	EXPECT(prereg_guest_detach(guest, LIOBN, table, &times, &why) == 0 && times == 1);

	SIZED(call);
	call.number = PREREG_H_PUT_TCE;
	call.arguments[0] = LIOBN;
	call.arguments[1] = 0x3000;
	call.arguments[2] = 0x2000 | 3;
	EXPECT(prereg_hypercall(guest, reader, &call, NULL, NULL, &reply, &why) == 0);
	EXPECT(reply.code == PREREG_H_SUCCESS && reply.has_value == 0);
	EXPECT(prereg_table_inspect(table, 3, &entry) == 1 && entry.ua == RAM + 2 * PAGE);
	EXPECT(prereg_table_take(table, reader, 3, &mapping, &access, &why) == 1 && mapping.hpa == FRAME(2));
	EXPECT(prereg_unmap(reader, &mapping) == 0);
	call.number = PREREG_H_GET_TCE;
	EXPECT(prereg_hypercall(guest, reader, &call, NULL, NULL, &reply, &why) == 0);
	EXPECT(reply.code == PREREG_H_SUCCESS && reply.has_value == 1 && reply.value == (0x2000 | 3));
	call.number = PREREG_H_PUT_TCE;
	call.arguments[1] = 0x40000;
	EXPECT(prereg_hypercall(guest, reader, &call, NULL, NULL, &reply, &why) == 0);
	EXPECT(reply.code == PREREG_H_PARAMETER);
	call.number = 4;
	EXPECT(prereg_hypercall(guest, reader, &call, NULL, NULL, &reply, &why) == -ENOSYS);
	EXPECT(prereg_hypercall(guest, reader, NULL, NULL, NULL, &reply, &why) == -EINVAL);

	EXPECT(prereg_guest_lookup(guest, reader, LIOBN, 0x3123, &lookup, &mapping, &why) == 1);
	EXPECT(lookup.gpa == 0x2000 && lookup.shift == 12 && lookup.guest_access == 3 && lookup.host_access == 3);
	EXPECT(mapping.hpa == FRAME(2) && prereg_unmap(reader, &mapping) == 0);
	EXPECT(prereg_guest_lookup(guest, reader, LIOBN, 0x5000, &lookup, &mapping, &why) == 0);
	EXPECT(prereg_guest_lookup(guest, reader, LIOBN, 0x40000, &lookup, &mapping, &why) == -ENOENT);

	/* A live entry keeps the memory, and every user of the table keeps the entry. */
	EXPECT(prereg_table_free(&table) == 0);
	EXPECT(prereg_unregister(&ram, &times, &why) == -EBUSY && times == 1);
	EXPECT(prereg_guest_remove_table(guest, LIOBN, &why) == 0);
	EXPECT(prereg_guest_remove_table(guest, LIOBN, &why) == -ENOENT);
	EXPECT(prereg_unregister(&ram, &times, &why) == 0);
	EXPECT(prereg_guest_free(&guest) == 0 && prereg_translator_free(&reader) == 0);
	simulated_host_end(&simulated, &space);
}

struct lists {
	int calls, lie;
};

static int read_list(void *context, uint64_t gpa, uint64_t *values, size_t count)
{
	struct lists *lists = context;
	size_t i;

	lists->calls++;
	if (lists->lie)
		return -EFAULT;
	for (i = 0; i < count; i++)
		values[i] = gpa + i * PAGE + 3;
	return 0;
}

static void indirect(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	struct lists lists = { 0, 0 };
	prereg_space *space = simulated_host_space(&simulated);
	prereg_registration *ram = NULL;
	prereg_translator *reader = NULL;
	prereg_table *table = NULL;
	prereg_guest *guest = NULL;
	struct prereg_geometry shape = { sizeof(shape), 0, 64, 12, 0 };
	struct prereg_reply reply;
	struct prereg_call call = { sizeof(call), PREREG_H_PUT_TCE_INDIRECT, { LIOBN, 0, 0x4000, 8 } };

	SIZED(reply);
	EXPECT(prereg_register(space, RAM, 64 * PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_translator_new(space, NULL, &reader, &why) == 0);
	EXPECT(prereg_table_new(space, &shape, 0, &table, &why) == 0);
	EXPECT(prereg_guest_new(PREREG_RULES_QEMU, &guest, &why) == 0);
	EXPECT(prereg_guest_add_memory(guest, 0, RAM, 64 * PAGE, &why) == 0);
	EXPECT(prereg_guest_create_table(guest, LIOBN, &shape, &why) == 0);
	EXPECT(prereg_guest_attach(guest, LIOBN, table, NULL, &why) == 0);
	EXPECT(prereg_hypercall(guest, reader, &call, read_list, &lists, &reply, &why) == 0);
	EXPECT(reply.code == PREREG_H_SUCCESS && lists.calls == 1 && prereg_table_live(table) == 8);
	call.number = PREREG_H_STUFF_TCE;
	call.arguments[2] = 0;
	EXPECT(prereg_hypercall(guest, reader, &call, NULL, NULL, &reply, &why) == 0);
	EXPECT(reply.code == PREREG_H_SUCCESS && prereg_table_live(table) == 0);
	call.number = PREREG_H_PUT_TCE_INDIRECT;
	call.arguments[2] = 0x4000;
	lists.lie = 1;
	/* QEMU reads each value separately and treats unreadable ones as zero; they must not create a mapping. */
	EXPECT(prereg_hypercall(guest, reader, &call, read_list, &lists, &reply, &why) == 0);
	EXPECT(prereg_table_live(table) == 0);
	EXPECT(prereg_hypercall(guest, reader, &call, NULL, NULL, &reply, &why) == 0 && prereg_table_live(table) == 0);
	EXPECT(prereg_guest_free(&guest) == 0 && prereg_table_free(&table) == 0);
	EXPECT(prereg_translator_free(&reader) == 0 && prereg_unregister(&ram, NULL, &why) == 0);
	simulated_host_end(&simulated, &space);
}

struct hardware {
	int windows, refuse, released;
};

static int set_window(void *context, size_t slot, const struct prereg_geometry *geometry)
{
	struct hardware *hardware = context;

	EXPECT(slot < 2 && geometry->entries > 0);
	if (hardware->refuse)
		return -ENODEV;
	hardware->windows++;
	return 0;
}

static void unset_window(void *context, size_t slot)
{
	EXPECT(slot < 2);
	((struct hardware *)context)->windows--;
}

static void hardware_released(void *context)
{
	((struct hardware *)context)->released++;
}

static int request(prereg_container *container, prereg_owner *owner, unsigned command, void *argument, size_t bytes)
{
	return prereg_container_ioctl(container, owner, command, argument, bytes, NULL);
}

static void spapr(void)
{
	struct simulated_host simulated;
	struct hardware hardware = { 0, 0, 0 };
	struct prereg_group_ops ops = { sizeof(ops), &hardware, set_window, unset_window, hardware_released };
	struct prereg_error why;
	prereg_space *space = simulated_host_space(&simulated);
	prereg_owner *owner = NULL;
	prereg_container *container = NULL;
	prereg_table *window = NULL, *none = NULL;
	struct vfio_iommu_spapr_register_memory memory;
	struct vfio_iommu_spapr_tce_create create;
	struct vfio_iommu_spapr_tce_remove remove;
	struct vfio_iommu_spapr_tce_info info;
	struct vfio_iommu_type1_dma_map map;
	struct vfio_iommu_type1_dma_unmap unmap;
	struct prereg_entry entry;

	SIZED(entry);
	EXPECT(prereg_owner_new(space, &owner, &why) == 0);
	EXPECT(prereg_container_new(1, &container, &why) == 0);
	EXPECT(request(container, owner, VFIO_GET_API_VERSION, NULL, 0) == 0);
	EXPECT(request(container, owner, VFIO_CHECK_EXTENSION, (void *)VFIO_SPAPR_TCE_v2_IOMMU, 0) == 1);
	EXPECT(request(container, owner, VFIO_SET_IOMMU, (void *)VFIO_SPAPR_TCE_v2_IOMMU, 0) == -EINVAL);
	EXPECT(prereg_container_attach(container, 3, 99, &ops, &why) == -EINVAL);
	EXPECT(prereg_container_attach(container, 3, PREREG_PLATFORM_POWERNV, &ops, &why) == 0);
	EXPECT(prereg_container_attach(container, 3, PREREG_PLATFORM_POWERNV, &ops, &why) == -EBUSY);
	EXPECT(hardware.released == 0);
	EXPECT(request(container, owner, VFIO_SET_IOMMU, (void *)VFIO_SPAPR_TCE_v2_IOMMU, 0) == 0);

	memset(&info, 0, sizeof(info));
	info.argsz = sizeof(info);
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_TCE_GET_INFO, &info, sizeof(info)) == 0);
	EXPECT(info.dma32_window_size == 0x80000000u && info.ddw.max_dynamic_windows_supported == 2);

	memset(&memory, 0, sizeof(memory));
	memory.argsz = sizeof(memory);
	memory.vaddr = RAM;
	memory.size = 1024 * PAGE;
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_REGISTER_MEMORY, NULL, sizeof(memory)) == -EFAULT);
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_REGISTER_MEMORY, &memory, 8) == -EFAULT);
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_REGISTER_MEMORY, &memory, sizeof(memory)) == 0);
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_REGISTER_MEMORY, &memory, sizeof(memory)) == -EBUSY);
	EXPECT(simulated.pinned == 1024);

	memset(&create, 0, sizeof(create));
	create.argsz = sizeof(create);
	create.page_shift = 16;
	create.window_size = 1ull << 30;
	create.levels = 1;
	hardware.refuse = 1;
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_TCE_CREATE, &create, sizeof(create)) == -ENODEV);
	EXPECT(simulated.charged == 1024);
	hardware.refuse = 0;
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_TCE_CREATE, &create, sizeof(create)) == 0);

	memset(&map, 0, sizeof(map));
	map.argsz = sizeof(map);
	map.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
	map.vaddr = RAM;
	map.iova = create.start_addr;
	map.size = 0x20000;
	EXPECT(request(container, owner, VFIO_IOMMU_MAP_DMA, &map, sizeof(map)) == 0);
	EXPECT(prereg_container_window(container, create.start_addr == 0 ? 0 : 1, &window, &why) == 0);
	EXPECT(prereg_container_window(container, 7, &none, &why) == -ENOENT && none == NULL);
	EXPECT(prereg_table_inspect(window, 1, &entry) == 1 && entry.ua == RAM + 16 * PAGE);
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, &memory, sizeof(memory)) == -EBUSY);
	memset(&unmap, 0, sizeof(unmap));
	unmap.argsz = sizeof(unmap);
	unmap.iova = map.iova;
	unmap.size = map.size;
	EXPECT(request(container, owner, VFIO_IOMMU_UNMAP_DMA, &unmap, sizeof(unmap)) == 0);
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, &memory, sizeof(memory)) == 0);
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, &memory, sizeof(memory)) == -ENOENT);
	EXPECT(prereg_container_ioctl(container, owner, 0x3b00 + 99, NULL, 0, &why) == -ENOTTY);
	MESSAGE_HAS(why, "request");
	memset(&remove, 0, sizeof(remove));
	remove.argsz = sizeof(remove);
	remove.start_addr = create.start_addr;
	EXPECT(request(container, owner, VFIO_IOMMU_SPAPR_TCE_REMOVE, &remove, sizeof(remove)) == 0);
	EXPECT(prereg_table_free(&window) == 0);
	EXPECT(request(container, NULL, VFIO_GET_API_VERSION, NULL, 0) == -EINVAL);

	EXPECT(prereg_container_detach(container, 4, &why) == -ENOENT);
	EXPECT(prereg_container_detach(container, 3, &why) == 0 && hardware.released == 1);
	EXPECT(hardware.windows == 0);
	EXPECT(prereg_container_free(&container) == 0 && prereg_owner_free(&owner) == 0);
	simulated_host_end(&simulated, &space);
}

static void drained(void *context)
{
	++*(int *)context;
}

static void iova(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	int told = 0;
	struct prereg_drained tell = { sizeof(tell), &told, drained, drained };
	struct prereg_iova_limits limits = { sizeof(limits), 0x1000, 0xffffffff, 2, 0 };
	prereg_space *space = simulated_host_space(&simulated);
	prereg_registration *ram = NULL;
	prereg_iova *map = NULL, *bad = NULL;
	prereg_hold *hold = NULL, *other = NULL;
	prereg_unmapping *unmapping = NULL;
	struct prereg_piece pieces[4];
	struct prereg_iova_state state;
	uint64_t live;
	size_t total;

	EXPECT(prereg_register(space, RAM, 64 * PAGE, NULL, NULL, &ram, &why) == 0);
	SIZED(pieces[0]);
	SIZED(state);
	limits.first = limits.last + 1;
	EXPECT(prereg_iova_new(space, &limits, NULL, &tell, &bad, &why) == -EINVAL && bad == NULL && told == 0);
	limits.first = 0x1000;
	EXPECT(prereg_iova_new(space, &limits, NULL, &tell, &map, &why) == 0);
	EXPECT(prereg_iova_map(map, 0, PAGE, RAM, 3, &why) == -EINVAL);
	EXPECT(prereg_iova_map(map, 0x1000, PAGE, RAM - PAGE, 3, &why) == -EFAULT);
	EXPECT(prereg_iova_map(map, 0x1000, 2 * PAGE, RAM + PAGE, PREREG_ACCESS_READ, &why) == 0);
	EXPECT(prereg_iova_map(map, 0x2000, PAGE, RAM, 3, &why) == -EEXIST);
	EXPECT(prereg_iova_map_remote(map, 0x3000, PAGE, PREREG_ACCESS_READ, &why) == 0);
	EXPECT(prereg_iova_map(map, 0x9000, PAGE, RAM, 3, &why) == -ENOSPC);
	EXPECT(prereg_iova_hold(map, 0x1000, PAGE, PREREG_ACCESS_WRITE, &hold, &why) == -EACCES && hold == NULL);
	EXPECT(prereg_iova_hold(map, 0x1000, 16 * PAGE, PREREG_ACCESS_READ, &hold, &why) == -EFAULT);
	EXPECT(prereg_iova_hold(map, 0x1800, 2 * PAGE, PREREG_ACCESS_READ, &hold, &why) == 0);
	EXPECT(prereg_hold_pieces(hold, 0, pieces, 4, &total, &why) == 0 && total == 2);
	EXPECT(pieces[0].address == RAM + PAGE + 0x800 && pieces[0].host == FRAME(1) + 0x800);
	EXPECT(pieces[0].bytes == 0x1800 && pieces[0].is_remote == 0);
	EXPECT(pieces[1].address == 0x3000 && pieces[1].bytes == 0x800 && pieces[1].is_remote == 1);
	EXPECT(prereg_unregister(&ram, &live, &why) == -EBUSY && live == 1);
	EXPECT(prereg_iova_snapshot(map, &state) == 0 && state.mappings == 2 && state.bytes == 3 * PAGE);
	EXPECT(state.accesses == 2 && state.closing == 0);

	EXPECT(prereg_iova_unmap(map, 0x2000, PAGE, &unmapping, &why) == -EINVAL && unmapping == NULL);
	EXPECT(prereg_iova_unmap(map, 0x1000, 8 * PAGE, &unmapping, &why) == 0);
	EXPECT(prereg_unmapping_mappings(unmapping) == 2 && prereg_unmapping_bytes(unmapping) == 3 * PAGE);
	EXPECT(prereg_unmapping_is_done(unmapping) == 0 && told == 0);
	EXPECT(prereg_iova_hold(map, 0x1000, PAGE, PREREG_ACCESS_READ, &other, &why) == -ENXIO);
	EXPECT(prereg_unregister(&ram, &live, &why) == -EBUSY);
	EXPECT(prereg_hold_release(&hold) == 0 && told == 2 && prereg_unmapping_is_done(unmapping) == 1);
	EXPECT(prereg_unmapping_free(&unmapping) == 0 && prereg_unmapping_is_done(unmapping) == 1);

	EXPECT(prereg_iova_map(map, 0x1000, PAGE, RAM, 3, &why) == 0 && prereg_iova_refresh(map) == 0);
	EXPECT(prereg_iova_unmap_all(map, NULL, &why) == 0);
	EXPECT(prereg_unregister(&ram, &live, &why) == 0);
	EXPECT(prereg_iova_free(&map) == 0 && told == 3);
	simulated_host_end(&simulated, &space);
}

int main(void)
{
	tables_and_hypercalls();
	indirect();
	spapr();
	iova();
	puts("containers: all as expected");
	return 0;
}
