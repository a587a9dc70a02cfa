//! Pieces of memory: how many the mappings may lead to, and who drops them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use prereg::{Access, Errno, PageShift, UserAddr};
use prereg_iommu::iova::{
    Backing, IovaAccessError, IovaLimits, IovaMapError, LocalPiece, Supply, SupplyError,
};

use crate::world::{BASE, PAGE, World, iova, ua};

/// Supplies the region in pieces of a page.
struct Scattered;

impl Supply for Scattered {
    fn supply(&self, offset: u64, bytes: u64) -> Result<Vec<LocalPiece>, SupplyError> {
        Ok(pages(offset / PAGE, bytes / PAGE))
    }
}

fn pages(from: u64, count: u64) -> Vec<LocalPiece> {
    (from..from + count).map(|page| LocalPiece { ua: ua(page), bytes: PAGE, owner: None }).collect()
}

fn on_demand(piece: u32) -> Backing {
    Backing::OnDemand { supply: Arc::new(Scattered), piece: PageShift::new(piece).unwrap(), skip: 0 }
}

fn limited(pieces: u64) -> World {
    World::with(IovaLimits { pieces, ..IovaLimits::default() })
}

#[test]
fn one_piece_more_than_allowed_is_no_space_until_a_mapping_has_drained() {
    let world = limited(5);
    let map =
        |at, count| world.map.map(iova(at), count * PAGE, Backing::Pieces(pages(0, count)), Access::Read);
    map(0, 3).unwrap();
    world.map(10, 8, 0).unwrap();
    let error = map(20, 2).unwrap_err();
    assert_eq!(error, IovaMapError::PieceLimit { pieces: 2, used: 4, limit: 5 });
    assert_eq!((error.errno(), world.map.snapshot().pieces, world.mapped()), (Errno::ENOSPC, 4, 4));
    world.map.map(iova(20), PAGE, Backing::Remote, Access::Read).unwrap();
    // Memory that does not become a mapping is not counted.
    let missing = Backing::Piece(LocalPiece { ua: UserAddr::new(BASE - PAGE), bytes: PAGE, owner: None });
    assert_eq!(world.map.map(iova(30), PAGE, missing, Access::Read).unwrap_err().errno(), Errno::EFAULT);
    let held = world.map.hold(iova(0), PAGE, Access::Read).unwrap();
    assert!(!world.map.unmap(iova(0), 3 * PAGE).unwrap().is_done());
    assert!(map(40, 2).is_err(), "the access still holds the three");
    drop(held);
    map(40, 2).unwrap();
    let _ = world.map.unmap_all();
    assert_eq!((world.map.snapshot().pieces, world.mapped()), (0, 0));
}

#[test]
fn memory_on_demand_counts_when_it_is_mapped_and_its_parts_when_they_are_supplied() {
    let world = limited(8);
    let map = |at, count, piece| world.map.map(iova(at), count * PAGE, on_demand(piece), Access::Read);
    map(0, 8, 14).unwrap();
    assert_eq!(world.map.snapshot().pieces, 2);
    assert_eq!(map(100, 7, 12).unwrap_err(), IovaMapError::PieceLimit { pieces: 7, used: 2, limit: 8 });
    // Four parts instead of one piece.
    let _ = world.map.hold(iova(1), PAGE, Access::Read).unwrap();
    assert_eq!((world.map.snapshot().pieces, world.mapped()), (5, 4));
    map(100, 1, 12).unwrap();
    let refused = world.map.hold(iova(4), PAGE, Access::Read).map(drop).unwrap_err();
    let full = SupplyError { errno: Errno::ENOSPC };
    assert_eq!(refused, IovaAccessError::Supply { iova: iova(4), error: full });
    assert_eq!((world.map.snapshot().pieces, world.mapped()), (6, 4));
    assert!(world.map.unmap(iova(100), PAGE).unwrap().is_done());
    let _ = world.map.hold(iova(4), PAGE, Access::Read).unwrap();
    assert_eq!((world.map.snapshot().pieces, world.mapped()), (8, 8));
    let _ = world.map.unmap_all();
    assert_eq!((world.map.snapshot().pieces, world.mapped()), (0, 0));
}

/// An owner of memory whose drop needs the map.
struct Looks {
    world: Weak<World>,
    dropped: Arc<AtomicU64>,
}

impl Drop for Looks {
    fn drop(&mut self) {
        if let Some(world) = self.world.upgrade() {
            let _ = world.map.snapshot();
            let _ = world.map.map(iova(999), PAGE, Backing::Remote, Access::Read);
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Supplies memory that is not registered.
struct Unregistered(Weak<World>, Arc<AtomicU64>);

impl Supply for Unregistered {
    fn supply(&self, _: u64, _: u64) -> Result<Vec<LocalPiece>, SupplyError> {
        Ok(unregistered(&self.0, &self.1))
    }
}

/// A page that is registered and two that are not, each with an owner.
fn unregistered(world: &Weak<World>, dropped: &Arc<AtomicU64>) -> Vec<LocalPiece> {
    let owner = || Looks { world: Weak::clone(world), dropped: Arc::clone(dropped) };
    [BASE, BASE - PAGE, BASE - 2 * PAGE]
        .map(|at| LocalPiece { ua: UserAddr::new(at), bytes: PAGE, owner: Some(Arc::new(owner())) })
        .to_vec()
}

#[test]
fn owners_of_memory_that_cannot_be_mapped_are_dropped_without_a_lock() {
    let (done, is_done) = mpsc::channel();
    // Joined only if it ends: with the lock it would wait for itself.
    let thread = std::thread::spawn(move || {
        let world = Arc::new(World::new());
        let (weak, dropped) = (Arc::downgrade(&world), Arc::new(AtomicU64::new(0)));
        let refused = |at, bytes, to| world.map.map(iova(at), bytes, to, Access::Read).unwrap_err().errno();
        assert_eq!(refused(0, 3 * PAGE, Backing::Pieces(unregistered(&weak, &dropped))), Errno::EFAULT);
        assert_eq!(dropped.load(Ordering::SeqCst), 3);
        let last = unregistered(&weak, &dropped).pop().unwrap();
        assert_eq!(refused(0, PAGE, Backing::Piece(last)), Errno::EFAULT);
        assert_eq!(dropped.load(Ordering::SeqCst), 6);
        let supply = Arc::new(Unregistered(Weak::clone(&weak), Arc::clone(&dropped)));
        world.map.map(iova(0), 3 * PAGE, Backing::Supplied(supply), Access::Read).unwrap();
        assert!(world.map.hold(iova(0), 3 * PAGE, Access::Read).is_err());
        assert_eq!(dropped.load(Ordering::SeqCst) % 3, 0);
        assert_eq!(world.mapped(), 0);
        done.send(()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(60)), Ok(()));
    thread.join().unwrap();
}
