//! An adapter whose tensors are variables.
//!
//! It knows how parameters start and what they are called; optimizers and data are the business of the room `train`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::bind::{self, Planned, assemble, plan, target_names};
use super::layout::{self, A, B, B_BIAS, BASE_BIAS, BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, WEIGHT};
use super::parts::Training;
use super::random::Random;
use super::site::Naming;
use super::target::Matcher;
use super::{AdapterFile, Clock, Initialisation, LoraConfig, Modules, Site, Sites, code, dora};
use crate::models::Model;
use crate::nn::AdapterSet;
use crate::{Error, Result, device};

/// What messages call an adapter that has no file yet.
const FRESH: &str = "lora";

/// One tensor that is trained.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Module path and name below it, as in the adapter's file.
    pub name: String,
    /// Its value, f32 on the model's device.
    pub var: Var,
}

/// An adapter in training.
#[derive(Debug)]
pub struct TrainableAdapter {
    config: LoraConfig,
    base_model: String,
    parameters: Vec<Parameter>,
    tracked: Arc<AdapterSet>,
    untracked: Arc<AdapterSet>,
    clock: Arc<Clock>,
}

impl TrainableAdapter {
    /// A fresh adapter, which changes nothing yet; `seed` decides where it starts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for impossible values, [`Error::InvalidAdapter`] where no module is targeted.
    pub fn fresh(model: &Model, config: &LoraConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let config = config.for_model(model)?;
        let sites = Sites::of(model);
        check_saved(model, &config, &sites)?;
        let planned = plan(&config, &sites, &Naming::Same, Path::new(FRESH))?;
        check_memory(&config, &planned)?;
        let start = |planned: &Planned, name: &'static str, shape: &[usize]| {
            let mut random = Random::new(seed, &format!("{}.{name}", planned.path));
            initial(planned.site, name, shape, &config, &mut random)
        };
        let mut layers = Vec::with_capacity(planned.len());
        for planned in &planned {
            let tensors = planned.layout.tensors.iter();
            let layer = tensors.map(|(name, shape)| Ok((*name, start(planned, name, shape)?)));
            layers.push(layer.collect::<Result<BTreeMap<_, _>>>()?);
        }
        let trainable = Self::new(model, &config, &planned, layers, &sites, seed)?;
        Ok(trainable)
    }

    /// An adapter that starts where `file` ends.
    ///
    /// # Errors
    /// As [`AdapterRegistry::add`](super::AdapterRegistry::add).
    pub fn continued(model: &Model, file: &AdapterFile, seed: u64) -> Result<Self> {
        let sites = Sites::of(model);
        let paths = || file.tensors().keys().filter_map(|name| Some(layout::split(name)?.0));
        let naming = Naming::detect(&sites, paths());
        let planned = plan(file.config(), &sites, &naming, file.path())?;
        let layers = bind::match_tensors(file, &planned, &sites)?;
        bind::check_copies(file, &sites, &naming)?;
        Self::new(model, file.config(), &planned, layers, &sites, seed)
    }

    fn new(
        model: &Model,
        config: &LoraConfig,
        planned: &[Planned],
        layers: Vec<BTreeMap<&'static str, Tensor>>,
        sites: &Sites,
        seed: u64,
    ) -> Result<Self> {
        let clock = Arc::new(Clock::new(seed));
        let training = Training { clock: Arc::clone(&clock), dropout: config.dropout };
        let mut parameters = Vec::new();
        let (mut tracked, mut untracked) = (Vec::new(), Vec::new());
        for (planned, layer) in planned.iter().zip(layers) {
            let (mut variables, mut values) = (BTreeMap::new(), BTreeMap::new());
            for (name, tensor) in layer {
                let value = tensor.to_device(sites.device())?.to_dtype(DType::F32)?.contiguous()?;
                // A copy, as a variable is changed in place.
                let var = Var::from_tensor(&value.copy()?)?;
                variables.insert(name, var.as_tensor().clone());
                values.insert(name, var.as_detached_tensor());
                parameters.push(Parameter { name: format!("{}.{name}", planned.path), var });
            }
            tracked.push(variables);
            untracked.push(values);
        }
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            config: config.clone(),
            base_model: model.name().to_owned(),
            parameters,
            tracked: Arc::new(assemble("training", 0, planned, tracked, Some(&training))?),
            untracked: Arc::new(assemble("training", 0, planned, untracked, Some(&training))?),
            clock,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Everything that is trained, sorted by name.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The layers through which gradients flow to the parameters.
    pub fn tracked(&self) -> &Arc<AdapterSet> {
        &self.tracked
    }

    /// The same layers, always of the same values, without gradients.
    pub fn untracked(&self) -> &Arc<AdapterSet> {
        &self.untracked
    }

    /// What dropout and DoRA follow.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Number of trained values.
    pub fn num_parameters(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.var.elem_count()).sum()
    }

    /// The adapter as it is now.
    pub fn snapshot(&self) -> Result<AdapterFile> {
        let copy = |parameter: &Parameter| -> Result<(String, Tensor)> {
            let value = parameter.var.as_detached_tensor().copy()?.to_device(&Device::Cpu)?;
            Ok((parameter.name.clone(), value))
        };
        let tensors = self.parameters.iter().map(copy).collect::<Result<_>>()?;
        let file = AdapterFile::from_tensors(Path::new("adapter in training"), self.config.clone(), tensors);
        Ok(file.with_base_model(&self.base_model))
    }
}

impl LoraConfig {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for the first one.
    pub fn validate(&self) -> Result<()> {
        let check = self.check();
        check.map_err(|(field, got, expected)| Error::argument(argument_name(field), got, expected))
    }

    /// The same with the names of the modules that it means in `model`: readers of adapter files understand names better
    /// than a word for all of them.
    ///
    /// # Errors
    /// [`Error::InvalidAdapter`] where it means none.
    pub fn for_model(&self, model: &Model) -> Result<Self> {
        let mut config = self.clone();
        if config.target_modules == Modules::AllLinear {
            let sites = Sites::of(model);
            let planned = plan(&config, &sites, &Naming::Same, Path::new(FRESH))?;
            config.target_modules = Modules::Names(target_names(&planned));
        }
        Ok(config)
    }
}

/// Refuses an adapter for which there can be no memory, before any is taken.
fn check_memory(config: &LoraConfig, planned: &[Planned]) -> Result<()> {
    /// A variable, its gradient, and the optimizer's two averages.
    const COPIES: usize = 4 * size_of::<f32>();
    let elements = planned
        .iter()
        .flat_map(|planned| &planned.layout.tensors)
        .map(|(_, shape)| shape.iter().fold(1usize, |count, size| count.saturating_mul(*size)));
    let bytes = elements.fold(0usize, usize::saturating_add).saturating_mul(COPIES) as u64;
    let limit = device::total_memory_bytes();
    if bytes <= limit {
        return Ok(());
    }
    let allowed =
        format!("one for which there is memory; it and its optimizer need {bytes} of {limit} bytes");
    Err(Error::argument("rank", config.rank, allowed))
}

/// Refuses names of `modules_to_save` that mean nothing, or something that is not trained.
fn check_saved(model: &Model, config: &LoraConfig, sites: &Sites) -> Result<()> {
    let path = Path::new(FRESH);
    let trained: Vec<&str> = sites.iter().map(|site| site.path.as_str()).collect();
    let parts = model.decoder().parts().into_iter();
    let parts = parts.filter_map(|(name, _)| Some(name.rsplit_once('.')?.0.to_owned()));
    let others: Vec<String> = parts.filter(|path| !trained.contains(&path.as_str())).collect();
    let Some((name, wrong)) = Matcher::new(config, path)?.unsaved(&trained, &others)? else { return Ok(()) };
    let problem = match wrong {
        Some(module) => format!(
            "modules_to_save: {name:?} means {module}, which is not trained; linear layers, the embedding and the head are"
        ),
        None => format!("modules_to_save: {name:?} matches no module of the model"),
    };
    Err(Error::adapter(path, code::UNKNOWN_TARGET, problem))
}

/// The argument of [`LoraConfig`] that a field of PEFT's configuration corresponds to.
fn argument_name(field: &str) -> &str {
    match field {
        "r" => "rank",
        "lora_alpha" => "alpha",
        "lora_dropout" => "dropout",
        other => other,
    }
}

/// Where a parameter starts: PEFT's initialisation.
fn initial(
    site: &Site,
    name: &'static str,
    shape: &[usize],
    config: &LoraConfig,
    random: &mut Random,
) -> Result<Tensor> {
    let count = shape.iter().product();
    let from = |values: Vec<f32>| Ok(Tensor::from_vec(values, shape, &Device::Cpu)?);
    match name {
        A if config.initialisation == Initialisation::Gaussian => {
            from(random.normals(count, 1.0 / shape[0] as f64))
        }
        A => from(random.uniforms(count, 1.0 / (shape[1] as f64).sqrt())),
        EMBEDDING_B => from(random.normals(count, 1.0)),
        MAGNITUDE => dora::row_lengths(site.weight.as_ref()),
        WEIGHT => site.weight.dequantize(DType::F32),
        BIAS | BASE_BIAS => match &site.bias {
            Some(bias) => Ok(bias.to_dtype(DType::F32)?),
            None => from(vec![0.0; count]),
        },
        B | B_BIAS | EMBEDDING_A => from(vec![0.0; count]),
        other => Err(Error::internal("a fresh adapter", format!("{other} has no beginning"))),
    }
}
