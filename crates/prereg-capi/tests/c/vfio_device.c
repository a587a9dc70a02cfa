/* The back end VFIO_TYPE1 on the kernel's own VFIO: devices do DMA to what is registered, and to nothing else.
 *
 * PREREG_EDU names two of QEMU's `edu` devices, bound to vfio-pci, each in an IOMMU group of its own. Without it the program ends
 * with 77: `cargo xtask vm` runs it in a guest that has such devices. `edu` copies between its buffer and the bus. */
#define _GNU_SOURCE
#include "expect.h"
#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define BYTES ((uint64_t)4 << 20)

/* Registers of edu, and the place of its buffer in its own address space. */
#define SOURCE 0x80
#define DESTINATION 0x88
#define COUNT 0x90
#define COMMAND 0x98
#define BUFFER 0x40000
#define START 1u
#define TO_MEMORY 2u
/* What edu reaches. */
#define REACH ((uint64_t)1 << 28)

static struct prereg_error why;
static char names[2][32];
static unsigned char *memory;

/* Like EXPECT, for calls that say why they failed. */
#define MUST(call)                                                                                          \
	do {                                                                                                \
		int code = (call);                                                                          \
		if (code != 0) {                                                                            \
			fprintf(stderr, "%s:%d: %s: %d, %s\n", __FILE__, __LINE__, #call, code, why.message); \
			exit(1);                                                                            \
		}                                                                                           \
	} while (0)

/* Bytes that the kernel counts as locked, which is what type1 counts its pins as. */
static uint64_t locked(void)
{
	FILE *file = fopen("/proc/self/status", "r");
	uint64_t kib = UINT64_MAX;
	char line[256];

	EXPECT(file != NULL);
	while (fgets(line, sizeof(line), file) != NULL)
		if (sscanf(line, "VmLck: %" SCNu64 " kB", &kib) == 1)
			break;
	fclose(file);
	EXPECT(kib != UINT64_MAX);
	return kib << 10;
}

static void set(volatile unsigned char *registers, unsigned at, uint32_t value)
{
	*(volatile uint32_t *)(void *)(uintptr_t)(registers + at) = value;
}

/* Copies one page, as the device does it: a transfer that the IOMMU refuses ends as any other. */
static void transfer(volatile unsigned char *registers, uint64_t source, uint64_t destination, uint32_t direction)
{
	EXPECT(source < REACH && destination < REACH);
	set(registers, SOURCE, (uint32_t)source);
	set(registers, DESTINATION, (uint32_t)destination);
	set(registers, COUNT, PAGE);
	set(registers, COMMAND, START | direction);
	while (*(volatile uint32_t *)(void *)(uintptr_t)(registers + COMMAND) & START)
		usleep(1000);
}

static void fill(uint64_t offset, unsigned seed)
{
	uint64_t at;

	for (at = 0; at < PAGE; at++)
		memory[offset + at] = (unsigned char)(at * 7 + seed);
}

static int holds(uint64_t offset, unsigned seed)
{
	uint64_t at;

	for (at = 0; at < PAGE; at++)
		if (memory[offset + at] != (unsigned char)(at * 7 + seed))
			return 0;
	return 1;
}

/* The device reads the page at `offset` and writes what it read to the next one. */
static void reaches(volatile unsigned char *registers, uint64_t bus, uint64_t offset, unsigned seed)
{
	fill(offset, seed);
	fill(offset + PAGE, seed + 1);
	transfer(registers, bus + offset, BUFFER, 0);
	transfer(registers, BUFFER, bus + offset + PAGE, TO_MEMORY);
	EXPECT(holds(offset + PAGE, seed));
}

/* The device writes where the page at `offset` was, and no byte changes. */
static void does_not_reach(volatile unsigned char *registers, uint64_t bus, uint64_t offset, unsigned seed)
{
	fill(offset, seed);
	transfer(registers, BUFFER, bus + offset, TO_MEMORY);
	EXPECT(holds(offset, seed));
}

static prereg_space *space_on(const char *device, int container)
{
	struct prereg_options options;
	prereg_space *space = NULL;

	SIZED(options);
	options.backend = PREREG_BACKEND_VFIO_TYPE1;
	options.device = device;
	options.container_fd = container;
	MUST(prereg_space_new(&options, &space, &why));
	return space;
}

static uint64_t bus_address(const prereg_range *range)
{
	struct prereg_run run;
	size_t runs;

	SIZED(run);
	MUST(prereg_range_runs(range, 0, &run, 1, &runs, &why));
	EXPECT(runs == 1 && run.bytes == BYTES && run.ua == (uint64_t)(uintptr_t)memory);
	return run.host;
}

static void a_container_of_the_library(void)
{
	prereg_space *space = space_on(names[0], -1);
	prereg_registration *registration = NULL;
	prereg_translator *translator = NULL;
	prereg_device *device[2] = { NULL, NULL };
	prereg_bar *bar[2] = { NULL, NULL };
	volatile unsigned char *first, *second;
	struct prereg_range range;
	uint64_t before = locked(), live = 0, bus;

	MUST(prereg_device_open(space, names[0], &device[0], &why));
	MUST(prereg_device_set_bus_master(device[0], 1, &why));
	MUST(prereg_bar_map(device[0], 0, &bar[0], &why));
	first = prereg_bar_registers(bar[0]);
	EXPECT(first != NULL && *(volatile uint32_t *)(void *)(uintptr_t)first == 0x010000ed);

	MUST(prereg_register(space, (uint64_t)(uintptr_t)memory, BYTES, NULL, NULL, &registration, &why));
	EXPECT(locked() == before + BYTES);
	MUST(prereg_translator_new(space, NULL, &translator, &why));
	MUST(prereg_map_range(translator, (uint64_t)(uintptr_t)memory, BYTES, &range, &why));
	bus = bus_address(&range);
	reaches(first, bus, 0, 1);
	EXPECT(prereg_unregister(&registration, &live, &why) == -EBUSY && registration != NULL && live == 1);
	reaches(first, bus, BYTES - 2 * PAGE, 2);

	/* A second device reaches the same memory, and the first may leave then. */
	MUST(prereg_space_add_device(space, names[1], &why));
	EXPECT(locked() == before + BYTES);
	MUST(prereg_device_open(space, names[1], &device[1], &why));
	MUST(prereg_device_set_bus_master(device[1], 1, &why));
	MUST(prereg_bar_map(device[1], 0, &bar[1], &why));
	second = prereg_bar_registers(bar[1]);
	reaches(second, bus, 0, 3);
	MUST(prereg_bar_unmap(&bar[0]));
	MUST(prereg_device_close(&device[0]));
	MUST(prereg_space_remove_device(space, names[0], &why));
	reaches(second, bus, 0, 4);
	EXPECT(prereg_space_remove_device(space, names[1], &why) == -EBUSY);
	MESSAGE_HAS(why, "the last one of its container");

	MUST(prereg_unmap_range(translator, &range));
	EXPECT(locked() == before + BYTES);
	MUST(prereg_unregister(&registration, &live, &why));
	EXPECT(locked() == before && live == 0);
	does_not_reach(second, bus, 0, 5);
	does_not_reach(second, bus, BYTES - PAGE, 6);

	MUST(prereg_bar_unmap(&bar[1]));
	MUST(prereg_device_close(&device[1]));
	MUST(prereg_translator_free(&translator));
	MUST(prereg_space_free(&space));
}

/* As a program that manages groups and devices itself: the library gets the container's descriptor only. */
static void a_container_of_the_caller(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group, device;
	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX };
	struct vfio_region_info config = { .argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	prereg_space *space;
	prereg_registration *registration = NULL;
	prereg_translator *translator = NULL;
	struct prereg_range range;
	volatile unsigned char *registers;
	uint64_t before, bus;
	char path[128], target[256];
	uint16_t command;
	ssize_t length;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", names[0]);
	length = readlink(path, target, sizeof(target) - 1);
	EXPECT(length > 0);
	target[length] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%d", atoi(strrchr(target, '/') + 1));
	group = open(path, O_RDWR);
	EXPECT(container >= 0 && group >= 0 && ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	EXPECT(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, names[0]);
	EXPECT(device >= 0 && ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) == 0);
	EXPECT(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) == 0);
	EXPECT(pread(device, &command, sizeof(command), (off_t)config.offset + 4) == sizeof(command));
	command |= 6;
	EXPECT(pwrite(device, &command, sizeof(command), (off_t)config.offset + 4) == sizeof(command));
	registers = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
	EXPECT(registers != MAP_FAILED);

	before = locked();
	space = space_on(NULL, container);
	MUST(prereg_register(space, (uint64_t)(uintptr_t)memory, BYTES, NULL, NULL, &registration, &why));
	EXPECT(locked() == before + BYTES);
	MUST(prereg_translator_new(space, NULL, &translator, &why));
	MUST(prereg_map_range(translator, (uint64_t)(uintptr_t)memory, BYTES, &range, &why));
	bus = bus_address(&range);
	reaches(registers, bus, 0, 7);
	EXPECT(prereg_unregister(&registration, NULL, &why) == -EBUSY);
	reaches(registers, bus, 0, 8);
	MUST(prereg_unmap_range(translator, &range));
	MUST(prereg_unregister(&registration, NULL, &why));
	EXPECT(locked() == before);
	does_not_reach(registers, bus, 0, 9);
	MUST(prereg_translator_free(&translator));
	MUST(prereg_space_free(&space));
	munmap((void *)(uintptr_t)registers, bar.size);
	close(device);
	close(group);
	close(container);
}

int main(void)
{
	const char *devices = getenv("PREREG_EDU");

	if (devices == NULL) {
		fprintf(stderr, "PREREG_EDU names no edu devices\n");
		return 77;
	}
	EXPECT(sscanf(devices, "%31s %31s", names[0], names[1]) == 2);
	memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	EXPECT(memory != MAP_FAILED);
	a_container_of_the_library();
	a_container_of_the_caller();
	puts("vfio_device: all as expected");
	return 0;
}
