//! Memory that is supplied at each access.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use prereg::{Access, Errno, Iova, UserAddr};
use prereg_iommu::iova::{Backing, IovaAccessError, LocalPiece, Piece, Supply, SupplyError};

use crate::world::{BASE, PAGE, World, iova};

#[derive(Default)]
struct Supplier {
    asked: Mutex<Vec<(u64, u64)>>,
    fails: AtomicBool,
    short: AtomicBool,
}

impl Supply for Supplier {
    fn supply(&self, offset: u64, bytes: u64) -> Result<Vec<LocalPiece>, SupplyError> {
        self.asked.lock().unwrap().push((offset, bytes));
        if self.fails.load(Ordering::SeqCst) {
            return Err(SupplyError { errno: Errno::ENOMEM });
        }
        let bytes = if self.short.load(Ordering::SeqCst) { bytes - 1 } else { bytes };
        let ua = UserAddr::new(BASE + offset);
        Ok(vec![LocalPiece { ua, bytes, owner: Some(Arc::new("whose")) }])
    }
}

#[test]
fn nothing_is_counted_before_the_access_and_only_what_it_touches_then() {
    let world = World::new();
    let supplier = Arc::new(Supplier::default());
    let backing = || Backing::Supplied(Arc::clone(&supplier) as Arc<dyn Supply>);
    world.map.map(iova(0), 8 * PAGE, backing(), Access::ReadWrite).unwrap();
    world.map(8, 1, 60).unwrap();
    assert_eq!(world.mapped(), 1);
    let held = world.map.hold(Iova::new(7 * PAGE + 5), PAGE, Access::Read).unwrap();
    assert_eq!(*supplier.asked.lock().unwrap(), [(7 * PAGE + 5, PAGE - 5)]);
    assert_eq!(world.mapped(), 3 - 1, "one by the mapping beside it, one by the access");
    let (first, owner) = held.pieces_and_owners().next().unwrap();
    assert!(
        matches!(first, Piece::Local { ua, bytes, .. } if (ua.raw(), bytes) == (BASE + 7 * PAGE + 5, PAGE - 5))
    );
    assert_eq!(owner.unwrap().downcast_ref::<&str>(), Some(&"whose"));
    assert!(held.is_local());
    let unmapping = world.map.unmap_all();
    assert!(!unmapping.is_done());
    drop(held);
    assert!(unmapping.is_done());
    assert_eq!(world.mapped(), 0);
}

#[test]
fn what_cannot_be_supplied_is_not_held() {
    let world = World::new();
    let supplier = Arc::new(Supplier::default());
    let backing = Backing::Supplied(Arc::clone(&supplier) as Arc<dyn Supply>);
    world.map.map(iova(0), 100 * PAGE, backing, Access::ReadWrite).unwrap();
    let hold = |at, bytes| world.map.hold(iova(at), bytes, Access::Read).map(|held| held.bytes());
    assert_eq!(hold(0, 8), Ok(8));
    // Not registered there.
    assert_eq!(hold(64, 8).unwrap_err().errno(), Errno::EFAULT);
    supplier.short.store(true, Ordering::SeqCst);
    assert_eq!(hold(0, 8).unwrap_err().errno(), Errno::EIO);
    supplier.fails.store(true, Ordering::SeqCst);
    let refused = hold(3, 8).unwrap_err();
    assert!(matches!(refused, IovaAccessError::Supply { .. }), "{refused}");
    assert_eq!(refused.errno(), Errno::ENOMEM);
    let state = world.map.snapshot();
    assert_eq!((state.accesses, world.mapped()), (0, 0));
    assert!(world.map.unmap_all().is_done());
}
