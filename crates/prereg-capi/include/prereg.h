/* prereg: DMA memory pre-registration. Pin once, map a million times.
 *
 * A space owns regions. A registration is one owner's claim on a region: the first pins every page and charges it, the
 * last unpins. A translator is a thread's reader handle: it maps a page by a look-up, a count and a load. A mapping is one
 * counted use and the only thing that yields a host address; while one lives, the last prereg_unregister() answers -EBUSY.
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
 * RESULTS. A call returns 0 (a few return 1 for "yes"), or a negative errno and has changed nothing; where it is otherwise
 * its text says so. The struct prereg_error that most calls take gets the number and a sentence; NULL is fine. Nothing is
 * kept in a global or by thread.
 *
 * POINTERS. NULL is allowed wherever the text says so and answered with -EINVAL elsewhere, as is a pointer that is not
 * aligned for its type. Every other pointer points at what its type says. Two pointers of one call do not overlap.
 *
 * HANDLES. A call that makes a handle sets the variable whose address it is given (to NULL when it fails); a call that ends
 * one takes the variable's address and sets it to NULL. Freeing NULL is fine. A handle is a number, not an address: one of
 * another type, one that was freed through another copy of the variable and one that was never made are answered with
 * -EINVAL, always, and never taken for one that was made since.
 *
 * MAPPINGS. struct prereg_mapping and struct prereg_range name what the library keeps. Only the struct that the call filled,
 * where it was filled, is the mapping; each is released once. Another release, of it or of a copy wherever it is put, is
 * answered with -EINVAL and releases nothing.
 *
 * SIZES. Structs whose first member is `size` are set to zero first, then size to sizeof; that goes for those that a call
 * fills too. A program that was compiled with an older header goes on working: the members that its struct lacks count as
 * zero and are not written. One that was compiled with a newer header works as long as what this library does not know is
 * zero; otherwise the answer is -EINVAL. Of an array the size of the first element says how far apart all are. struct
 * prereg_error, prereg_mapping and prereg_range never change their size and need no preparation. Members that are reserved,
 * bits without a meaning, and options that are not used are refused with -EINVAL unless they are zero.
 *
 * THREADS. A space, a state, entries, a table, an owner, a container, an IOVA map, a device, a window: any number of threads
 * at once. A translator: one thread at a time, whichever; a signal handler has its own. A guest: hypercalls and look-ups on
 * any number of threads at once, every other call alone. A mapping, a range, a registration, a hold: may go from thread to
 * thread; of several threads that release one, one succeeds. What ends a handle never runs beside another call on that
 * handle.
 *
 * SIGNAL HANDLERS. prereg_map, prereg_unmap, prereg_check, prereg_map_range, prereg_range_runs, prereg_unmap_range:
 * no lock, no allocation, no system call, no page fault, with a translator of the handler's own, while no more of its
 * mappings live than it has room for: 32, or what prereg_translator_reserve was asked for.
 *
 * DIRTY PAGES. What unpin is told as written: the pages of holds that write (prereg_iova_hold), of table entries that allow
 * it, of prereg_unmap_written and prereg_unmap_range_written, and what prereg_mark_dirty and prereg_mark_dirty_range name.
 * What a device does with a page that prereg_map or prereg_map_range mapped the caller alone knows.
 *
 * ADDRESSES. Every host address comes from the back end's pins. With PREREG_BACKEND_CALLBACKS the program itself vouches for
 * them: see struct prereg_pin_ops. With PREREG_BACKEND_FIXED and prereg_register_device too: `host` is the program's word.
 * With the others the library does: the kernel said so after the page was pinned.
 *
 * PANICS. A defect of the library that shows as a panic is caught at the border: the call answers -ENOTRECOVERABLE, which
 * nothing else answers, and a report goes to standard error; go on only to save what you can. A library that was built with
 * panic=abort ends the process instead. Running out of the memory of malloc is -ENOMEM for handles; in the small lists
 * inside a call it ends the process. Functions that you pass in may not throw, unwind or jump out.
 *
 * FORK. A child does not use the handles of its parent.
 *
 * Made by cbindgen from the source: do not edit. SPDX-License-Identifier: Apache-2.0 OR MIT
 */

#ifndef PREREG_H
#define PREREG_H

#include <stddef.h>
#include <stdint.h>

/** The major version of this header: the ABI's, and the number in the library's soname. */
#define PREREG_VERSION_MAJOR 0

/** The minor version. Programs run with every later one of the same major version. */
#define PREREG_VERSION_MINOR 1

/** The patch level. */
#define PREREG_VERSION_PATCH 0

/** Bytes of a message, its closing NUL included. */
#define PREREG_MESSAGE_BYTES 504

/** Whatever suits the back end: physical addresses where this process may see them, else (slot, offset). */
#define PREREG_ADDRESS_ANY 0

/** Physical addresses. */
#define PREREG_ADDRESS_PHYSICAL 1

/** Addresses on an I/O bus. */
#define PREREG_ADDRESS_IOVA 2

/** (slot, offset) of an io_uring fixed buffer: see `prereg_slot_address`. */
#define PREREG_ADDRESS_SLOT_OFFSET 3

/** Addresses of device memory. */
#define PREREG_ADDRESS_DEVICE 4

/** No device may be programmed with them: they are made up, or belong to memory that is not pinned. */
#define PREREG_ADDRESS_INVENTED 5

/** The user addresses themselves: the kernel knows where the pages are, and takes these wherever a host address is needed. */
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

/** No registration is left, or it waits to be idle: no new mappings, released when the last one goes. */
#define PREREG_REGION_DRAINING 2

/** Pins with io_uring: FOLL_LONGTERM, for any user within RLIMIT_MEMLOCK. What 0 chooses. */
#define PREREG_BACKEND_IO_URING 0

/** Locks with mlock(2). Locked pages still move: for comparison, not for devices. */
#define PREREG_BACKEND_MLOCK 1

/** Device memory: host address = `fixed_host` + offset; nothing is pinned or charged. */
#define PREREG_BACKEND_FIXED 2

/** The caller pins: see `prereg_pin_ops`. */
#define PREREG_BACKEND_CALLBACKS 3

/**
 * A VFIO container of type1 version 2: a region is mapped into it once, and that pins it; host addresses are I/O addresses. The
 * container is made here with the group of `device` in it; or, where `device` is NULL, it is one that the caller opened and gave a
 * group to (`container_fd`), and the caller keeps a group in it.
 */
#define PREREG_BACKEND_VFIO_TYPE1 4

/**
 * A VFIO container of SPAPR TCE version 2, on POWER, made here with the group of `device` in it: memory is registered with it
 * once, and devices reach it through windows (`prereg_window`). Host addresses are user addresses.
 */
#define PREREG_BACKEND_VFIO_SPAPR_V2 5

/**
 * iommufd with `device` attached: memory is pinned once in a space of its own and shown to devices as `placement` says. Host
 * addresses are I/O addresses.
 */
#define PREREG_BACKEND_IOMMUFD 6

/** Devices reach all that is registered, at the host addresses of its mappings. */
#define PREREG_PLACEMENT_SHARED 0

/** Devices reach what a `prereg_io_table` maps, where it says. Host addresses are no device's. */
#define PREREG_PLACEMENT_HELD 1

/** Answers as QEMU gives them in user space. */
#define PREREG_RULES_QEMU 0

/** Answers as KVM's handlers give them; what they find too hard is done by QEMU's rules. */
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

/** H_BUSY: another vCPU is at the same entry and does not come to an end; nothing changed. */
#define PREREG_H_BUSY 1

/** H_HARDWARE: the translator is of another space. */
#define PREREG_H_HARDWARE (-1)

/** H_PARAMETER: a bad argument. */
#define PREREG_H_PARAMETER (-4)

/** H_RESOURCE: no memory for a part of a table. */
#define PREREG_H_RESOURCE (-16)

/** H_TOO_HARD: the fast path cannot do it. Never seen by a guest. */
#define PREREG_H_TOO_HARD 9999

/** Bare-metal POWER9. */
#define PREREG_PLATFORM_POWERNV 0

/** Bare-metal POWER8. */
#define PREREG_PLATFORM_POWERNV8 1

/** A guest of a POWER hypervisor. */
#define PREREG_PLATFORM_PSERIES 2

/** A window beside the default one, at a high bus address. */
#define PREREG_WINDOW_BESIDE 0

/** A window in the place of the default one, which is given up: for devices that reach no higher. */
#define PREREG_WINDOW_INSTEAD 1

/** The registers of a device, mapped. */
typedef struct prereg_bar prereg_bar;

/** A VFIO container. Any thread; calls take their turns, as under the kernel's own lock. */
typedef struct prereg_container prereg_container;

/** A PCI device that VFIO handed over. Any thread, any number at once. */
typedef struct prereg_device prereg_device;

/**
 * The pages of a region that were marked as written, and perhaps neighbours of them: every page of an access that writes
 * (`prereg_iova_hold`), of a table entry through which a device could write, and of `prereg_mark_dirty` and its kind. Good only
 * until the unpin function returns.
 */
typedef struct prereg_dirty_pages prereg_dirty_pages;

/** A region on its way out: no registration, no new mappings. */
typedef struct prereg_draining prereg_draining;

/**
 * A block of entries of one page size, each of which may own one counted mapping. Any thread, any number at once: changes
 * of one entry are serialised.
 */
typedef struct prereg_entries prereg_entries;

/**
 * A guest: its memory slots and its TCE tables. Hypercalls and look-ups run on any number of threads at once, each with a
 * translator of its own; every other call only while none of these runs.
 */
typedef struct prereg_guest prereg_guest;

/** An access under way: the memory stays pinned at its addresses until it is released, on whatever thread. */
typedef struct prereg_hold prereg_hold;

/**
 * The ranges of held memory that devices of an iommufd reach: each is a counted mapping here and a copy in the kernel. Any
 * thread, any number at once, each with a translator of its own.
 */
typedef struct prereg_io_table prereg_io_table;

/** A device's I/O virtual address space. Any thread may map, unmap and access at any time. */
typedef struct prereg_iova prereg_iova;

/**
 * A process that uses containers: an address space, the account that pays, the memory that is named by range. Two owners are
 * the same process if they were made from the same space. Any thread.
 */
typedef struct prereg_owner prereg_owner;

/**
 * The pages of a range that is being pinned: where the pin function puts the host address of each. Good only until that
 * function returns.
 */
typedef struct prereg_page_list prereg_page_list;

/**
 * One registration of a region, which stays pinned as long as one of them lives. Any thread; giving it up only when no
 * other thread uses the handle.
 */
typedef struct prereg_registration prereg_registration;

/** An address space: the owner of a set of regions. One per process, or one per guest. Any thread, any number at once. */
typedef struct prereg_space prereg_space;

/** A snapshot of a space: plain data that does not change. Any thread. */
typedef struct prereg_state prereg_state;

/**
 * A table that devices go through: each live entry is one counted mapping. Any thread, any number at once, each with a
 * translator of its own. Shared: guests' tables and containers may hold it too.
 */
typedef struct prereg_table prereg_table;

/**
 * A reader handle on a space: looks pages up and counts their mappings. One thread at a time uses it; any thread may. A
 * signal handler has one of its own.
 */
typedef struct prereg_translator prereg_translator;

/** An unmap that may have to wait for accesses. */
typedef struct prereg_unmapping prereg_unmapping;

/**
 * The table of a window of a SPAPR container: every entry a counted mapping here and an entry in the kernel. Any thread, any
 * number at once, each with a translator of its own.
 */
typedef struct prereg_window prereg_window;

/**
 * How a caller pins memory: set `backend` to `PREREG_BACKEND_CALLBACKS` and `pin` to this.
 *
 * The functions are called from many threads at once, never under a lock of this library. They may not throw, jump out,
 * or call back into the same space; registering the range that is being pinned or unpinned is answered with -EDEADLK. The
 * struct is copied; what `context` points at is not.
 *
 * WHO VOUCHES FOR ADDRESSES. The program that supplies these functions, and it alone. The library checks of what is pushed that
 * there is one address for every page of the range, that each is the start of a page, that no run passes 2^64, and that a large
 * page is mapped only where the addresses are contiguous and aligned for it. It never follows an address, and cannot know what is
 * there: every `hpa` and `host` that it returns later is one of these, plus an offset inside its page, and means what
 * `address_kind` says. It hands them out with a mapping (`prereg_registration_runs` shows them for reports), and calls `unpin` only when
 * nothing is mapped.
 */
typedef struct prereg_pin_ops {
  /** sizeof(struct prereg_pin_ops). */
  size_t size;
  /** Passed to each function. */
  void *context;
  /** The system page as a power of two: 12 to 24; 0 for this system's. */
  uint32_t granule_shift;
  /** The meaning of the host addresses: a `PREREG_ADDRESS_...`; ANY is taken for INVENTED, which vouches for nothing. */
  uint32_t address_kind;
  /**
   * Pins every page of `bytes` bytes at `ua` and pushes the host address of each, in order, with
   * `prereg_page_list_push`; sets `id` to whatever `unpin` is to be called with. Devices are programmed with these
   * addresses: until `unpin` is called, each must reach the page that it was pushed for and no other memory. Returns 0, or
   * a negative errno and nothing stays pinned.
   */
  int (*pin)(void *context, uint64_t ua, uint64_t bytes, struct prereg_page_list *pages, uint64_t *id);
  /** Releases what `pin` pinned; the pages are free when it returns. `dirty` is read with `prereg_dirty_pages_next`. */
  void (*unpin)(void *context, uint64_t id, uint64_t ua, uint64_t bytes, struct prereg_dirty_pages *dirty);
  /** The context is not used any more. May be NULL. */
  void (*release)(void *context);
} prereg_pin_ops;

/**
 * How a caller counts locked memory: set `charge` of the options to this. With NULL there the back end counts, against
 * RLIMIT_MEMLOCK. The rules for the functions are those of `prereg_pin_ops`.
 */
typedef struct prereg_charge_ops {
  /** sizeof(struct prereg_charge_ops). */
  size_t size;
  /** Passed to each function. */
  void *context;
  /**
   * Adds `pages` system pages. Returns 0; or anything else, and nothing is charged: the registration then fails with
   * -ENOMEM, and its message says what `charged` and `limit` were set to (both in pages).
   */
  int (*charge)(void *context, uint64_t pages, uint64_t *charged, uint64_t *limit);
  /** Takes `pages` off again. */
  void (*uncharge)(void *context, uint64_t pages);
  /** The context is not used any more. May be NULL. */
  void (*release)(void *context);
} prereg_charge_ops;

/**
 * How a space is made. Set all of it to zero, then `size`, then what is wanted. An option that the back end does not use is refused
 * with -EINVAL unless it is zero.
 */
typedef struct prereg_options {
  /** sizeof(struct prereg_options). */
  size_t size;
  /** A `PREREG_BACKEND_...`. */
  uint32_t backend;
  /**
   * The required kind of host addresses, for `PREREG_BACKEND_IO_URING`: ANY, PHYSICAL (fails with -EPERM where they are
   * hidden) or SLOT_OFFSET.
   */
  uint32_t addresses;
  /** Threads that bring memory in before it is pinned (io_uring); 0: one for each processor, up to 8. */
  uint32_t fault_threads;
  /** The page of `PREREG_BACKEND_FIXED` as a power of two; 0 for this system's. */
  uint32_t granule_shift;
  /** The most bytes that one slot takes (io_uring); 0: what the kernel allows. */
  uint64_t slot_limit;
  /** Bytes that may be locked, rounded down to pages; 0: RLIMIT_MEMLOCK, as the kernel has it. Not with `charge`. */
  uint64_t locked_limit;
  /**
   * The descriptor of the container of `PREREG_BACKEND_VFIO_TYPE1`; duplicated. 0 or -1 for the other back ends and beside
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
   * Called while much memory is brought in (io_uring), from the threads that do it: bytes done, bytes in all. Anything
   * but 0 stops it: the registration fails with -EINTR and nothing is pinned. May be NULL.
   */
  int (*progress)(void *context, uint64_t done, uint64_t total);
  /** Passed to `progress`; must stay good as long as the space or anything made from it. */
  void *progress_context;
  /** For `PREREG_BACKEND_CALLBACKS`. */
  const struct prereg_pin_ops *pin;
  /** The caller's account, or NULL. */
  const struct prereg_charge_ops *charge;
  /** For the back ends of VFIO and iommufd: a PCI device as /sys/bus/pci/devices names it, "0000:00:04.0". */
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

/** One region as it was at some moment. */
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
  /** One more than the live mappings, as the kernel counts them. */
  uint64_t mapped;
  /** Memory of ours that describes the region's pages, in bytes. */
  uint64_t metadata_bytes;
  /** The largest page it can be mapped with, as a power of two. */
  uint32_t largest_page;
  /** `PREREG_REGION_...`, or'ed. */
  uint32_t flags;
} prereg_region;

/** The sums of a space at some moment. */
typedef struct prereg_totals {
  /** sizeof(struct prereg_totals), set by the caller. */
  size_t size;
  /** Regions. */
  uint64_t regions;
  /** System pages pinned for them. */
  uint64_t pinned_pages;
  /** System pages charged for them. */
  uint64_t charged_pages;
  /** Ranges pinned since the beginning. */
  uint64_t pins;
  /** Ranges unpinned since the beginning. */
  uint64_t unpins;
  /** Translators that exist. */
  uint64_t translators;
  /** Old tables and headers of gone regions that an idle translator still sits on. */
  uint64_t unreclaimed;
} prereg_totals;

/** So many are one holder's. */
typedef struct prereg_held {
  /** sizeof(struct prereg_held), set by the caller; in an array, in the first element. */
  size_t size;
  /** Number of the holder. */
  uint64_t container;
  /** Kind of the holder, a `PREREG_HOLDER_...`. */
  uint32_t kind;
  /** Zero. */
  uint32_t reserved;
  /** How many. */
  uint64_t count;
} prereg_held;

/**
 * The holder of a registration or a mapping, for reports. A call that takes one takes NULL for a holder of no
 * number and kind.
 */
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
 * Keeps registered memory mapped: `release` is called when the last page is unpinned. If the range was registered
 * already, the region keeps the owner that it has, and `release` of the new one is called before the call returns.
 */
typedef struct prereg_keep {
  /** sizeof(struct prereg_keep). */
  size_t size;
  /** Passed to the function. */
  void *context;
  /** The memory is not used any more. May be called on any thread. */
  void (*release)(void *context);
} prereg_keep;

/** A stretch of contiguous host memory. */
typedef struct prereg_run {
  /** sizeof(struct prereg_run), set by the caller; in an array, in the first element. */
  size_t size;
  /** The user address of its first byte. */
  uint64_t ua;
  /** The host address, for the device. */
  uint64_t host;
  /** How long it is. */
  uint64_t bytes;
} prereg_run;

/**
 * One live mapping of one page: while it lives, its region cannot be unregistered and the page stays pinned at `hpa`.
 *
 * Filled by the call that maps. Leave it where it was filled until it is released: a copy is not a mapping. Its size never
 * changes; what is inside is the library's.
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
 * A live entry as it was at some moment. A host address comes only with a mapping, from `prereg_entries_take` or
 * `prereg_table_take`.
 */
typedef struct prereg_entry {
  /** sizeof(struct prereg_entry), set by the caller. */
  size_t size;
  /** The user address it was made from. */
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

/** A hypercall as it stands in a guest's registers. */
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
 * guest address `gpa`, a multiple of 4 KiB: 8 bytes each, big-endian in guest memory, in the host's order here. Returns 0;
 * anything else when they do not all lie in guest memory.
 */
typedef int (*prereg_read_list)(void *context, uint64_t gpa, uint64_t *values, size_t count);

/** The answer to a hypercall. */
typedef struct prereg_reply {
  /** sizeof(struct prereg_reply), set by the caller. */
  size_t size;
  /** Register 3: a `PREREG_H_...`. */
  int64_t code;
  /** Register 4 after an H_GET_TCE that succeeded. */
  uint64_t value;
  /** 1: `value` is set; otherwise the register keeps what it had. */
  uint32_t has_value;
  /** 1: the fast path said H_TOO_HARD and the slow path gave this answer. */
  uint32_t handed_over;
} prereg_reply;

/** The result of a device's access to a bus address. */
typedef struct prereg_lookup {
  /** sizeof(struct prereg_lookup), set by the caller. */
  size_t size;
  /** The guest page that the guest's entry names. */
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

/** The hardware behind a group. The functions are called with the container's lock held: they may not call it. */
typedef struct prereg_group_ops {
  /** sizeof(struct prereg_group_ops). */
  size_t size;
  /** Passed to each function. */
  void *context;
  /** Programs window `slot`. Returns 0, or a negative errno and nothing is programmed. May be NULL. */
  int (*set_window)(void *context, size_t slot, const struct prereg_geometry *geometry);
  /** Takes window `slot` away; every entry of it was cleared before. May be NULL. */
  void (*unset_window)(void *context, size_t slot);
  /** The context is not used any more. May be NULL. */
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
  /** Mappings at a time; 0 for 65,535, as the kernel has it. */
  uint32_t mappings;
  /** The smallest page as a power of two; 0 for 4 KiB. */
  uint32_t page_shift;
} prereg_iova_limits;

/** Told when the last access of an unmapped mapping has left, once for each mapping that had to wait, on the thread that left. */
typedef struct prereg_drained {
  /** sizeof(struct prereg_drained). */
  size_t size;
  /** Passed to each function. */
  void *context;
  /** The last access has left. */
  void (*drained)(void *context);
  /** The context is not used any more. May be NULL. */
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
  /** How long it is. */
  uint64_t bytes;
  /** 1: memory that the owner of the map reaches by other means. */
  uint32_t is_remote;
  /** Zero. */
  uint32_t reserved;
} prereg_piece;

/** A device's I/O virtual address space as it was at some moment. */
typedef struct prereg_iova_state {
  /** sizeof(struct prereg_iova_state), set by the caller. */
  size_t size;
  /** Live mappings. */
  uint64_t mappings;
  /** Bytes they cover; all 2^64 of them are shown as 2^64 - 1. */
  uint64_t bytes;
  /** Accesses under way in live mappings. */
  uint64_t accesses;
  /** Mappings that were unmapped and wait for their accesses. */
  uint64_t closing;
} prereg_iova_state;

#ifdef __cplusplus
extern "C" {
#endif

/** The version of the library that is running: major << 16 | minor << 8 | patch. */
uint32_t prereg_version_number(void);

/** The version of the library that is running, as text. */
const char *prereg_version(void);

/**
 * Pushes `pages` pages that follow each other from host address `host` on, which is the start of a page.
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
 * Makes an empty address space. `options` may be NULL: io_uring and its defaults.
 *
 * Returns 0; -EPERM when io_uring or what was asked of it is forbidden to this user, -ENOSYS or -EINVAL when the kernel
 * has it not, -ENOMEM, -EINVAL for options that do not go together or are not used. For the back ends of VFIO and iommufd also
 * -ENOENT or -ENODEV (the machine, the kernel or the device has it not), -EACCES, -EPERM, -EBUSY: the message says what to do.
 */
int prereg_space_new(const struct prereg_options *options,
                     struct prereg_space **space,
                     struct prereg_error *error);

/**
 * Gives the space up and sets `*space` to NULL. Every registration is given up with it: what is not mapped is unpinned at once,
 * what is mapped when its last mapping is released. Handles on them stay good: their calls answer -ENOENT.
 * Tables, owners and IOVA maps made from the space keep it until they are freed themselves.
 *
 * Returns 0, also for NULL; -EINVAL for what is no space.
 */
int prereg_space_free(struct prereg_space **space);

/** The system page of the space as a power of two; 0 for what is no space. */
uint32_t prereg_space_granule_shift(const struct prereg_space *space);

/** The meaning of the space's host addresses: a `PREREG_ADDRESS_...`; 0 if `space` is no space. */
uint32_t prereg_space_address_kind(const struct prereg_space *space);

/** The name of the back end, good as long as the space; NULL for what is no space. */
const char *prereg_space_backend(const struct prereg_space *space);

/** The reason for the kind of its addresses, as a sentence, valid while the space lives; NULL if `space` is no space. */
const char *prereg_space_address_note(const struct prereg_space *space);

/** Whether anything is registered: 1 or 0; -EINVAL for what is no space. */
int prereg_space_is_preregistered(const struct prereg_space *space);

/**
 * Finds the one region that holds all of `bytes` bytes at `ua`.
 *
 * Returns 0; -ENOENT when there is none (neighbours are not stitched together, and zero bytes lie nowhere).
 */
int prereg_space_find(const struct prereg_space *space,
                      uint64_t ua,
                      uint64_t bytes,
                      struct prereg_region *region,
                      struct prereg_error *error);

/** How many of the `bytes` bytes of host addresses from `host` on one region of device memory covers; 0 for none. */
uint64_t prereg_space_device_at(const struct prereg_space *space,
                                uint64_t host,
                                uint64_t bytes);

/**
 * Releases regions whose last mapping was released by `prereg_unmap` or a table, which only queue them. Registering and
 * unregistering do it too.
 */
int prereg_space_reap(const struct prereg_space *space);

/**
 * Takes a host address of the kind SLOT_OFFSET apart: the slot, counted over all rings (ring = slot / 16384), and the
 * offset from the start of the slot's memory.
 *
 * Returns 0; -EINVAL for an address that names no slot.
 */
int prereg_slot_address(uint64_t host,
                        uint32_t *slot,
                        uint64_t *offset);

/**
 * Takes a snapshot of everything there is to see.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_state_new(const struct prereg_space *space,
                     struct prereg_state **state,
                     struct prereg_error *error);

/** Frees it and sets `*state` to NULL. */
int prereg_state_free(struct prereg_state **state);

/** The sums. Returns 0 or -EINVAL. */
int prereg_state_totals(const struct prereg_state *state, struct prereg_totals *totals);

/** How many regions it shows; 0 for what is no snapshot. */
size_t prereg_state_regions(const struct prereg_state *state);

/** Region `index`, by ascending address. Returns 0 or -EINVAL. */
int prereg_state_region(const struct prereg_state *state, size_t index, struct prereg_region *into);

/**
 * The holders of registrations of region `index`: at most `room` are written, which lie as far apart as `held[0].size` says; `*total`
 * (may be NULL) is set to how many there are. Returns 0 or -EINVAL.
 */
int prereg_state_registrations(const struct prereg_state *state,
                               size_t index,
                               struct prereg_held *held,
                               size_t room,
                               size_t *total);

/** The holders of mappings of region `index`, in the same way. Exact when no thread maps or unmaps meanwhile. */
int prereg_state_mappings(const struct prereg_state *state,
                          size_t index,
                          struct prereg_held *held,
                          size_t room,
                          size_t *total);

/**
 * Registers `bytes` bytes at `ua`: pins and charges them, or shares the region of just this range if there is one (no
 * new pin, no new charge).
 *
 * The memory must stay mapped, and stay the same memory (no munmap, no mmap over it, no MADV_DONTNEED, no hole punched,
 * no truncation), until the region is released; or until `release` of `keep`, if one is passed. `holder` and `keep` may
 * be NULL.
 *
 * Returns 0; -EINVAL (not whole pages, empty, past 2^64, overlaps a region of another shape), -ENOMEM (over the
 * locked-memory limit), -EFAULT (cannot be pinned), -ENOSPC (too many), or what the back end said. Nothing is pinned,
 * charged or listed then.
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
 * Registers device memory that lies at host address `host`: nothing is pinned, charged or marked dirty. Always a new
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
 * One more registration of the region of exactly `bytes` bytes at `ua`. The memory is not looked at.
 *
 * Returns 0; -ENOENT when there is no such region.
 */
int prereg_share(const struct prereg_space *space,
                 uint64_t ua,
                 uint64_t bytes,
                 const struct prereg_holder *holder,
                 struct prereg_registration **registration,
                 struct prereg_error *error);

/**
 * Gives a registration up and sets `*registration` to NULL. The last one unpins and uncharges the region before this
 * returns.
 *
 * Returns 0, also for NULL; -EBUSY while it is the last one and the region is mapped: then nothing has changed,
 * `*registration` is still good, `*mapped` (may be NULL) says how many mappings live, and the message whose they are.
 * -ENOENT when the space is gone: the handle is then freed.
 */
int prereg_unregister(struct prereg_registration **registration,
                      uint64_t *mapped,
                      struct prereg_error *error);

/**
 * `prereg_unregister` for `count` of them, of any spaces: those of one space that stand together cost one fence on every
 * thread instead of one each. Each succeeds or is refused by itself; those given up become NULL, the refused stay.
 *
 * Returns 0; -EBUSY when at least one was refused: `*refused` (may be NULL) says how many; -EINVAL when something in the array is
 * no registration, or stands there twice: nothing has changed then.
 */
int prereg_unregister_many(struct prereg_registration **registrations,
                           size_t count,
                           size_t *refused,
                           struct prereg_error *error);

/**
 * Gives a registration up without waiting and without being refused, and sets `*registration` to NULL: if it is the last
 * one, no new mapping is made from here on and the region is released when the last old one goes. `draining` (may be
 * NULL) is set to a handle that reports the completion.
 *
 * Returns 0, also for NULL (`*draining` is then NULL too).
 */
int prereg_drain(struct prereg_registration **registration,
                 struct prereg_draining **draining,
                 struct prereg_error *error);

/** `prereg_drain`, and waits until the region is released or registered again. Blocks as long as it is mapped. */
int prereg_unregister_when_idle(struct prereg_registration **registration, struct prereg_error *error);

/**
 * Whether the region is released (or registered again): 1 or 0. Releases it if it is time. 1 for NULL;
 * -EINVAL for what is no such handle.
 */
int prereg_draining_is_done(const struct prereg_draining *draining);

/** Waits until it is, frees the handle and sets `*draining` to NULL. */
int prereg_draining_wait(struct prereg_draining **draining);

/** Frees the handle and sets `*draining` to NULL; the region is released all the same. */
int prereg_draining_free(struct prereg_draining **draining);

/** The first byte; 0 for what is no registration. */
uint64_t prereg_registration_ua(const struct prereg_registration *registration);

/** The length in bytes; 0 for what is no registration. */
uint64_t prereg_registration_bytes(const struct prereg_registration *registration);

/**
 * The largest page, as a power of two, with which `bytes` bytes at `ua` can be mapped; for the whole range that is what
 * `prereg_map` accepts anywhere in it. 0 when the range is not inside.
 */
uint32_t prereg_registration_largest_page(const struct prereg_registration *registration,
                                          uint64_t ua,
                                          uint64_t bytes);

/**
 * The region as it is now.
 *
 * Returns 0; -ENOENT when the space is gone.
 */
int prereg_registration_state(const struct prereg_registration *registration,
                              struct prereg_region *region,
                              struct prereg_error *error);

/**
 * The runs of contiguous host memory of the region, in order, from number `first` on: for audits and reports. At most `room` are
 * written, which lie as far apart as `runs[0].size` says; `*total` (may be NULL) is set to how many there are.
 *
 * What it shows is true while the registration lives and promises nothing to a device: for that, map.
 */
int prereg_registration_runs(const struct prereg_registration *registration,
                             size_t first,
                             struct prereg_run *runs,
                             size_t room,
                             size_t *total,
                             struct prereg_error *error);

/**
 * Makes a translator; `holder` (may be NULL) is whose mappings it makes.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_translator_new(const struct prereg_space *space,
                          const struct prereg_holder *holder,
                          struct prereg_translator **translator,
                          struct prereg_error *error);

/**
 * Makes room for `mappings` live mappings, pages and ranges together, that this translator makes: as long as no more of them
 * live, mapping allocates nothing. There is room for 32 from the start; past it, mapping now and then makes one system call for
 * memory.
 *
 * Returns 0; -ENOMEM, -EINVAL.
 */
int prereg_translator_reserve(struct prereg_translator *translator,
                              uint32_t mappings,
                              struct prereg_error *error);

/**
 * Frees it and sets `*translator` to NULL. Mappings that it made stay, and are released with another one or with
 * `prereg_mapping_drop`.
 */
int prereg_translator_free(struct prereg_translator **translator);

/** Looks for the newest regions. Never needed for correctness; an idle translator that refreshes lets old tables go. */
int prereg_translator_refresh(struct prereg_translator *translator);

/**
 * Maps the page of `2^shift` bytes that holds `ua`: finds its region, counts one mapping, and yields the address. No lock,
 * no allocation, no system call, no page fault: works in a signal handler.
 *
 * The library does not see what the device writes: mark the pages that it may have written (`prereg_mark_dirty`,
 * `prereg_unmap_written`) before the mapping is released.
 *
 * Returns 0; -EFAULT when no one region holds the whole page, or its memory is not contiguous enough for it; -ENXIO when
 * the region is being unregistered; -ENOMEM; -EINVAL. `*mapping` is not touched then.
 */
int prereg_map(struct prereg_translator *translator,
               uint64_t ua,
               uint32_t shift,
               struct prereg_mapping *mapping,
               struct prereg_error *error);

/**
 * Releases a mapping, without a lock or a system call. The device must not use the address any more.
 *
 * Returns 0; -EINVAL for what is no live mapping (released already, whichever copy of it, copied, never filled): an unbalanced
 * unmap changes nothing.
 */
int prereg_unmap(struct prereg_translator *translator,
                 struct prereg_mapping *mapping);

/**
 * `prereg_unmap` of a page that a device may have written: marks it first, as `prereg_mark_dirty` does, all of it if it is larger
 * than a system page.
 */
int prereg_unmap_written(struct prereg_translator *translator,
                         struct prereg_mapping *mapping);

/**
 * Releases a mapping on any thread, without a translator. If it was the last one of a region whose registrations are
 * gone, releases that region, which takes a lock and may make system calls.
 *
 * Returns as `prereg_unmap`.
 */
int prereg_mapping_drop(struct prereg_mapping *mapping);

/**
 * Whether `prereg_map` would succeed at this moment. Nothing is counted and no address leaves.
 *
 * Returns as `prereg_map`.
 */
int prereg_check(struct prereg_translator *translator,
                 uint64_t ua,
                 uint32_t shift,
                 struct prereg_error *error);

/**
 * Maps all of `bytes` bytes at `ua`, which must lie in one region, as one mapping. `prereg_range_runs` has the addresses.
 *
 * Returns as `prereg_map`; an empty range lies nowhere.
 */
int prereg_map_range(struct prereg_translator *translator,
                     uint64_t ua,
                     uint64_t bytes,
                     struct prereg_range *range,
                     struct prereg_error *error);

/**
 * The stretches of contiguous host memory that make up a mapped range, in order, from number `first` on: a scatter-gather
 * list. At most `room` are written, which lie as far apart as `runs[0].size` says; `*total` (may be NULL) is set to how many
 * there are.
 *
 * Returns 0; -EINVAL for what is no live range.
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

/**
 * Marks the system page at `ua` as written by a device. Nothing happens where nothing is registered, and for device
 * memory.
 */
int prereg_mark_dirty(struct prereg_translator *translator,
                      uint64_t ua);

/**
 * `prereg_mark_dirty` for every system page that has one of the `bytes` bytes at `ua`, which all lie in one region.
 *
 * Returns 0; -EFAULT when no one region holds them; -ENXIO when the region is being unregistered; -EINVAL. Nothing is marked
 * then.
 */
int prereg_mark_dirty_range(struct prereg_translator *translator,
                            uint64_t ua,
                            uint64_t bytes,
                            struct prereg_error *error);

/**
 * Makes `count` empty entries for pages of `2^shift` bytes, 12 at least. `holder` (may be NULL) is whose mappings they are:
 * use translators of the same holder.
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

/** How many entries; 0 for what is no block. */
size_t prereg_entries_count(const struct prereg_entries *entries);

/** How many entries are live, counted now; 0 for what is no block. */
uint64_t prereg_entries_live(const struct prereg_entries *entries);

/**
 * Maps the page at `ua`, which must be aligned, into entry `index`. What was there before is released (its page marked
 * dirty if the device could write it); `*before` (may be NULL) is set to the access it had, 0 if it was empty.
 *
 * Returns 0; as `prereg_map`; -EINVAL also for a bad index, a misaligned address or a translator of another space; -EAGAIN
 * while another thread changes the same entry. Nothing has changed then.
 */
int prereg_entries_set(const struct prereg_entries *entries,
                       struct prereg_translator *translator,
                       size_t index,
                       uint64_t ua,
                       uint32_t access,
                       uint32_t *before,
                       struct prereg_error *error);

/**
 * Empties entry `index`; one past the end is empty. `*before` as in `prereg_entries_set`.
 *
 * Returns 0; -EINVAL, -EAGAIN.
 */
int prereg_entries_clear(const struct prereg_entries *entries,
                         struct prereg_translator *translator,
                         size_t index,
                         uint32_t *before,
                         struct prereg_error *error);

/**
 * Shows entry `index`, without its host address, which comes with a mapping from `prereg_entries_take`. Waits while another
 * thread changes the entry, which takes a few instructions; not for signal handlers.
 *
 * Returns 1 if it is live, 0 if it is empty (`*entry` is not touched), -EINVAL.
 */
int prereg_entries_inspect(const struct prereg_entries *entries,
                           size_t index,
                           struct prereg_entry *entry);

/**
 * One more mapping of what entry `index` maps: what a device's access through the entry holds while it lasts. `*access` (may
 * be NULL) is set to what the device may do.
 *
 * Returns 1; 0 when the entry is empty (`*mapping` is not touched); -EAGAIN, -EINVAL, -ENXIO.
 */
int prereg_entries_take(const struct prereg_entries *entries,
                        struct prereg_translator *translator,
                        size_t index,
                        struct prereg_mapping *mapping,
                        uint32_t *access,
                        struct prereg_error *error);

/**
 * Makes an empty table over the memory of `space`. `container` is the holder that its mappings are reported with; 0 for none.
 *
 * Returns 0; -EINVAL for a shape that no table has, -ENOMEM.
 */
int prereg_table_new(const struct prereg_space *space,
                     const struct prereg_geometry *geometry,
                     uint64_t container,
                     struct prereg_table **table,
                     struct prereg_error *error);

/** Gives the handle up and sets `*table` to NULL. The mappings of all entries are released when nothing shares the table any more. */
int prereg_table_free(struct prereg_table **table);

/** The position of the table's window. Returns 0 or -EINVAL. */
int prereg_table_geometry(const struct prereg_table *table, struct prereg_geometry *geometry);

/**
 * Maps the page at `ua` into entry `index`. What was there before is released (its page marked dirty if the device could
 * write it); `*before` (may be NULL) is set to the access it had, 0 if it was empty.
 *
 * Returns 0; -EFAULT (not registered, or not contiguous enough), -ENXIO (being unregistered), -EINVAL, -EAGAIN (another
 * thread at the same entry), -ENOMEM. The entry is as it was then.
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
 * Returns as `prereg_table_set`. If the first page cannot be mapped nothing has changed; if a later one cannot, all `count`
 * entries are empty.
 */
int prereg_table_set_run(const struct prereg_table *table,
                         struct prereg_translator *translator,
                         uint64_t first,
                         uint64_t count,
                         uint64_t ua,
                         uint32_t access,
                         struct prereg_error *error);

/**
 * Empties `count` entries from `first` on; `*cleared` (may be NULL) is set to how many were live.
 *
 * Returns 0; -EINVAL past the end, with nothing changed; -EAGAIN with the entries before another thread's emptied: repeat.
 */
int prereg_table_clear(const struct prereg_table *table,
                       struct prereg_translator *translator,
                       uint64_t first,
                       uint64_t count,
                       uint64_t *cleared,
                       struct prereg_error *error);

/**
 * Makes what `count` entries from `first` on need, so that mapping there neither allocates nor takes a lock.
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
 * Returns 0 or why not.
 */
int prereg_table_check(const struct prereg_table *table,
                       struct prereg_translator *translator,
                       uint64_t ua,
                       struct prereg_error *error);

/**
 * Shows entry `index`, without its host address, which comes with a mapping from `prereg_table_take`.
 *
 * Returns 1 and fills `*entry` if the entry is live; 0 if it is empty or there is none; -EINVAL.
 */
int prereg_table_inspect(const struct prereg_table *table, uint64_t index, struct prereg_entry *entry);

/**
 * One more mapping of what entry `index` maps: what a device's access holds until it is done. `*access` (may be NULL) is set
 * to what the device may do.
 *
 * Returns 1; 0 when the entry is empty (`*mapping` is not touched); -ENXIO, -EAGAIN, -EINVAL.
 */
int prereg_table_take(const struct prereg_table *table,
                      struct prereg_translator *translator,
                      uint64_t index,
                      struct prereg_mapping *mapping,
                      uint32_t *access,
                      struct prereg_error *error);

/** How many entries are live, counted now; 0 for what is no table. */
uint64_t prereg_table_live(const struct prereg_table *table);

/** Bytes of memory that the table takes now; 0 for what is no table. */
uint64_t prereg_table_memory_bytes(const struct prereg_table *table);

/**
 * Makes a guest without memory and tables; `rules` is a `PREREG_RULES_...`.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_guest_new(uint32_t rules, struct prereg_guest **guest, struct prereg_error *error);

/**
 * Frees the guest and its tables, and sets `*guest` to NULL. Hardware tables that nothing else shares release their
 * mappings.
 */
int prereg_guest_free(struct prereg_guest **guest);

/**
 * Puts `bytes` bytes of user memory from `ua` on behind the guest addresses from `gpa` on; all multiples of 4 KiB.
 *
 * Returns 0; -EINVAL, -EEXIST (another slot has some of these guest addresses).
 */
int prereg_guest_add_memory(struct prereg_guest *guest,
                            uint64_t gpa,
                            uint64_t ua,
                            uint64_t bytes,
                            struct prereg_error *error);

/**
 * Takes the memory slot that starts at `gpa` away. Entries written before keep what they map.
 *
 * Returns 0; -ENOENT.
 */
int prereg_guest_remove_memory(struct prereg_guest *guest, uint64_t gpa, struct prereg_error *error);

/** The user address behind `gpa`, if one slot holds all of `bytes` bytes there; 0 if none does. */
uint64_t prereg_guest_translate(const struct prereg_guest *guest, uint64_t gpa, uint64_t bytes);

/**
 * Makes an empty guest-visible table under the number `liobn`; pages of 4 KiB to 16 GiB.
 *
 * Returns 0; -EBUSY (there is one), -EINVAL, -ENOMEM.
 */
int prereg_guest_create_table(struct prereg_guest *guest,
                              uint32_t liobn,
                              const struct prereg_geometry *geometry,
                              struct prereg_error *error);

/**
 * Removes a table. Hardware tables that nothing else shares release their mappings.
 *
 * Returns 0; -ENOENT.
 */
int prereg_guest_remove_table(struct prereg_guest *guest, uint32_t liobn, struct prereg_error *error);

/**
 * Lets `table` act on what the guest writes into table `liobn` from now on; the table is shared, the handle stays the
 * caller's. The same one may be attached several times: `*times` (may be NULL) is set to how often it is now.
 *
 * Returns 0; -EINVAL (its pages are larger, it starts elsewhere, it is smaller, or it is of another space than those
 * attached before), -ENOENT.
 */
int prereg_guest_attach(struct prereg_guest *guest,
                        uint32_t liobn,
                        const struct prereg_table *table,
                        uint64_t *times,
                        struct prereg_error *error);

/**
 * Takes one `prereg_guest_attach` back; after the last one the guest's writes no longer reach the table. What it maps stays
 * until it is cleared or freed. `*times` (may be NULL) is set to how often it is still attached.
 *
 * Returns 0; -ENOENT.
 */
int prereg_guest_detach(struct prereg_guest *guest,
                        uint32_t liobn,
                        const struct prereg_table *table,
                        uint64_t *times,
                        struct prereg_error *error);

/**
 * Does a hypercall. The answer in `*reply` is final: a guest may see it. `read_list` may be NULL: no list then lies in guest
 * memory.
 *
 * Returns 0, whatever the guest is answered; -ENOSYS for a number that is none of the four (`*reply` is not touched),
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
 * Translates bus address `ioba` of a device behind `liobn`: the guest's entry goes to `*lookup` and, where a hardware table maps
 * it, one more mapping in `*mapping`, which holds the memory.
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
 * Makes an owner: containers that it uses register memory in `space` and charge tables to its account.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_owner_new(const struct prereg_space *space,
                     struct prereg_owner **owner,
                     struct prereg_error *error);

/** Gives the handle up and sets `*owner` to NULL. Containers that it uses go on. */
int prereg_owner_free(struct prereg_owner **owner);

/**
 * Makes an empty container; `number` is what reports of who holds a mapping call it, 0 stands for none.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_container_new(uint64_t number, struct prereg_container **container, struct prereg_error *error);

/**
 * Frees the container and sets `*container` to NULL: every entry is cleared, every window removed, every registration given
 * up.
 */
int prereg_container_free(struct prereg_container **container);

/**
 * Adds group `number` of `platform` (a `PREREG_PLATFORM_...`). `hardware` may be NULL: its windows are then reached through
 * their tables only.
 *
 * Returns 0; -EBUSY (it is here already), -EPERM (another platform than the groups here), -EINVAL, or what the hardware said.
 */
int prereg_container_attach(const struct prereg_container *container,
                            uint32_t number,
                            uint32_t platform,
                            const struct prereg_group_ops *hardware,
                            struct prereg_error *error);

/**
 * Takes group `number` out. The other groups keep every mapping; with the last group goes the IOMMU.
 *
 * Returns 0; -ENOENT.
 */
int prereg_container_detach(const struct prereg_container *container,
                            uint32_t number,
                            struct prereg_error *error);

/**
 * A request as it comes from a VMM: `command` is the ioctl's number (VFIO_IOMMU_SPAPR_REGISTER_MEMORY and so on, as in
 * linux/vfio.h), `argument` the ioctl's third argument: a number made a pointer for those requests that take one, else the
 * request's struct, of which `readable` bytes may be read and written.
 *
 * Returns what the ioctl returns: 0, 1 for an extension that is there, or a negative errno.
 */
int prereg_container_ioctl(const struct prereg_container *container,
                           const struct prereg_owner *owner,
                           uint32_t command,
                           void *argument,
                           size_t readable,
                           struct prereg_error *error);

/**
 * The table of window `slot`, shared: what a guest's table is attached to.
 *
 * Returns 0; -ENOENT.
 */
int prereg_container_window(const struct prereg_container *container,
                            size_t slot,
                            struct prereg_table **table,
                            struct prereg_error *error);

/**
 * Makes an empty map over the memory registered in `space`. `limits`, `holder` and `drained` may be NULL.
 *
 * Returns 0; -EINVAL, -ENOMEM.
 */
int prereg_iova_new(const struct prereg_space *space,
                    const struct prereg_iova_limits *limits,
                    const struct prereg_holder *holder,
                    const struct prereg_drained *drained,
                    struct prereg_iova **iova,
                    struct prereg_error *error);

/** Unmaps everything, frees the map and sets `*iova` to NULL. Accesses under way stay good until they are released. */
int prereg_iova_free(struct prereg_iova **iova);

/**
 * Maps `bytes` bytes at I/O virtual address `at` to the registered memory at `ua`, all in one region, as one mapping of it.
 * `access` is what the device may do. Where a mapping was that still waits for its accesses, a new one can be at once.
 *
 * Returns 0; -EINVAL (misaligned, empty, past 2^64, outside the limits), -EEXIST (something is mapped there), -ENOSPC (too
 * many), -EFAULT (not registered), -ENXIO (being unregistered). Nothing is mapped or counted then.
 */
int prereg_iova_map(const struct prereg_iova *iova,
                    uint64_t at,
                    uint64_t bytes,
                    uint64_t ua,
                    uint32_t access,
                    struct prereg_error *error);

/** Like `prereg_iova_map`, for memory without a user address in this process, which the caller reaches by other means. */
int prereg_iova_map_remote(const struct prereg_iova *iova,
                           uint64_t at,
                           uint64_t bytes,
                           uint32_t access,
                           struct prereg_error *error);

/**
 * Unmaps every mapping in the range, none included. They are gone when this returns; `unmapping` (may be NULL) is set to a
 * handle that reports when the accesses under way have ended.
 *
 * Returns 0; -EINVAL, also when the range begins or ends inside a mapping: nothing is unmapped then.
 */
int prereg_iova_unmap(const struct prereg_iova *iova,
                      uint64_t at,
                      uint64_t bytes,
                      struct prereg_unmapping **unmapping,
                      struct prereg_error *error);

/** Unmaps everything, in the same way. */
int prereg_iova_unmap_all(const struct prereg_iova *iova,
                          struct prereg_unmapping **unmapping,
                          struct prereg_error *error);

/** Whether no access holds any of it any more: 1 or 0; 1 for NULL, -EINVAL for what is no such handle. */
int prereg_unmapping_is_done(const struct prereg_unmapping *unmapping);

/** Mappings taken away; 0 for what is no such handle. */
uint64_t prereg_unmapping_mappings(const struct prereg_unmapping *unmapping);

/** Bytes taken away; all 2^64 of them are shown as 2^64 - 1. 0 for what is no such handle. */
uint64_t prereg_unmapping_bytes(const struct prereg_unmapping *unmapping);

/** Frees the handle, which changes nothing else, and sets `*unmapping` to NULL. */
int prereg_unmapping_free(struct prereg_unmapping **unmapping);

/**
 * Holds the memory behind `bytes` bytes at `at`, which may lie in several mappings that touch, for the device to do with as
 * `access` says.
 *
 * Returns 0; -EFAULT (nothing is mapped there), -EACCES (the mapping does not allow it), -ENXIO (being unmapped), -EINVAL,
 * -ENOMEM. Nothing is held then.
 */
int prereg_iova_hold(const struct prereg_iova *iova,
                     uint64_t at,
                     uint64_t bytes,
                     uint32_t access,
                     struct prereg_hold **hold,
                     struct prereg_error *error);

/**
 * The pieces of a held access in order, from number `first` on. At most `room` are written, which lie as far apart
 * as `pieces[0].size` says; `*total` (may be NULL) is set to how many there are.
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
 * Ends the access, frees the handle and sets `*hold` to NULL. The device must not use the memory any more. The pages of an access
 * that writes are marked as written, before the memory can be unpinned.
 */
int prereg_hold_release(struct prereg_hold **hold);

/** Looks for the newest regions. Never needed for correctness; lets old tables go. */
int prereg_iova_refresh(const struct prereg_iova *iova);

/** The state of the map. Returns 0 or -EINVAL. */
int prereg_iova_snapshot(const struct prereg_iova *iova, struct prereg_iova_state *state);

/**
 * Lets another device reach what the space's devices reach: takes its group into the container, or attaches it. Pins and charges
 * nothing.
 *
 * Returns 0; -EOPNOTSUPP for a space of another back end or on the caller's own container; -ENODEV, -ENOENT, -EACCES, -EPERM,
 * -EBUSY, as the message says. Nothing has changed then.
 */
int prereg_space_add_device(const struct prereg_space *space,
                            const char *device,
                            struct prereg_error *error);

/**
 * Takes a device, or the group it is in, out again. What is registered stays pinned.
 *
 * Returns 0; -EBUSY while it is the last one and memory is registered that would go with it, or the device is open; -EOPNOTSUPP,
 * -ENODEV. Nothing has changed then.
 */
int prereg_space_remove_device(const struct prereg_space *space,
                               const char *device,
                               struct prereg_error *error);

/**
 * Opens a device of the space's container, or shares one that is attached to its iommufd.
 *
 * Returns 0; -EOPNOTSUPP, -ENODEV, -EBUSY, or what the system said.
 */
int prereg_device_open(const struct prereg_space *space,
                       const char *name,
                       struct prereg_device **device,
                       struct prereg_error *error);

/** Gives the handle up and sets `*device` to NULL. The device is closed when no handle on it is left and no iommufd has it. */
int prereg_device_close(struct prereg_device **device);

/**
 * Lets the device answer at its registers and do DMA (`on` is 1), or no DMA (0).
 *
 * Returns 0, -EINVAL, or what the system said.
 */
int prereg_device_set_bus_master(const struct prereg_device *device, int on, struct prereg_error *error);

/**
 * Resets the device.
 *
 * Returns 0, -EINVAL, or what the system said.
 */
int prereg_device_reset(const struct prereg_device *device, struct prereg_error *error);

/**
 * Reads 16 bits of the device's configuration space.
 *
 * Returns 0; -EINVAL past its end, or what the system said.
 */
int prereg_device_config_read(const struct prereg_device *device,
                              uint64_t offset,
                              uint16_t *value,
                              struct prereg_error *error);

/**
 * Writes 16 bits of the device's configuration space.
 *
 * Returns 0; -EINVAL past its end, or what the system said.
 */
int prereg_device_config_write(const struct prereg_device *device,
                               uint64_t offset,
                               uint16_t value,
                               struct prereg_error *error);

/**
 * Maps the registers of base address register `index`, 0 to 5, of the device.
 *
 * Returns 0; -EINVAL; -EOPNOTSUPP when they cannot be mapped; what the system said.
 */
int prereg_bar_map(const struct prereg_device *device,
                   uint32_t index,
                   struct prereg_bar **bar,
                   struct prereg_error *error);

/** Address of the registers, for volatile accesses, valid while the handle lives; NULL if `bar` is no such handle. */
void *prereg_bar_registers(const struct prereg_bar *bar);

/** How many bytes of registers there are; 0 for what is no such handle. */
uint64_t prereg_bar_bytes(const struct prereg_bar *bar);

/** Unmaps the registers and sets `*bar` to NULL. */
int prereg_bar_unmap(struct prereg_bar **bar);

/**
 * The table of the default window of a space of `PREREG_BACKEND_VFIO_SPAPR_V2`. One at a time.
 *
 * Returns 0; -EINVAL when it has a table already or was replaced; -EOPNOTSUPP for a space of another back end.
 */
int prereg_window_default(const struct prereg_space *space,
                          struct prereg_window **window,
                          struct prereg_error *error);

/**
 * Makes a window of `bytes` bytes in pages of `2^shift`, and its table; `place` is a `PREREG_WINDOW_...`. Where it begins is the
 * kernel's to say: see `prereg_window_geometry`.
 *
 * Returns 0; -EINVAL for what cannot be; -EOPNOTSUPP for a space of another back end; what the system said.
 */
int prereg_window_create(const struct prereg_space *space,
                         uint32_t shift,
                         uint64_t bytes,
                         uint32_t place,
                         struct prereg_window **window,
                         struct prereg_error *error);

/** Empties the table, removes the window if it was made for it, and sets `*window` to NULL. */
int prereg_window_free(struct prereg_window **window);

/** The position of the window. Returns 0 or -EINVAL. */
int prereg_window_geometry(const struct prereg_window *window, struct prereg_geometry *geometry);

/**
 * Maps `pages` consecutive pages from `ua` on into the entries from bus address `ioba` on: one call to the kernel. What was there
 * before is released.
 *
 * Returns 0; -EFAULT, -ENXIO, -EINVAL, -ENOMEM, or what the kernel said. The entries are as they were then, but for those that the
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
 * Maps `count` pages, wherever each lies, into consecutive entries from `ioba` on: one call to the kernel for each run of pages that
 * follow each other.
 *
 * Returns as `prereg_window_set_run`, of the run that was refused; the runs before it are mapped.
 */
int prereg_window_set_list(const struct prereg_window *window,
                           struct prereg_translator *translator,
                           uint64_t ioba,
                           const uint64_t *pages,
                           size_t count,
                           uint32_t access,
                           struct prereg_error *error);

/**
 * Empties `pages` entries from `ioba` on: one call to the kernel, or none if all are empty. `*cleared` (may be NULL) is set to how
 * many were live.
 *
 * Returns 0; -EINVAL, or what the kernel said: the entries are still counted then.
 */
int prereg_window_clear(const struct prereg_window *window,
                        struct prereg_translator *translator,
                        uint64_t ioba,
                        uint64_t pages,
                        uint64_t *cleared,
                        struct prereg_error *error);

/** Shows the entry at `ioba`. Returns 1 and fills `*entry` if it is live; 0 if it is empty or there is none; -EINVAL. */
int prereg_window_inspect(const struct prereg_window *window,
                          uint64_t ioba,
                          struct prereg_entry *entry);

/** How many entries are live; 0 for what is no window. */
uint64_t prereg_window_live(const struct prereg_window *window);

/**
 * Makes an empty table of what the devices reach of a space of `PREREG_BACKEND_IOMMUFD` and `PREREG_PLACEMENT_HELD`.
 *
 * Returns 0; -EOPNOTSUPP for another space; -ENOMEM, -EINVAL.
 */
int prereg_io_table_new(const struct prereg_space *space,
                        struct prereg_io_table **table,
                        struct prereg_error *error);

/** Unmaps all that it maps, and sets `*table` to NULL. */
int prereg_io_table_free(struct prereg_io_table **table);

/**
 * Lets devices reach `bytes` bytes from `ua` on, all in one region, at I/O virtual address `at`. Pins and charges nothing.
 *
 * Returns 0; -EINVAL (empty, past 2^64, not whole units), -EEXIST, -EFAULT, -ENXIO, or what the kernel said. Nothing is mapped
 * then.
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
 * Returns 0; -ENOENT if no mapping has exactly this range; or the kernel's errno: the mapping then stays counted.
 */
int prereg_io_table_unmap(const struct prereg_io_table *table,
                          struct prereg_translator *translator,
                          uint64_t at,
                          uint64_t bytes,
                          struct prereg_error *error);

/** How many ranges are mapped; 0 for what is no table. */
uint64_t prereg_io_table_live(const struct prereg_io_table *table);

#ifdef __cplusplus
}
#endif

#endif
