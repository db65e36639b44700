//! All chance of a world, from its seed.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// One generator, shared by all who need chance in a world.
#[derive(Clone)]
pub struct Dice(Rc<RefCell<StdRng>>);

impl Dice {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Dice(Rc::new(RefCell::new(StdRng::seed_from_u64(seed))))
    }

    /// Random bytes.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.0.borrow_mut().fill(bytes);
    }

    /// A number of this range.
    pub fn range(&self, range: Range<i64>) -> i64 {
        self.0.borrow_mut().random_range(range)
    }

    /// A number below this one.
    pub fn below(&self, end: usize) -> usize {
        self.0.borrow_mut().random_range(0..end)
    }

    /// True once in so many times.
    pub fn one_in(&self, times: u32) -> bool {
        self.0.borrow_mut().random_range(0..times) == 0
    }

    /// True so many times in a thousand.
    pub fn permille(&self, times: u32) -> bool {
        self.0.borrow_mut().random_range(0..1_000) < times
    }

    /// One of these.
    pub fn pick<T: Copy>(&self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// A time that is mostly near the beginning of the range: half of all are in its first
    /// sixteenth.
    pub fn soon(&self, range: Range<i64>) -> i64 {
        let span = range.end - range.start;
        if self.one_in(2) {
            self.range(range)
        } else {
            range.start + self.range(0..(span / 16).max(1))
        }
    }
}

/// The seed of the nth part of what another seed makes. (SplitMix64: neighbours share nothing.)
pub fn derived(seed: u64, nth: u64) -> u64 {
    let mut mixed = seed.wrapping_add(nth.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
