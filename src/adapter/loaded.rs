//! What is loaded for one model, and for how long.
//!
//! Registries that live at the same time share their adapters. When the last one is gone, what it held can still be
//! asked for by name, but nothing is active any more, and the next registry starts empty: so those who share a model
//! need not know of each other. A request keeps its own version of an adapter, whatever happens here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::registry::State;
use super::{AdapterChoice, AdapterFile};
use crate::Result;
use crate::models::Model;
use crate::nn::AdapterSet;

/// The adapters that registries have in common.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the active adapter active; see [`Loaded::keep`].
#[derive(Debug)]
pub struct KeptActive {
    shared: Weak<Shared>,
}

impl Drop for KeptActive {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.lock().active = None;
        }
    }
}

/// While one of these lives, new registries see the adapters of those before.
#[derive(Debug)]
pub struct Lease {
    kept: Arc<KeptActive>,
}

#[derive(Debug, Default)]
struct Slot {
    shared: Arc<Shared>,
    kept: Weak<KeptActive>,
    lease: Weak<Lease>,
}

/// The place where a model, or something else that has adapters, keeps them.
#[derive(Debug, Default)]
pub struct Loaded {
    slot: Mutex<Slot>,
}

impl Loaded {
    /// The place of `model`, which all its clones share.
    pub fn of(model: &Model) -> Arc<Self> {
        model.extension(Self::default)
    }

    /// The adapter that `choice` means at this moment.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a name that is not loaded.
    pub fn resolve(&self, choice: &AdapterChoice) -> Result<Option<Arc<AdapterSet>>> {
        let shared = self.shared();
        let state = shared.lock();
        let name = match choice {
            AdapterChoice::Bare => None,
            AdapterChoice::Active => state.active.as_ref(),
            AdapterChoice::Named(name) => Some(name),
        };
        name.map(|name| Ok(Arc::clone(&state.find(name)?.set))).transpose()
    }

    /// The present version of an adapter as a file in memory, if it is loaded.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a combination, which no file can express.
    pub fn file(&self, name: &str) -> Option<Result<AdapterFile>> {
        let shared = self.shared();
        let is_loaded = shared.lock().find(name).is_ok();
        is_loaded.then(|| shared.file(name))
    }

    /// Keeps the active adapter active for as long as the value lives, even if the registry is dropped meanwhile.
    pub fn keep(&self) -> Option<Arc<KeptActive>> {
        self.lock().kept.upgrade()
    }

    /// What the registries of this moment share; without any, a new beginning.
    pub(super) fn open(&self) -> (Arc<Shared>, Arc<Lease>) {
        let mut slot = self.lock();
        if let Some(lease) = slot.lease.upgrade() {
            return (Arc::clone(&slot.shared), lease);
        }
        let shared = Arc::<Shared>::default();
        let lease = Arc::new(Lease { kept: Arc::new(KeptActive { shared: Arc::downgrade(&shared) }) });
        *slot = Slot {
            shared: Arc::clone(&shared),
            kept: Arc::downgrade(&lease.kept),
            lease: Arc::downgrade(&lease),
        };
        (shared, lease)
    }

    fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.lock().shared)
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
