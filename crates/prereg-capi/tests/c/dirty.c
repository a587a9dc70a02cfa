/* Dirty pages reported to unpin: every page of an access that writes, of each kind, and no other. */
#include "simulated_host.h"

#define PAGES 48

static struct simulated_host simulated;
static prereg_space *space;
static prereg_registration *ram;
static prereg_translator *reader;

static void begin(void)
{
	struct prereg_error why;

	space = simulated_host_space(&simulated);
	simulated.scattered = 1;
	EXPECT(prereg_register(space, RAM, PAGES * PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_translator_new(space, NULL, &reader, &why) == 0);
}

/* Unpins, and compares the reported pages with those from `first` to `last`. */
static void end(unsigned first, unsigned last)
{
	struct prereg_error why;
	uint64_t wanted = 0;
	unsigned page;

	for (page = first; page <= last && last < 64; page++)
		wanted |= (uint64_t)1 << page;
	EXPECT(prereg_translator_free(&reader) == 0);
	EXPECT(prereg_unregister(&ram, NULL, &why) == 0);
	if (simulated.dirty_pages != wanted) {
		fprintf(stderr, "unpin was told of %#" PRIx64 " instead of %#" PRIx64 "\n", simulated.dirty_pages, wanted);
		exit(1);
	}
	simulated_host_end(&simulated, &space);
}

#define NONE 64, 64

static void holds(void)
{
	struct prereg_error why;
	prereg_iova *map = NULL;
	prereg_hold *hold = NULL, *other = NULL;
	int step;

	/* A hold that writes: its pages, also the first and the last, which it covers partly. */
	begin();
	EXPECT(prereg_iova_new(space, NULL, NULL, NULL, &map, &why) == 0);
	EXPECT(prereg_iova_map(map, 0x100000, 16 * PAGE, RAM + 8 * PAGE, 3, &why) == 0);
	EXPECT(prereg_iova_hold(map, 0x100000 + 2 * PAGE - 1, 3 * PAGE + 2, PREREG_ACCESS_WRITE, &hold, &why) == 0);
	EXPECT(prereg_hold_release(&hold) == 0 && prereg_iova_free(&map) == 0);
	end(9, 13);

	/* A hold that reads through a mapping that may be written. */
	begin();
	EXPECT(prereg_iova_new(space, NULL, NULL, NULL, &map, &why) == 0);
	EXPECT(prereg_iova_map(map, 0, 16 * PAGE, RAM, 3, &why) == 0);
	EXPECT(prereg_iova_hold(map, 0, 16 * PAGE, PREREG_ACCESS_READ, &hold, &why) == 0);
	EXPECT(prereg_hold_release(&hold) == 0 && prereg_iova_free(&map) == 0);
	end(NONE);

	/* One hold over two adjacent mappings, released after they are unmapped and, at the end, after map and space are freed. */
	for (step = 0; step < 3; step++) {
		begin();
		EXPECT(prereg_iova_new(space, NULL, NULL, NULL, &map, &why) == 0);
		EXPECT(prereg_iova_map(map, 0, PAGE, RAM + 5 * PAGE, 3, &why) == 0);
		EXPECT(prereg_iova_map(map, PAGE, PAGE, RAM + 6 * PAGE, 3, &why) == 0);
		EXPECT(prereg_iova_hold(map, 0, 2 * PAGE, 3, &hold, &why) == 0);
		EXPECT(prereg_iova_hold(map, 0, 1, PREREG_ACCESS_READ, &other, &why) == 0);
		if (step >= 1)
			EXPECT(prereg_iova_unmap_all(map, NULL, &why) == 0);
		if (step >= 2)
			EXPECT(prereg_iova_free(&map) == 0);
		EXPECT(prereg_unregister(&ram, NULL, &why) == -EBUSY);
		EXPECT(prereg_hold_release(&hold) == 0 && prereg_hold_release(&other) == 0);
		EXPECT(prereg_iova_free(&map) == 0);
		end(5, 6);
	}
}

static void mappings(void)
{
	struct prereg_error why;
	struct prereg_mapping mapping;
	struct prereg_range range;

	begin();
	EXPECT(prereg_map(reader, RAM + 3 * PAGE + 5, 12, &mapping, &why) == 0);
	EXPECT(prereg_unmap_written(reader, &mapping) == 0 && prereg_unmap_written(reader, &mapping) == -EINVAL);
	end(3, 3);

	begin();
	EXPECT(prereg_map(reader, RAM, 12, &mapping, &why) == 0 && prereg_unmap(reader, &mapping) == 0);
	EXPECT(prereg_map_range(reader, RAM, PAGE, &range, &why) == 0 && prereg_range_drop(&range) == 0);
	end(NONE);

	begin();
	EXPECT(prereg_map_range(reader, RAM + PAGE - 1, 2 * PAGE + 1, &range, &why) == 0);
	EXPECT(prereg_unmap_range_written(reader, &range) == 0);
	EXPECT(prereg_unmap_range_written(reader, &range) == -EINVAL);
	end(0, 2);

	begin();
	EXPECT(prereg_mark_dirty_range(reader, RAM + 7 * PAGE, 0, &why) == -EFAULT);
	EXPECT(prereg_mark_dirty_range(reader, RAM + 7 * PAGE, UINT64_MAX, &why) == -EFAULT);
	EXPECT(prereg_mark_dirty_range(reader, RAM + 7 * PAGE, PAGES * PAGE, &why) == -EFAULT);
	EXPECT(prereg_mark_dirty_range(reader, RAM + (PAGES - 2) * PAGE, 2 * PAGE, &why) == 0);
	end(PAGES - 2, PAGES - 1);

	begin();
	EXPECT(prereg_mark_dirty(reader, RAM + 4 * PAGE + 77) == 0);
	end(4, 4);
}

static int read_list(void *context, uint64_t gpa, uint64_t *values, size_t count)
{
	size_t i;

	(void)context;
	for (i = 0; i < count; i++)
		values[i] = gpa + i * PAGE + PREREG_ACCESS_WRITE;
	return 0;
}

static void tables(void)
{
	struct prereg_error why;
	struct prereg_geometry shape = { sizeof(shape), 0, 64, 12, 0 };
	struct prereg_call call = { sizeof(call), PREREG_H_PUT_TCE_INDIRECT, { 1, 0, 0x4000, 8 } };
	struct prereg_reply reply;
	prereg_entries *block = NULL;
	prereg_table *table = NULL;
	prereg_guest *guest = NULL;

	begin();
	EXPECT(prereg_entries_new(space, 12, 4, NULL, &block, &why) == 0);
	EXPECT(prereg_entries_set(block, reader, 0, RAM + 20 * PAGE, PREREG_ACCESS_WRITE, NULL, &why) == 0);
	EXPECT(prereg_entries_set(block, reader, 0, RAM + 21 * PAGE, PREREG_ACCESS_READ, NULL, &why) == 0);
	EXPECT(prereg_entries_set(block, reader, 1, RAM + 22 * PAGE, PREREG_ACCESS_READ, NULL, &why) == 0);
	EXPECT(prereg_entries_set(block, reader, 2, RAM + 21 * PAGE, 3, NULL, &why) == 0);
	EXPECT(prereg_entries_clear(block, reader, 0, NULL, &why) == 0);
	EXPECT(prereg_entries_free(&block) == 0);
	end(20, 21);

	begin();
	EXPECT(prereg_table_new(space, &shape, 0, &table, &why) == 0);
	EXPECT(prereg_table_set_run(table, reader, 0, 4, RAM + 30 * PAGE, 3, &why) == 0);
	EXPECT(prereg_table_set_run(table, reader, 8, 4, RAM + 40 * PAGE, PREREG_ACCESS_READ, &why) == 0);
	EXPECT(prereg_table_clear(table, reader, 0, 64, NULL, &why) == 0 && prereg_table_free(&table) == 0);
	end(30, 33);

	/* A guest's list of eight pages. */
	begin();
	SIZED(reply);
	EXPECT(prereg_table_new(space, &shape, 0, &table, &why) == 0);
	EXPECT(prereg_guest_new(PREREG_RULES_KVM, &guest, &why) == 0);
	EXPECT(prereg_guest_add_memory(guest, 0, RAM, PAGES * PAGE, &why) == 0);
	EXPECT(prereg_guest_create_table(guest, 1, &shape, &why) == 0);
	EXPECT(prereg_guest_attach(guest, 1, table, NULL, &why) == 0);
	EXPECT(prereg_hypercall(guest, reader, &call, read_list, NULL, &reply, &why) == 0);
	EXPECT(reply.code == PREREG_H_SUCCESS && prereg_table_live(table) == 8);
	EXPECT(prereg_guest_free(&guest) == 0 && prereg_table_free(&table) == 0);
	end(4, 11);
}

int main(void)
{
	holds();
	mappings();
	tables();
	puts("dirty: all as expected");
	return 0;
}
