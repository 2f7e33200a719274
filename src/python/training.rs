//! The keywords of `Trainer` and of `Trainer.resume`.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::lora::{Lora, LoraConfig};
use super::registry::to_continue;
use super::whole::{Whole, count};
use crate::train::{Checkpointing, SavedRun, Schedule, TrainerOptions};
use crate::{Error, Model, Result};

/// `"auto"`, or a decision.
#[derive(FromPyObject)]
pub(super) enum Recompute {
    Flag(bool),
    Named(String),
}

impl Recompute {
    pub(super) fn auto() -> Self {
        Self::Named("auto".into())
    }

    fn checkpointing(&self) -> Result<Checkpointing> {
        match self {
            Self::Flag(true) => Ok(Checkpointing::On),
            Self::Flag(false) => Ok(Checkpointing::Off),
            Self::Named(name) if name == "auto" => Ok(Checkpointing::Auto),
            Self::Named(name) => {
                Err(Error::argument("gradient_checkpointing", format!("{name:?}"), "True, False or \"auto\""))
            }
        }
    }
}

/// Keywords as given; `None` is one that was not given.
#[derive(Default)]
pub(super) struct Keywords<'a> {
    pub(super) learning_rate: Option<f64>,
    pub(super) schedule: Option<&'a str>,
    pub(super) warmup_steps: Option<Whole>,
    pub(super) min_learning_rate: Option<f64>,
    pub(super) batch_size: Option<Whole>,
    pub(super) gradient_accumulation_steps: Option<Whole>,
    pub(super) epochs: Option<Whole>,
    pub(super) max_steps: Option<Whole>,
    pub(super) max_length: Option<Whole>,
    pub(super) packing: Option<bool>,
    pub(super) weight_decay: Option<f64>,
    pub(super) betas: Option<[f64; 2]>,
    pub(super) eps: Option<f64>,
    pub(super) max_grad_norm: Option<f64>,
    pub(super) label_smoothing: Option<f64>,
    pub(super) gradient_checkpointing: Option<Recompute>,
    pub(super) seed: Option<Whole>,
    pub(super) shuffle: Option<bool>,
    pub(super) eval_steps: Option<Whole>,
    pub(super) early_stopping_patience: Option<Whole>,
    pub(super) save_dir: Option<PathBuf>,
    pub(super) save_steps: Option<Whole>,
    pub(super) keep_last: Option<Whole>,
}

/// A keyword that was given takes the place of what there is.
fn put<T>(place: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *place = given;
    }
}

fn put_count(place: &mut usize, name: &str, given: Option<Whole>) -> Result<()> {
    put(place, count(name, given.as_ref())?);
    Ok(())
}

impl Keywords<'_> {
    /// Puts every given keyword into `options`.
    pub(super) fn apply(self, options: &mut TrainerOptions) -> Result<()> {
        put(&mut options.learning_rate, self.learning_rate);
        put(&mut options.schedule, self.schedule.map(Schedule::from_name).transpose()?);
        put_count(&mut options.warmup_steps, "warmup_steps", self.warmup_steps)?;
        put(&mut options.min_learning_rate, self.min_learning_rate);
        put_count(&mut options.batch_size, "batch_size", self.batch_size)?;
        let accumulation = &mut options.gradient_accumulation_steps;
        put_count(accumulation, "gradient_accumulation_steps", self.gradient_accumulation_steps)?;
        put_count(&mut options.epochs, "epochs", self.epochs)?;
        options.max_steps = count("max_steps", self.max_steps.as_ref())?.or(options.max_steps);
        put_count(&mut options.max_length, "max_length", self.max_length)?;
        put(&mut options.packing, self.packing);
        put(&mut options.weight_decay, self.weight_decay);
        put(&mut options.betas, self.betas.map(Into::into));
        put(&mut options.eps, self.eps);
        options.max_grad_norm = self.max_grad_norm.or(options.max_grad_norm);
        put(&mut options.label_smoothing, self.label_smoothing);
        let recompute = self.gradient_checkpointing.map(|given| given.checkpointing()).transpose()?;
        put(&mut options.gradient_checkpointing, recompute);
        put(&mut options.seed, self.seed.map(|seed| seed.unsigned("seed")).transpose()?);
        put(&mut options.shuffle, self.shuffle);
        options.eval_steps = count("eval_steps", self.eval_steps.as_ref())?.or(options.eval_steps);
        options.early_stopping_patience =
            count("early_stopping_patience", self.early_stopping_patience.as_ref())?
                .or(options.early_stopping_patience);
        options.save_dir = self.save_dir.or(options.save_dir.take());
        options.save_steps = count("save_steps", self.save_steps.as_ref())?.or(options.save_steps);
        put_count(&mut options.keep_last, "keep_last", self.keep_last)
    }

    /// Puts every given keyword into the options of a run that goes on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that would change which rows come next.
    pub(super) fn change(self, options: &mut TrainerOptions) -> Result<()> {
        let before = options.clone();
        self.apply(options)?;
        let same = |name: &str, before: &dyn ToString, now: &dyn ToString| {
            let (before, now) = (before.to_string(), now.to_string());
            if before == now {
                return Ok(());
            }
            Err(Error::argument(name, now, format!("{before}, with which the run began")))
        };
        same("batch_size", &before.batch_size, &options.batch_size)?;
        same(
            "gradient_accumulation_steps",
            &before.gradient_accumulation_steps,
            &options.gradient_accumulation_steps,
        )?;
        same("max_length", &before.max_length, &options.max_length)?;
        same("packing", &before.packing, &options.packing)?;
        same("shuffle", &before.shuffle, &options.shuffle)?;
        same("seed", &before.seed, &options.seed)
    }
}

/// What is said where both beginnings are given.
pub(super) fn only_one_start() -> Error {
    let allowed = "one of lora and adapter; an adapter that is gone on with has its own";
    Error::argument("lora", "a configuration beside an adapter", allowed)
}

/// Refuses another adapter than a saved run has.
pub(super) fn check_start(
    py: Python<'_>,
    model: &Model,
    run: &SavedRun,
    lora: Option<Lora>,
    adapter: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (name, config) = match (lora, adapter) {
        (None, None) => return Ok(()),
        (Some(_), Some(_)) => return Err(only_one_start().into()),
        (Some(lora), None) => ("lora", lora.0),
        (None, Some(adapter)) => ("adapter", to_continue(py, model, adapter)?.config().clone()),
    };
    if run.is_of(model, &config)? {
        return Ok(());
    }
    let show = |inner| LoraConfig { inner }.__repr__(py);
    let allowed = format!("{}, with which the run began", show(run.options.lora.clone())?);
    Err(Error::argument(name, show(config)?, allowed).into())
}
