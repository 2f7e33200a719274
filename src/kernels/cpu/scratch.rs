//! Reusable, aligned working memory per thread, so that kernels allocate nothing once warm.
//!
//! It does not hand memory from one thread to another, and keeps no buffer that only an unusually large call needed.

use std::cell::RefCell;
use std::mem::size_of;

/// One cache line; a vector of these is aligned for every kernel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A larger buffer is given back to the system after use.
const KEEP_BYTES: usize = 32 << 20;

/// Buffers that one thread keeps; no kernel holds more at a time.
const KEEP_BUFFERS: usize = 4;

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Working memory, 64-byte aligned, with unspecified contents; returns to its thread when dropped.
pub(crate) struct Scratch(Vec<Line>);

impl Scratch {
    /// At least `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let lines = bytes.div_ceil(size_of::<Line>());
        let mut buffer = FREE.with_borrow_mut(|free| free.pop()).unwrap_or_default();
        if buffer.len() < lines {
            buffer.resize(lines, Line([0; 64]));
        }
        Self(buffer)
    }

    /// The start of the memory.
    pub(crate) fn as_mut_ptr<T>(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        if buffer.len() * size_of::<Line>() > KEEP_BYTES {
            return;
        }
        // While the thread is ending its list is gone; then the buffer is simply freed.
        let _ = FREE.try_with(|free| {
            if let Ok(mut free) = free.try_borrow_mut()
                && free.len() < KEEP_BUFFERS
            {
                free.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let mut first = Scratch::new(1000);
        let address = first.as_mut_ptr::<u8>();
        assert_eq!(address as usize % 64, 0);
        let mut second = Scratch::new(64);
        assert_ne!(second.as_mut_ptr::<u8>(), address);
        drop(second);
        drop(first);
        assert_eq!(Scratch::new(900).as_mut_ptr::<u8>(), address);
    }
}
