/* Structs of other versions of the header, reserved members, unused options. */
#include "simulated_host.h"
#include <stddef.h>

static struct simulated_host simulated;
static prereg_space *space;

/* Structs of a later header. */
struct later_holder {
	struct prereg_holder now;
	uint64_t later;
};

struct later_region {
	struct prereg_region now;
	uint64_t later[3];
};

struct later_run {
	struct prereg_run now;
	uint64_t later;
};

static void inputs(void)
{
	struct prereg_error why;
	struct later_holder holder;
	prereg_registration *ram = NULL;
	prereg_state *state = NULL;
	struct prereg_held held;

	/* Older: the missing members are read as zero. */
	SIZED(holder.now);
	holder.now.size = offsetof(struct prereg_holder, kind);
	holder.now.container = 9;
	holder.now.kind = 77;
	holder.now.reserved = 77;
	EXPECT(prereg_register(space, RAM, PAGE, &holder.now, NULL, &ram, &why) == 0);
	EXPECT(prereg_state_new(space, &state, &why) == 0);
	SIZED(held);
	EXPECT(prereg_state_registrations(state, 0, &held, 1, NULL) == 0);
	EXPECT(held.container == 9 && held.kind == PREREG_HOLDER_OTHER && held.count == 1);
	EXPECT(prereg_state_free(&state) == 0 && prereg_unregister(&ram, NULL, &why) == 0);

	/* Newer: accepted if the unknown members are zero. */
	memset(&holder, 0, sizeof(holder));
	holder.now.size = sizeof(holder);
	EXPECT(prereg_register(space, RAM, PAGE, &holder.now, NULL, &ram, &why) == 0);
	EXPECT(prereg_unregister(&ram, NULL, &why) == 0);
	holder.later = (uint64_t)1 << 56;
	EXPECT(prereg_register(space, RAM, PAGE, &holder.now, NULL, &ram, &why) == -EINVAL && ram == NULL);
	MESSAGE_HAS(why, "prereg_holder of 32 bytes has members beyond the 24 bytes");
	EXPECT(simulated.pinned == 0);
}

/* Every struct that a call reads, with an invalid size. */
static void impossible_sizes(void)
{
	static const size_t sizes[] = { 0, 1, 7, 4097, 1 << 20, SIZE_MAX / 2, SIZE_MAX };
	struct prereg_error why;
	struct prereg_options options;
	struct prereg_pin_ops pins;
	struct prereg_charge_ops charges;
	struct prereg_holder holder;
	struct prereg_keep keep;
	struct prereg_geometry shape;
	struct prereg_call call;
	struct prereg_group_ops ops;
	struct prereg_iova_limits limits;
	struct prereg_drained drained;
	prereg_space *bad = NULL;
	prereg_registration *ram = NULL;
	prereg_translator *reader = NULL;
	prereg_table *table = NULL;
	prereg_guest *guest = NULL;
	prereg_container *container = NULL;
	prereg_iova *map = NULL;
	struct prereg_reply reply;
	size_t i;

	SIZED(reply);
	EXPECT(prereg_guest_new(PREREG_RULES_KVM, &guest, &why) == 0 && prereg_container_new(1, &container, &why) == 0);
	EXPECT(prereg_translator_new(space, NULL, &reader, &why) == 0);
	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		SIZED(options);
		options.size = sizes[i];
		EXPECT(prereg_space_new(&options, &bad, &why) == -EINVAL);
		MESSAGE_HAS(why, "set all of it to zero, then size to sizeof");
		SIZED(options);
		options.backend = PREREG_BACKEND_CALLBACKS;
		SIZED(pins);
		pins.size = sizes[i];
		options.pin = &pins;
		EXPECT(prereg_space_new(&options, &bad, &why) == -EINVAL);
		SIZED(pins);
		pins.pin = simulated_host_pin;
		pins.unpin = simulated_host_unpin;
		SIZED(charges);
		charges.size = sizes[i];
		options.charge = &charges;
		EXPECT(prereg_space_new(&options, &bad, &why) == -EINVAL);
		SIZED(holder);
		holder.size = sizes[i];
		EXPECT(prereg_register(space, RAM, PAGE, &holder, NULL, &ram, &why) == -EINVAL);
		EXPECT(prereg_share(space, RAM, PAGE, &holder, &ram, &why) == -EINVAL);
		SIZED(keep);
		keep.size = sizes[i];
		EXPECT(prereg_register(space, RAM, PAGE, NULL, &keep, &ram, &why) == -EINVAL);
		EXPECT(prereg_register_new(space, RAM, PAGE, &keep, &ram, &why) == -EINVAL);
		SIZED(shape);
		shape.size = sizes[i];
		EXPECT(prereg_table_new(space, &shape, 0, &table, &why) == -EINVAL);
		EXPECT(prereg_guest_create_table(guest, 1, &shape, &why) == -EINVAL);
		SIZED(call);
		call.size = sizes[i];
		call.number = PREREG_H_PUT_TCE;
		EXPECT(prereg_hypercall(guest, reader, &call, NULL, NULL, &reply, &why) == -EINVAL);
		SIZED(ops);
		ops.size = sizes[i];
		EXPECT(prereg_container_attach(container, 1, PREREG_PLATFORM_POWERNV, &ops, &why) == -EINVAL);
		SIZED(limits);
		limits.size = sizes[i];
		EXPECT(prereg_iova_new(space, &limits, NULL, NULL, &map, &why) == -EINVAL);
		SIZED(drained);
		drained.size = sizes[i];
		EXPECT(prereg_iova_new(space, NULL, NULL, &drained, &map, &why) == -EINVAL);
	}
	EXPECT(simulated.pinned == 0 && bad == NULL && ram == NULL && table == NULL && map == NULL);
	EXPECT(prereg_guest_free(&guest) == 0 && prereg_container_free(&container) == 0);
	EXPECT(prereg_translator_free(&reader) == 0);
}

static void reserved(void)
{
	struct prereg_error why;
	struct prereg_holder holder = { sizeof(holder), 0, 0, 1 };
	struct prereg_geometry shape = { sizeof(shape), 0, 64, 12, 1 };
	struct prereg_iova_limits limits = { sizeof(limits), 0, 0, 0, 11 };
	struct prereg_options options;
	prereg_registration *ram = NULL;
	prereg_translator *reader = NULL;
	prereg_table *table = NULL;
	prereg_guest *guest = NULL;
	prereg_iova *map = NULL;
	prereg_space *bad = NULL;

	EXPECT(prereg_register(space, RAM, PAGE, &holder, NULL, &ram, &why) == -EINVAL);
	MESSAGE_HAS(why, "reserved member of struct prereg_holder");
	EXPECT(prereg_translator_new(space, &holder, &reader, &why) == -EINVAL);
	EXPECT(prereg_iova_new(space, NULL, &holder, NULL, &map, &why) == -EINVAL);
	EXPECT(prereg_iova_new(space, &limits, NULL, NULL, &map, &why) == -EINVAL);
	EXPECT(prereg_table_new(space, &shape, 0, &table, &why) == -EINVAL);
	MESSAGE_HAS(why, "reserved member of struct prereg_geometry");
	EXPECT(prereg_guest_new(PREREG_RULES_KVM, &guest, &why) == 0);
	EXPECT(prereg_guest_create_table(guest, 1, &shape, &why) == -EINVAL && prereg_guest_free(&guest) == 0);
	SIZED(options);
	options.reserved = 1;
	EXPECT(prereg_space_new(&options, &bad, &why) == -EINVAL);
	MESSAGE_HAS(why, "reserved");
	SIZED(options);
	options.reserved_too = 0x80000000;
	EXPECT(prereg_space_new(&options, &bad, &why) == -EINVAL && bad == NULL);
}

static int progress(void *context, uint64_t done, uint64_t total)
{
	(void)context;
	(void)done;
	(void)total;
	return 0;
}

/* Each option with each back end that does not use it. */
static void unused_options(void)
{
	static const char *const names[] = { "addresses", "fault_threads", "granule_shift", "slot_limit", "container_fd",
					     "fixed_ua", "fixed_bytes", "fixed_host", "progress", "progress_context",
					     "pin", "device", "placement" };
	/* The back ends that use it, as bits. */
	static const unsigned users[] = { 1, 1, 4, 1, 16, 4, 4, 4, 1, 1, 8, 112, 64 };
	struct prereg_error why;
	struct prereg_options options;
	struct prereg_pin_ops pins;
	prereg_space *bad = NULL;
	unsigned backend, option;

	SIZED(pins);
	for (backend = 0; backend <= PREREG_BACKEND_IOMMUFD; backend++) {
		for (option = 0; option < sizeof(names) / sizeof(names[0]); option++) {
			if (users[option] & 1u << backend)
				continue;
			SIZED(options);
			options.backend = backend;
			switch (option) {
			case 0: options.addresses = PREREG_ADDRESS_PHYSICAL; break;
			case 1: options.fault_threads = 1; break;
			case 2: options.granule_shift = 12; break;
			case 3: options.slot_limit = PAGE; break;
			case 4: options.container_fd = 2; break;
			case 5: options.fixed_ua = PAGE; break;
			case 6: options.fixed_bytes = PAGE; break;
			case 7: options.fixed_host = PAGE; break;
			case 8: options.progress = progress; break;
			case 9: options.progress_context = &simulated; break;
			case 10: options.pin = &pins; break;
			case 11: options.device = "0000:00:00.0"; break;
			default: options.placement = 1; break;
			}
			EXPECT(prereg_space_new(&options, &bad, &why) == -EINVAL && bad == NULL);
			MESSAGE_HAS(why, names[option]);
			MESSAGE_HAS(why, "does not use it");
		}
	}
	SIZED(options);
	options.progress_context = &simulated;
	EXPECT(prereg_space_new(&options, &bad, &why) == -EINVAL && bad == NULL);
	options.backend = PREREG_BACKEND_IOMMUFD + 1;
	EXPECT(prereg_space_new(&options, &bad, &why) == -EINVAL);
}

static void outputs(void)
{
	struct prereg_error why;
	struct later_region later;
	struct prereg_region region;
	struct later_run runs[3];
	struct prereg_range range;
	struct prereg_totals totals;
	struct prereg_entry entry;
	prereg_registration *ram = NULL;
	prereg_translator *reader = NULL;
	prereg_entries *block = NULL;
	prereg_state *state = NULL;
	size_t total, i;

	simulated.scattered = 1;
	EXPECT(prereg_register(space, RAM, 4 * PAGE, NULL, NULL, &ram, &why) == 0);
	EXPECT(prereg_translator_new(space, NULL, &reader, &why) == 0);
	/* Older: only its members are filled. */
	memset(&region, 0x55, sizeof(region));
	region.size = offsetof(struct prereg_region, pages);
	EXPECT(prereg_registration_state(ram, &region, &why) == 0);
	EXPECT(region.ua == RAM && region.bytes == 4 * PAGE && region.pages == UINT64_C(0x5555555555555555));
	EXPECT(region.size == offsetof(struct prereg_region, pages));
	/* Newer: unknown members are unchanged. */
	memset(&later, 0x55, sizeof(later));
	later.now.size = sizeof(later);
	EXPECT(prereg_space_find(space, RAM, PAGE, &later.now, &why) == 0);
	EXPECT(later.now.size == sizeof(later) && later.now.pages == 4 && later.now.flags == 0);
	EXPECT(later.later[0] == UINT64_C(0x5555555555555555) && later.later[2] == later.later[0]);
	/* The first element has the distance of the elements. */
	memset(runs, 0x55, sizeof(runs));
	runs[0].now.size = sizeof(runs[0]);
	EXPECT(prereg_map_range(reader, RAM, 4 * PAGE, &range, &why) == 0);
	EXPECT(prereg_range_runs(&range, 1, &runs[0].now, 3, &total, &why) == 0 && total == 4);
	for (i = 0; i < 3; i++) {
		EXPECT(runs[i].now.size == sizeof(runs[i]) && runs[i].now.ua == RAM + (i + 1) * PAGE);
		EXPECT(runs[i].now.host == FRAME(2 * (i + 1)) && runs[i].now.bytes == PAGE);
		EXPECT(runs[i].later == UINT64_C(0x5555555555555555));
	}
	EXPECT(prereg_range_runs(&range, UINT64_MAX, &runs[0].now, 3, &total, &why) == 0 && total == 4);
	EXPECT(prereg_range_runs(&range, 0, &runs[0].now, SIZE_MAX, NULL, &why) == -EINVAL);
	runs[0].now.size = sizeof(runs[0]) + 4;
	EXPECT(prereg_range_runs(&range, 0, &runs[0].now, 3, NULL, &why) == -EINVAL);
	EXPECT(prereg_unmap_range(reader, &range) == 0);

	/* A struct of an invalid size is refused before anything changes. */
	memset(&entry, 0, sizeof(entry));
	EXPECT(prereg_entries_new(space, 12, 1, NULL, &block, &why) == 0);
	EXPECT(prereg_entries_inspect(block, 0, &entry) == -EINVAL);
	region.size = 0;
	EXPECT(prereg_registration_state(ram, &region, &why) == -EINVAL);
	MESSAGE_HAS(why, "prereg_region is 0");
	region.size = SIZE_MAX;
	EXPECT(prereg_space_find(space, RAM, PAGE, &region, &why) == -EINVAL);
	EXPECT(prereg_state_new(space, &state, &why) == 0);
	memset(&totals, 0, sizeof(totals));
	EXPECT(prereg_state_totals(state, &totals) == -EINVAL && totals.regions == 0);
	EXPECT(prereg_state_region(state, 0, &region) == -EINVAL);
	EXPECT(prereg_state_free(&state) == 0 && prereg_entries_free(&block) == 0);
	EXPECT(prereg_translator_free(&reader) == 0 && prereg_unregister(&ram, NULL, &why) == 0);
}

int main(void)
{
	space = simulated_host_space(&simulated);
	inputs();
	impossible_sizes();
	reserved();
	unused_options();
	outputs();
	simulated_host_end(&simulated, &space);
	puts("sizes: all as expected");
	return 0;
}
