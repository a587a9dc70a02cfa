/* A simulated host that counts pins and checks that nothing is left. */
#ifndef SIMULATED_HOST_H
#define SIMULATED_HOST_H

#include "expect.h"

#define RAM ((uint64_t)0x10000000)
#define FRAME(page) ((uint64_t)0x40000000 + (page) * PAGE)

struct simulated_host {
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

static int simulated_host_pin(void *context, uint64_t ua, uint64_t bytes, prereg_page_list *pages, uint64_t *id)
{
	struct simulated_host *simulated = context;

	simulated->list = pages;
	if (simulated->fail_pin != 0)
		return simulated->fail_pin;
	if (simulated->push_off_page != 0)
		EXPECT(prereg_page_list_push(pages, simulated->push_off_page, 1) == -EINVAL);
	if (simulated->scattered) {
		uint64_t page;

		for (page = (ua - RAM) / PAGE; page < (ua - RAM + bytes) / PAGE; page++)
			EXPECT(prereg_page_list_push(pages, FRAME(2 * page), 1) == 0);
	} else if (!simulated->push_too_few)
		EXPECT(prereg_page_list_push(pages, FRAME((ua - RAM) / PAGE), bytes / PAGE) == 0);
	if (simulated->push_too_many)
		EXPECT(prereg_page_list_push(pages, 0x1000, 1) == -E2BIG);
	if (simulated->push_past_end)
		EXPECT(prereg_page_list_push(pages, UINT64_MAX - PAGE + 1, 2) == -EINVAL);
	if (simulated->reenter != NULL) {
		prereg_registration *again = NULL;

		EXPECT(prereg_register(simulated->reenter, ua, bytes, NULL, NULL, &again, NULL) == -EDEADLK && again == NULL);
	}
	simulated->pinned += bytes / PAGE;
	*id = ua / PAGE;
	return 0;
}

static void simulated_host_unpin(void *context, uint64_t id, uint64_t ua, uint64_t bytes, prereg_dirty_pages *dirty)
{
	struct simulated_host *simulated = context;
	uint64_t page;

	EXPECT(id == ua / PAGE);
	while ((page = prereg_dirty_pages_next(dirty)) != UINT64_MAX) {
		simulated->dirty++;
		if (page < 64)
			simulated->dirty_pages |= (uint64_t)1 << page;
	}
	simulated->pinned -= bytes / PAGE;
}

static int simulated_host_charge(void *context, uint64_t pages, uint64_t *charged, uint64_t *limit)
{
	struct simulated_host *simulated = context;

	*charged = simulated->charged;
	*limit = simulated->limit;
	if (simulated->charged + pages > simulated->limit)
		return -1;
	simulated->charged += pages;
	return 0;
}

static void simulated_host_uncharge(void *context, uint64_t pages)
{
	((struct simulated_host *)context)->charged -= pages;
}

static void simulated_host_release(void *context)
{
	((struct simulated_host *)context)->released++;
}

static prereg_space *simulated_host_space(struct simulated_host *simulated)
{
	struct prereg_pin_ops pins = { sizeof(pins), simulated, 12, PREREG_ADDRESS_INVENTED, simulated_host_pin,
				       simulated_host_unpin, simulated_host_release };
	struct prereg_charge_ops charges = { sizeof(charges), simulated, simulated_host_charge, simulated_host_uncharge,
					     simulated_host_release };
	struct prereg_options options;
	struct prereg_error why;
	prereg_space *space = NULL;

	memset(simulated, 0, sizeof(*simulated));
	simulated->limit = 100000;
	SIZED(options);
	options.backend = PREREG_BACKEND_CALLBACKS;
	options.pin = &pins;
	options.charge = &charges;
	EXPECT(prereg_space_new(&options, &space, &why) == 0);
	EXPECT(why.code == 0 && why.length == 0 && why.message[0] == 0);
	return space;
}

static void simulated_host_end(struct simulated_host *simulated, prereg_space **space)
{
	EXPECT(prereg_space_free(space) == 0 && *space == NULL);
	EXPECT(prereg_space_free(space) == 0);
	EXPECT(simulated->pinned == 0 && simulated->charged == 0);
	EXPECT(simulated->released == 2);
}

#endif
