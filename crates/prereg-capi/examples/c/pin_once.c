/* Memory is pinned once; a device's mappings are made and released without a system call; the memory cannot be unregistered while
 * one lives.
 *
 *     cc -o pin_once pin_once.c $(pkg-config --cflags --libs prereg) && ./pin_once
 *
 * Pins with io_uring, so an ordinary user within RLIMIT_MEMLOCK can run it. Exits with 77 if that is forbidden. */

#include <inttypes.h>
#include <prereg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BYTES ((size_t)1 << 20)
#define MAPS 1000000u

static void must(int code, const struct prereg_error *why, const char *what)
{
	if (code < 0) {
		fprintf(stderr, "%s: %s (%d)\n", what, why->message, code);
		exit(1);
	}
}

int main(void)
{
	struct prereg_error why;
	prereg_space *space = NULL;
	prereg_registration *ram = NULL, *second = NULL;
	prereg_translator *reader = NULL;
	struct prereg_mapping mapping;
	struct prereg_range range;
	struct prereg_run runs[4];
	struct prereg_region region;
	uint64_t live = 0, at;
	size_t total = 0;
	unsigned i;
	char *memory;
	int code;

	memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	memset(memory, 0x5a, BYTES);
	at = (uint64_t)(uintptr_t)memory;

	printf("prereg %s\n", prereg_version());
	if (prereg_space_new(NULL, &space, &why) < 0) {
		fprintf(stderr, "cannot pin here: %s\n", why.message);
		return 77;
	}
	printf("pins by %s: %s\n", prereg_space_backend(space), prereg_space_address_note(space));

	/* Pinned and charged here, once. */
	must(prereg_register(space, at, BYTES, NULL, NULL, &ram, &why), &why, "register");
	/* A second owner shares the pages. */
	must(prereg_register(space, at, BYTES, NULL, NULL, &second, &why), &why, "register again");
	region.size = sizeof(region);
	must(prereg_registration_state(ram, &region, &why), &why, "state");
	printf("%" PRIu64 " pages, registered %" PRIu64 " times\n", region.pages, region.used);
	must(prereg_unregister(&second, NULL, &why), &why, "unregister the second");

	must(prereg_translator_new(space, NULL, &reader, &why), &why, "translator");
	for (i = 0; i < MAPS; i++) {
		code = prereg_map(reader, at + i % BYTES / 4096 * 4096, 12, &mapping, NULL);
		if (code < 0 || prereg_unmap(reader, &mapping) < 0)
			return 1;
	}
	printf("%u maps and unmaps\n", MAPS);

	must(prereg_map(reader, at + 0x1000, 12, &mapping, &why), &why, "map");
	printf("the device finds ua %#" PRIx64 " at %#" PRIx64 "\n", mapping.ua, mapping.hpa);
	must(prereg_map_range(reader, at, BYTES, &range, &why), &why, "map a range");
	runs[0].size = sizeof(runs[0]);
	must(prereg_range_runs(&range, 0, runs, 4, &total, &why), &why, "runs");
	printf("%zu bytes are %zu runs; the first has %" PRIu64 " bytes\n", BYTES, total, runs[0].bytes);

	/* A device may be writing there: refused, and nothing changes. */
	code = prereg_unregister(&ram, &live, &why);
	printf("unregister: %d, %" PRIu64 " mappings: %s\n", code, live, why.message);
	if (code != -16 || live != 2 || ram == NULL)
		return 1;

	must(prereg_unmap_range(reader, &range), &why, "unmap the range");
	must(prereg_unmap(reader, &mapping), &why, "unmap");
	must(prereg_unregister(&ram, NULL, &why), &why, "unregister");
	printf("unregistered; anything left: %d\n", prereg_space_is_preregistered(space));

	prereg_translator_free(&reader);
	prereg_space_free(&space);
	munmap(memory, BYTES);
	return 0;
}
