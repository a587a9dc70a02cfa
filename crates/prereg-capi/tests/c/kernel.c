/* The back ends of VFIO and iommufd on a machine without them: an errno, and a message with the cause. */
#include "simulated_host.h"
#include <unistd.h>

#define NO_DEVICE "ffff:ff:1f.7"

static prereg_space *space;

static int made(uint32_t backend, const char *device, struct prereg_error *why)
{
	struct prereg_options options;
	int code;

	SIZED(options);
	options.backend = backend;
	options.device = device;
	space = (void *)1;
	code = prereg_space_new(&options, &space, why);
	EXPECT(code < 0 && space == NULL && why->code == code && why->length > 20);
	return code;
}

static void what_is_missing_is_said(void)
{
	struct prereg_error why;
	int code;

	EXPECT(made(PREREG_BACKEND_VFIO_TYPE1, NO_DEVICE, &why) == -ENODEV);
	MESSAGE_HAS(why, "there is no PCI device " NO_DEVICE);
	EXPECT(made(PREREG_BACKEND_VFIO_SPAPR_V2, NO_DEVICE, &why) == -ENODEV);
	MESSAGE_HAS(why, "there is no PCI device " NO_DEVICE);
	code = made(PREREG_BACKEND_IOMMUFD, NO_DEVICE, &why);
	if (access("/dev/iommu", F_OK) != 0) {
		EXPECT(code == -ENOENT);
		MESSAGE_HAS(why, "/dev/iommu is not there");
		MESSAGE_HAS(why, "CONFIG_IOMMUFD");
	}
	EXPECT(made(PREREG_BACKEND_VFIO_SPAPR_V2, NULL, &why) == -EINVAL);
	MESSAGE_HAS(why, "device of prereg_options is NULL");
	EXPECT(made(PREREG_BACKEND_IOMMUFD, NULL, &why) == -EINVAL);
	EXPECT(made(PREREG_BACKEND_IOMMUFD, "\xff\xfe", &why) == -EINVAL);
	MESSAGE_HAS(why, "not UTF-8");
	EXPECT(made(PREREG_BACKEND_VFIO_TYPE1, "../../../etc/passwd", &why) == -ENODEV);
	EXPECT(made(PREREG_BACKEND_VFIO_TYPE1, "", &why) == -ENODEV);
}

static void options_of_other_back_ends_are_refused(void)
{
	struct prereg_options options;
	struct prereg_error why;

	SIZED(options);
	options.backend = PREREG_BACKEND_VFIO_TYPE1;
	options.device = NO_DEVICE;
	options.container_fd = 7;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	MESSAGE_HAS(why, "either device or container_fd");
	options.container_fd = -1;
	options.placement = PREREG_PLACEMENT_HELD;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	MESSAGE_HAS(why, "placement of prereg_options is set, and the back end VFIO_TYPE1 does not use it");
	options.backend = PREREG_BACKEND_IOMMUFD;
	options.placement = 2;
	EXPECT(prereg_space_new(&options, &space, &why) == -EINVAL);
	MESSAGE_HAS(why, "PREREG_PLACEMENT_");
}

static void other_spaces_have_none_of_it(void)
{
	struct simulated_host simulated;
	struct prereg_error why;
	prereg_space *made_up = simulated_host_space(&simulated);
	prereg_device *device = (void *)1;
	prereg_window *window = (void *)1;
	prereg_io_table *table = (void *)1;
	struct prereg_geometry shape;
	struct prereg_entry entry;
	prereg_translator *reader = NULL;
	prereg_bar *bar = (void *)1;
	uint64_t page = RAM;
	uint16_t value;

	SIZED(shape);
	SIZED(entry);
	EXPECT(prereg_translator_new(made_up, NULL, &reader, &why) == 0);
	EXPECT(prereg_space_add_device(made_up, NO_DEVICE, &why) == -EOPNOTSUPP);
	MESSAGE_HAS(why, "callbacks has no devices");
	EXPECT(prereg_space_remove_device(made_up, NO_DEVICE, &why) == -EOPNOTSUPP);
	EXPECT(prereg_space_add_device(made_up, NULL, &why) == -EINVAL);
	EXPECT(prereg_device_open(made_up, NO_DEVICE, &device, &why) == -EOPNOTSUPP && device == NULL);
	EXPECT(prereg_window_default(made_up, &window, &why) == -EOPNOTSUPP && window == NULL);
	EXPECT(prereg_window_create(made_up, 16, 1 << 30, PREREG_WINDOW_BESIDE, &window, &why) == -EOPNOTSUPP);
	EXPECT(prereg_window_create(made_up, 16, 1 << 30, 9, &window, &why) == -EINVAL);
	EXPECT(prereg_io_table_new(made_up, &table, &why) == -EOPNOTSUPP && table == NULL);
	MESSAGE_HAS(why, "tables of memory for devices");

	EXPECT(prereg_device_set_bus_master(device, 1, &why) == -EINVAL && prereg_device_reset(device, &why) == -EINVAL);
	EXPECT(prereg_device_config_read(device, 0, &value, &why) == -EINVAL);
	EXPECT(prereg_device_config_write(device, 4, 0, &why) == -EINVAL && prereg_device_close(&device) == 0);
	EXPECT(prereg_window_geometry(window, &shape) == -EINVAL && prereg_window_live(window) == 0);
	EXPECT(prereg_window_set_run(window, reader, 0, 1, RAM, 3, &why) == -EINVAL);
	EXPECT(prereg_window_clear(window, reader, 0, 1, NULL, &why) == -EINVAL);
	EXPECT(prereg_window_inspect(window, 0, &entry) == -EINVAL && prereg_window_free(&window) == 0);
	EXPECT(prereg_io_table_map(table, reader, 0, PAGE, RAM, 3, &why) == -EINVAL);
	EXPECT(prereg_io_table_unmap(table, reader, 0, PAGE, &why) == -EINVAL);
	EXPECT(prereg_bar_map(device, 0, &bar, &why) == -EINVAL && bar == NULL);
	EXPECT(prereg_bar_registers(bar) == NULL && prereg_bar_bytes(bar) == 0 && prereg_bar_unmap(&bar) == 0);
	EXPECT(prereg_window_set_list(window, reader, 0, &page, 1, 3, &why) == -EINVAL);
	EXPECT(prereg_io_table_live(table) == 0 && prereg_io_table_free(&table) == 0);
	EXPECT(prereg_translator_free(&reader) == 0);
	simulated_host_end(&simulated, &made_up);
}

int main(void)
{
	what_is_missing_is_said();
	options_of_other_back_ends_are_refused();
	other_spaces_have_none_of_it();
	puts("kernel: all as expected");
	return 0;
}
