/* Threads map, each with its own translator, while another registers and unregisters: every address is pinned, and at the end
 * nothing is left. */
#include "simulated_host.h"
#include <pthread.h>

#define ROUNDS 2000
#define THREADS 3

static prereg_space *space;
static int stop;

static void *maps(void *argument)
{
	prereg_translator *reader = NULL;
	struct prereg_mapping mapping;
	unsigned long *done = argument;
	int code;

	EXPECT(prereg_translator_new(space, NULL, &reader, NULL) == 0);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		code = prereg_map(reader, RAM + 3 * PAGE, 12, &mapping, NULL);
		if (code == 0) {
			EXPECT(mapping.hpa == FRAME(3));
			EXPECT(prereg_unmap(reader, &mapping) == 0);
			++*done;
		} else {
			EXPECT(code == -EFAULT || code == -ENXIO);
		}
	}
	EXPECT(prereg_translator_free(&reader) == 0);
	return NULL;
}

int main(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_registration *ram = NULL;
	pthread_t threads[THREADS];
	unsigned long done[THREADS] = { 0 }, busy = 0, all = 0;
	int i, code;

	space = simulated_host_space(&simulated);
	for (i = 0; i < THREADS; i++)
		EXPECT(pthread_create(&threads[i], NULL, maps, &done[i]) == 0);
	for (i = 0; i < ROUNDS; i++) {
		EXPECT(prereg_register(space, RAM, 8 * PAGE, NULL, NULL, &ram, &why) == 0);
		while ((code = prereg_unregister(&ram, NULL, &why)) == -EBUSY)
			busy++;
		EXPECT(code == 0 && ram == NULL);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (i = 0; i < THREADS; i++) {
		EXPECT(pthread_join(threads[i], NULL) == 0);
		all += done[i];
	}
	simulated_host_end(&simulated, &space);
	printf("threads: %d registrations, %lu maps, %lu times busy\n", ROUNDS, all, busy);
	return 0;
}
