// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * A character device that calls the kernel's mm_iommu_*() functions, for the conformance scenarios: each ioctl calls one
 * function on the caller's address space and returns its result unchanged.
 *
 * The caller names regions by slots; each open file has its own. A slot counts the caller's references and is dead without
 * any, because its pointer may then be freed and reused. Closing the file, which for a killed process happens after the end
 * of its address space, releases the remaining references: the kernel warns about an address space that ends with regions.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include <asm/mmu_context.h>

#include "mm_iommu_test.h"

#define SLOTS 64

/* More mappings than any scenario has of one region; the count itself cannot be read. */
#define MOST_MAPPINGS 4096

struct slot {
	struct mm_iommu_table_group_mem_t *region;	/* NULL: dead */
	unsigned int references;
};

struct session {
	struct mm_struct *mm;	/* of the process that opened the file */
	struct mutex lock;
	struct slot slots[SLOTS];
};

static s32 find(struct session *s, struct mm_iommu_table_group_mem_t *region)
{
	s32 i;

	if (!region)
		return SLOT_NONE;
	for (i = 0; i < SLOTS; i++)
		if (s->slots[i].region == region)
			return i;
	return SLOT_UNKNOWN;
}

static void set_slot(struct session *s, s32 want, struct mm_iommu_table_group_mem_t *region)
{
	s32 stale = find(s, region);

	/* The old region was freed and its memory reused: the old slot must not name the new region. */
	if (stale >= 0)
		s->slots[stale].region = NULL;
	s->slots[want].region = region;
	s->slots[want].references = 1;
}

static void call_is_device(struct mm_struct *mm, struct mm_iommu_call *d)
{
	unsigned long bytes = 0;
	int depth = rcu_preempt_depth();

	d->result = mm_iommu_is_devmem(mm, d->host, d->amount, &bytes);
	d->host = bytes;
	/* The function returns with its RCU read section open if the answer is yes. */
	if (IS_ENABLED(CONFIG_PREEMPT_RCU))
		while (rcu_preempt_depth() > depth)
			rcu_read_unlock();
	else if (d->result)
		rcu_read_unlock();
}

static long call_function(struct session *s, struct mm_iommu_call *d)
{
	struct mm_iommu_table_group_mem_t *region = NULL;
	struct mm_struct *mm = current->mm;
	struct slot *slot = NULL;
	unsigned long host = 0;

	if (d->slot >= 0 && d->slot < SLOTS)
		slot = &s->slots[d->slot];

	switch (d->call) {
	case CALL_NEW:
	case CALL_NEW_DEVICE:
		if (!slot)
			return -EBADF;
		break;
	case CALL_PUT:
	case CALL_TRANSLATE:
	case CALL_MAPPED_INC:
	case CALL_MAPPED_DEC:
		if (!slot || !slot->region)
			return -EBADF;
		break;
	}

	switch (d->call) {
	case CALL_NEW:
		d->result = mm_iommu_new(mm, d->user, d->amount, &region);
		if (!d->result)
			set_slot(s, d->slot, region);
		return 0;
	case CALL_NEW_DEVICE:
		d->result = mm_iommu_newdev(mm, d->user, d->amount, d->host, &region);
		if (!d->result)
			set_slot(s, d->slot, region);
		return 0;
	case CALL_GET:
		d->slot = find(s, mm_iommu_get(mm, d->user, d->amount));
		if (d->slot >= 0)
			s->slots[d->slot].references++;
		return 0;
	case CALL_PUT:
		d->result = mm_iommu_put(mm, slot->region);
		if (!d->result && !--slot->references)
			slot->region = NULL;
		return 0;
	case CALL_LOOKUP:
		d->slot = find(s, mm_iommu_lookup(mm, d->user, d->amount));
		return 0;
	case CALL_TRANSLATE:
		d->result = mm_iommu_ua_to_hpa(slot->region, d->user, d->amount, &host);
		d->host = host;
		return 0;
	case CALL_IS_DEVICE:
		call_is_device(mm, d);
		return 0;
	case CALL_MAPPED_INC:
		d->result = mm_iommu_mapped_inc(slot->region);
		return 0;
	case CALL_MAPPED_DEC:
		mm_iommu_mapped_dec(slot->region);
		return 0;
	case CALL_ANY:
		d->result = mm_iommu_preregistered(mm);
		return 0;
	}
	return -EINVAL;
}

static long test_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct session *s = file->private_data;
	void __user *at = (void __user *)argument;
	struct mm_iommu_call d;
	long ret;

	if (command != MM_IOMMU_CALL)
		return -ENOTTY;
	if (copy_from_user(&d, at, sizeof(d)))
		return -EFAULT;
	d.result = 0;
	mutex_lock(&s->lock);
	ret = call_function(s, &d);
	mutex_unlock(&s->lock);
	if (!ret && copy_to_user(at, &d, sizeof(d)))
		return -EFAULT;
	return ret;
}

static int test_open(struct inode *inode, struct file *file)
{
	struct session *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return -ENOMEM;
	mutex_init(&s->lock);
	s->mm = current->mm;
	mmgrab(s->mm);
	file->private_data = s;
	return 0;
}

static int test_release(struct inode *inode, struct file *file)
{
	struct session *s = file->private_data;
	unsigned int i, n;

	for (i = 0; i < SLOTS; i++) {
		struct slot *slot = &s->slots[i];

		if (!slot->region)
			continue;
		for (n = 0; n < MOST_MAPPINGS; n++)
			mm_iommu_mapped_dec(slot->region);
		for (; slot->references; slot->references--)
			if (mm_iommu_put(s->mm, slot->region))
				break;
	}
	mmdrop(s->mm);
	kfree(s);
	return 0;
}

static const struct file_operations test_operations = {
	.owner = THIS_MODULE,
	.open = test_open,
	.release = test_release,
	.unlocked_ioctl = test_ioctl,
};

static struct miscdevice test_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "mm_iommu_test",
	.fops = &test_operations,
	.mode = 0666,
};
module_misc_device(test_device);

MODULE_AUTHOR("The prereg authors");
MODULE_DESCRIPTION("Calls mm_iommu_*() for the conformance scenarios");
MODULE_LICENSE("Dual MIT/GPL");
