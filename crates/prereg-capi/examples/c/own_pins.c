/* A program with its own pins, for example by a driver's ioctl, a hypervisor's call, or a pool of pages that never move. Here the
 * "device" is an array of frames, which the program allocates.
 *
 *     cc -o own_pins own_pins.c $(pkg-config --cflags --libs prereg) && ./own_pins */

#include <errno.h>
#include <inttypes.h>
#include <prereg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096u
#define LIMIT 64u

struct host {
	uint64_t next_frame;
	uint64_t pinned, charged, released;
};

/* Every page gets the next frame, with a hole after each eighth, because memory is seldom contiguous. */
static int pin(void *context, uint64_t ua, uint64_t bytes, prereg_page_list *pages, uint64_t *id)
{
	struct host *host = context;
	uint64_t page;

	for (page = 0; page < bytes / PAGE; page++) {
		if (page % 8 == 0)
			host->next_frame++;
		if (prereg_page_list_push(pages, host->next_frame++ * PAGE, 1) < 0)
			return -ENOMEM;
	}
	host->pinned += bytes / PAGE;
	*id = ua;
	return 0;
}

static void unpin(void *context, uint64_t id, uint64_t ua, uint64_t bytes, prereg_dirty_pages *dirty)
{
	struct host *host = context;
	uint64_t page;

	if (id != ua)
		abort();
	while ((page = prereg_dirty_pages_next(dirty)) != UINT64_MAX)
		printf("page %" PRIu64 " was written by the device\n", page);
	host->pinned -= bytes / PAGE;
}

static int charge(void *context, uint64_t pages, uint64_t *charged, uint64_t *limit)
{
	struct host *host = context;

	*charged = host->charged;
	*limit = LIMIT;
	if (host->charged + pages > LIMIT)
		return -ENOMEM;
	host->charged += pages;
	return 0;
}

static void uncharge(void *context, uint64_t pages)
{
	((struct host *)context)->charged -= pages;
}

static void release(void *context)
{
	((struct host *)context)->released++;
}

int main(void)
{
	struct host host = { 0x1000, 0, 0, 0 };
	struct prereg_pin_ops pins;
	struct prereg_charge_ops charges;
	struct prereg_options options;
	struct prereg_error why;
	struct prereg_mapping mapping;
	prereg_space *space = NULL;
	prereg_registration *ram = NULL, *more = NULL;
	prereg_translator *reader = NULL;
	const uint64_t at = 0x10000000;
	int code;

	memset(&pins, 0, sizeof(pins));
	pins.size = sizeof(pins);
	pins.context = &host;
	pins.granule_shift = 12;
	pins.address_kind = PREREG_ADDRESS_INVENTED;
	pins.pin = pin;
	pins.unpin = unpin;
	pins.release = release;
	memset(&charges, 0, sizeof(charges));
	charges.size = sizeof(charges);
	charges.context = &host;
	charges.charge = charge;
	charges.uncharge = uncharge;
	charges.release = release;
	memset(&options, 0, sizeof(options));
	options.size = sizeof(options);
	options.backend = PREREG_BACKEND_CALLBACKS;
	options.pin = &pins;
	options.charge = &charges;

	if (prereg_space_new(&options, &space, &why) < 0 ||
	    prereg_register(space, at, 32 * PAGE, NULL, NULL, &ram, &why) < 0 ||
	    prereg_translator_new(space, NULL, &reader, &why) < 0 ||
	    prereg_map(reader, at + 9 * PAGE + 0x123, 12, &mapping, &why) < 0) {
		fprintf(stderr, "%s\n", why.message);
		return 1;
	}
	printf("pinned %" PRIu64 ", charged %" PRIu64 ", the device finds the byte at %#" PRIx64 "\n", host.pinned,
	       host.charged, mapping.hpa);
	if (host.pinned != 32 || host.charged != 32 || mapping.hpa != 0x100b123)
		return 1;
	prereg_mark_dirty(reader, at + 9 * PAGE);

	code = prereg_register(space, at + 32 * PAGE, 33 * PAGE, NULL, NULL, &more, &why);
	printf("33 pages more: %d: %s\n", code, why.message);
	if (code != -ENOMEM || more != NULL || host.charged != 32)
		return 1;

	code = prereg_unregister(&ram, NULL, &why);
	printf("unregister: %d: %s\n", code, why.message);
	if (code != -EBUSY)
		return 1;
	if (prereg_unmap(reader, &mapping) < 0 || prereg_unregister(&ram, NULL, &why) < 0)
		return 1;
	prereg_translator_free(&reader);
	prereg_space_free(&space);
	printf("pinned %" PRIu64 ", charged %" PRIu64 ", contexts released %" PRIu64 "\n", host.pinned, host.charged,
	       host.released);
	return host.pinned == 0 && host.charged == 0 && host.released == 2 ? 0 : 1;
}
