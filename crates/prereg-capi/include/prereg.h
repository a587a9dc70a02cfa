/* prereg: DMA memory pre-registration. Pin once, map a million times.
 *
 * A space owns regions. A registration is one owner's claim on a region: the first pins every page and charges it, the
 * last unpins. A translator is a thread's reader handle: it maps a page by a lookup, a count and a load. A mapping is one
 * counted use, and only it has a host address; while one lives, the last prereg_unregister() returns -EBUSY.
 *
 *     struct prereg_error why;
 *     prereg_space *space = NULL;
 *     prereg_registration *ram = NULL;
 *     prereg_translator *reader = NULL;
 *     struct prereg_mapping m;
 *
 *     if (prereg_space_new(NULL, &space, &why) < 0)
 *         return fail(why.message);
 *     prereg_register(space, (uint64_t)memory, bytes, NULL, NULL, &ram, &why);
 *     prereg_translator_new(space, NULL, &reader, &why);
 *     prereg_map(reader, (uint64_t)memory + 0x1000, 12, &m, &why);
 *     program_the_device(m.hpa);
 *     prereg_unregister(&ram, NULL, &why);            // -EBUSY; ram is as it was
 *     prereg_unmap(reader, &m);
 *     prereg_unregister(&ram, NULL, &why);            // 0; ram is NULL
 *
 * RESULTS. A call returns 0 (a few return 1 for "yes"), or a negative errno and changes nothing, unless its documentation says
 * otherwise. Most calls take a struct prereg_error for the number and a message; NULL is allowed. There is no global or
 * per-thread state.
 *
 * POINTERS. NULL is allowed where the documentation says so and returns -EINVAL elsewhere, as does a pointer that is not
 * aligned for its type. Every other pointer must be valid for its type. Two pointers of one call must not overlap.
 *
 * HANDLES. A call that creates a handle writes it to the variable whose address it gets (NULL if it fails); a call that
 * releases one takes the variable's address and sets it to NULL. Releasing NULL has no effect. A handle is a number, not an
 * address: one of another type, one that was released through a copy of the variable and an invalid one return -EINVAL, and
 * are never mistaken for a newer one.
 *
 * MAPPINGS. struct prereg_mapping and struct prereg_range refer to mappings in the library. Only the struct that the call
 * filled, at its address, is the mapping; it is released once. Releasing it or a copy again returns -EINVAL and releases
 * nothing.
 *
 * SIZES. Structs whose first member is `size` are set to zero first, then size to sizeof; also those that a call fills. A
 * program that was compiled with an older header continues to work: members that its struct lacks are read as zero and are
 * not written. One that was compiled with a newer header works if the members that this library does not know are zero;
 * otherwise the result is -EINVAL. In an array the size of the first element is the distance of the elements. struct
 * prereg_error, prereg_mapping and prereg_range never change their size and need no preparation. Reserved members, undefined
 * bits, and options that are not used are refused with -EINVAL unless they are zero.
 *
 * THREADS. A space, a state, entries, a table, an owner, a container, an IOVA map, a device, a window: any number of threads
 * at once. A translator: one thread at a time, any thread; a signal handler has its own. A guest: hypercalls and lookups on
 * any number of threads at once, every other call alone. A mapping, a range, a registration, a hold: may be passed between
 * threads; of several threads that release one, one succeeds. No call on a handle may run while the handle is released.
 *
 * SIGNAL HANDLERS. prereg_map, prereg_unmap, prereg_check, prereg_map_range, prereg_range_runs, prereg_unmap_range:
 * no lock, no allocation, no system call, no page fault, with a translator of the handler's own, while no more of its
 * mappings live than it has slots: 32, or the number that prereg_translator_reserve was called with.
 *
 * DIRTY PAGES. The pages reported to unpin as written: those of holds that write (prereg_iova_hold), of table entries with
 * write permission, of prereg_unmap_written and prereg_unmap_range_written, and of prereg_mark_dirty and
 * prereg_mark_dirty_range. The library does not detect writes to pages of prereg_map and prereg_map_range.
 *
 * ADDRESSES. Every host address comes from the back end's pins. With PREREG_BACKEND_CALLBACKS the program guarantees them: see
 * struct prereg_pin_ops. With PREREG_BACKEND_FIXED and prereg_register_device it guarantees `host`. With the other back ends
 * the library does: it reads each address after the page is pinned.
 *
 * PANICS. A defect of the library that causes a panic is caught: the call returns -ENOTRECOVERABLE, which has no other use,
 * and a report is written to standard error; continue only to save data. A library that was built with panic=abort ends the
 * process instead. Out of memory is -ENOMEM for handles; in the small lists inside a call it ends the process. Functions that
 * the program passes must not throw, unwind or jump out.
 *
 * FORK. A child must not use the handles of its parent.
 *
 * Generated by cbindgen from the source: do not edit. SPDX-License-Identifier: Apache-2.0 OR MIT
 */

#ifndef PREREG_H
#define PREREG_H

#include <stddef.h>
#include <stdint.h>

/** The major version of this header and of the ABI, and the number in the library's soname. */
#define PREREG_VERSION_MAJOR 0

/** The minor version. A program runs with a library of the same major version and this or a later minor version. */
#define PREREG_VERSION_MINOR 2

/** The patch level. */
#define PREREG_VERSION_PATCH 0

/** Bytes of a message, its closing NUL included. */
#define PREREG_MESSAGE_BYTES 504

/** Chosen by the back end: physical addresses if this process may read them, otherwise (slot, offset). */
#define PREREG_ADDRESS_ANY 0

/** Physical addresses. */
#define PREREG_ADDRESS_PHYSICAL 1

/** Addresses on an I/O bus. */
#define PREREG_ADDRESS_IOVA 2

/** (slot, offset) of an io_uring fixed buffer: see `prereg_slot_address`. */
#define PREREG_ADDRESS_SLOT_OFFSET 3

/** Addresses of device memory. */
#define PREREG_ADDRESS_DEVICE 4

/** No device may use them: they are invented, or belong to memory that is not pinned. */
#define PREREG_ADDRESS_INVENTED 5

/** The user addresses themselves: the kernel translates them wherever a host address is needed. */
#define PREREG_ADDRESS_USER 6

/** Held for anything else. */
#define PREREG_HOLDER_OTHER 0

/** Held by an entry of an IOMMU table. */
#define PREREG_HOLDER_TABLE_ENTRY 1

/** Held by an I/O in flight. */
#define PREREG_HOLDER_IN_FLIGHT 2

/** The device may read memory. */
#define PREREG_ACCESS_READ 1

/** The device may write memory. */
#define PREREG_ACCESS_WRITE 2

/** Device memory: neither pinned nor charged. */
#define PREREG_REGION_DEVICE 1

/** Without registrations, closed for new mappings, released with the last mapping. */
#define PREREG_REGION_DRAINING 2

/** Pins with io_uring: FOLL_LONGTERM, for any user within RLIMIT_MEMLOCK. The default. */
#define PREREG_BACKEND_IO_URING 0

/** Locks with mlock(2). Locked pages can move: for comparison, not for devices. */
#define PREREG_BACKEND_MLOCK 1

/** Device memory: host address = `fixed_host` + offset; nothing is pinned or charged. */
#define PREREG_BACKEND_FIXED 2

/** The caller's functions pin: see `prereg_pin_ops`. */
#define PREREG_BACKEND_CALLBACKS 3

/**
 * A VFIO container of type1 version 2: a region is mapped into it once, which pins it; host addresses are I/O addresses. The
 * container is opened with the group of `device`; or, if `device` is NULL, it is the caller's own (`container_fd`), in which the caller
 * keeps a group.
 */
#define PREREG_BACKEND_VFIO_TYPE1 4

/**
 * A VFIO container of SPAPR TCE version 2, on POWER, opened with the group of `device`: memory is registered with it
 * once, and devices reach it through windows (`prereg_window`). Host addresses are user addresses.
 */
#define PREREG_BACKEND_VFIO_SPAPR_V2 5

/**
 * iommufd with `device` attached: memory is pinned once in a staging IOAS and mapped for devices according to `placement`. Host
 * addresses are I/O addresses.
 */
#define PREREG_BACKEND_IOMMUFD 6

/** Devices reach all registered memory, at the host addresses of its mappings. */
#define PREREG_PLACEMENT_SHARED 0

/** Devices reach memory that a `prereg_io_table` maps, at its addresses. No device can use host addresses. */
#define PREREG_PLACEMENT_HELD 1

/** The rules of QEMU in user space. */
#define PREREG_RULES_QEMU 0

/** The rules of KVM's handlers. A call that KVM passes on to user space follows QEMU's rules. */
#define PREREG_RULES_KVM 1

/** The number of H_GET_TCE. */
#define PREREG_H_GET_TCE 28

/** The number of H_PUT_TCE. */
#define PREREG_H_PUT_TCE 32

/** The number of H_STUFF_TCE. */
#define PREREG_H_STUFF_TCE 312

/** The number of H_PUT_TCE_INDIRECT. */
#define PREREG_H_PUT_TCE_INDIRECT 316

/** H_SUCCESS. */
#define PREREG_H_SUCCESS 0

/** H_BUSY: another vCPU keeps changing the same entry; nothing changed. */
#define PREREG_H_BUSY 1

/** H_HARDWARE: the translator is of another space. */
#define PREREG_H_HARDWARE (-1)

/** H_PARAMETER: a bad argument. */
#define PREREG_H_PARAMETER (-4)

/** H_RESOURCE: no memory for a part of a table. */
#define PREREG_H_RESOURCE (-16)

/** H_TOO_HARD: the fast path cannot do it. A guest never receives it. */
#define PREREG_H_TOO_HARD 9999

/** Bare-metal POWER9. */
#define PREREG_PLATFORM_POWERNV 0

/** Bare-metal POWER8. */
#define PREREG_PLATFORM_POWERNV8 1

/** A guest of a POWER hypervisor. */
#define PREREG_PLATFORM_PSERIES 2

/** A window in addition to the default one, at a high bus address. */
#define PREREG_WINDOW_BESIDE 0

/** A window in the place of the default one, which is removed: for devices that cannot address more. */
#define PREREG_WINDOW_INSTEAD 1

/** The registers of a device, mapped. */
typedef struct prereg_bar prereg_bar;

/** A VFIO container. Any thread; calls are serialised by a lock, as in the kernel. */
typedef struct prereg_container prereg_container;

/** A PCI device opened through VFIO. Any number of threads at once. */
typedef struct prereg_device prereg_device;

/**
 * The pages of a region that were marked as written, and possibly adjacent ones: every page of an access that writes
 * (`prereg_iova_hold`), of a table entry with write permission, and of `prereg_mark_dirty` and similar calls. Valid until the unpin
 * function returns.
 */
typedef struct prereg_dirty_pages prereg_dirty_pages;

/** A draining region: no registration, no new mappings. */
typedef struct prereg_draining prereg_draining;

/**
 * A block of entries of one page size, each of which may own one counted mapping. Any number of threads at once: changes
 * of one entry are serialised.
 */
typedef struct prereg_entries prereg_entries;

/**
 * A guest: its memory slots and its TCE tables. Hypercalls and lookups run on any number of threads at once, each with a
 * translator of its own; every other call only while none of these runs.
 */
typedef struct prereg_guest prereg_guest;

/** An access in flight: the memory stays pinned at its addresses until it is released, on any thread. */
typedef struct prereg_hold prereg_hold;

/**
 * The ranges of registered memory that devices of an iommufd reach: each is a counted mapping here and a copy in the kernel. Any
 * number of threads at once, each with a translator of its own.
 */
typedef struct prereg_io_table prereg_io_table;

/** A device's I/O virtual address space. Any thread may map, unmap and access at any time. */
typedef struct prereg_iova prereg_iova;

/**
 * The process of containers: an address space, an account, and the memory of the process. Two owners of the same space are the same
 * process. Any thread.
 */
typedef struct prereg_owner prereg_owner;

/**
 * The pages of a range that is being pinned, to which the pin function pushes their host addresses. Valid until that function
 * returns.
 */
typedef struct prereg_page_list prereg_page_list;

/**
 * One registration of a region, which stays pinned as long as one of them lives. Any thread; released only while no other
 * thread uses the handle.
 */
typedef struct prereg_registration prereg_registration;

/** An address space: the owner of a set of regions. One per process, or one per guest. Any number of threads at once. */
typedef struct prereg_space prereg_space;

/** A snapshot of a space: plain data that does not change. Any thread. */
typedef struct prereg_state prereg_state;

/**
 * A table through which devices access memory: each live entry is one counted mapping. Any number of threads at once, each with a
 * translator of its own. It may be shared with guests' tables and containers.
 */
typedef struct prereg_table prereg_table;

/**
 * A reader handle of a space: looks pages up and counts their mappings. Used by one thread at a time, any thread. A signal
 * handler has its own.
 */
typedef struct prereg_translator prereg_translator;

/** An unmap that may wait for accesses. */
typedef struct prereg_unmapping prereg_unmapping;

/**
 * The table of a window of a SPAPR container: every entry is a counted mapping here and an entry in the kernel. Any thread, any
 * number at once, each with a translator of its own.
 */
typedef struct prereg_window prereg_window;

/**
 * The caller's functions that pin memory: set `backend` to `PREREG_BACKEND_CALLBACKS` and `pin` to this.
 *
 * The functions are called from many threads at once, never under a lock of this library. They must not throw, jump out,
 * or call back into the same space; registering the range that is being pinned or unpinned returns -EDEADLK. The struct
 * is copied, `context` is not.
 *
 * ADDRESSES are guaranteed by the program that supplies these functions. The library checks that there is one address for every page
 * of the range, that each is the start of a page, that no run passes 2^64, and that a large page is mapped only where the addresses are
 * contiguous and aligned. It never dereferences an address: every `hpa` and `host` that it returns later is one of these plus an
 * offset in its page, of the kind `address_kind`. It returns them with a mapping (and for reports by `prereg_registration_runs`), and
 * calls `unpin` only when nothing is mapped.
 */
typedef struct prereg_pin_ops {
  /** sizeof(struct prereg_pin_ops). */
  size_t size;
  /** Passed to each function. */
  void *context;
  /** The system page size as a power of two: 12 to 24; 0 for the system's. */
  uint32_t granule_shift;
  /** The meaning of the host addresses: a `PREREG_ADDRESS_...`; ANY means INVENTED, which no device may use. */
  uint32_t address_kind;
  /**
   * Pins every page of `bytes` bytes at `ua` and pushes the host address of each, in order, with
   * `prereg_page_list_push`; sets `id` to a number that is passed to `unpin`. Devices are programmed with these
   * addresses: until `unpin` is called, each must reach the page for which it was pushed and no other memory. Returns 0, or
   * a negative errno with nothing pinned.
   */
  int (*pin)(void *context, uint64_t ua, uint64_t bytes, struct prereg_page_list *pages, uint64_t *id);
  /** Releases the pin; the pages are unpinned when it returns. `dirty` is read with `prereg_dirty_pages_next`. */
  void (*unpin)(void *context, uint64_t id, uint64_t ua, uint64_t bytes, struct prereg_dirty_pages *dirty);
  /** Called after the last use of the context. May be NULL. */
  void (*release)(void *context);
} prereg_pin_ops;

/**
 * The caller's functions that count locked memory: set `charge` of the options to this. With NULL the back end counts, against
 * RLIMIT_MEMLOCK. The rules for the functions are those of `prereg_pin_ops`.
 */
typedef struct prereg_charge_ops {
  /** sizeof(struct prereg_charge_ops). */
  size_t size;
  /** Passed to each function. */
  void *context;
  /**
   * Adds `pages` system pages. Returns 0; or another value with nothing charged: the registration then fails with
   * -ENOMEM, and its message has `charged` and `limit` (both in pages).
   */
  int (*charge)(void *context, uint64_t pages, uint64_t *charged, uint64_t *limit);
  /** Subtracts `pages` pages. */
  void (*uncharge)(void *context, uint64_t pages);
  /** Called after the last use of the context. May be NULL. */
  void (*release)(void *context);
} prereg_charge_ops;

/**
 * Options of a space. Set all of it to zero, then `size`, then the options. An option that the back end does not use is refused
 * with -EINVAL unless it is zero.
 */
typedef struct prereg_options {
  /** sizeof(struct prereg_options). */
  size_t size;
  /** A `PREREG_BACKEND_...`. */
  uint32_t backend;
  /**
   * The required kind of host addresses, for `PREREG_BACKEND_IO_URING`: ANY, PHYSICAL (fails with -EPERM if they are
   * hidden) or SLOT_OFFSET.
   */
  uint32_t addresses;
  /** Threads that prefault memory before it is pinned (io_uring); 0: one for each processor, up to 8. */
  uint32_t fault_threads;
  /** The page size of `PREREG_BACKEND_FIXED` as a power of two; 0 for the system's. */
  uint32_t granule_shift;
  /** The most bytes of one slot (io_uring); 0: the kernel's limit. */
  uint64_t slot_limit;
  /** Bytes that may be locked, rounded down to pages; 0: RLIMIT_MEMLOCK. Not with `charge`. */
  uint64_t locked_limit;
  /**
   * The descriptor of the container of `PREREG_BACKEND_VFIO_TYPE1`; duplicated. 0 or -1 for the other back ends and with
   * `device`.
   */
  int container_fd;
  /** Zero. */
  uint32_t reserved;
  /** The window of `PREREG_BACKEND_FIXED`: its first user address. */
  uint64_t fixed_ua;
  /** Its length. */
  uint64_t fixed_bytes;
  /** The host address of its first byte. */
  uint64_t fixed_host;
  /**
   * Called during the prefault of large memory (io_uring), by the threads that do it: bytes done, bytes in total. A result
   * other than 0 cancels it: the registration fails with -EINTR and nothing is pinned. May be NULL.
   */
  int (*progress)(void *context, uint64_t done, uint64_t total);
  /** Passed to `progress`; must stay valid as long as the space and everything created from it. */
  void *progress_context;
  /** For `PREREG_BACKEND_CALLBACKS`. */
  const struct prereg_pin_ops *pin;
  /** The caller's account, or NULL. */
  const struct prereg_charge_ops *charge;
  /** For the back ends of VFIO and iommufd: a PCI address as in /sys/bus/pci/devices, "0000:00:04.0". */
  const char *device;
  /** The placement of memory for devices, for `PREREG_BACKEND_IOMMUFD`: a `PREREG_PLACEMENT_...`. */
  uint32_t placement;
  /** Zero. */
  uint32_t reserved_too;
} prereg_options;

/**
 * The reason of a failed call. Every call that takes one also takes NULL; a call that succeeds sets `code` to 0 and the message to
 * the empty string.
 *
 * Its size never changes, so it needs no member for that, and no preparation.
 */
typedef struct prereg_error {
  /** 0, or the negative errno that the call returned. */
  int32_t code;
  /** Bytes of the message without its closing NUL. */
  uint32_t length;
  /** The request, the finding and the remedy; UTF-8, cut to fit. */
  char message[PREREG_MESSAGE_BYTES];
} prereg_error;

/** The state of a region at one moment. */
typedef struct prereg_region {
  /** sizeof(struct prereg_region), set by the caller. */
  size_t size;
  /** The first byte. */
  uint64_t ua;
  /** The length in bytes. */
  uint64_t bytes;
  /** The length in system pages. */
  uint64_t pages;
  /** Registrations. */
  uint64_t used;
  /** The live mappings + 1, as the kernel counts them. */
  uint64_t mapped;
  /** Memory for the region's tables, in bytes. */
  uint64_t metadata_bytes;
  /** The largest page with which it can be mapped, as a power of two. */
  uint32_t largest_page;
  /** `PREREG_REGION_...`, or'ed. */
  uint32_t flags;
} prereg_region;

/** The sums of a space at one moment. */
typedef struct prereg_totals {
  /** sizeof(struct prereg_totals), set by the caller. */
  size_t size;
  /** Regions. */
  uint64_t regions;
  /** System pages pinned for them. */
  uint64_t pinned_pages;
  /** System pages charged for them. */
  uint64_t charged_pages;
  /** Ranges pinned since the space was created. */
  uint64_t pins;
  /** Ranges unpinned since the space was created. */
  uint64_t unpins;
  /** Existing translators. */
  uint64_t translators;
  /** Old tables and headers of released regions that an idle translator keeps. */
  uint64_t unreclaimed;
} prereg_totals;

/** The registrations or mappings of one holder. */
typedef struct prereg_held {
  /** sizeof(struct prereg_held), set by the caller; in an array, in the first element. */
  size_t size;
  /** Number of the holder. */
  uint64_t container;
  /** Kind of the holder, a `PREREG_HOLDER_...`. */
  uint32_t kind;
  /** Zero. */
  uint32_t reserved;
  /** Their number. */
  uint64_t count;
} prereg_held;

/** The holder of a registration or a mapping, for reports. NULL is a holder without number and kind. */
typedef struct prereg_holder {
  /** sizeof(struct prereg_holder). */
  size_t size;
  /** A number of the caller's choice; 0 for none. */
  uint64_t container;
  /** A `PREREG_HOLDER_...`. */
  uint32_t kind;
  /** Zero. */
  uint32_t reserved;
} prereg_holder;

/**
 * Keeps registered memory mapped: `release` is called when the last page is unpinned. If the range is registered already, the region
 * keeps its owner, and `release` of the new one is called before the call returns.
 */
typedef struct prereg_keep {
  /** sizeof(struct prereg_keep). */
  size_t size;
  /** Passed to the function. */
  void *context;
  /** Called after the last use of the memory, on any thread. */
  void (*release)(void *context);
} prereg_keep;

/** A run of contiguous host memory. */
typedef struct prereg_run {
  /** sizeof(struct prereg_run), set by the caller; in an array, in the first element. */
  size_t size;
  /** The user address of its first byte. */
  uint64_t ua;
  /** The host address, for the device. */
  uint64_t host;
  /** Its length. */
  uint64_t bytes;
} prereg_run;

/**
 * One live mapping of one page: while it lives, its region cannot be unregistered and the page stays pinned at `hpa`.
 *
 * Filled by the call that maps. Do not move it until it is released: a copy is not a mapping. Its size never changes;
 * other members are private.
 */
typedef struct prereg_mapping {
  /** The host address of the byte at `ua`, for the device. */
  uint64_t hpa;
  /** The user address that was mapped. */
  uint64_t ua;
  uint64_t inside[5];
} prereg_mapping;

/** One live mapping of a range inside one region, counted as one. The rules are those of `prereg_mapping`. */
typedef struct prereg_range {
  /** The first byte. */
  uint64_t ua;
  /** The length in bytes. */
  uint64_t bytes;
  uint64_t inside[7];
} prereg_range;

/**
 * A live entry at one moment. Only a mapping, from `prereg_entries_take` or
 * `prereg_table_take`, has a host address.
 */
typedef struct prereg_entry {
  /** sizeof(struct prereg_entry), set by the caller. */
  size_t size;
  /** The user address of the page. */
  uint64_t ua;
  /** The allowed accesses: `PREREG_ACCESS_...`, or'ed. */
  uint32_t access;
  /** Zero. */
  uint32_t reserved;
} prereg_entry;

/**
 * The position of a window of an I/O bus: `entries` pages of `2^shift` bytes (12 at least) from bus address `start` on, which is
 * the start of such a page; it ends below 2^64.
 */
typedef struct prereg_geometry {
  /** sizeof(struct prereg_geometry). */
  size_t size;
  /** The first bus address. */
  uint64_t start;
  /** Pages; not zero. */
  uint64_t entries;
  /** The page size as a power of two. */
  uint32_t shift;
  /** Zero. */
  uint32_t reserved;
} prereg_geometry;

/** The registers of a guest at a hypercall. */
typedef struct prereg_call {
  /** sizeof(struct prereg_call). */
  size_t size;
  /** Register 3: a `PREREG_H_..._TCE...`. */
  uint64_t number;
  /** Registers 4 to 7. */
  uint64_t arguments[4];
} prereg_call;

/**
 * The port to guest memory, for the lists of H_PUT_TCE_INDIRECT: fills `values` with the `count` (512 at most) numbers at
 * guest address `gpa`, a multiple of 4 KiB: 8 bytes each, big-endian in guest memory, in the host's order here. Returns 0, or
 * another value if they are not all in guest memory.
 */
typedef int (*prereg_read_list)(void *context, uint64_t gpa, uint64_t *values, size_t count);

/** The result of a hypercall. */
typedef struct prereg_reply {
  /** sizeof(struct prereg_reply), set by the caller. */
  size_t size;
  /** Register 3: a `PREREG_H_...`. */
  int64_t code;
  /** Register 4 after an H_GET_TCE that succeeded. */
  uint64_t value;
  /** 1: `value` is set; otherwise the register keeps its value. */
  uint32_t has_value;
  /** 1: the fast path returned H_TOO_HARD, and this is the result of the slow path. */
  uint32_t handed_over;
} prereg_reply;

/** The result of a device's access to a bus address. */
typedef struct prereg_lookup {
  /** sizeof(struct prereg_lookup), set by the caller. */
  size_t size;
  /** The guest page of the guest's entry. */
  uint64_t gpa;
  /** Its size as a power of two. */
  uint32_t shift;
  /** The accesses that the guest's entry allows: `PREREG_ACCESS_...`, or'ed. */
  uint32_t guest_access;
  /** The accesses that the hardware's entry allows; 0 if no hardware table maps it. */
  uint32_t host_access;
  /** Zero. */
  uint32_t reserved;
} prereg_lookup;

/** The hardware of a group. The functions are called with the container's lock held, so they must not call the container. */
typedef struct prereg_group_ops {
  /** sizeof(struct prereg_group_ops). */
  size_t size;
  /** Passed to each function. */
  void *context;
  /** Programs window `slot`. Returns 0, or a negative errno with nothing programmed. May be NULL. */
  int (*set_window)(void *context, size_t slot, const struct prereg_geometry *geometry);
  /** Removes window `slot`, whose entries are cleared. May be NULL. */
  void (*unset_window)(void *context, size_t slot);
  /** Called after the last use of the context. May be NULL. */
  void (*release)(void *context);
} prereg_group_ops;

/** Limits of a device's address space. */
typedef struct prereg_iova_limits {
  /** sizeof(struct prereg_iova_limits). */
  size_t size;
  /** The first address that can be mapped. */
  uint64_t first;
  /** The last address that can be mapped; 0 for 2^64 - 1. */
  uint64_t last;
  /** The most mappings; 0 for 65,535, the kernel's default. */
  uint32_t mappings;
  /** The smallest page as a power of two; 0 for 4 KiB. */
  uint32_t page_shift;
} prereg_iova_limits;

/**
 * A callback at the end of the last access to an unmapped mapping: once for each mapping with accesses at its unmap, on the thread of
 * that access.
 */
typedef struct prereg_drained {
  /** sizeof(struct prereg_drained). */
  size_t size;
  /** Passed to each function. */
  void *context;
  /** Called at the end of the last access. */
  void (*drained)(void *context);
  /** Called after the last use of the context. May be NULL. */
  void (*release)(void *context);
} prereg_drained;

/** A piece of a held access. */
typedef struct prereg_piece {
  /** sizeof(struct prereg_piece), set by the caller; in an array, in the first element. */
  size_t size;
  /** The user address of its first byte; of remote memory, its I/O virtual address. */
  uint64_t address;
  /** The host address, for the device; 0 for remote memory. */
  uint64_t host;
  /** Its length. */
  uint64_t bytes;
  /** 1: memory that only the owner of the map can reach. */
  uint32_t is_remote;
  /** Zero. */
  uint32_t reserved;
} prereg_piece;

/** The state of an IOVA map at one moment. */
typedef struct prereg_iova_state {
  /** sizeof(struct prereg_iova_state), set by the caller. */
  size_t size;
  /** Live mappings. */
  uint64_t mappings;
  /** Bytes mapped; 2^64 is reported as 2^64 - 1. */
  uint64_t bytes;
  /** Accesses in flight to live mappings. */
  uint64_t accesses;
  /** Unmapped mappings with accesses in flight. */
  uint64_t closing;
} prereg_iova_state;

#ifdef __cplusplus
extern "C" {
#endif

/** The version of the running library: major << 16 | minor << 8 | patch. */
uint32_t prereg_version_number(void);

/** The version of the running library as text. */
const char *prereg_version(void);

/**
 * Pushes `pages` contiguous pages from host address `host` on, which is the start of a page.
 *
 * Returns 0; -E2BIG when the range has fewer pages, -EINVAL when `host` is not the start of a page or the pages pass 2^64,
 * -ENOMEM; the registration then fails whatever the pin function returns. -EINVAL also after the pin function has returned.
 */
int prereg_page_list_push(struct prereg_page_list *list,
                          uint64_t host,
                          uint64_t pages);

/** The next page that a device may have written, as its number from the start of the range; UINT64_MAX after the last. */
uint64_t prereg_dirty_pages_next(struct prereg_dirty_pages *dirty);

/**
 * Creates an empty address space. `options` may be NULL: io_uring with its defaults.
 *
 * Returns 0; -EPERM if this user may not use io_uring or the requested kind of addresses, -ENOSYS or -EINVAL if the kernel does not support
 * it, -ENOMEM, -EINVAL for conflicting or unused options. For the back ends of VFIO and iommufd also -ENOENT or -ENODEV (not supported by
 * the machine, the kernel or the device), -EACCES, -EPERM, -EBUSY: the message has the remedy.
 */
int prereg_space_new(const struct prereg_options *options,
                     struct prereg_space **space,
                     struct prereg_error *error);

/**
 * Frees the space with all its registrations, and sets `*space` to NULL. Unmapped regions are unpinned immediately, others with their
 * last mapping. Handles of registrations stay valid; their calls return -ENOENT. Tables, owners and IOVA maps of the space keep it
 * until they are freed.
 *
 * Returns 0, also for NULL; -EINVAL for an invalid handle.
 */
int prereg_space_free(struct prereg_space **space);

/** The system page size of the space as a power of two; 0 for an invalid handle. */
uint32_t prereg_space_granule_shift(const struct prereg_space *space);

/** The meaning of the space's host addresses: a `PREREG_ADDRESS_...`; 0 for an invalid handle. */
uint32_t prereg_space_address_kind(const struct prereg_space *space);

/** The name of the back end, valid while the space lives; NULL for an invalid handle. */
const char *prereg_space_backend(const struct prereg_space *space);

/** The reason for the kind of its addresses, as a sentence, valid while the space lives; NULL for an invalid handle. */
const char *prereg_space_address_note(const struct prereg_space *space);

/** Whether anything is registered: 1 or 0; -EINVAL for an invalid handle. */
int prereg_space_is_preregistered(const struct prereg_space *space);

/**
 * Finds the region that has all of `bytes` bytes at `ua`.
 *
 * Returns 0; -ENOENT without one (adjacent regions are not joined, and no region has zero bytes).
 */
int prereg_space_find(const struct prereg_space *space,
                      uint64_t ua,
                      uint64_t bytes,
                      struct prereg_region *region,
                      struct prereg_error *error);

/** The number of the `bytes` bytes of host addresses from `host` on that are in one region of device memory; 0 for none. */
uint64_t prereg_space_device_at(const struct prereg_space *space,
                                uint64_t host,
                                uint64_t bytes);

/**
 * Releases regions whose last mapping was released by `prereg_unmap` or a table, which only queue them. Registering and
 * unregistering do it too.
 */
int prereg_space_reap(const struct prereg_space *space);

/**
 * Decodes a host address of the kind SLOT_OFFSET: the slot, counted over all rings (ring = slot / 16384), and the offset from the
 * start of the slot's memory.
 *
 * Returns 0; -EINVAL for an address without a slot.
 */
int prereg_slot_address(uint64_t host,
                        uint32_t *slot,
                        uint64_t *offset);

/**
 * Takes a snapshot of the whole space.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_state_new(const struct prereg_space *space,
                     struct prereg_state **state,
                     struct prereg_error *error);

/** Frees the handle and sets `*state` to NULL. */
int prereg_state_free(struct prereg_state **state);

/** The sums. Returns 0 or -EINVAL. */
int prereg_state_totals(const struct prereg_state *state, struct prereg_totals *totals);

/** The number of regions; 0 for an invalid handle. */
size_t prereg_state_regions(const struct prereg_state *state);

/** Region `index`, by ascending address. Returns 0 or -EINVAL. */
int prereg_state_region(const struct prereg_state *state, size_t index, struct prereg_region *into);

/**
 * The holders of registrations of region `index`: at most `room` are written, `held[0].size` bytes apart; `*total`
 * (may be NULL) is set to the number of all. Returns 0 or -EINVAL.
 */
int prereg_state_registrations(const struct prereg_state *state,
                               size_t index,
                               struct prereg_held *held,
                               size_t room,
                               size_t *total);

/** The holders of mappings of region `index`, as `prereg_state_registrations`. Exact if no thread maps or unmaps meanwhile. */
int prereg_state_mappings(const struct prereg_state *state,
                          size_t index,
                          struct prereg_held *held,
                          size_t room,
                          size_t *total);

/**
 * Registers `bytes` bytes at `ua`: pins and charges them, or shares the region of exactly this range (no new pin, no
 * new charge).
 *
 * The memory must stay mapped and be the same memory (no munmap, no mmap over it, no MADV_DONTNEED, no punched hole,
 * no truncation), until the region is released; or until `release` of `keep`, if one is passed. `holder` and `keep` may
 * be NULL.
 *
 * Returns 0; -EINVAL (not whole pages, empty, past 2^64, overlaps a region of another shape), -ENOMEM (over the
 * locked-memory limit), -EFAULT (cannot be pinned), -ENOSPC (too many), or the back end's errno. Then nothing is pinned,
 * charged or listed.
 */
int prereg_register(const struct prereg_space *space,
                    uint64_t ua,
                    uint64_t bytes,
                    const struct prereg_holder *holder,
                    const struct prereg_keep *keep,
                    struct prereg_registration **registration,
                    struct prereg_error *error);

/**
 * Like `prereg_register`, but always as a new region.
 *
 * Returns as `prereg_register`; -EINVAL also when the range is registered already.
 */
int prereg_register_new(const struct prereg_space *space,
                        uint64_t ua,
                        uint64_t bytes,
                        const struct prereg_keep *keep,
                        struct prereg_registration **registration,
                        struct prereg_error *error);

/**
 * Registers device memory at host address `host`: nothing is pinned, charged or marked dirty. Always a new
 * region.
 *
 * Returns 0; -EINVAL as `prereg_register_new`, also when `host + bytes` passes 2^64.
 */
int prereg_register_device(const struct prereg_space *space,
                           uint64_t ua,
                           uint64_t bytes,
                           uint64_t host,
                           struct prereg_registration **registration,
                           struct prereg_error *error);

/**
 * One more registration of the region of exactly `bytes` bytes at `ua`. The memory is not accessed.
 *
 * Returns 0; -ENOENT without such a region.
 */
int prereg_share(const struct prereg_space *space,
                 uint64_t ua,
                 uint64_t bytes,
                 const struct prereg_holder *holder,
                 struct prereg_registration **registration,
                 struct prereg_error *error);

/**
 * Releases a registration and sets `*registration` to NULL. With the last one the region is unpinned and uncharged before this
 * returns.
 *
 * Returns 0, also for NULL; -EBUSY if it is the last one and the region is mapped: then nothing changes, `*registration` stays
 * valid, `*mapped` (may be NULL) is set to the number of live mappings, and the message names their holders. -ENOENT if the space
 * is freed: the handle is then freed.
 */
int prereg_unregister(struct prereg_registration **registration,
                      uint64_t *mapped,
                      struct prereg_error *error);

/**
 * `prereg_unregister` for `count` registrations, of any spaces: adjacent ones of one space share one fence on every thread. Each succeeds
 * or is refused separately; released ones become NULL, refused ones stay.
 *
 * Returns 0; -EBUSY if at least one is refused: `*refused` (may be NULL) is set to the number; -EINVAL if an element of the array is
 * invalid or occurs twice: then nothing changes.
 */
int prereg_unregister_many(struct prereg_registration **registrations,
                           size_t count,
                           size_t *refused,
                           struct prereg_error *error);

/**
 * Releases a registration without waiting or refusal, and sets `*registration` to NULL: if it is the last one, the region is closed
 * for new mappings and released with the last old one. `draining` (may be NULL) is set to a handle that reports the completion.
 *
 * Returns 0, also for NULL (`*draining` is then NULL too).
 */
int prereg_drain(struct prereg_registration **registration,
                 struct prereg_draining **draining,
                 struct prereg_error *error);

/** `prereg_drain`, and waits until the region is released or registered again. Blocks while it is mapped. */
int prereg_unregister_when_idle(struct prereg_registration **registration, struct prereg_error *error);

/**
 * Whether the region is released (or registered again): 1 or 0. Releases it if it is unmapped. 1 for NULL;
 * -EINVAL for an invalid handle.
 */
int prereg_draining_is_done(const struct prereg_draining *draining);

/** Waits for the release, frees the handle and sets `*draining` to NULL. */
int prereg_draining_wait(struct prereg_draining **draining);

/** Frees the handle and sets `*draining` to NULL; the region is still released. */
int prereg_draining_free(struct prereg_draining **draining);

/** The first byte; 0 for an invalid handle. */
uint64_t prereg_registration_ua(const struct prereg_registration *registration);

/** The length in bytes; 0 for an invalid handle. */
uint64_t prereg_registration_bytes(const struct prereg_registration *registration);

/**
 * The largest page, as a power of two, with which `bytes` bytes at `ua` can be mapped; for the whole range, the largest
 * page that `prereg_map` accepts anywhere in it. 0 if the range is not in the region.
 */
uint32_t prereg_registration_largest_page(const struct prereg_registration *registration,
                                          uint64_t ua,
                                          uint64_t bytes);

/**
 * The current state of the region.
 *
 * Returns 0; -ENOENT if the space is freed.
 */
int prereg_registration_state(const struct prereg_registration *registration,
                              struct prereg_region *region,
                              struct prereg_error *error);

/**
 * The runs of contiguous host memory of the region, in order, from number `first` on: for audits and reports. At most `room` are
 * written, `runs[0].size` bytes apart; `*total` (may be NULL) is set to the number of all.
 *
 * The addresses are valid while the registration lives, but not for devices, which need mappings.
 */
int prereg_registration_runs(const struct prereg_registration *registration,
                             size_t first,
                             struct prereg_run *runs,
                             size_t room,
                             size_t *total,
                             struct prereg_error *error);

/**
 * Creates a translator; `holder` (may be NULL) is the holder of its mappings.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_translator_new(const struct prereg_space *space,
                          const struct prereg_holder *holder,
                          struct prereg_translator **translator,
                          struct prereg_error *error);

/**
 * Reserves slots for `mappings` live mappings (pages and ranges) of this translator: up to that number mapping allocates nothing. A
 * new translator has 32; beyond them mapping occasionally makes one system call for memory.
 *
 * Returns 0; -ENOMEM, -EINVAL.
 */
int prereg_translator_reserve(struct prereg_translator *translator,
                              uint32_t mappings,
                              struct prereg_error *error);

/**
 * Frees the handle and sets `*translator` to NULL. Mappings that it made stay, and are released with another one or with
 * `prereg_mapping_drop`.
 */
int prereg_translator_free(struct prereg_translator **translator);

/**
 * Uses the newest snapshot of the regions. Never needed for correctness; by refreshing, an idle translator allows old tables to be
 * freed.
 */
int prereg_translator_refresh(struct prereg_translator *translator);

/**
 * Maps the page of `2^shift` bytes that has `ua`: finds its region, counts one mapping, and returns the address. No lock,
 * no allocation, no system call, no page fault: works in a signal handler.
 *
 * The library does not detect writes of the device: mark the pages that it may have written (`prereg_mark_dirty`,
 * `prereg_unmap_written`) before the mapping is released.
 *
 * Returns 0; -EFAULT if no region has the whole page, or its memory is not contiguous enough; -ENXIO if
 * the region is being unregistered; -ENOMEM; -EINVAL. `*mapping` is then unchanged.
 */
int prereg_map(struct prereg_translator *translator,
               uint64_t ua,
               uint32_t shift,
               struct prereg_mapping *mapping,
               struct prereg_error *error);

/**
 * Releases a mapping, without a lock or a system call. The device must no longer use the address.
 *
 * Returns 0; -EINVAL if it is not a live mapping (released, a copy, or never filled): nothing changes.
 */
int prereg_unmap(struct prereg_translator *translator, struct prereg_mapping *mapping);

/**
 * `prereg_unmap` of a page that a device may have written: marks it first, as `prereg_mark_dirty` does, the whole page if it is larger than a
 * system page.
 */
int prereg_unmap_written(struct prereg_translator *translator,
                         struct prereg_mapping *mapping);

/**
 * Releases a mapping on any thread, without a translator. If it was the last one of a draining region, releases
 * that region, which takes a lock and may make system calls.
 *
 * Returns as `prereg_unmap`.
 */
int prereg_mapping_drop(struct prereg_mapping *mapping);

/**
 * Whether `prereg_map` would succeed at this moment. Nothing is counted and no address returned.
 *
 * Returns as `prereg_map`.
 */
int prereg_check(struct prereg_translator *translator,
                 uint64_t ua,
                 uint32_t shift,
                 struct prereg_error *error);

/**
 * Maps all of `bytes` bytes at `ua`, which must be in one region, as one mapping. `prereg_range_runs` returns the addresses.
 *
 * Returns as `prereg_map`; -EFAULT for an empty range.
 */
int prereg_map_range(struct prereg_translator *translator,
                     uint64_t ua,
                     uint64_t bytes,
                     struct prereg_range *range,
                     struct prereg_error *error);

/**
 * The runs of contiguous host memory of a mapped range, in order, from number `first` on: a scatter-gather list. At most `room` are written, `runs[0].size` bytes apart; `*total` (may be NULL) is set to how many
 * there are.
 *
 * Returns 0; -EINVAL if it is not a live range.
 */
int prereg_range_runs(const struct prereg_range *range,
                      size_t first,
                      struct prereg_run *runs,
                      size_t room,
                      size_t *total,
                      struct prereg_error *error);

/** `prereg_unmap` for a range. */
int prereg_unmap_range(struct prereg_translator *translator, struct prereg_range *range);

/** `prereg_unmap_written` for a range. */
int prereg_unmap_range_written(struct prereg_translator *translator, struct prereg_range *range);

/** `prereg_mapping_drop` for a range. */
int prereg_range_drop(struct prereg_range *range);

/** Marks the system page at `ua` as written by a device. Has no effect on unregistered memory and device memory. */
int prereg_mark_dirty(struct prereg_translator *translator,
                      uint64_t ua);

/**
 * `prereg_mark_dirty` for every system page that has one of the `bytes` bytes at `ua`, all in one region.
 *
 * Returns 0; -EFAULT if no region has them; -ENXIO if the region is being unregistered; -EINVAL. Then nothing is marked.
 */
int prereg_mark_dirty_range(struct prereg_translator *translator,
                            uint64_t ua,
                            uint64_t bytes,
                            struct prereg_error *error);

/**
 * Creates `count` empty entries for pages of `2^shift` bytes, 12 at least. `holder` (may be NULL) is the holder of their
 * mappings: use translators of the same holder.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_entries_new(const struct prereg_space *space,
                       uint32_t shift,
                       size_t count,
                       const struct prereg_holder *holder,
                       struct prereg_entries **entries,
                       struct prereg_error *error);

/** Releases the mappings of all entries, frees the block and sets `*entries` to NULL. */
int prereg_entries_free(struct prereg_entries **entries);

/** The number of entries; 0 for an invalid handle. */
size_t prereg_entries_count(const struct prereg_entries *entries);

/** The number of live entries, counted at the call; 0 for an invalid handle. */
uint64_t prereg_entries_live(const struct prereg_entries *entries);

/**
 * Maps the page at `ua`, which must be aligned, into entry `index`. Its old mapping is released (its page marked
 * dirty if the device could write it); `*before` (may be NULL) is set to the old access, 0 if the entry was empty.
 *
 * Returns 0; as `prereg_map`; -EINVAL also for a bad index, a misaligned address or a translator of another space; -EAGAIN
 * while another thread changes the same entry. Nothing changes then.
 */
int prereg_entries_set(const struct prereg_entries *entries,
                       struct prereg_translator *translator,
                       size_t index,
                       uint64_t ua,
                       uint32_t access,
                       uint32_t *before,
                       struct prereg_error *error);

/**
 * Clears entry `index`; an entry beyond the end counts as empty. `*before` as in `prereg_entries_set`.
 *
 * Returns 0; -EINVAL, -EAGAIN.
 */
int prereg_entries_clear(const struct prereg_entries *entries,
                         struct prereg_translator *translator,
                         size_t index,
                         uint32_t *before,
                         struct prereg_error *error);

/**
 * Returns entry `index` without its host address, which only a mapping from `prereg_entries_take` has. Waits while another
 * thread changes the entry, which takes a few instructions; not for signal handlers.
 *
 * Returns 1 if it is live, 0 if it is empty (`*entry` is unchanged), -EINVAL.
 */
int prereg_entries_inspect(const struct prereg_entries *entries,
                           size_t index,
                           struct prereg_entry *entry);

/**
 * Maps the page of entry `index` once more, for the duration of a device's access through the entry. `*access` (may be NULL) is set
 * to the permitted access.
 *
 * Returns 1; 0 when the entry is empty (`*mapping` is unchanged); -EAGAIN, -EINVAL, -ENXIO.
 */
int prereg_entries_take(const struct prereg_entries *entries,
                        struct prereg_translator *translator,
                        size_t index,
                        struct prereg_mapping *mapping,
                        uint32_t *access,
                        struct prereg_error *error);

/**
 * Creates an empty table over the memory of `space`. `container` is the holder of its mappings in reports; 0 for none.
 *
 * Returns 0; -EINVAL for an invalid geometry, -ENOMEM.
 */
int prereg_table_new(const struct prereg_space *space,
                     const struct prereg_geometry *geometry,
                     uint64_t container,
                     struct prereg_table **table,
                     struct prereg_error *error);

/** Releases the handle and sets `*table` to NULL. The mappings of all entries are released with the last user of the table. */
int prereg_table_free(struct prereg_table **table);

/** The position of the table's window. Returns 0 or -EINVAL. */
int prereg_table_geometry(const struct prereg_table *table, struct prereg_geometry *geometry);

/**
 * Maps the page at `ua` into entry `index`. Its old mapping is released (its page marked dirty if the device could
 * write it); `*before` (may be NULL) is set to the old access, 0 if the entry was empty.
 *
 * Returns 0; -EFAULT (not registered, or not contiguous enough), -ENXIO (being unregistered), -EINVAL, -EAGAIN (another
 * thread at the same entry), -ENOMEM. Then the entry is unchanged.
 */
int prereg_table_set(const struct prereg_table *table,
                     struct prereg_translator *translator,
                     uint64_t index,
                     uint64_t ua,
                     uint32_t access,
                     uint32_t *before,
                     struct prereg_error *error);

/**
 * Maps `count` consecutive pages from `ua` on into the entries from `first` on: all of them or none.
 *
 * Returns as `prereg_table_set`. If the first page cannot be mapped nothing changes; if a later one cannot, all `count` entries are
 * empty.
 */
int prereg_table_set_run(const struct prereg_table *table,
                         struct prereg_translator *translator,
                         uint64_t first,
                         uint64_t count,
                         uint64_t ua,
                         uint32_t access,
                         struct prereg_error *error);

/**
 * Clears `count` entries from `first` on; `*cleared` (may be NULL) is set to the number of live ones among them.
 *
 * Returns 0; -EINVAL beyond the end, with nothing changed; -EAGAIN at an entry that another thread changes, with those before it
 * cleared: repeat.
 */
int prereg_table_clear(const struct prereg_table *table,
                       struct prereg_translator *translator,
                       uint64_t first,
                       uint64_t count,
                       uint64_t *cleared,
                       struct prereg_error *error);

/**
 * Allocates the memory for `count` entries from `first` on, so that mapping there neither allocates nor takes a lock.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_table_prepare(const struct prereg_table *table,
                         uint64_t first,
                         uint64_t count,
                         struct prereg_error *error);

/**
 * Whether `prereg_table_set` of the page at `ua` would succeed at this moment. Nothing is counted or changed.
 *
 * Returns 0 or the errno.
 */
int prereg_table_check(const struct prereg_table *table,
                       struct prereg_translator *translator,
                       uint64_t ua,
                       struct prereg_error *error);

/**
 * Returns entry `index` without its host address, which only a mapping from `prereg_table_take` has.
 *
 * Returns 1 and fills `*entry` if the entry is live; 0 if it is empty or there is none; -EINVAL.
 */
int prereg_table_inspect(const struct prereg_table *table, uint64_t index, struct prereg_entry *entry);

/**
 * Maps the page of entry `index` once more, for the duration of a device's access. `*access` (may be NULL) is set to the permitted
 * access.
 *
 * Returns 1; 0 when the entry is empty (`*mapping` is unchanged); -ENXIO, -EAGAIN, -EINVAL.
 */
int prereg_table_take(const struct prereg_table *table,
                      struct prereg_translator *translator,
                      uint64_t index,
                      struct prereg_mapping *mapping,
                      uint32_t *access,
                      struct prereg_error *error);

/** The number of live entries, counted at the call; 0 for an invalid handle. */
uint64_t prereg_table_live(const struct prereg_table *table);

/** Bytes of memory of the table; 0 for an invalid handle. */
uint64_t prereg_table_memory_bytes(const struct prereg_table *table);

/**
 * Creates a guest without memory and tables; `rules` is a `PREREG_RULES_...`.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_guest_new(uint32_t rules, struct prereg_guest **guest, struct prereg_error *error);

/**
 * Frees the guest and its tables, and sets `*guest` to NULL. Hardware tables without other users release their
 * mappings.
 */
int prereg_guest_free(struct prereg_guest **guest);

/**
 * Adds a memory slot: `bytes` bytes of user memory from `ua` on at the guest addresses from `gpa` on; all multiples of 4 KiB.
 *
 * Returns 0; -EINVAL, -EEXIST (another slot has some of these guest addresses).
 */
int prereg_guest_add_memory(struct prereg_guest *guest,
                            uint64_t gpa,
                            uint64_t ua,
                            uint64_t bytes,
                            struct prereg_error *error);

/**
 * Removes the memory slot that starts at `gpa`. Existing entries keep their mappings.
 *
 * Returns 0; -ENOENT.
 */
int prereg_guest_remove_memory(struct prereg_guest *guest, uint64_t gpa, struct prereg_error *error);

/** The user address of `gpa`, if one slot has all of `bytes` bytes there; otherwise 0. */
uint64_t prereg_guest_translate(const struct prereg_guest *guest, uint64_t gpa, uint64_t bytes);

/**
 * Creates an empty guest-visible table under the number `liobn`; pages of 4 KiB to 16 GiB.
 *
 * Returns 0; -EBUSY (it exists), -EINVAL, -ENOMEM.
 */
int prereg_guest_create_table(struct prereg_guest *guest,
                              uint32_t liobn,
                              const struct prereg_geometry *geometry,
                              struct prereg_error *error);

/**
 * Removes a table. Hardware tables without other users release their mappings.
 *
 * Returns 0; -ENOENT.
 */
int prereg_guest_remove_table(struct prereg_guest *guest, uint32_t liobn, struct prereg_error *error);

/**
 * Attaches `table` to the guest's table `liobn`, whose writes it follows from now on. The table is shared; the handle stays the
 * caller's. It may be attached several times: `*times` (may be NULL) is set to the number.
 *
 * Returns 0; -EINVAL (its pages are larger, its start differs, it is smaller, or it is of another space than the
 * attached ones), -ENOENT.
 */
int prereg_guest_attach(struct prereg_guest *guest,
                        uint32_t liobn,
                        const struct prereg_table *table,
                        uint64_t *times,
                        struct prereg_error *error);

/**
 * Reverts one `prereg_guest_attach`; after the last one the table no longer follows the guest's writes. Its mappings stay until it is
 * cleared or freed. `*times` (may be NULL) is set to the remaining number.
 *
 * Returns 0; -ENOENT.
 */
int prereg_guest_detach(struct prereg_guest *guest,
                        uint32_t liobn,
                        const struct prereg_table *table,
                        uint64_t *times,
                        struct prereg_error *error);

/**
 * Executes a hypercall. The result in `*reply` is final, for the guest. `read_list` may be NULL: then no list is in guest
 * memory.
 *
 * Returns 0, also if the hypercall fails; -ENOSYS for a number that is none of the four (`*reply` is unchanged),
 * -EINVAL.
 */
int prereg_hypercall(const struct prereg_guest *guest,
                     struct prereg_translator *translator,
                     const struct prereg_call *call,
                     prereg_read_list read_list,
                     void *context,
                     struct prereg_reply *reply,
                     struct prereg_error *error);

/**
 * Translates bus address `ioba` of a device behind `liobn`: the guest's entry is written to `*lookup` and, if a hardware table
 * maps it, one more mapping to `*mapping`.
 *
 * Returns 1 when `*mapping` was filled, 0 when no hardware table maps the address, -ENOENT (no such table, or outside its
 * window), -ENXIO (being unregistered), -EAGAIN, -EINVAL.
 */
int prereg_guest_lookup(const struct prereg_guest *guest,
                        struct prereg_translator *translator,
                        uint32_t liobn,
                        uint64_t ioba,
                        struct prereg_lookup *lookup,
                        struct prereg_mapping *mapping,
                        struct prereg_error *error);

/**
 * Creates an owner: its containers register memory in `space` and charge tables to its account.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_owner_new(const struct prereg_space *space,
                     struct prereg_owner **owner,
                     struct prereg_error *error);

/** Releases the handle and sets `*owner` to NULL. Its containers stay valid. */
int prereg_owner_free(struct prereg_owner **owner);

/**
 * Creates an empty container. `number` is its number as a holder in reports; 0 for none.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_container_new(uint64_t number, struct prereg_container **container, struct prereg_error *error);

/**
 * Frees the container and sets `*container` to NULL: every entry is cleared, every window removed, every registration
 * released.
 */
int prereg_container_free(struct prereg_container **container);

/**
 * Adds group `number` of `platform` (a `PREREG_PLATFORM_...`). `hardware` may be NULL: then its windows have only their
 * tables.
 *
 * Returns 0; -EBUSY (it is attached already), -EPERM (another platform than the attached groups), -EINVAL, or the hardware's errno.
 */
int prereg_container_attach(const struct prereg_container *container,
                            uint32_t number,
                            uint32_t platform,
                            const struct prereg_group_ops *hardware,
                            struct prereg_error *error);

/**
 * Removes group `number`. The other groups keep every mapping; without groups the container has no IOMMU.
 *
 * Returns 0; -ENOENT.
 */
int prereg_container_detach(const struct prereg_container *container,
                            uint32_t number,
                            struct prereg_error *error);

/**
 * Performs an ioctl of a VMM. `command` is its number (VFIO_IOMMU_SPAPR_REGISTER_MEMORY and so on, as in linux/vfio.h), `argument` its
 * third argument: a number cast to a pointer, or the struct of the request, of which `readable` bytes may be read and written.
 *
 * Returns the result of the ioctl: 0, 1 for a supported extension, or a negative errno.
 */
int prereg_container_ioctl(const struct prereg_container *container,
                           const struct prereg_owner *owner,
                           uint32_t command,
                           void *argument,
                           size_t readable,
                           struct prereg_error *error);

/**
 * The table of window `slot`, shared with the container, for attaching a guest's table to it.
 *
 * Returns 0; -ENOENT.
 */
int prereg_container_window(const struct prereg_container *container,
                            size_t slot,
                            struct prereg_table **table,
                            struct prereg_error *error);

/**
 * Creates an empty map over the memory registered in `space`. `limits`, `holder` and `drained` may be NULL.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_iova_new(const struct prereg_space *space,
                    const struct prereg_iova_limits *limits,
                    const struct prereg_holder *holder,
                    const struct prereg_drained *drained,
                    struct prereg_iova **iova,
                    struct prereg_error *error);

/** Unmaps everything, frees the map and sets `*iova` to NULL. Accesses in flight stay valid until they are released. */
int prereg_iova_free(struct prereg_iova **iova);

/**
 * Maps `bytes` bytes at I/O virtual address `at` to the registered memory at `ua`, all in one region, as one mapping of it.
 * `access` is the permitted access. An unmapped mapping with accesses in flight can be replaced at once.
 *
 * Returns 0; -EINVAL (misaligned, empty, past 2^64, outside the limits), -EEXIST (overlaps a mapping), -ENOSPC (too
 * many), -EFAULT (not registered), -ENXIO (being unregistered). Nothing is mapped or counted then.
 */
int prereg_iova_map(const struct prereg_iova *iova,
                    uint64_t at,
                    uint64_t bytes,
                    uint64_t ua,
                    uint32_t access,
                    struct prereg_error *error);

/** Like `prereg_iova_map`, for memory without a user address in this process, which only the caller can reach. */
int prereg_iova_map_remote(const struct prereg_iova *iova,
                           uint64_t at,
                           uint64_t bytes,
                           uint32_t access,
                           struct prereg_error *error);

/**
 * Unmaps every mapping in the range, if any. They are unmapped when this returns; `unmapping` (may be NULL) is set to a handle
 * that reports when the accesses in flight have ended.
 *
 * Returns 0; -EINVAL, also when the range begins or ends inside a mapping: nothing is unmapped then.
 */
int prereg_iova_unmap(const struct prereg_iova *iova,
                      uint64_t at,
                      uint64_t bytes,
                      struct prereg_unmapping **unmapping,
                      struct prereg_error *error);

/** Unmaps everything, as `prereg_iova_unmap`. */
int prereg_iova_unmap_all(const struct prereg_iova *iova,
                          struct prereg_unmapping **unmapping,
                          struct prereg_error *error);

/** Whether all accesses have ended: 1 or 0; 1 for NULL, -EINVAL for an invalid handle. */
int prereg_unmapping_is_done(const struct prereg_unmapping *unmapping);

/** The number of unmapped mappings; 0 for an invalid handle. */
uint64_t prereg_unmapping_mappings(const struct prereg_unmapping *unmapping);

/** The number of unmapped bytes; 2^64 is reported as 2^64 - 1. 0 for an invalid handle. */
uint64_t prereg_unmapping_bytes(const struct prereg_unmapping *unmapping);

/** Frees the handle and sets `*unmapping` to NULL. The unmap continues. */
int prereg_unmapping_free(struct prereg_unmapping **unmapping);

/**
 * Holds the memory of `bytes` bytes at `at`, in one or several adjacent mappings, for an access of the device.
 *
 * Returns 0; -EFAULT (not mapped), -EACCES (not permitted), -ENXIO (being unmapped), -EINVAL,
 * -ENOMEM. Nothing is held then.
 */
int prereg_iova_hold(const struct prereg_iova *iova,
                     uint64_t at,
                     uint64_t bytes,
                     uint32_t access,
                     struct prereg_hold **hold,
                     struct prereg_error *error);

/**
 * The pieces of a held access in order, from number `first` on. At most `room` are written,
 * `pieces[0].size` bytes apart; `*total` (may be NULL) is set to the number of all.
 *
 * Returns 0 or -EINVAL.
 */
int prereg_hold_pieces(const struct prereg_hold *hold,
                       size_t first,
                       struct prereg_piece *pieces,
                       size_t room,
                       size_t *total,
                       struct prereg_error *error);

/**
 * Ends the access, frees the handle and sets `*hold` to NULL. The device must no longer use the memory. The pages of an access
 * that writes are marked as written before the memory can be unpinned.
 */
int prereg_hold_release(struct prereg_hold **hold);

/** Uses the newest snapshot of the regions. Never needed for correctness; allows old tables to be freed. */
int prereg_iova_refresh(const struct prereg_iova *iova);

/** The state of the map. Returns 0 or -EINVAL. */
int prereg_iova_snapshot(const struct prereg_iova *iova, struct prereg_iova_state *state);

/**
 * Adds a device: its group is added to the container, or it is attached to the iommufd. Pins and charges nothing.
 *
 * Returns 0; -EOPNOTSUPP for a space of another back end or on the caller's own container; -ENODEV, -ENOENT, -EACCES, -EPERM,
 * -EBUSY: see the message. Nothing changes then.
 */
int prereg_space_add_device(const struct prereg_space *space,
                            const char *device,
                            struct prereg_error *error);

/**
 * Removes a device, or its group. Registered memory stays pinned.
 *
 * Returns 0; -EBUSY if it is the last one and registered memory would be unpinned with it, or if the device is open; -EOPNOTSUPP,
 * -ENODEV. Nothing changes then.
 */
int prereg_space_remove_device(const struct prereg_space *space,
                               const char *device,
                               struct prereg_error *error);

/**
 * Opens a device of the space's container, or shares one that is attached to its iommufd.
 *
 * Returns 0; -EOPNOTSUPP, -ENODEV, -EBUSY, or the system's errno.
 */
int prereg_device_open(const struct prereg_space *space,
                       const char *name,
                       struct prereg_device **device,
                       struct prereg_error *error);

/** Releases the handle and sets `*device` to NULL. The device is closed with its last handle, unless an iommufd has it. */
int prereg_device_close(struct prereg_device **device);

/**
 * Enables the device's registers and DMA (`on` is 1), or disables DMA (0).
 *
 * Returns 0, -EINVAL, or the system's errno.
 */
int prereg_device_set_bus_master(const struct prereg_device *device, int on, struct prereg_error *error);

/**
 * Resets the device.
 *
 * Returns 0, -EINVAL, or the system's errno.
 */
int prereg_device_reset(const struct prereg_device *device, struct prereg_error *error);

/**
 * Reads 16 bits of the device's configuration space.
 *
 * Returns 0; -EINVAL beyond its end, or the system's errno.
 */
int prereg_device_config_read(const struct prereg_device *device,
                              uint64_t offset,
                              uint16_t *value,
                              struct prereg_error *error);

/**
 * Writes 16 bits of the device's configuration space.
 *
 * Returns 0; -EINVAL beyond its end, or the system's errno.
 */
int prereg_device_config_write(const struct prereg_device *device,
                               uint64_t offset,
                               uint16_t value,
                               struct prereg_error *error);

/**
 * Maps the registers of base address register `index`, 0 to 5, of the device.
 *
 * Returns 0; -EINVAL; -EOPNOTSUPP if they cannot be mapped; the system's errno.
 */
int prereg_bar_map(const struct prereg_device *device,
                   uint32_t index,
                   struct prereg_bar **bar,
                   struct prereg_error *error);

/** Address of the registers, for volatile accesses, valid while the handle lives; NULL for an invalid handle. */
void *prereg_bar_registers(const struct prereg_bar *bar);

/** The number of bytes of registers; 0 for an invalid handle. */
uint64_t prereg_bar_bytes(const struct prereg_bar *bar);

/** Unmaps the registers and sets `*bar` to NULL. */
int prereg_bar_unmap(struct prereg_bar **bar);

/**
 * The table of the default window of a space of `PREREG_BACKEND_VFIO_SPAPR_V2`. One at a time.
 *
 * Returns 0; -EINVAL if it has a table or was replaced; -EOPNOTSUPP for a space of another back end.
 */
int prereg_window_default(const struct prereg_space *space,
                          struct prereg_window **window,
                          struct prereg_error *error);

/**
 * Creates a window of `bytes` bytes in pages of `2^shift`, and its table; `place` is a `PREREG_WINDOW_...`. The kernel chooses its
 * start: see `prereg_window_geometry`.
 *
 * Returns 0; -EINVAL for invalid arguments; -EOPNOTSUPP for a space of another back end; the system's errno.
 */
int prereg_window_create(const struct prereg_space *space,
                         uint32_t shift,
                         uint64_t bytes,
                         uint32_t place,
                         struct prereg_window **window,
                         struct prereg_error *error);

/** Clears the table, removes the window if it was created for it, and sets `*window` to NULL. */
int prereg_window_free(struct prereg_window **window);

/** The position of the window. Returns 0 or -EINVAL. */
int prereg_window_geometry(const struct prereg_window *window, struct prereg_geometry *geometry);

/**
 * Maps `pages` consecutive pages from `ua` on into the entries from bus address `ioba` on: one call to the kernel. The old mappings
 * are released.
 *
 * Returns 0; -EFAULT, -ENXIO, -EINVAL, -ENOMEM, or the kernel's errno. Then the entries are unchanged, except those that the
 * message counts as lost.
 */
int prereg_window_set_run(const struct prereg_window *window,
                          struct prereg_translator *translator,
                          uint64_t ioba,
                          uint64_t pages,
                          uint64_t ua,
                          uint32_t access,
                          struct prereg_error *error);

/**
 * Maps any `count` pages into consecutive entries from `ioba` on: one call to the kernel for each run of consecutive pages.
 *
 * Returns as `prereg_window_set_run` for the run that failed; the runs before it are mapped.
 */
int prereg_window_set_list(const struct prereg_window *window,
                           struct prereg_translator *translator,
                           uint64_t ioba,
                           const uint64_t *pages,
                           size_t count,
                           uint32_t access,
                           struct prereg_error *error);

/**
 * Clears `pages` entries from `ioba` on: one call to the kernel, or none if all are empty. `*cleared` (may be NULL) is set to how
 * many were live.
 *
 * Returns 0; -EINVAL, or the kernel's errno: then the entries stay counted.
 */
int prereg_window_clear(const struct prereg_window *window,
                        struct prereg_translator *translator,
                        uint64_t ioba,
                        uint64_t pages,
                        uint64_t *cleared,
                        struct prereg_error *error);

/** Returns the entry at `ioba`: 1 and fills `*entry` if it is live; 0 if it is empty or there is none; -EINVAL. */
int prereg_window_inspect(const struct prereg_window *window,
                          uint64_t ioba,
                          struct prereg_entry *entry);

/** The number of live entries; 0 for an invalid handle. */
uint64_t prereg_window_live(const struct prereg_window *window);

/**
 * Creates an empty table of the memory that devices reach, of a space of `PREREG_BACKEND_IOMMUFD` and `PREREG_PLACEMENT_HELD`.
 *
 * Returns 0; -EOPNOTSUPP for another space; -ENOMEM, -EINVAL.
 */
int prereg_io_table_new(const struct prereg_space *space,
                        struct prereg_io_table **table,
                        struct prereg_error *error);

/** Unmaps everything, frees the table and sets `*table` to NULL. */
int prereg_io_table_free(struct prereg_io_table **table);

/**
 * Maps `bytes` bytes from `ua` on, all in one region, at I/O virtual address `at` for devices. Pins and charges nothing.
 *
 * Returns 0; -EINVAL (empty, past 2^64, not whole units), -EEXIST, -EFAULT, -ENXIO, or the kernel's errno. Then nothing is
 * mapped.
 */
int prereg_io_table_map(const struct prereg_io_table *table,
                        struct prereg_translator *translator,
                        uint64_t at,
                        uint64_t bytes,
                        uint64_t ua,
                        uint32_t access,
                        struct prereg_error *error);

/**
 * Unmaps the whole mapping at `at`.
 *
 * Returns 0; -ENOENT if no mapping has exactly this range; or the kernel's errno: then the mapping stays counted.
 */
int prereg_io_table_unmap(const struct prereg_io_table *table,
                          struct prereg_translator *translator,
                          uint64_t at,
                          uint64_t bytes,
                          struct prereg_error *error);

/** The number of mapped ranges; 0 for an invalid handle. */
uint64_t prereg_io_table_live(const struct prereg_io_table *table);

#ifdef __cplusplus
}
#endif

#endif
