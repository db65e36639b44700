//! The memory that all workers share: named values, each with a number to swap it by.

/// A place where every worker reads and writes. The host's has no delete, so names must be few.
pub trait Memory {
    /// What stands under a name, and the number to swap it by; empty and 0 where there is nothing
    /// yet.
    fn read(&self, name: &str) -> (Vec<u8>, u32);
    /// Writes if nobody has written since that number was read; 0 always writes.
    fn write(&self, name: &str, bytes: &[u8], number: u32) -> Result<(), NotWritten>;
}

/// Why nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotWritten {
    /// Somebody else has written.
    TooLate,
    /// The memory refuses.
    Refused,
}

/// Reads a value and writes what becomes of it, against all other workers. `change` gives what is
/// to be written, if anything is; it may be called more than once.
pub fn swap<T>(
    memory: &dyn Memory,
    name: &str,
    mut change: impl FnMut(&[u8]) -> (T, Option<Vec<u8>>),
) -> Option<T> {
    // Everybody else's change is progress of theirs; this many in a row against one are not seen in
    // practice.
    for _ in 0..1_000 {
        let (bytes, number) = memory.read(name);
        let (result, changed) = change(&bytes);
        let Some(changed) = changed else {
            return Some(result);
        };
        // A swap needs a number: where nothing is stored yet, 0 would overwrite what another worker
        // stores now, and this one is taken by nobody.
        let number = if number == 0 { u32::MAX } else { number };
        match memory.write(name, &changed, number) {
            Ok(()) => return Some(result),
            Err(NotWritten::TooLate) => {}
            Err(NotWritten::Refused) => return None,
        }
    }
    None
}
