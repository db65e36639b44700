//! What is due, and when.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Events in the order of their times; those of one time in the order in which they were made.
pub struct Queue<E> {
    due: BinaryHeap<Due<E>>,
    made: u64,
}

struct Due<E> {
    at: i64,
    nth: u64,
    event: E,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Queue {
            due: BinaryHeap::new(),
            made: 0,
        }
    }
}

impl<E> Queue<E> {
    /// Adds an event.
    pub fn put(&mut self, at: i64, event: E) {
        self.made += 1;
        let nth = self.made;
        self.due.push(Due { at, nth, event });
    }

    /// Takes the next one, with its time.
    pub fn take(&mut self) -> Option<(i64, E)> {
        self.due.pop().map(|due| (due.at, due.event))
    }
}

impl<E> Ord for Due<E> {
    /// A heap gives the largest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.nth).cmp(&(self.at, self.nth))
    }
}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Due<E> {}
