//! Memory that cannot be pinned is refused with its address and the reason, and nothing stays pinned.

use std::os::fd::AsFd;

use prereg::{AddressSpace, Errno, PinError};
use prereg_linux::IoUring;

use crate::pins::{pin, pinned};
use crate::raw::{self, Area};
use crate::{Outcome, Test, need_pins};

pub(crate) const TESTS: &[Test] = &[
    ("pages_without_access_are_named", protections),
    ("a_hole_is_named", hole),
    ("a_file_on_a_disk_is_named", disk_file),
    ("a_page_past_the_end_of_its_file_is_named", past_the_end),
    ("a_piece_in_the_middle_of_a_batch_is_named_and_the_others_released", middle_of_a_batch),
    ("a_refused_registration_leaves_no_charge", no_charge),
];

const PAGE: usize = 4096;

/// Pins `area` with slots of `piece` pages and expects a fault at page `page` for a reason that contains `says`.
fn expect_fault(area: &Area, piece: usize, page: usize, says: &str) {
    let uring = IoUring::builder().slot_limit((piece * PAGE) as u64).build().unwrap();
    let empty = pinned();
    let error = pin(&uring, &area.memory()).unwrap_err();
    let PinError::Fault { ua, why } = error else { panic!("{error}") };
    assert_eq!(ua.raw(), area.at(page * PAGE) as u64, "{error}");
    assert!(why.contains(says), "{error}");
    assert_eq!(error.errno(), Errno::EFAULT);
    assert_eq!(pinned(), empty);
    let state = uring.state();
    assert_eq!((state.slots_used, state.pinned_bytes, state.stuck_slots), (0, 0, 0));
}

fn protections() -> Outcome {
    need_pins(1 << 20)?;
    for (protection, says) in [(libc::PROT_READ, "read-only"), (libc::PROT_NONE, "PROT_NONE")] {
        for page in [0, 1, 17, 31] {
            let area = Area::anonymous(32 * PAGE);
            area.protect(page * PAGE, PAGE, protection);
            expect_fault(&area, 1 << 18, page, says);
        }
    }
    Ok(())
}

fn hole() -> Outcome {
    need_pins(1 << 20)?;
    let area = Area::anonymous(32 * PAGE);
    area.unmap(9 * PAGE, 2 * PAGE);
    expect_fault(&area, 1 << 18, 9, "nothing is mapped");
    Ok(())
}

fn disk_file() -> Outcome {
    need_pins(1 << 20)?;
    let folder = env!("CARGO_TARGET_TMPDIR");
    let file = tempfile::tempfile_in(folder).map_err(|error| format!("no file in {folder}: {error}"))?;
    file.set_len(8 * PAGE as u64).unwrap();
    let area = Area::shared(file.as_fd(), 8 * PAGE);
    let uring = IoUring::new().unwrap();
    match pin(&uring, &area.memory()) {
        Ok(_) => Err(format!("{folder} lies in memory, not on a disk")),
        Err(PinError::Fault { ua, why }) => {
            assert_eq!(ua.raw(), area.start as u64);
            assert!(why.contains("disk"), "{why}");
            Ok(())
        }
        Err(error) => panic!("{error}"),
    }
}

fn past_the_end() -> Outcome {
    need_pins(1 << 20)?;
    let file = raw::memfd(20 * PAGE as u64);
    let area = Area::shared(file.as_fd(), 32 * PAGE);
    expect_fault(&area, 1 << 18, 20, "past the end of its file");
    Ok(())
}

fn middle_of_a_batch() -> Outcome {
    need_pins(1 << 20)?;
    for page in [0, 1, 30, 63, 64, 65, 99] {
        let area = Area::anonymous(100 * PAGE);
        area.protect(page * PAGE, PAGE, libc::PROT_READ);
        expect_fault(&area, 1, page, "read-only");
    }
    Ok(())
}

fn no_charge() -> Outcome {
    need_pins(1 << 20)?;
    let uring = std::sync::Arc::new(IoUring::new().unwrap());
    let space = AddressSpace::builder(std::sync::Arc::clone(&uring)).build().unwrap();
    let area = Area::anonymous(32 * PAGE);
    area.protect(5 * PAGE, PAGE, libc::PROT_READ);
    for _ in 0..3 {
        let error = space.register(&area.memory()).unwrap_err();
        assert_eq!(error.errno(), Errno::EFAULT, "{error}");
        assert_eq!((uring.account().charged(), uring.account().unmatched_uncharges()), (0, 0));
    }
    area.protect(5 * PAGE, PAGE, libc::PROT_READ | libc::PROT_WRITE);
    space.register(&area.memory()).unwrap().unregister().unwrap();
    Ok(())
}
