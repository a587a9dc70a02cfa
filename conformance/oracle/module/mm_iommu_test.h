/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The argument of the ioctl of /dev/mm_iommu_test; the guest program has this struct in Rust.
 */
#ifndef MM_IOMMU_TEST_H
#define MM_IOMMU_TEST_H

#include <linux/ioctl.h>
#include <linux/types.h>

enum mm_iommu_call_number {
	CALL_NEW = 1,
	CALL_NEW_DEVICE,
	CALL_GET,
	CALL_PUT,
	CALL_LOOKUP,
	CALL_TRANSLATE,
	CALL_IS_DEVICE,
	CALL_MAPPED_INC,
	CALL_MAPPED_DEC,
	CALL_ANY,
};

/* No region, and a region without a slot. */
#define SLOT_NONE		(-1)
#define SLOT_UNKNOWN	(-2)

struct mm_iommu_call {
	__u32 call;
	__s32 slot;	/* in: the region; out: the region found */
	__u64 user;	/* user address */
	__u64 amount;	/* entries, bytes or a page shift, depending on the call */
	__u64 host;	/* host address, in and out; out: bytes of device memory */
	__s64 result;	/* what the function returned */
};

#define MM_IOMMU_CALL _IOWR('d', 1, struct mm_iommu_call)

#endif
