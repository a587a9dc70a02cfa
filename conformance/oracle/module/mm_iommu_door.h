/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What travels through /dev/mm_iommu_door; the guest program has the same struct in Rust.
 */
#ifndef MM_IOMMU_DOOR_H
#define MM_IOMMU_DOOR_H

#include <linux/ioctl.h>
#include <linux/types.h>

enum door_call {
	DOOR_NEW = 1,
	DOOR_NEW_DEVICE,
	DOOR_GET,
	DOOR_PUT,
	DOOR_LOOKUP,
	DOOR_TRANSLATE,
	DOOR_IS_DEVICE,
	DOOR_MAPPED_INC,
	DOOR_MAPPED_DEC,
	DOOR_ANY,
};

/* No region, and a region that no slot remembers. */
#define DOOR_SLOT_NONE		(-1)
#define DOOR_SLOT_UNKNOWN	(-2)

struct door {
	__u32 call;
	__s32 slot;	/* in: which one; out: which one was found */
	__u64 user;	/* user address */
	__u64 amount;	/* entries, bytes or a page shift, as the call wants */
	__u64 host;	/* host address, in and out; out: bytes of device memory */
	__s64 result;	/* what the function returned */
};

#define DOOR_ASK _IOWR('d', 1, struct door)

#endif
