/* The core: registering, mapping, releasing, state, refused calls. */
#include "simulated_host.h"
#include <signal.h>

static void registering(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_space *space = simulated_host_space(&simulated);
	prereg_registration *one = NULL, *two = NULL, *bad = (void *)1;
	struct prereg_keep keep = { sizeof(keep), &simulated, simulated_host_release };
	struct prereg_region region;
	struct prereg_run runs[2];
	struct prereg_holder holder = { sizeof(holder), 7, PREREG_HOLDER_TABLE_ENTRY, 0 };
	size_t total;

	SIZED(region);
	runs[0].size = sizeof(runs[0]);
	EXPECT(prereg_space_granule_shift(space) == 12);
	EXPECT(prereg_space_address_kind(space) == PREREG_ADDRESS_INVENTED);
	EXPECT(strcmp(prereg_space_backend(space), "callbacks") == 0);
	EXPECT(strlen(prereg_space_address_note(space)) > 0);
	EXPECT(prereg_space_is_preregistered(space) == 0);

	EXPECT(prereg_register(space, RAM, 16 * PAGE, &holder, &keep, &one, &why) == 0);
	EXPECT(prereg_space_is_preregistered(space) == 1);
	EXPECT(simulated.pinned == 16 && simulated.charged == 16 && simulated.released == 0);
	/* The same range is shared, and the second owner's context is not needed. */
	EXPECT(prereg_register(space, RAM, 16 * PAGE, NULL, &keep, &two, &why) == 0);
	EXPECT(simulated.pinned == 16 && simulated.released == 1);
	EXPECT(prereg_registration_ua(one) == RAM && prereg_registration_bytes(one) == 16 * PAGE);
	EXPECT(prereg_registration_state(two, &region, NULL) == 0);
	EXPECT(region.used == 2 && region.mapped == 1 && region.pages == 16 && region.flags == 0);
	EXPECT(prereg_registration_largest_page(one, RAM, 16 * PAGE) == 16);
	EXPECT(prereg_registration_largest_page(one, RAM, PAGE) == 12);
	EXPECT(prereg_registration_largest_page(one, RAM, 17 * PAGE) == 0);
	EXPECT(prereg_registration_runs(one, 0, runs, 2, &total, &why) == 0);
	EXPECT(total == 1 && runs[0].ua == RAM && runs[0].host == FRAME(0) && runs[0].bytes == 16 * PAGE);
	EXPECT(prereg_registration_runs(one, 1, NULL, 0, &total, &why) == 0 && total == 1);
	EXPECT(prereg_registration_runs(one, 0, NULL, 1, &total, &why) == -EINVAL);

	EXPECT(prereg_space_find(space, RAM + 5, 100, &region, &why) == 0 && region.ua == RAM);
	EXPECT(prereg_space_find(space, RAM + 15 * PAGE, 2 * PAGE, &region, &why) == -ENOENT);
	MESSAGE_HAS(why, "no region has");

	EXPECT(prereg_register_new(space, RAM, 16 * PAGE, &keep, &bad, &why) == -EINVAL && bad == NULL);
	MESSAGE_HAS(why, "registered already");
	EXPECT(prereg_register(space, RAM + PAGE, PAGE, NULL, &keep, &bad, &why) == -EINVAL);
	MESSAGE_HAS(why, "overlaps");
	EXPECT(prereg_register(space, RAM + 1, PAGE, NULL, &keep, &bad, &why) == -EINVAL);
	EXPECT(prereg_register(space, RAM, 0, NULL, &keep, &bad, &why) == -EINVAL);
	EXPECT(prereg_register(space, UINT64_MAX - PAGE + 1, PAGE, NULL, &keep, &bad, &why) == -EINVAL);
	EXPECT(prereg_share(space, RAM, PAGE, NULL, &bad, &why) == -ENOENT && bad == NULL);
	simulated.limit = 20;
	EXPECT(prereg_register(space, RAM + 32 * PAGE, 5 * PAGE, NULL, &keep, &bad, &why) == -ENOMEM);
	MESSAGE_HAS(why, "16 already locked passes the limit of 20");
	simulated.limit = 1000;
	simulated.fail_pin = -EPERM;
	EXPECT(prereg_register(space, RAM + 32 * PAGE, 5 * PAGE, NULL, &keep, &bad, &why) == -EPERM);
	MESSAGE_HAS(why, "pin function");
	simulated.fail_pin = 5;
	EXPECT(prereg_register(space, RAM + 32 * PAGE, 5 * PAGE, NULL, &keep, &bad, &why) == -EIO);
	simulated.fail_pin = 0;
	simulated.push_too_many = 1;
	EXPECT(prereg_register(space, RAM + 32 * PAGE, 5 * PAGE, NULL, &keep, &bad, &why) == -EFAULT);
	simulated.push_too_many = 0;
	simulated.push_too_few = 1;
	EXPECT(prereg_register(space, RAM + 32 * PAGE, 5 * PAGE, NULL, &keep, &bad, &why) == -EFAULT);
	simulated.push_past_end = 1;
	EXPECT(prereg_register(space, RAM + 32 * PAGE, 5 * PAGE, NULL, &keep, &bad, &why) == -EOPNOTSUPP);
	simulated.push_past_end = 0;
	/* Not rounded to the start of a page. */
	for (total = 1; total < PAGE; total = 2 * total + 1) {
		simulated.push_off_page = FRAME(0) + total;
		EXPECT(prereg_register(space, RAM + 32 * PAGE, 5 * PAGE, NULL, &keep, &bad, &why) == -EOPNOTSUPP);
		MESSAGE_HAS(why, "not the start of a page");
	}
	simulated.push_off_page = 0x7b;
	simulated.push_too_few = 0;
	EXPECT(prereg_register(space, RAM + 32 * PAGE, 5 * PAGE, NULL, &keep, &bad, &why) == -EOPNOTSUPP && bad == NULL);
	simulated.push_too_few = 1;
	simulated.push_off_page = 0;
	EXPECT(prereg_page_list_push(simulated.list, FRAME(0), 1) == -EINVAL);
	simulated.reenter = space;
	EXPECT(prereg_register(space, RAM + 32 * PAGE, 5 * PAGE, NULL, &keep, &bad, &why) == -EFAULT);
	simulated.reenter = NULL;
	simulated.push_too_few = 0;
	/* Failed calls take no context and leave nothing. */
	EXPECT(simulated.pinned == 16 && simulated.charged == 16 && simulated.released == 1);

	EXPECT(prereg_unregister(&one, NULL, &why) == 0 && one == NULL);
	EXPECT(prereg_unregister(&one, NULL, &why) == 0);
	EXPECT(simulated.pinned == 16 && simulated.released == 1);
	EXPECT(prereg_share(space, RAM, 16 * PAGE, &holder, &one, &why) == 0);
	EXPECT(prereg_unregister(&one, NULL, NULL) == 0 && prereg_unregister(&two, NULL, NULL) == 0);
	EXPECT(simulated.pinned == 0 && simulated.charged == 0 && simulated.released == 2);
	simulated.released = 0;
	simulated_host_end(&simulated, &space);
}

static void device_memory(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_space *space = simulated_host_space(&simulated);
	prereg_registration *bar = NULL, *bad = NULL;
	struct prereg_region region;

	SIZED(region);
	EXPECT(prereg_register_device(space, RAM, 4 * PAGE, 0xf0000000, &bar, &why) == 0);
	EXPECT(simulated.pinned == 0 && simulated.charged == 0);
	EXPECT(prereg_space_device_at(space, 0xf0001000, 16 * PAGE) == 3 * PAGE);
	EXPECT(prereg_space_device_at(space, 0xe0001000, PAGE) == 0);
	EXPECT(prereg_registration_state(bar, &region, &why) == 0 && region.flags == PREREG_REGION_DEVICE);
	EXPECT(prereg_register_device(space, RAM + 64 * PAGE, 4 * PAGE, UINT64_MAX - PAGE + 1, &bad, &why) == -EINVAL);
	EXPECT(prereg_unregister(&bar, NULL, &why) == 0);
	simulated_host_end(&simulated, &space);
}

static void mapping(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_space *space = simulated_host_space(&simulated);
	prereg_registration *ram = NULL;
	prereg_translator *reader = NULL, *other = NULL;
	struct prereg_mapping one, two, copy;
	struct prereg_range range;
	struct prereg_run runs[3];
	struct prereg_holder holder = { sizeof(holder), 3, PREREG_HOLDER_IN_FLIGHT, 0 };
	prereg_draining *draining = NULL;
	uint64_t live = 99;
	size_t total;
	void *place;

	SIZED(runs[0]);
	EXPECT(prereg_translator_new(space, &holder, &reader, &why) == 0);
	EXPECT(prereg_translator_new(space, NULL, &other, &why) == 0);
	EXPECT(prereg_map(reader, RAM, 12, &one, &why) == -EFAULT);
	MESSAGE_HAS(why, "register all of it");
	EXPECT(prereg_register(space, RAM, 16 * PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_check(reader, RAM, 12, &why) == 0);
	EXPECT(prereg_map(reader, RAM + 0x1234, 12, &one, &why) == 0);
	EXPECT(one.hpa == FRAME(1) + 0x234 && one.ua == RAM + 0x1234);
	EXPECT(prereg_map(reader, RAM, 64, &two, &why) == -EINVAL);
	EXPECT(prereg_map(reader, RAM, 21, &two, &why) == -EFAULT);
	EXPECT(prereg_map_range(other, RAM + PAGE, 4 * PAGE, &range, &why) == 0);
	EXPECT(range.ua == RAM + PAGE && range.bytes == 4 * PAGE);
	EXPECT(prereg_range_runs(&range, 0, runs, 3, &total, &why) == 0);
	EXPECT(total == 1 && runs[0].ua == RAM + PAGE && runs[0].host == FRAME(1) && runs[0].bytes == 4 * PAGE);
	EXPECT(prereg_map_range(other, RAM, 17 * PAGE, &range, &why) == -EFAULT);

	/* Refused while a mapping lives; the handle stays. */
	place = ram;
	EXPECT(prereg_unregister(&ram, &live, &why) == -EBUSY && live == 2 && ram == place);
	MESSAGE_HAS(why, "1 by I/O in flight of container 3");

	/* Only the struct itself is the mapping. */
	copy = one;
	EXPECT(prereg_unmap(reader, &copy) == -EINVAL && prereg_mapping_drop(&copy) == -EINVAL);
	EXPECT(prereg_unmap(NULL, &one) == -EINVAL);
	EXPECT(prereg_unmap(other, &one) == 0 && prereg_unmap(reader, &one) == -EINVAL);
	EXPECT(prereg_range_drop(&range) == 0 && prereg_range_drop(&range) == -EINVAL);
	EXPECT(prereg_range_runs(&range, 0, runs, 3, &total, &why) == -EINVAL);
	EXPECT(prereg_unregister(&ram, &live, &why) == 0 && live == 0 && ram == NULL);

	/* Draining: no new mappings, released with the last one. */
	EXPECT(prereg_register(space, RAM, 16 * PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_map(reader, RAM, 12, &one, &why) == 0);
	EXPECT(prereg_map_range(reader, RAM, PAGE, &range, &why) == 0);
	EXPECT(prereg_drain(&ram, &draining, &why) == 0 && ram == NULL && draining != NULL);
	EXPECT(prereg_drain(&ram, NULL, &why) == 0);
	EXPECT(prereg_draining_is_done(draining) == 0 && simulated.pinned == 16);
	EXPECT(prereg_map(reader, RAM, 12, &two, &why) == -ENXIO);
	EXPECT(prereg_mapping_drop(&one) == 0);
	EXPECT(prereg_unmap_range(reader, &range) == 0);
	EXPECT(prereg_space_reap(space) == 0);
	EXPECT(prereg_draining_is_done(draining) == 1 && simulated.pinned == 0);
	EXPECT(prereg_draining_wait(&draining) == 0 && draining == NULL);
	EXPECT(prereg_register(space, RAM, PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_drain(&ram, &draining, &why) == 0 && prereg_draining_free(&draining) == 0);
	EXPECT(prereg_register(space, RAM, PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_unregister_when_idle(&ram, &why) == 0 && ram == NULL && simulated.pinned == 0);
	EXPECT(prereg_unregister_when_idle(&ram, &why) == 0);

	EXPECT(prereg_translator_refresh(reader) == 0);
	EXPECT(prereg_translator_free(&reader) == 0 && prereg_translator_free(&other) == 0);
	simulated_host_end(&simulated, &space);
}

static void many(void)
{
	struct simulated_host a, b;
	struct prereg_error why;
	prereg_space *first = simulated_host_space(&a), *second = simulated_host_space(&b);
	prereg_registration *list[6];
	prereg_translator *reader = NULL;
	struct prereg_mapping mapping;
	size_t refused = 9;
	int i;

	for (i = 0; i < 6; i++)
		list[i] = NULL;
	/* The same range in both spaces: a refused registration keeps its handle. */
	EXPECT(prereg_register(first, RAM, PAGE, NULL, NULL, &list[0], &why) == 0);
	EXPECT(prereg_register(first, RAM + PAGE, PAGE, NULL, NULL, &list[2], &why) == 0);
	EXPECT(prereg_register(second, RAM, PAGE, NULL, NULL, &list[3], &why) == 0);
	EXPECT(prereg_register(second, RAM + PAGE, PAGE, NULL, NULL, &list[5], &why) == 0);
	EXPECT(prereg_translator_new(second, NULL, &reader, &why) == 0);
	EXPECT(prereg_map(reader, RAM, 12, &mapping, &why) == 0);
	EXPECT(prereg_unregister_many(list, 6, &refused, &why) == -EBUSY && refused == 1);
	for (i = 0; i < 6; i++)
		EXPECT((list[i] != NULL) == (i == 3));
	EXPECT(a.pinned == 0 && b.pinned == 1);
	EXPECT(prereg_unmap(reader, &mapping) == 0);
	EXPECT(prereg_unregister_many(list, 6, &refused, &why) == 0 && refused == 0 && list[3] == NULL);
	EXPECT(prereg_unregister_many(NULL, 0, NULL, &why) == 0);
	EXPECT(prereg_unregister_many(NULL, 1, NULL, &why) == -EINVAL);
	EXPECT(prereg_translator_free(&reader) == 0);
	simulated_host_end(&a, &first);
	simulated_host_end(&b, &second);
}

static void seen(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_space *space = simulated_host_space(&simulated);
	prereg_registration *ram = NULL, *more = NULL;
	prereg_translator *reader = NULL;
	prereg_state *state = NULL;
	struct prereg_totals totals;
	struct prereg_region region;
	struct prereg_held held[2];
	struct prereg_holder holder = { sizeof(holder), 5, PREREG_HOLDER_TABLE_ENTRY, 0 };
	struct prereg_mapping mapping;
	size_t total;

	SIZED(totals);
	SIZED(region);
	SIZED(held[0]);
	EXPECT(prereg_register(space, RAM, 2 * PAGE, &holder, NULL, &ram, &why) == 0);
	EXPECT(prereg_register(space, RAM + 16 * PAGE, PAGE, NULL, NULL, &more, &why) == 0);
	EXPECT(prereg_translator_new(space, &holder, &reader, &why) == 0);
	EXPECT(prereg_map(reader, RAM, 12, &mapping, &why) == 0);
	EXPECT(prereg_state_new(space, &state, &why) == 0);
	EXPECT(prereg_state_totals(state, &totals) == 0);
	EXPECT(totals.regions == 2 && totals.pinned_pages == 3 && totals.charged_pages == 3);
	EXPECT(totals.pins == 2 && totals.unpins == 0 && totals.translators == 1);
	EXPECT(prereg_state_regions(state) == 2);
	EXPECT(prereg_state_region(state, 1, &region) == 0 && region.ua == RAM + 16 * PAGE);
	EXPECT(prereg_state_region(state, 2, &region) == -EINVAL);
	EXPECT(prereg_state_registrations(state, 0, held, 2, &total) == 0 && total == 1);
	EXPECT(held[0].count == 1 && held[0].container == 5);
	EXPECT(held[0].kind == PREREG_HOLDER_TABLE_ENTRY);
	EXPECT(prereg_state_mappings(state, 0, held, 2, &total) == 0 && total == 1 && held[0].count == 1);
	EXPECT(prereg_state_mappings(state, 1, NULL, 0, &total) == 0 && total == 0);
	EXPECT(prereg_state_free(&state) == 0 && state == NULL && prereg_state_regions(state) == 0);

	/* The space is freed first: mapped memory stays until it is unmapped, calls on handles return -ENOENT. */
	EXPECT(prereg_space_free(&space) == 0);
	EXPECT(simulated.pinned == 2 && mapping.hpa == FRAME(0));
	EXPECT(prereg_registration_state(ram, &region, &why) == 0 && region.flags == PREREG_REGION_DRAINING);
	EXPECT(prereg_registration_state(more, &region, &why) == -ENOENT);
	EXPECT(prereg_unregister(&ram, NULL, &why) == -ENOENT && ram == NULL);
	EXPECT(prereg_unregister_many(&more, 1, &total, &why) == -ENOENT && more == NULL && total == 1);
	EXPECT(prereg_mapping_drop(&mapping) == 0 && simulated.pinned == 0 && simulated.charged == 0);
	EXPECT(prereg_translator_free(&reader) == 0 && simulated.released == 2);
}

static void entries(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_space *space = simulated_host_space(&simulated);
	prereg_registration *ram = NULL;
	prereg_translator *reader = NULL;
	prereg_entries *block = NULL, *bad = NULL;
	struct prereg_entry entry;
	struct prereg_mapping mapping;
	struct prereg_holder holder = { sizeof(holder), 2, PREREG_HOLDER_TABLE_ENTRY, 0 };
	uint32_t before = 9, access = 0;

	SIZED(entry);
	EXPECT(prereg_register(space, RAM, 64 * PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_translator_new(space, &holder, &reader, &why) == 0);
	EXPECT(prereg_entries_new(space, 11, 8, &holder, &bad, &why) == -EINVAL && bad == NULL);
	EXPECT(prereg_entries_new(space, 12, SIZE_MAX / 32, &holder, &bad, &why) == -ENOMEM && bad == NULL);
	EXPECT(prereg_entries_new(space, 12, 8, &holder, &block, &why) == 0);
	EXPECT(prereg_entries_count(block) == 8 && prereg_entries_live(block) == 0);
	EXPECT(prereg_entries_set(block, reader, 3, RAM + PAGE, PREREG_ACCESS_WRITE, &before, &why) == 0 && before == 0);
	EXPECT(prereg_entries_inspect(block, 3, &entry) == 1 && entry.ua == RAM + PAGE);
	EXPECT(entry.access == PREREG_ACCESS_WRITE);
	EXPECT(prereg_entries_inspect(block, 2, &entry) == 0 && prereg_entries_inspect(block, 8, &entry) == 0);
	EXPECT(prereg_entries_take(block, reader, 3, &mapping, &access, &why) == 1);
	EXPECT(access == PREREG_ACCESS_WRITE && mapping.hpa == FRAME(1));
	EXPECT(prereg_entries_take(block, reader, 2, &mapping, &access, &why) == 0);
	EXPECT(prereg_unregister(&ram, NULL, &why) == -EBUSY);
	EXPECT(prereg_unmap(reader, &mapping) == 0);
	EXPECT(prereg_entries_set(block, reader, 8, RAM, 3, NULL, &why) == -EINVAL);
	EXPECT(prereg_entries_set(block, reader, 0, RAM + 1, 3, NULL, &why) == -EINVAL);
	EXPECT(prereg_entries_set(block, reader, 0, RAM, 4, NULL, &why) == -EINVAL);
	EXPECT(prereg_entries_set(block, reader, 0, RAM - PAGE, 3, NULL, &why) == -EFAULT);
	EXPECT(prereg_entries_set(block, reader, 3, RAM, 1, &before, &why) == 0 && before == PREREG_ACCESS_WRITE);
	EXPECT(prereg_entries_clear(block, reader, 3, &before, &why) == 0 && before == PREREG_ACCESS_READ);
	EXPECT(prereg_entries_set(block, reader, 0, RAM, 3, NULL, &why) == 0 && prereg_entries_live(block) == 1);
	EXPECT(prereg_entries_free(&block) == 0 && block == NULL);
	EXPECT(prereg_mark_dirty(reader, RAM + 40 * PAGE) == 0);
	EXPECT(prereg_unregister(&ram, NULL, &why) == 0);
	/* Page 1 by its entry, page 0 with its block, page 40 by a call; adjacent pages may be marked with them. */
	EXPECT(simulated.dirty >= 3 && simulated.dirty < 64);
	EXPECT(prereg_translator_free(&reader) == 0);
	simulated_host_end(&simulated, &space);
}

static void backends(void)
{
	struct prereg_error why;
	struct prereg_options options;
	struct prereg_pin_ops pins;
	prereg_space *space = (void *)1;
	prereg_registration *bar = NULL;
	prereg_translator *reader = NULL;
	struct prereg_mapping mapping;
	uint64_t offset;
	uint32_t slot;

	memset(&options, 0, sizeof(options));
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL && space == NULL);
	MESSAGE_HAS(why, "prereg_options is 0");
	options.size = sizeof(options);
	options.backend = 77;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	options.backend = PREREG_BACKEND_CALLBACKS;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	memset(&pins, 0, sizeof(pins));
	pins.size = sizeof(pins);
	options.pin = &pins;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	options.pin = NULL;
	options.backend = PREREG_BACKEND_FIXED;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	options.granule_shift = 12;
	options.fixed_ua = RAM;
	options.fixed_bytes = 16 * PAGE;
	options.fixed_host = 0xfe000000;
	options.backend = PREREG_BACKEND_IO_URING;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	MESSAGE_HAS(why, "granule_shift of prereg_options is set");
	options.backend = PREREG_BACKEND_FIXED;
	EXPECT(prereg_space_new(&options, &space, &why) == 0);
	EXPECT(prereg_space_address_kind(space) == PREREG_ADDRESS_DEVICE);
	EXPECT(prereg_register(space, RAM, 16 * PAGE, NULL, NULL, &bar, &why) == 0);
	EXPECT(prereg_translator_new(space, NULL, &reader, &why) == 0);
	EXPECT(prereg_map(reader, RAM + 3 * PAGE, 12, &mapping, &why) == 0 && mapping.hpa == 0xfe003000);
	EXPECT(prereg_mapping_drop(&mapping) == 0 && prereg_unregister(&bar, NULL, &why) == 0);
	EXPECT(prereg_register(space, RAM + 16 * PAGE, PAGE, NULL, NULL, &bar, &why) == -EOPNOTSUPP);
	EXPECT(prereg_translator_free(&reader) == 0 && prereg_space_free(&space) == 0);

	SIZED(options);
	options.addresses = PREREG_ADDRESS_IOVA;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	MESSAGE_HAS(why, "io_uring has no others");
	SIZED(options);
	options.backend = PREREG_BACKEND_VFIO_TYPE1;
	options.container_fd = -1;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	options.container_fd = 9999;
	EXPECT(prereg_space_new(&options, &space, &why) == -EBADF);
	/* A descriptor, but no container. */
	options.container_fd = 1;
	EXPECT(prereg_space_new(&options, &space, &why) < 0 && space == NULL);
	MESSAGE_HAS(why, "VFIO");

	EXPECT(prereg_slot_address(((uint64_t)3 << 40) | 0x1234, &slot, &offset) == 0 && slot == 2 && offset == 0x1234);
	EXPECT(prereg_slot_address(0x1234, &slot, &offset) == -EINVAL);
	EXPECT(prereg_slot_address((uint64_t)1 << 40, NULL, NULL) == 0);
}

/* NULL, and handles of another type, for every handle parameter. */
static void bad_handles(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_space *space = simulated_host_space(&simulated);
	prereg_translator *reader = NULL;
	prereg_registration *ram = NULL;
	struct prereg_holder holder = { sizeof(holder), 0, 9, 0 };
	struct prereg_mapping mapping;
	struct prereg_region region;
	void *wrong;

	EXPECT(prereg_space_new(NULL, NULL, NULL) == -EINVAL);
	EXPECT(prereg_register(NULL, RAM, PAGE, NULL, NULL, &ram, &why) == -EINVAL);
	MESSAGE_HAS(why, "prereg_space is NULL; pass");
	EXPECT(prereg_register(space, RAM, PAGE, NULL, NULL, NULL, &why) == -EINVAL);
	EXPECT(prereg_register(space, RAM, PAGE, &holder, NULL, &ram, &why) == -EINVAL);
	EXPECT(prereg_translator_new(space, NULL, &reader, NULL) == 0);
	wrong = reader;
	EXPECT(prereg_register(wrong, RAM, PAGE, NULL, NULL, &ram, &why) == -EINVAL);
	MESSAGE_HAS(why, "not a live prereg_space");
	EXPECT(prereg_space_free((prereg_space **)&wrong) == -EINVAL && wrong == reader);
	EXPECT(prereg_map(NULL, RAM, 12, &mapping, &why) == -EINVAL);
	EXPECT(prereg_map(reader, RAM, 12, NULL, &why) == -EINVAL);
	EXPECT(prereg_map((prereg_translator *)space, RAM, 12, &mapping, NULL) == -EINVAL);
	EXPECT(prereg_unmap(reader, NULL) == -EINVAL && prereg_mark_dirty(NULL, RAM) == -EINVAL);
	EXPECT(prereg_space_find(space, RAM, PAGE, NULL, &why) == -EINVAL);
	EXPECT(prereg_space_granule_shift(NULL) == 0 && prereg_space_backend(NULL) == NULL);
	EXPECT(prereg_space_is_preregistered(NULL) == -EINVAL && prereg_space_reap(NULL) == -EINVAL);
	EXPECT(prereg_registration_ua(NULL) == 0 && prereg_registration_state(NULL, &region, &why) == -EINVAL);
	EXPECT(prereg_space_free(NULL) == 0 && prereg_translator_free(NULL) == 0 && prereg_unregister(NULL, NULL, NULL) == 0);
	EXPECT(prereg_draining_is_done(NULL) == 1 && prereg_draining_wait(NULL) == 0);
	EXPECT(prereg_page_list_push(NULL, 0, 1) == -EINVAL && prereg_dirty_pages_next(NULL) == UINT64_MAX);
	EXPECT(prereg_translator_free(&reader) == 0);
	simulated_host_end(&simulated, &space);
}

static prereg_translator *handlers_own;
static volatile sig_atomic_t handled;

static void handler(int number)
{
	struct prereg_mapping mapping;

	(void)number;
	if (prereg_map(handlers_own, RAM + PAGE, 12, &mapping, NULL) == 0 && mapping.hpa == FRAME(1) &&
	    prereg_unmap(handlers_own, &mapping) == 0)
		handled++;
}

static void in_a_signal_handler(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_space *space = simulated_host_space(&simulated);
	prereg_registration *ram = NULL;
	int i;

	EXPECT(prereg_register(space, RAM, 4 * PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_translator_new(space, NULL, &handlers_own, &why) == 0);
	EXPECT(signal(SIGUSR1, handler) != SIG_ERR);
	for (i = 0; i < 100; i++)
		raise(SIGUSR1);
	EXPECT(handled == 100);
	EXPECT(prereg_translator_free(&handlers_own) == 0 && prereg_unregister(&ram, NULL, &why) == 0);
	simulated_host_end(&simulated, &space);
}

int main(void)
{
	EXPECT(prereg_version_number() == (PREREG_VERSION_MAJOR << 16 | PREREG_VERSION_MINOR << 8 | PREREG_VERSION_PATCH));
	registering();
	device_memory();
	mapping();
	many();
	seen();
	entries();
	backends();
	bad_handles();
	in_a_signal_handler();
	puts("core: all as expected");
	return 0;
}
