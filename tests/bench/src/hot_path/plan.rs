//! The measured cells and their order.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::candidate::Case;
use super::fixture::Fixture;
use super::layout::{Layout, Pattern, Shape};
use super::measure::{BackgroundLoad, Cell, Effort, Row, interleaved, registration, under_load};
use crate::error::BenchError;

/// A plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Total sizes.
    pub sizes: Vec<u64>,
    /// Numbers of regions.
    pub regions: Vec<u64>,
    /// Arrangements on the host.
    pub layouts: Vec<Layout>,
    /// Repetitions and duration.
    pub effort: Effort,
    /// All patterns of each case, or only the most telling ones.
    pub every_pattern: bool,
    /// Whether real memory is pinned.
    pub real: bool,
}

impl Plan {
    /// The full plan; takes minutes.
    #[must_use]
    pub fn full(real: bool) -> Self {
        Self {
            sizes: vec![64 << 20, 1 << 30, 4 << 30],
            regions: vec![1, 8, 64, 512, 4096],
            layouts: vec![Layout::Scattered, Layout::Contiguous],
            effort: Effort { reps: 9, operations: 1 << 17, time_limit: Duration::from_millis(5) },
            every_pattern: true,
            real,
        }
    }

    /// The short plan; takes half a minute.
    #[must_use]
    pub fn quick(real: bool) -> Self {
        Self {
            sizes: vec![64 << 20, 1 << 30],
            regions: vec![1, 64, 4096],
            effort: Effort { reps: 9, operations: 1 << 16, time_limit: Duration::from_millis(1) },
            every_pattern: false,
            ..Self::full(real)
        }
    }

    fn shapes(&self) -> Vec<Shape> {
        let mut shapes = Vec::new();
        for &size in &self.sizes {
            for &regions in &self.regions {
                shapes.extend(self.layouts.iter().map(|&layout| Shape { size, regions, layout }));
            }
        }
        shapes
    }

    /// The cases and patterns that are measured on each shape.
    fn cases(&self) -> Vec<(Case, Pattern)> {
        let mut cases: Vec<_> = Pattern::ALL.iter().map(|&pattern| (Case::MapUnmap, pattern)).collect();
        let patterns = if self.every_pattern { &Pattern::ALL[..] } else { &[Pattern::Random] };
        for &pattern in patterns {
            cases.push((Case::Translate, pattern));
            cases.push((Case::Range, pattern));
        }
        cases
    }

    /// Measures all cells. `progress` gets the number of shapes that are done and their total.
    ///
    /// # Errors
    /// [`BenchError::Failed`] if this user may not pin that much, [`BenchError::Interrupted`].
    pub fn measure(&self, cancel: &AtomicBool, progress: &dyn Fn(u64, u64)) -> Result<Vec<Row>, BenchError> {
        let barrier = Fixture::barrier();
        let shapes = self.shapes();
        let mut rows = Vec::new();
        for (done, &shape) in shapes.iter().enumerate() {
            progress(done as u64, shapes.len() as u64);
            let fixture =
                if self.real { Fixture::real(shape)? } else { Fixture::invented(shape, barrier.clone())? };
            if !self.real {
                // Before the first translator exists.
                rows.extend(registration(&fixture, BackgroundLoad::None, self.effort, cancel)?);
            }
            let mut all = fixture.all();
            for (case, pattern) in self.cases() {
                let cell = Cell { shape, case, pattern, load: BackgroundLoad::None };
                rows.extend(interleaved(&fixture, cell, &mut all, self.effort, cancel)?);
            }
            drop(all);
            if std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
                rows.extend(self.under_load(&fixture, cancel)?);
            }
        }
        Ok(rows)
    }

    fn under_load(&self, fixture: &Fixture, cancel: &AtomicBool) -> Result<Vec<Row>, BenchError> {
        let mut rows = Vec::new();
        let patterns = if self.every_pattern { &Pattern::ALL[..2] } else { &[Pattern::Random] };
        for load in [BackgroundLoad::Reader, BackgroundLoad::Writer] {
            if load == BackgroundLoad::Writer && self.real {
                continue;
            }
            for &pattern in patterns {
                let cell = Cell { shape: fixture.shape, case: Case::MapUnmap, pattern, load };
                rows.extend(under_load(fixture, cell, self.effort, cancel)?);
            }
        }
        if !self.real {
            rows.extend(registration(fixture, BackgroundLoad::Reader, self.effort, cancel)?);
        }
        Ok(rows)
    }
}
