//! Address spaces that go, and the end of a case: everything is dropped, and nothing may be left.

use std::sync::Arc;

use prereg::TableMemory;

use super::{Checked, Live, Summary, World};
use crate::op::Op;

impl World {
    pub(super) fn drop_space(&mut self, op: Op) -> Checked {
        let Some(index) = self.open_space(op.a) else { return Ok(()) };
        self.trace.push(format!("drop space {index}"));
        let space = &mut self.spaces[index];
        space.model.close();
        // Unmapped regions are unpinned immediately.
        space.model.reap();
        drop(space.real.take());
        self.settle()?;
        // Mostly another one, so that what follows has a space to work in.
        if op.c % 8 != 0 && self.spaces.len() < 6 {
            self.new_space();
        }
        Ok(())
    }

    /// Drops everything, in an order that follows from what there is, and looks whether anything is left.
    pub(super) fn end(mut self) -> Result<Summary, String> {
        let order = self.trace.len() + self.lives.len();
        for step in 0..5 {
            let dropped = match (order + step) % 5 {
                0 => self.drop_lives(),
                1 => self.drop_claims(),
                2 => self.drop_blocks(),
                3 => {
                    self.readers.clear();
                    self.settle()
                }
                _ => self.drop_spaces(),
            };
            if let Err(message) = dropped {
                let trace = std::mem::take(&mut self.trace).join("\n  ");
                let case = self.case;
                std::mem::forget(self);
                return Err(format!("at the end: {message}\n{case:?}\n  {trace}"));
            }
        }
        self.drains.clear();
        let checked = self.nothing_left();
        checked.map_err(|message| {
            format!("at the end: {message}\n{:?}\n  {}", self.case, self.trace.join("\n  "))
        })?;
        Ok(self.summary)
    }

    fn drop_lives(&mut self) -> Checked {
        while let Some(Live { unit, space, id, holder }) = self.lives.pop() {
            drop(unit);
            self.given_back(space, id, holder)?;
            self.spaces[space].model.dropped(id);
            self.settle()?;
        }
        Ok(())
    }

    fn drop_claims(&mut self) -> Checked {
        while let Some(claim) = self.claims.pop() {
            let model = &mut self.spaces[claim.space].model;
            let _ = model.disclaim(claim.id, claim.holder);
            model.reap();
            drop(claim.real);
            self.settle()?;
        }
        Ok(())
    }

    fn drop_blocks(&mut self) -> Checked {
        while let Some(last) = self.blocks.len().checked_sub(1) {
            self.drop_block_at(last)?;
            self.settle()?;
        }
        Ok(())
    }

    fn drop_spaces(&mut self) -> Checked {
        for index in 0..self.spaces.len() {
            let space = &mut self.spaces[index];
            if let Some(real) = space.real.take() {
                space.model.close();
                space.model.reap();
                drop(real);
            }
        }
        self.settle()
    }

    fn nothing_left(&mut self) -> Checked {
        self.settle()?;
        for (index, space) in self.spaces.iter().enumerate() {
            same!(space.host.pinned_and_charged(), (0, 0), "space {index}: pages still pinned and charged");
            same!(space.host.handles(), 1, "space {index}: owners of its ports");
            same!(Arc::strong_count(&space.tables), 1, "space {index}: owners of its memory for tables");
            same!(space.tables.state().used, 0, "space {index}: bytes of tables still in use");
        }
        Ok(())
    }
}
