//! Awaiting the end of an unmap.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::unmap_tasks::{Task, lock};
use super::unmapping::Unmapping;

/// The future of an [`Unmapping`]: completes when [`is_done`](Unmapping::is_done). Dropping it changes nothing.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct UnmapFuture {
    unmapping: Unmapping,
    task: Arc<Task>,
}

/// Needs no particular runtime. For event loops that wait for descriptors, let [`OnDrained`](super::OnDrained) write to an eventfd.
impl IntoFuture for Unmapping {
    type Output = ();
    type IntoFuture = UnmapFuture;

    fn into_future(self) -> UnmapFuture {
        let task = Arc::new(Task::default());
        if let Some(tasks) = self.tasks() {
            tasks.add(&task);
        }
        UnmapFuture { unmapping: self, task }
    }
}

impl Future for UnmapFuture {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let before = lock(&self.task).replace(context.waker().clone());
        // Its drop is the executor's code.
        drop(before);
        // After the waker is set: an access that is dropped before this finds it done here, a later one wakes.
        if self.unmapping.is_done() { Poll::Ready(()) } else { Poll::Pending }
    }
}
