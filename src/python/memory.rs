//! The allocator of the extension module, and how long it keeps freed memory.
//!
//! A training step needs the large buffers of the step before. Given back to the system in between, their pages would
//! have to be cleared again, which is a large part of a step. Source: the options of mimalloc.

use std::ffi::c_long;
use std::sync::{Mutex, PoisonError};

use libmimalloc_sys::{mi_collect, mi_option_get, mi_option_set, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The number of mimalloc's option `purge_delay`: milliseconds after which freed memory goes back to the system.
const PURGE_DELAY: mi_option_t = 15;

/// Longer than a step takes.
const A_WHILE: c_long = 60_000;

/// How many ask for it, and the delay of before.
static KEEPERS: Mutex<(usize, c_long)> = Mutex::new((0, 0));

/// While one of these lives, freed memory is kept for a while; with the last of them it goes back.
pub(super) struct KeepFreed(());

impl KeepFreed {
    pub(super) fn new() -> Self {
        let mut keepers = KEEPERS.lock().unwrap_or_else(PoisonError::into_inner);
        if keepers.0 == 0 {
            // SAFETY: options may be read and set at any time; the number is one that mimalloc has.
            unsafe {
                keepers.1 = mi_option_get(PURGE_DELAY);
                // Negative: the user wants nothing to be given back.
                if keepers.1 >= 0 {
                    mi_option_set(PURGE_DELAY, keepers.1.max(A_WHILE));
                }
            }
        }
        keepers.0 += 1;
        Self(())
    }
}

impl Drop for KeepFreed {
    fn drop(&mut self) {
        let mut keepers = KEEPERS.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.0 -= 1;
        if keepers.0 == 0 {
            // SAFETY: as above; what is collected is free memory only.
            unsafe {
                mi_option_set(PURGE_DELAY, keepers.1);
                if keepers.1 >= 0 {
                    mi_collect(true);
                }
            }
        }
    }
}
