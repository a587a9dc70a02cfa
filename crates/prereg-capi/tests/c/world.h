/* A simulated host that counts pins and checks that nothing is left. */
#ifndef WORLD_H
#define WORLD_H

#include "expect.h"

#define RAM ((uint64_t)0x10000000)
#define FRAME(page) ((uint64_t)0x40000000 + (page) * PAGE)

struct world {
	uint64_t pinned, charged, limit, released;
	int fail_pin;           /* what the next pin returns */
	int scattered;          /* no two pages are contiguous, so marks are exact */
	int push_too_many;      /* push one page too many, and ignore the result */
	int push_too_few;
	int push_past_end;      /* push pages that pass 2^64, and ignore the result */
	uint64_t push_off_page; /* push this address, which is not the start of a page, and ignore the result */
	prereg_page_list *list; /* the last list, now invalid */
	prereg_space *reenter;  /* register the range once more from the pin function */
	uint64_t dirty;         /* dirty pages reported to unpin */
	uint64_t dirty_pages;   /* of the first 64 pages of the region, as bits */
};

static int world_pin(void *context, uint64_t ua, uint64_t bytes, prereg_page_list *pages, uint64_t *id)
{
	struct world *world = context;

	world->list = pages;
	if (world->fail_pin != 0)
		return world->fail_pin;
	if (world->push_off_page != 0)
		EXPECT(prereg_page_list_push(pages, world->push_off_page, 1) == -EINVAL);
	if (world->scattered) {
		uint64_t page;

		for (page = (ua - RAM) / PAGE; page < (ua - RAM + bytes) / PAGE; page++)
			EXPECT(prereg_page_list_push(pages, FRAME(2 * page), 1) == 0);
	} else if (!world->push_too_few)
		EXPECT(prereg_page_list_push(pages, FRAME((ua - RAM) / PAGE), bytes / PAGE) == 0);
	if (world->push_too_many)
		EXPECT(prereg_page_list_push(pages, 0x1000, 1) == -E2BIG);
	if (world->push_past_end)
		EXPECT(prereg_page_list_push(pages, UINT64_MAX - PAGE + 1, 2) == -EINVAL);
	if (world->reenter != NULL) {
		prereg_registration *again = NULL;

		EXPECT(prereg_register(world->reenter, ua, bytes, NULL, NULL, &again, NULL) == -EDEADLK && again == NULL);
	}
	world->pinned += bytes / PAGE;
	*id = ua / PAGE;
	return 0;
}

static void world_unpin(void *context, uint64_t id, uint64_t ua, uint64_t bytes, prereg_dirty_pages *dirty)
{
	struct world *world = context;
	uint64_t page;

	EXPECT(id == ua / PAGE);
	while ((page = prereg_dirty_pages_next(dirty)) != UINT64_MAX) {
		world->dirty++;
		if (page < 64)
			world->dirty_pages |= (uint64_t)1 << page;
	}
	world->pinned -= bytes / PAGE;
}

static int world_charge(void *context, uint64_t pages, uint64_t *charged, uint64_t *limit)
{
	struct world *world = context;

	*charged = world->charged;
	*limit = world->limit;
	if (world->charged + pages > world->limit)
		return -1;
	world->charged += pages;
	return 0;
}

static void world_uncharge(void *context, uint64_t pages)
{
	((struct world *)context)->charged -= pages;
}

static void world_release(void *context)
{
	((struct world *)context)->released++;
}

static prereg_space *world_space(struct world *world)
{
	struct prereg_pin_ops pins = { sizeof(pins), world, 12, PREREG_ADDRESS_INVENTED, world_pin, world_unpin, world_release };
	struct prereg_charge_ops charges = { sizeof(charges), world, world_charge, world_uncharge, world_release };
	struct prereg_options options;
	struct prereg_error why;
	prereg_space *space = NULL;

	memset(world, 0, sizeof(*world));
	world->limit = 100000;
	SIZED(options);
	options.backend = PREREG_BACKEND_CALLBACKS;
	options.pin = &pins;
	options.charge = &charges;
	EXPECT(prereg_space_new(&options, &space, &why) == 0);
	EXPECT(why.code == 0 && why.length == 0 && why.message[0] == 0);
	return space;
}

static void world_end(struct world *world, prereg_space **space)
{
	EXPECT(prereg_space_free(space) == 0 && *space == NULL);
	EXPECT(prereg_space_free(space) == 0);
	EXPECT(world->pinned == 0 && world->charged == 0);
	EXPECT(world->released == 2);
}

#endif
