//! The adapters of one model by name, and which of them is active.
//!
//! All registries of a model that live at the same time see the same adapters, as do its generators. A request takes
//! hold of one version of an adapter when it starts and keeps it; loading, replacing and unloading never touch it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::bind::{Bound, bind};
use super::combine::combine;
use super::loaded::{Lease, Loaded, Shared};
use super::random::Hash;
use super::{AdapterFile, LoraConfig, Modules, Sites, code};
use crate::checkpoint::{HubOptions, Wanted, resolve as find};
use crate::models::Model;
use crate::nn::AdapterSet;
use crate::{Error, Result};

/// What is known of a registered adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterInfo {
    /// The name it is registered under.
    pub name: String,
    /// Columns of its factors; of a combination their sum.
    pub rank: usize,
    /// Its alpha.
    pub alpha: f64,
    /// The modules it adapts.
    pub target_modules: Vec<String>,
    /// Number of its values.
    pub num_parameters: usize,
    /// Bytes it takes beside the model.
    pub size_in_bytes: usize,
    /// A hash of its content: adapters of the same generation compute the same.
    pub generation: u64,
    /// The model it says it was made for.
    pub base_model: Option<String>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) set: Arc<AdapterSet>,
    info: AdapterInfo,
    /// What it was made with; a combination has none.
    config: Option<LoraConfig>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// In the order of their first loading.
    entries: Vec<Entry>,
    pub(super) active: Option<String>,
}

impl State {
    fn check_room(&self, name: &str, max_adapters: usize) -> Result<()> {
        let is_new = !self.entries.iter().any(|entry| entry.info.name == name);
        if is_new && self.entries.len() >= max_adapters {
            let problem = format!("{} adapters are loaded already; unload one first", self.entries.len());
            return Err(Error::adapter(name, code::TOO_MANY, problem));
        }
        Ok(())
    }

    pub(super) fn find(&self, name: &str) -> Result<&Entry> {
        self.entries.iter().find(|entry| entry.info.name == name).ok_or_else(|| {
            let names: Vec<_> = self.entries.iter().map(|entry| format!("{:?}", entry.info.name)).collect();
            let allowed = match names.as_slice() {
                [] => "the name of a loaded adapter; none is loaded".to_owned(),
                names => format!("the name of a loaded adapter: {}", names.join(", ")),
            };
            Error::argument("adapter", format!("{name:?}"), allowed)
        })
    }
}

impl Shared {
    /// See [`AdapterRegistry::file`].
    pub(super) fn file(&self, name: &str) -> Result<AdapterFile> {
        let (set, config, base_model) = {
            let state = self.lock();
            let entry = state.find(name)?;
            (Arc::clone(&entry.set), entry.config.clone(), entry.info.base_model.clone())
        };
        let Some(config) = config else {
            return Err(Error::argument(
                "adapter",
                format!("the combination {name:?}"),
                "one that was loaded",
            ));
        };
        let mut tensors = BTreeMap::new();
        for (path, part) in set.iter() {
            for (name, tensor) in part.parameters()? {
                let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
                tensors.insert(format!("{path}.{name}"), tensor);
            }
        }
        let file = AdapterFile::from_tensors(Path::new(name), config, tensors);
        Ok(match base_model {
            Some(base_model) => file.with_base_model(base_model),
            None => file,
        })
    }
}

/// Which adapter a piece of work asks for.
#[derive(Debug, Clone, Default)]
pub enum AdapterChoice {
    /// The registry's active one, if any.
    #[default]
    Active,
    /// None.
    Bare,
    /// The one of this name.
    Named(String),
}

/// The adapter that `choice` means for `model` at this moment.
///
/// # Errors
/// [`Error::InvalidArgument`] for a name that is not loaded.
pub fn resolve(model: &Model, choice: &AdapterChoice) -> Result<Option<Arc<AdapterSet>>> {
    Loaded::of(model).resolve(choice)
}

/// What `file` changes in `model`, without registering it.
///
/// # Errors
/// [`Error::InvalidAdapter`] with a stable code.
pub fn bound(model: &Model, file: &AdapterFile, name: &str) -> Result<Arc<AdapterSet>> {
    Ok(bind(file, &Sites::of(model), name)?.set)
}

/// What adapters are plugged into.
#[derive(Debug, Clone)]
enum Host {
    Model(Model),
    Sites(Arc<Sites>),
}

impl Host {
    fn bind(&self, adapter: &AdapterFile, name: &str) -> Result<Bound> {
        match self {
            Self::Model(model) => bind(adapter, &Sites::of(model), name),
            Self::Sites(sites) => bind(adapter, sites, name),
        }
    }
}

/// A handle on the adapters of one model.
#[derive(Debug, Clone)]
pub struct AdapterRegistry {
    host: Host,
    shared: Arc<Shared>,
    lease: Arc<Lease>,
    max_adapters: usize,
}

impl AdapterRegistry {
    /// The registry of `model`; this handle refuses to add beyond `max_adapters`.
    pub fn new(model: &Model, max_adapters: usize) -> Self {
        let (shared, lease) = Loaded::of(model).open();
        Self { host: Host::Model(model.clone()), shared, lease, max_adapters }
    }

    /// The registry of something that has `sites` and keeps what is `loaded` for them.
    pub fn over(sites: &Arc<Sites>, loaded: &Arc<Loaded>, max_adapters: usize) -> Self {
        let (shared, lease) = loaded.open();
        Self { host: Host::Sites(Arc::clone(sites)), shared, lease, max_adapters }
    }

    /// What lives as long as the registry does, for those who make handles anew and must not lose its adapters.
    pub fn lease(&self) -> Arc<Lease> {
        Arc::clone(&self.lease)
    }

    /// Loads a directory of PEFT or mlx-lm, or a repository of the hub, replacing what had the name before.
    ///
    /// # Errors
    /// [`Error::InvalidAdapter`] with a stable code, in which case nothing has changed; [`Error::ModelNotFound`].
    pub fn load(&self, name: &str, source: &str) -> Result<AdapterInfo> {
        let directory = find(source, &HubOptions::default(), &Wanted::Adapter)?;
        self.add(name, &AdapterFile::read(&directory)?)
    }

    /// Registers an adapter that is in memory, such as a trainer's, replacing what had the name before.
    ///
    /// # Errors
    /// As [`AdapterRegistry::load`].
    pub fn add(&self, name: &str, adapter: &AdapterFile) -> Result<AdapterInfo> {
        self.check_room(name)?;
        let Bound { set, size_in_bytes, num_parameters, targets } = self.host.bind(adapter, name)?;
        let config = adapter.config().clone();
        let info = AdapterInfo {
            name: name.to_owned(),
            rank: config.rank,
            alpha: config.alpha,
            target_modules: match &config.target_modules {
                Modules::Names(names) => names.clone(),
                _ => targets,
            },
            num_parameters,
            size_in_bytes,
            generation: set.generation(),
            base_model: adapter.base_model().map(str::to_owned),
        };
        self.put(Entry { set, info, config: Some(config) })
    }

    /// Registers the exact weighted sum of what loaded adapters change; later changes to them do not count.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown name, a weight that is not finite, or nothing to combine.
    pub fn combine(&self, name: &str, weights: &[(String, f64)]) -> Result<AdapterInfo> {
        self.check_room(name)?;
        if weights.is_empty() {
            return Err(Error::argument("adapters", "nothing", "at least one adapter with its weight"));
        }
        let (mut sets, mut infos) = (Vec::with_capacity(weights.len()), Vec::with_capacity(weights.len()));
        for (part, weight) in weights {
            if !weight.is_finite() {
                return Err(Error::argument(format!("weight of {part:?}"), weight, "a finite number"));
            }
            let state = self.shared.lock();
            let entry = state.find(part)?;
            sets.push((*weight, Arc::clone(&entry.set)));
            infos.push(entry.info.clone());
        }
        let mut hash = Hash::default();
        for (weight, set) in &sets {
            hash.bytes(&set.generation().to_le_bytes());
            hash.bytes(&weight.to_le_bytes());
        }
        let set = Arc::new(AdapterSet::new(name, hash.finish(), combine(&sets)?));
        let rank = infos.iter().map(|info| info.rank).sum();
        let mut target_modules: Vec<String> = Vec::new();
        for target in infos.iter().flat_map(|info| &info.target_modules) {
            if !target_modules.contains(target) {
                target_modules.push(target.clone());
            }
        }
        let info = AdapterInfo {
            name: name.to_owned(),
            rank,
            // The weights are in the factors: what is left is a scaling of 1.
            alpha: rank as f64,
            target_modules,
            num_parameters: infos.iter().map(|info| info.num_parameters).sum(),
            size_in_bytes: infos.iter().map(|info| info.size_in_bytes).sum(),
            generation: set.generation(),
            base_model: infos.swap_remove(0).base_model,
        };
        self.put(Entry { set, info, config: None })
    }

    fn check_room(&self, name: &str) -> Result<()> {
        if name.is_empty() {
            return Err(Error::argument("name", "an empty name", "a name for the adapter"));
        }
        self.shared.lock().check_room(name, self.max_adapters)
    }

    fn put(&self, entry: Entry) -> Result<AdapterInfo> {
        let info = entry.info.clone();
        let mut state = self.shared.lock();
        // Another thread may have filled the place while this one was reading.
        state.check_room(&info.name, self.max_adapters)?;
        match state.entries.iter_mut().find(|other| other.info.name == info.name) {
            Some(other) => *other = entry,
            None => state.entries.push(entry),
        }
        Ok(info)
    }

    /// Makes an adapter the one that work uses which does not ask for another.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not loaded.
    pub fn activate(&self, name: &str) -> Result<()> {
        let mut state = self.shared.lock();
        state.active = Some(state.find(name)?.info.name.clone());
        Ok(())
    }

    /// Goes back to the bare model.
    pub fn deactivate(&self) {
        self.shared.lock().active = None;
    }

    /// The name of the active adapter.
    pub fn active(&self) -> Option<String> {
        self.shared.lock().active.clone()
    }

    /// Activates an adapter until the guard is dropped, which brings the earlier one back.
    ///
    /// # Errors
    /// As [`AdapterRegistry::activate`].
    pub fn using(&self, name: &str) -> Result<ActiveGuard> {
        let mut state = self.shared.lock();
        let name = state.find(name)?.info.name.clone();
        let before = state.active.replace(name);
        drop(state);
        Ok(ActiveGuard { registry: self.clone(), before })
    }

    /// Forgets an adapter; requests under way keep it to their end. The bare model follows an active one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not loaded.
    pub fn unload(&self, name: &str) -> Result<()> {
        let mut state = self.shared.lock();
        state.find(name)?;
        state.entries.retain(|entry| entry.info.name != name);
        if state.active.as_deref() == Some(name) {
            state.active = None;
        }
        Ok(())
    }

    /// The names of all adapters, in the order of their loading.
    pub fn names(&self) -> Vec<String> {
        self.shared.lock().entries.iter().map(|entry| entry.info.name.clone()).collect()
    }

    /// What is known of an adapter.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not loaded.
    pub fn info(&self, name: &str) -> Result<AdapterInfo> {
        Ok(self.shared.lock().find(name)?.info.clone())
    }

    /// The present version of an adapter as a file in memory, to be saved or trained further.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not loaded, and for a combination, which no file can express.
    pub fn file(&self, name: &str) -> Result<AdapterFile> {
        self.shared.file(name)
    }

    /// The present version of an adapter.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is not loaded.
    pub fn get(&self, name: &str) -> Result<Arc<AdapterSet>> {
        Ok(Arc::clone(&self.shared.lock().find(name)?.set))
    }
}

/// Keeps an adapter active; see [`AdapterRegistry::using`].
#[derive(Debug)]
pub struct ActiveGuard {
    registry: AdapterRegistry,
    before: Option<String>,
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        let mut state = self.registry.shared.lock();
        // The earlier one may have been unloaded meanwhile.
        state.active = self.before.take().filter(|name| state.find(name).is_ok());
    }
}
