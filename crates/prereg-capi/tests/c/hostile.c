/* A program that violates the rules: copies, freed and foreign handles, NULL, misaligned and invalid arguments, in any order and
 * from several threads. Every call returns, no other mapping is released, and at the end nothing is left. */
#include "simulated_host.h"
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

static struct simulated_host simulated;
static prereg_space *space;
static prereg_registration *ram;
static prereg_translator *reader;

static uint64_t seed = 88172645463325252u;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* A call may succeed or be refused, but must not report a defect. */
static int answered(int code)
{
	return code <= 0 && code != -ENOTRECOVERABLE;
}

static void begin(void)
{
	struct prereg_error why;

	space = simulated_host_space(&simulated);
	EXPECT(prereg_register(space, RAM, 64 * PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_translator_new(space, NULL, &reader, &why) == 0);
}

static void end(void)
{
	struct prereg_error why;

	EXPECT(prereg_translator_free(&reader) == 0 && prereg_unregister(&ram, NULL, &why) == 0);
	simulated_host_end(&simulated, &space);
}

/* The number of mappings of the region. */
static uint64_t live(void)
{
	struct prereg_region region;
	struct prereg_error why;

	SIZED(region);
	EXPECT(prereg_registration_state(ram, &region, &why) == 0);
	return region.mapped - 1;
}

static void mappings_handed_back_twice(void)
{
	struct prereg_error why;
	struct prereg_mapping one, two, saved, list[300];
	struct prereg_range range, saved_range;
	prereg_translator *other = NULL;
	uint64_t count;
	int i, byte;

	begin();
	EXPECT(prereg_translator_new(space, NULL, &other, &why) == 0);
	/* A copy of a released mapping is invalid, also over its struct, and the next mapping in the same struct is live. */
	EXPECT(prereg_map(reader, RAM, 12, &one, &why) == 0);
	saved = one;
	EXPECT(prereg_unmap(reader, &one) == 0);
	one = saved;
	EXPECT(prereg_unmap(reader, &one) == -EINVAL && prereg_unmap(other, &one) == -EINVAL);
	EXPECT(prereg_mapping_drop(&one) == -EINVAL && prereg_unmap_written(reader, &one) == -EINVAL);
	EXPECT(prereg_map(reader, RAM, 12, &two, &why) == 0);
	one = saved;
	EXPECT(prereg_unmap(reader, &one) == -EINVAL && live() == 1);
	EXPECT(prereg_unregister(&ram, &count, &why) == -EBUSY && count == 1);
	EXPECT(prereg_map(reader, RAM + PAGE, 12, &one, &why) == 0 && live() == 2);
	/* The first mapping's bytes over the second one's. */
	{
		struct prereg_mapping second = one;

		one = saved;
		EXPECT(prereg_unmap(reader, &one) == -EINVAL && prereg_mapping_drop(&one) == -EINVAL && live() == 2);
		one = second;
	}
	EXPECT(prereg_unmap(other, &one) == 0 && prereg_mapping_drop(&two) == 0 && live() == 0);

	/* Ranges, and one for the other. */
	EXPECT(prereg_map_range(reader, RAM, 4 * PAGE, &range, &why) == 0);
	saved_range = range;
	EXPECT(prereg_unmap(reader, (struct prereg_mapping *)(void *)&range) == -EINVAL);
	EXPECT(prereg_range_drop(&range) == 0);
	range = saved_range;
	EXPECT(prereg_range_drop(&range) == -EINVAL && prereg_unmap_range(other, &range) == -EINVAL);
	EXPECT(prereg_range_runs(&range, 0, NULL, 0, NULL, &why) == -EINVAL);
	EXPECT(prereg_map_range(reader, RAM, 4 * PAGE, &saved_range, &why) == 0 && live() == 1);
	EXPECT(prereg_unmap_range(reader, &range) == -EINVAL && prereg_unmap_range(reader, &saved_range) == 0);

	/* No content of a struct releases another mapping. */
	EXPECT(prereg_map(reader, RAM, 12, &two, &why) == 0);
	for (i = 0; i < 20000; i++) {
		EXPECT(prereg_map(reader, RAM, 12, &one, &why) == 0);
		saved = one;
		for (byte = (int)(next_random() % 4); byte >= 0; byte--)
			((unsigned char *)&one)[16 + next_random() % (sizeof(one) - 16)] ^= (unsigned char)(1u << next_random() % 8);
		if (prereg_unmap(reader, &one) != 0) {
			one = saved;
			EXPECT(prereg_unmap(reader, &one) == 0);
		}
		EXPECT(live() == 1);
	}
	EXPECT(prereg_unmap(reader, &two) == 0);

	/* Many mappings, each released once, in any order, with copies of all of them. */
	for (i = 0; i < 300; i++)
		EXPECT(prereg_map(i % 2 ? reader : other, RAM + (uint64_t)(i % 64) * PAGE, 12, &list[i], &why) == 0);
	for (count = 300; count > 0;) {
		i = (int)(next_random() % 300);
		saved = list[i];
		if (prereg_unmap(next_random() % 2 ? reader : other, &list[i]) == 0)
			count--;
		list[i] = saved;
		EXPECT(live() == count);
	}
	EXPECT(prereg_translator_free(&other) == 0);
	end();
}

/* A copy of a handle: freed once, and never mistaken for the next one. */
#define FREED_TWICE(type, make, free)                                                                \
	do {                                                                                         \
		type *first = NULL, *copy, *next = NULL;                                             \
		int round;                                                                           \
		for (round = 0; round < 50; round++) {                                               \
			EXPECT((make(&first)) == 0 && first != NULL);                                \
			copy = first;                                                                \
			EXPECT(free(&first) == 0 && first == NULL && free(&first) == 0);             \
			EXPECT(free(&copy) == -EINVAL && copy != NULL);                              \
			EXPECT((make(&next)) == 0 && next != copy);                                  \
			EXPECT(free(&copy) == -EINVAL);                                              \
			EXPECT(free(&next) == 0);                                                    \
		}                                                                                    \
	} while (0)

static prereg_iova *map;
static const struct prereg_geometry shape = { sizeof(shape), 0, 64, 12, 0 };

static int unregister(prereg_registration **registration)
{
	return prereg_unregister(registration, NULL, NULL);
}

static int draining_new(prereg_draining **draining)
{
	prereg_registration *registration = NULL;

	EXPECT(prereg_share(space, RAM, 64 * PAGE, NULL, &registration, NULL) == 0);
	return prereg_drain(&registration, draining, NULL);
}

static void handles_freed_twice(void)
{
	begin();
	EXPECT(prereg_iova_new(space, NULL, NULL, NULL, &map, NULL) == 0);
	EXPECT(prereg_iova_map(map, 0, 64 * PAGE, RAM, 3, NULL) == 0);
#define MAKE(place) prereg_state_new(space, place, NULL)
	FREED_TWICE(prereg_state, MAKE, prereg_state_free);
#undef MAKE
#define MAKE(place) prereg_translator_new(space, NULL, place, NULL)
	FREED_TWICE(prereg_translator, MAKE, prereg_translator_free);
#undef MAKE
#define MAKE(place) prereg_share(space, RAM, 64 * PAGE, NULL, place, NULL)
	FREED_TWICE(prereg_registration, MAKE, unregister);
#undef MAKE
	FREED_TWICE(prereg_draining, draining_new, prereg_draining_free);
#define MAKE(place) prereg_entries_new(space, 12, 4, NULL, place, NULL)
	FREED_TWICE(prereg_entries, MAKE, prereg_entries_free);
#undef MAKE
#define MAKE(place) prereg_table_new(space, &shape, 0, place, NULL)
	FREED_TWICE(prereg_table, MAKE, prereg_table_free);
#undef MAKE
#define MAKE(place) prereg_guest_new(PREREG_RULES_KVM, place, NULL)
	FREED_TWICE(prereg_guest, MAKE, prereg_guest_free);
#undef MAKE
#define MAKE(place) prereg_owner_new(space, place, NULL)
	FREED_TWICE(prereg_owner, MAKE, prereg_owner_free);
#undef MAKE
#define MAKE(place) prereg_container_new(3, place, NULL)
	FREED_TWICE(prereg_container, MAKE, prereg_container_free);
#undef MAKE
#define MAKE(place) prereg_iova_new(space, NULL, NULL, NULL, place, NULL)
	FREED_TWICE(prereg_iova, MAKE, prereg_iova_free);
#undef MAKE
#define MAKE(place) prereg_iova_hold(map, 0, PAGE, 3, place, NULL)
	FREED_TWICE(prereg_hold, MAKE, prereg_hold_release);
#undef MAKE
#define MAKE(place) prereg_iova_unmap(map, 0x10000000, PAGE, place, NULL)
	FREED_TWICE(prereg_unmapping, MAKE, prereg_unmapping_free);
#undef MAKE
	EXPECT(prereg_iova_free(&map) == 0);
	end();
}

/* One registration in an array twice: nothing is released. */
static void an_array_with_one_twice(void)
{
	struct prereg_error why;
	prereg_registration *list[3];
	size_t refused = 9;

	begin();
	EXPECT(prereg_share(space, RAM, 64 * PAGE, NULL, &list[0], &why) == 0);
	EXPECT(prereg_share(space, RAM, 64 * PAGE, NULL, &list[1], &why) == 0);
	list[2] = list[0];
	EXPECT(prereg_unregister_many(list, 3, &refused, &why) == -EINVAL);
	EXPECT(list[0] != NULL && list[1] != NULL && prereg_registration_bytes(list[1]) == 64 * PAGE);
	list[2] = (void *)reader;
	EXPECT(prereg_unregister_many(list, 3, &refused, &why) == -EINVAL);
	EXPECT(prereg_unregister_many(list, SIZE_MAX, &refused, &why) == -EINVAL);
	EXPECT(prereg_unregister_many(list, 2, &refused, &why) == 0 && list[0] == NULL && list[1] == NULL && refused == 0);
	end();
}

/* Every function with `bad` for each of its handles. */
static void every_function_with(void *bad)
{
	struct prereg_error why;
	struct prereg_region region;
	struct prereg_totals totals;
	struct prereg_entry entry;
	struct prereg_geometry got;
	struct prereg_iova_state state;
	struct prereg_reply reply;
	struct prereg_call call;
	struct prereg_mapping mapping;
	struct prereg_range range;
	void *made = (void *)1, *held = bad;
	uint64_t number;
	size_t size;

	SIZED(region);
	SIZED(totals);
	SIZED(entry);
	SIZED(got);
	SIZED(state);
	SIZED(reply);
	SIZED(call);
	call.number = PREREG_H_GET_TCE;
	memset(&mapping, 0x5a, sizeof(mapping));
	memset(&range, 0xa5, sizeof(range));
#define REFUSED(call) EXPECT((call) == -EINVAL)
#define FREES(call)                                                        \
	do {                                                               \
		held = bad;                                                \
		EXPECT((call) == (bad == NULL ? 0 : -EINVAL) && held == bad); \
	} while (0)
	FREES(prereg_space_free((prereg_space **)&held));
	FREES(prereg_state_free((prereg_state **)&held));
	FREES(prereg_translator_free((prereg_translator **)&held));
	FREES(prereg_unregister((prereg_registration **)&held, &number, &why));
	FREES(prereg_drain((prereg_registration **)&held, NULL, &why));
	FREES(prereg_unregister_when_idle((prereg_registration **)&held, &why));
	FREES(prereg_draining_wait((prereg_draining **)&held));
	FREES(prereg_draining_free((prereg_draining **)&held));
	FREES(prereg_entries_free((prereg_entries **)&held));
	FREES(prereg_table_free((prereg_table **)&held));
	FREES(prereg_guest_free((prereg_guest **)&held));
	FREES(prereg_owner_free((prereg_owner **)&held));
	FREES(prereg_container_free((prereg_container **)&held));
	FREES(prereg_iova_free((prereg_iova **)&held));
	FREES(prereg_hold_release((prereg_hold **)&held));
	FREES(prereg_unmapping_free((prereg_unmapping **)&held));
	FREES(prereg_device_close((prereg_device **)&held));
	FREES(prereg_bar_unmap((prereg_bar **)&held));
	FREES(prereg_window_free((prereg_window **)&held));
	FREES(prereg_io_table_free((prereg_io_table **)&held));

	EXPECT(prereg_space_granule_shift(bad) == 0 && prereg_space_address_kind(bad) == 0);
	EXPECT(prereg_space_backend(bad) == NULL && prereg_space_address_note(bad) == NULL);
	REFUSED(prereg_space_is_preregistered(bad));
	REFUSED(prereg_space_find(bad, RAM, PAGE, &region, &why));
	EXPECT(prereg_space_device_at(bad, 0, UINT64_MAX) == 0);
	REFUSED(prereg_space_reap(bad));
	REFUSED(prereg_space_add_device(bad, "x", &why));
	REFUSED(prereg_space_remove_device(bad, "x", &why));
	REFUSED(prereg_state_new(bad, (prereg_state **)&made, &why));
	REFUSED(prereg_state_totals(bad, &totals));
	EXPECT(prereg_state_regions(bad) == 0);
	REFUSED(prereg_state_region(bad, 0, &region));
	REFUSED(prereg_state_registrations(bad, 0, NULL, 0, &size));
	REFUSED(prereg_state_mappings(bad, 0, NULL, 0, &size));
	REFUSED(prereg_register(bad, RAM, PAGE, NULL, NULL, (prereg_registration **)&made, &why));
	REFUSED(prereg_register_new(bad, RAM, PAGE, NULL, (prereg_registration **)&made, &why));
	REFUSED(prereg_register_device(bad, RAM, PAGE, 0, (prereg_registration **)&made, &why));
	REFUSED(prereg_share(bad, RAM, PAGE, NULL, (prereg_registration **)&made, &why));
	EXPECT(prereg_draining_is_done(bad) == (bad == NULL ? 1 : -EINVAL));
	EXPECT(prereg_registration_ua(bad) == 0 && prereg_registration_bytes(bad) == 0);
	EXPECT(prereg_registration_largest_page(bad, RAM, PAGE) == 0);
	REFUSED(prereg_registration_state(bad, &region, &why));
	REFUSED(prereg_registration_runs(bad, 0, NULL, 0, &size, &why));
	REFUSED(prereg_translator_new(bad, NULL, (prereg_translator **)&made, &why));
	REFUSED(prereg_translator_reserve(bad, 1, &why));
	REFUSED(prereg_translator_refresh(bad));
	REFUSED(prereg_map(bad, RAM, 12, &mapping, &why));
	REFUSED(prereg_unmap(bad, &mapping));
	REFUSED(prereg_unmap_written(bad, &mapping));
	REFUSED(prereg_mapping_drop(&mapping));
	REFUSED(prereg_check(bad, RAM, 12, &why));
	REFUSED(prereg_map_range(bad, RAM, PAGE, &range, &why));
	REFUSED(prereg_unmap_range(bad, &range));
	REFUSED(prereg_unmap_range_written(bad, &range));
	REFUSED(prereg_range_drop(&range));
	REFUSED(prereg_range_runs(&range, 0, NULL, 0, &size, &why));
	REFUSED(prereg_mark_dirty(bad, RAM));
	REFUSED(prereg_mark_dirty_range(bad, RAM, PAGE, &why));
	REFUSED(prereg_entries_new(bad, 12, 4, NULL, (prereg_entries **)&made, &why));
	EXPECT(prereg_entries_count(bad) == 0 && prereg_entries_live(bad) == 0);
	REFUSED(prereg_entries_set(bad, reader, 0, RAM, 3, NULL, &why));
	REFUSED(prereg_entries_clear(bad, reader, 0, NULL, &why));
	REFUSED(prereg_entries_inspect(bad, 0, &entry));
	REFUSED(prereg_entries_take(bad, reader, 0, &mapping, NULL, &why));
	REFUSED(prereg_table_new(bad, &shape, 0, (prereg_table **)&made, &why));
	REFUSED(prereg_table_geometry(bad, &got));
	REFUSED(prereg_table_set(bad, reader, 0, RAM, 3, NULL, &why));
	REFUSED(prereg_table_set_run(bad, reader, 0, 1, RAM, 3, &why));
	REFUSED(prereg_table_clear(bad, reader, 0, 1, NULL, &why));
	REFUSED(prereg_table_prepare(bad, 0, 1, &why));
	REFUSED(prereg_table_check(bad, reader, RAM, &why));
	REFUSED(prereg_table_inspect(bad, 0, &entry));
	REFUSED(prereg_table_take(bad, reader, 0, &mapping, NULL, &why));
	EXPECT(prereg_table_live(bad) == 0 && prereg_table_memory_bytes(bad) == 0);
	REFUSED(prereg_guest_add_memory(bad, 0, RAM, PAGE, &why));
	REFUSED(prereg_guest_remove_memory(bad, 0, &why));
	EXPECT(prereg_guest_translate(bad, 0, 1) == 0);
	REFUSED(prereg_guest_create_table(bad, 1, &shape, &why));
	REFUSED(prereg_guest_remove_table(bad, 1, &why));
	REFUSED(prereg_guest_attach(bad, 1, bad, NULL, &why));
	REFUSED(prereg_guest_detach(bad, 1, bad, NULL, &why));
	REFUSED(prereg_hypercall(bad, reader, &call, NULL, NULL, &reply, &why));
	REFUSED(prereg_guest_lookup(bad, reader, 1, 0, NULL, &mapping, &why));
	REFUSED(prereg_owner_new(bad, (prereg_owner **)&made, &why));
	REFUSED(prereg_container_attach(bad, 1, 0, NULL, &why));
	REFUSED(prereg_container_detach(bad, 1, &why));
	REFUSED(prereg_container_ioctl(bad, bad, 0x3b64, NULL, 0, &why));
	REFUSED(prereg_container_window(bad, 0, (prereg_table **)&made, &why));
	REFUSED(prereg_iova_new(bad, NULL, NULL, NULL, (prereg_iova **)&made, &why));
	REFUSED(prereg_iova_map(bad, 0, PAGE, RAM, 3, &why));
	REFUSED(prereg_iova_map_remote(bad, 0, PAGE, 3, &why));
	REFUSED(prereg_iova_unmap(bad, 0, PAGE, NULL, &why));
	REFUSED(prereg_iova_unmap_all(bad, NULL, &why));
	REFUSED(prereg_iova_hold(bad, 0, PAGE, 3, (prereg_hold **)&made, &why));
	REFUSED(prereg_iova_refresh(bad));
	REFUSED(prereg_iova_snapshot(bad, &state));
	REFUSED(prereg_hold_pieces(bad, 0, NULL, 0, &size, &why));
	EXPECT(prereg_unmapping_is_done(bad) == (bad == NULL ? 1 : -EINVAL));
	EXPECT(prereg_unmapping_mappings(bad) == 0 && prereg_unmapping_bytes(bad) == 0);
	REFUSED(prereg_device_open(bad, "x", (prereg_device **)&made, &why));
	REFUSED(prereg_device_reset(bad, &why));
	REFUSED(prereg_bar_map(bad, 0, (prereg_bar **)&made, &why));
	EXPECT(prereg_bar_registers(bad) == NULL && prereg_bar_bytes(bad) == 0);
	REFUSED(prereg_window_default(bad, (prereg_window **)&made, &why));
	REFUSED(prereg_io_table_new(bad, (prereg_io_table **)&made, &why));
	REFUSED(prereg_page_list_push(bad, 0, 1));
	EXPECT(prereg_dirty_pages_next(bad) == UINT64_MAX);
	EXPECT(made == NULL);
}

static void every_function_with_every_bad_handle(void)
{
	struct prereg_error why;
	prereg_state *freed = NULL, *copy;
	int local, i;

	begin();
	every_function_with(NULL);
	every_function_with((void *)1);
	every_function_with((void *)(uintptr_t)0xdeadbeef);
	every_function_with((void *)UINTPTR_MAX);
	every_function_with(&local);
	every_function_with(malloc);
	EXPECT(prereg_state_new(space, &freed, &why) == 0);
	copy = freed;
	EXPECT(prereg_state_free(&freed) == 0);
	every_function_with(copy);
	for (i = 0; i < 64; i++)
		every_function_with((void *)((uintptr_t)copy ^ (uintptr_t)1 << i));
	for (i = 0; i < 200; i++)
		every_function_with((void *)(uintptr_t)(next_random() | (uint64_t)1 << 63));
	end();
}

/* Misaligned pointers and extreme numbers. */
static void impossible_arguments(void)
{
	struct prereg_error why;
	union {
		struct prereg_mapping mapping;
		struct prereg_range range;
		struct prereg_region region;
		struct prereg_error why;
		prereg_state *state;
		unsigned char bytes[1024];
	} room;
	struct prereg_mapping mapping;
	struct prereg_run run;
	prereg_entries *block = NULL;
	prereg_table *table = NULL;
	prereg_iova *io = NULL;
	prereg_hold *hold = NULL;
	prereg_registration *big = NULL;
	struct prereg_geometry large = { sizeof(large), 0, UINT64_MAX, 12, 0 };
	static const uint64_t numbers[] = { 0, 1, 4095, 4096, 1ull << 32, (1ull << 32) + 4096, 1ull << 52, 1ull << 63,
					    UINT64_MAX - 4095, UINT64_MAX - 1, UINT64_MAX };
	const size_t count = sizeof(numbers) / sizeof(numbers[0]);
	size_t i, j, askew;

	begin();
	SIZED(run);
	EXPECT(prereg_entries_new(space, 12, 4, NULL, &block, &why) == 0);
	EXPECT(prereg_iova_new(space, NULL, NULL, NULL, &io, &why) == 0);
	for (askew = 1; askew < 8; askew++) {
		void *place = room.bytes + askew;

		memset(&room, 0x40, sizeof(room));
		EXPECT(prereg_map(reader, RAM, 12, place, &why) == -EINVAL);
		MESSAGE_HAS(why, "misaligned");
		EXPECT(prereg_map_range(reader, RAM, PAGE, place, &why) == -EINVAL);
		EXPECT(prereg_unmap(reader, place) == -EINVAL && prereg_range_drop(place) == -EINVAL);
		EXPECT(prereg_range_runs(place, 0, NULL, 0, NULL, &why) == -EINVAL);
		EXPECT(prereg_state_new(space, place, &why) == -EINVAL && prereg_state_free(place) == -EINVAL);
		EXPECT(prereg_registration_state(ram, place, &why) == -EINVAL);
		EXPECT(prereg_registration_runs(ram, 0, place, 2, NULL, &why) == -EINVAL);
		EXPECT(prereg_registration_runs(ram, 0, NULL, 0, place, &why) == -EINVAL);
		EXPECT(prereg_translator_new(space, place, (prereg_translator **)&room, &why) == -EINVAL);
		EXPECT(prereg_unregister(&ram, place, &why) == -EINVAL && ram != NULL);
		EXPECT(prereg_entries_take(block, reader, 0, place, NULL, &why) == -EINVAL);
		/* A message is written at any alignment. */
		EXPECT(prereg_check(reader, 0, 12, place) == -EFAULT);
		EXPECT(strstr((char *)place + 8, "register all of it") != NULL);
	}
	EXPECT(live() == 0);
	for (i = 0; i < count; i++) {
		for (j = 0; j < count; j++) {
			uint64_t at = numbers[i], bytes = numbers[j];

			EXPECT(answered(prereg_register_device(space, at, bytes, UINT64_MAX - 4095, &big, &why)));
			EXPECT(prereg_unregister(&big, NULL, &why) == 0);
			EXPECT(prereg_space_find(space, at, bytes, NULL, &why) == -EINVAL);
			EXPECT(prereg_space_device_at(space, at, bytes) == 0);
			EXPECT(prereg_share(space, at, bytes, NULL, &big, &why) == -ENOENT);
			EXPECT(prereg_registration_largest_page(ram, at, bytes) == 0);
			EXPECT(prereg_map_range(reader, at, bytes, &room.range, &why) == -EFAULT);
			EXPECT(prereg_mark_dirty_range(reader, at, bytes, &why) == -EFAULT);
			EXPECT(prereg_mark_dirty(reader, at) == 0);
			EXPECT(answered(prereg_iova_map(io, at, bytes, 0, 3, &why)));
			EXPECT(prereg_iova_hold(io, at, bytes, 1, &hold, &why) < 0 && hold == NULL);
			EXPECT(answered(prereg_iova_unmap(io, at, bytes, NULL, &why)));
			EXPECT(prereg_registration_runs(ram, (size_t)at, &run, 1, NULL, &why) == 0);
		}
		EXPECT(prereg_map(reader, numbers[i], 12, &mapping, &why) == -EFAULT);
		EXPECT(prereg_map(reader, RAM, (uint32_t)numbers[i] | 64, &mapping, &why) == -EINVAL);
		EXPECT(prereg_entries_set(block, reader, (size_t)numbers[i] | 4, RAM, 3, NULL, &why) == -EINVAL);
		EXPECT(answered(prereg_entries_set(block, reader, 0, numbers[i], 3, NULL, &why)));
		EXPECT(prereg_entries_set(block, reader, 0, RAM, (uint32_t)numbers[i] | 4, NULL, &why) == -EINVAL);
		EXPECT(answered(prereg_slot_address(numbers[i], NULL, NULL)));
	}
	EXPECT(prereg_table_new(space, &large, 0, &table, &why) < 0 && table == NULL);
	EXPECT(prereg_translator_reserve(reader, 5000, &why) == 0);
	EXPECT(live() == 0);
	EXPECT(prereg_iova_free(&io) == 0 && prereg_entries_free(&block) == 0);
	end();
}

/* Tables, guests and IOVA maps with extreme numbers: refused, or done correctly. */
static void numbers_without_bound(void)
{
	static const uint64_t numbers[] = { 0, 1, 63, 64, 4095, 4096, 1ull << 32, 1ull << 51, 1ull << 52, 1ull << 63,
					    UINT64_MAX - 4095, UINT64_MAX - 63, UINT64_MAX };
	const size_t count = sizeof(numbers) / sizeof(numbers[0]);
	struct prereg_error why;
	struct prereg_geometry wanted;
	struct prereg_iova_limits limits;
	struct prereg_reply reply;
	struct prereg_lookup lookup;
	struct prereg_call call;
	struct prereg_mapping mapping;
	prereg_table *table = NULL, *other = NULL;
	prereg_guest *guest = NULL;
	prereg_iova *io = NULL;
	size_t i, j, k;

	begin();
	SIZED(reply);
	SIZED(lookup);
	EXPECT(prereg_table_new(space, &shape, 0, &table, &why) == 0);
	EXPECT(prereg_guest_new(PREREG_RULES_QEMU, &guest, &why) == 0);
	EXPECT(prereg_guest_create_table(guest, 1, &shape, &why) == 0);
	EXPECT(prereg_guest_attach(guest, 1, table, NULL, &why) == 0);
	for (i = 0; i < count; i++) {
		for (j = 0; j < count; j++) {
			uint64_t at = numbers[i], bytes = numbers[j];

			EXPECT(prereg_table_set_run(table, reader, at, bytes, RAM, 3, &why) == 0 ||
			       prereg_table_live(table) == 0 || at < 64);
			EXPECT(answered(prereg_table_set_run(table, reader, 0, 2, at, 3, &why)));
			EXPECT(answered(prereg_table_clear(table, reader, at, bytes, NULL, &why)));
			EXPECT(answered(prereg_table_prepare(table, at, bytes, &why)));
			EXPECT(answered(prereg_guest_add_memory(guest, at, RAM, bytes, &why)));
			EXPECT(prereg_guest_translate(guest, at, bytes) <= RAM + at);
			prereg_guest_remove_memory(guest, at, &why);
			EXPECT(answered(prereg_guest_add_memory(guest, 0, at, bytes, &why)));
			prereg_guest_translate(guest, UINT64_MAX, bytes);
			prereg_guest_remove_memory(guest, 0, &why);
			for (k = 0; k < 70; k += k < 60 ? 12 : 1) {
				SIZED(wanted);
				wanted.start = at;
				wanted.entries = bytes;
				wanted.shift = (uint32_t)k;
				if (bytes <= 4096 && prereg_table_new(space, &wanted, 0, &other, &why) == 0) {
					EXPECT(prereg_table_set(other, reader, bytes, RAM, 3, NULL, &why) == -EINVAL);
					EXPECT(prereg_table_free(&other) == 0);
				}
				EXPECT(answered(prereg_guest_create_table(guest, 2, &wanted, &why)));
				prereg_guest_remove_table(guest, 2, &why);
			}
			SIZED(limits);
			limits.first = at;
			limits.last = bytes;
			limits.page_shift = (uint32_t)(i * 7);
			if (prereg_iova_new(space, &limits, NULL, NULL, &io, &why) == 0) {
				EXPECT(answered(prereg_iova_map(io, at, bytes, RAM, 3, &why)));
				EXPECT(answered(prereg_iova_unmap(io, at, bytes, NULL, &why)));
				EXPECT(prereg_iova_free(&io) == 0);
			}
			SIZED(call);
			call.number = at % 2 ? PREREG_H_PUT_TCE : PREREG_H_STUFF_TCE;
			call.arguments[0] = 1;
			call.arguments[1] = at;
			call.arguments[2] = bytes;
			call.arguments[3] = bytes;
			EXPECT(prereg_hypercall(guest, reader, &call, NULL, NULL, &reply, &why) == 0);
			EXPECT(answered(prereg_guest_lookup(guest, reader, (uint32_t)i, at, &lookup, &mapping, &why)));
		}
	}
	EXPECT(prereg_table_clear(table, reader, 0, 64, NULL, &why) == 0 && live() == 0);
	EXPECT(prereg_guest_free(&guest) == 0 && prereg_table_free(&table) == 0);
	end();
}

/* All kinds of objects, freed in a random order. */
static void closed_in_any_order(void)
{
	struct prereg_error why;
	int round;

	for (round = 0; round < 300; round++) {
		prereg_translator *translator = NULL;
		prereg_state *state = NULL;
		prereg_entries *block = NULL;
		prereg_table *table = NULL;
		prereg_guest *guest = NULL;
		prereg_owner *owner = NULL;
		prereg_container *container = NULL;
		prereg_iova *io = NULL;
		prereg_hold *hold = NULL;
		prereg_unmapping *unmapping = NULL;
		prereg_registration *shared = NULL;
		struct prereg_mapping mapping;
		struct prereg_range range;
		unsigned closed = 0;

		begin();
		EXPECT(prereg_translator_new(space, NULL, &translator, &why) == 0);
		EXPECT(prereg_state_new(space, &state, &why) == 0);
		EXPECT(prereg_share(space, RAM, 64 * PAGE, NULL, &shared, &why) == 0);
		EXPECT(prereg_entries_new(space, 12, 4, NULL, &block, &why) == 0);
		EXPECT(prereg_entries_set(block, reader, 0, RAM, 3, NULL, &why) == 0);
		EXPECT(prereg_table_new(space, &shape, 0, &table, &why) == 0);
		EXPECT(prereg_table_set(table, reader, 0, RAM, 3, NULL, &why) == 0);
		EXPECT(prereg_guest_new(PREREG_RULES_QEMU, &guest, &why) == 0);
		EXPECT(prereg_guest_create_table(guest, 1, &shape, &why) == 0);
		EXPECT(prereg_guest_attach(guest, 1, table, NULL, &why) == 0);
		EXPECT(prereg_owner_new(space, &owner, &why) == 0 && prereg_container_new(1, &container, &why) == 0);
		EXPECT(prereg_iova_new(space, NULL, NULL, NULL, &io, &why) == 0);
		EXPECT(prereg_iova_map(io, 0, 64 * PAGE, RAM, 3, &why) == 0);
		EXPECT(prereg_iova_hold(io, 0, 9 * PAGE, 3, &hold, &why) == 0);
		EXPECT(prereg_iova_unmap_all(io, &unmapping, &why) == 0);
		EXPECT(prereg_map(translator, RAM, 12, &mapping, &why) == 0);
		EXPECT(prereg_map_range(reader, RAM, PAGE, &range, &why) == 0);
		while (closed != (1u << 15) - 1) {
			unsigned which = (unsigned)(next_random() % 15);
			int again = (closed >> which & 1) != 0, code = 0;

			switch (which) {
			case 0: code = prereg_translator_free(&translator); break;
			case 1: code = prereg_state_free(&state); break;
			case 2: code = prereg_entries_free(&block); break;
			case 3: code = prereg_table_free(&table); break;
			case 4: code = prereg_guest_free(&guest); break;
			case 5: code = prereg_owner_free(&owner); break;
			case 6: code = prereg_container_free(&container); break;
			case 7: code = prereg_iova_free(&io); break;
			case 8: code = prereg_hold_release(&hold); break;
			case 9: code = prereg_unmapping_free(&unmapping); break;
			case 10: code = prereg_mapping_drop(&mapping) == (again ? -EINVAL : 0) ? 0 : -1; break;
			case 11: code = prereg_range_drop(&range) == (again ? -EINVAL : 0) ? 0 : -1; break;
			case 12: code = prereg_translator_free(&reader); break;
			case 13: code = prereg_space_free(&space); break;
			default:
				code = prereg_drain(&shared, NULL, &why);
				EXPECT(prereg_drain(&ram, NULL, &why) == 0);
				break;
			}
			EXPECT(code == 0);
			closed |= 1u << which;
		}
		EXPECT(simulated.pinned == 0 && simulated.charged == 0 && simulated.released == 2);
	}
}

static struct prereg_mapping contested;
static prereg_hold *contested_hold;
static pthread_barrier_t together;

static void *hands_back(void *done)
{
	prereg_hold *mine = contested_hold;

	pthread_barrier_wait(&together);
	((int *)done)[0] = prereg_mapping_drop(&contested);
	pthread_barrier_wait(&together);
	((int *)done)[1] = prereg_hold_release(&mine);
	return NULL;
}

/* Two threads with one mapping and with copies of one handle: one of them releases it. */
static void two_threads(void)
{
	struct prereg_error why;
	struct prereg_mapping kept;
	pthread_t threads[2];
	int codes[2][2], round, i;

	begin();
	EXPECT(prereg_iova_new(space, NULL, NULL, NULL, &map, &why) == 0);
	EXPECT(prereg_iova_map(map, 0, PAGE, RAM, 3, &why) == 0);
	EXPECT(prereg_map(reader, RAM, 12, &kept, &why) == 0);
	for (round = 0; round < 300; round++) {
		EXPECT(pthread_barrier_init(&together, NULL, 2) == 0);
		EXPECT(prereg_map(reader, RAM, 12, &contested, &why) == 0);
		EXPECT(prereg_iova_hold(map, 0, PAGE, 3, &contested_hold, &why) == 0);
		for (i = 0; i < 2; i++)
			EXPECT(pthread_create(&threads[i], NULL, hands_back, codes[i]) == 0);
		for (i = 0; i < 2; i++)
			EXPECT(pthread_join(threads[i], NULL) == 0);
		for (i = 0; i < 2; i++)
			EXPECT(codes[0][i] + codes[1][i] == -EINVAL && codes[0][i] * codes[1][i] == 0);
		EXPECT(live() == 2);
		pthread_barrier_destroy(&together);
	}
	EXPECT(prereg_unmap(reader, &kept) == 0 && prereg_iova_free(&map) == 0);
	end();
}

/* A handle of another thread, used with another space. */
static void *makes_a_translator(void *place)
{
	EXPECT(prereg_translator_new(space, NULL, place, NULL) == 0);
	return NULL;
}

static void of_other_threads_and_spaces(void)
{
	struct simulated_host other_host;
	struct prereg_error why;
	prereg_space *other;
	prereg_translator *foreign = NULL, *threads = NULL;
	prereg_entries *block = NULL;
	struct prereg_mapping mapping;
	pthread_t thread;

	begin();
	other = simulated_host_space(&other_host);
	EXPECT(pthread_create(&thread, NULL, makes_a_translator, &threads) == 0 && pthread_join(thread, NULL) == 0);
	EXPECT(prereg_translator_new(other, NULL, &foreign, &why) == 0);
	EXPECT(prereg_map(threads, RAM, 12, &mapping, &why) == 0 && prereg_map(foreign, RAM, 12, &mapping, &why) == -EFAULT);
	EXPECT(prereg_unmap(foreign, &mapping) == 0 && live() == 0);
	EXPECT(prereg_entries_new(space, 12, 4, NULL, &block, &why) == 0);
	EXPECT(prereg_entries_set(block, foreign, 0, RAM, 3, NULL, &why) == -EINVAL);
	MESSAGE_HAS(why, "another address space");
	EXPECT(prereg_entries_free(&block) == 0);
	EXPECT(prereg_translator_free(&foreign) == 0 && prereg_translator_free(&threads) == 0);
	simulated_host_end(&other_host, &other);
	end();
}

/* A child does not use the handles of its parent; the parent continues. */
static void forked(void)
{
	struct prereg_error why;
	struct prereg_mapping mapping;
	int status;
	pid_t child;

	begin();
	EXPECT(prereg_map(reader, RAM, 12, &mapping, &why) == 0);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		/* Another program, so that memory of the parent is not reported as leaked by the child. */
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	EXPECT(waitpid(child, &status, 0) == child && status == 0);
	EXPECT(prereg_unmap(reader, &mapping) == 0);
	end();
}

int main(void)
{
	mappings_handed_back_twice();
	handles_freed_twice();
	an_array_with_one_twice();
	every_function_with_every_bad_handle();
	impossible_arguments();
	numbers_without_bound();
	closed_in_any_order();
	two_threads();
	of_other_threads_and_spaces();
	forked();
	puts("hostile: all as expected");
	return 0;
}
