//! Everything that decides how a run goes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::adapter::{AdapterFile, LoraConfig};
use crate::{Error, Result};

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Down along half a cosine.
    #[default]
    Cosine,
    /// Down along a line.
    Linear,
    /// Not at all.
    Constant,
}

impl Schedule {
    /// The names that [`Schedule::from_name`] knows.
    pub const NAMES: &[&str] = &["cosine", "linear", "constant"];

    /// The schedule of this name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "cosine" => Ok(Self::Cosine),
            "linear" => Ok(Self::Linear),
            "constant" => Ok(Self::Constant),
            _ => Err(Error::argument("schedule", format!("{name:?}"), one_of(Self::NAMES))),
        }
    }

    /// The factor on the learning rate at optimizer step `step`, counted from 0, as transformers defines it.
    ///
    /// It rises from 0 over `warmup` steps; afterwards it falls until `total`, to no less than `least`.
    pub fn factor(self, step: usize, warmup: usize, total: usize, least: f64) -> f64 {
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let rest = total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => {
                let left = (total as f64 - step as f64) / rest;
                left.max(0.0) * (1.0 - least) + least
            }
            Self::Cosine => {
                let progress = (step - warmup) as f64 / rest;
                let wave = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
                (wave * (1.0 - least) + least).max(0.0)
            }
        }
    }
}

/// Whether layers are computed again in the backward pass instead of being kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpointing {
    /// As many layers are kept as fit into a budget.
    #[default]
    Auto,
    /// No layer is kept: least memory.
    On,
    /// All layers are kept: least time.
    Off,
}

/// The settings of a [`Trainer`](super::Trainer).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrainerOptions {
    /// The adapter to train, where `adapter` is `None`.
    #[serde(skip)]
    pub lora: LoraConfig,
    /// An adapter to continue.
    #[serde(skip)]
    pub adapter: Option<AdapterFile>,
    /// The highest learning rate.
    #[serde(with = "super::exact")]
    pub learning_rate: f64,
    /// How it moves.
    pub schedule: Schedule,
    /// Optimizer steps over which it rises from 0.
    pub warmup_steps: usize,
    /// What it does not fall below after the warm-up.
    #[serde(with = "super::exact")]
    pub min_learning_rate: f64,
    /// Rows of a batch; with `packing` the number of rows of full length that would fit.
    pub batch_size: usize,
    /// Batches of an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// How often the data is gone through.
    pub epochs: usize,
    /// The number of optimizer steps, whatever `epochs` says.
    pub max_steps: Option<usize>,
    /// Tokens after which a row is cut.
    pub max_length: usize,
    /// Fills batches up to `batch_size * max_length` tokens instead of `batch_size` rows.
    pub packing: bool,
    /// Decay of all parameters but biases, decoupled from the gradient.
    #[serde(with = "super::exact")]
    pub weight_decay: f64,
    /// Decay of the averages of gradients and of their squares.
    #[serde(with = "super::exact")]
    pub betas: (f64, f64),
    /// Keeps the optimizer from dividing by 0.
    #[serde(with = "super::exact")]
    pub eps: f64,
    /// What the norm of all gradients together is cut to.
    #[serde(with = "super::exact")]
    pub max_grad_norm: Option<f64>,
    /// The share of the target that is spread over the whole vocabulary.
    #[serde(with = "super::exact")]
    pub label_smoothing: f64,
    /// Time against memory.
    pub gradient_checkpointing: Checkpointing,
    /// Decides the adapter's start, the order of rows, and dropout.
    pub seed: u64,
    /// Whether rows come in another order in every epoch.
    pub shuffle: bool,
    /// Optimizer steps between evaluations; after every epoch where `None`.
    pub eval_steps: Option<usize>,
    /// Evaluations without progress after which the run ends.
    pub early_stopping_patience: Option<usize>,
    /// Where checkpoints and the final adapter go.
    pub save_dir: Option<PathBuf>,
    /// Optimizer steps between checkpoints.
    pub save_steps: Option<usize>,
    /// Checkpoints that are kept.
    pub keep_last: usize,
}

impl Default for TrainerOptions {
    fn default() -> Self {
        Self {
            lora: LoraConfig::default(),
            adapter: None,
            learning_rate: 1e-4,
            schedule: Schedule::Cosine,
            warmup_steps: 0,
            min_learning_rate: 0.0,
            batch_size: 4,
            gradient_accumulation_steps: 1,
            epochs: 1,
            max_steps: None,
            max_length: 1024,
            packing: true,
            weight_decay: 0.01,
            betas: (0.9, 0.999),
            eps: 1e-8,
            max_grad_norm: Some(1.0),
            label_smoothing: 0.0,
            gradient_checkpointing: Checkpointing::Auto,
            seed: 0,
            shuffle: true,
            eval_steps: None,
            early_stopping_patience: None,
            save_dir: None,
            save_steps: None,
            keep_last: 3,
        }
    }
}

impl TrainerOptions {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for the first one.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("batch_size", Some(self.batch_size)),
            ("gradient_accumulation_steps", Some(self.gradient_accumulation_steps)),
            ("epochs", Some(self.epochs)),
            ("max_steps", self.max_steps),
            ("eval_steps", self.eval_steps),
            ("early_stopping_patience", self.early_stopping_patience),
            ("save_steps", self.save_steps),
            ("keep_last", Some(self.keep_last)),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == Some(0)) {
            return Err(Error::argument(*name, 0, "at least 1"));
        }
        if self.max_length < 2 {
            return Err(Error::argument("max_length", self.max_length, "at least 2 tokens"));
        }
        let finite = |value: f64| value.is_finite() && value >= 0.0;
        let decay = |value: f64| (0.0..1.0).contains(&value);
        let checks = [
            ("learning_rate", self.learning_rate, finite(self.learning_rate), "0 or a positive number"),
            (
                "min_learning_rate",
                self.min_learning_rate,
                finite(self.min_learning_rate) && self.min_learning_rate <= self.learning_rate,
                "a number from 0 to learning_rate",
            ),
            ("weight_decay", self.weight_decay, finite(self.weight_decay), "0 or a positive number"),
            ("betas", self.betas.0, decay(self.betas.0), "numbers of at least 0 and below 1"),
            ("betas", self.betas.1, decay(self.betas.1), "numbers of at least 0 and below 1"),
            ("eps", self.eps, finite(self.eps), "0 or a positive number"),
            (
                "max_grad_norm",
                self.max_grad_norm.unwrap_or(1.0),
                self.max_grad_norm.is_none_or(|norm| norm > 0.0 && !norm.is_nan()),
                "a positive number, or none",
            ),
            (
                "label_smoothing",
                self.label_smoothing,
                (0.0..=1.0).contains(&self.label_smoothing),
                "a number from 0 to 1",
            ),
        ];
        match checks.into_iter().find(|(_, _, is_fine, _)| !is_fine) {
            Some((name, value, _, allowed)) => Err(Error::argument(name, value, allowed)),
            None => Ok(()),
        }
    }

    /// Refuses settings that would do nothing, as they are probably mistakes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for the first one.
    pub fn refuse_unused(&self, has_eval_data: bool) -> Result<()> {
        let needs = [
            ("early_stopping_patience", self.early_stopping_patience, has_eval_data, "eval_dataset"),
            ("eval_steps", self.eval_steps, has_eval_data, "eval_dataset"),
            ("save_steps", self.save_steps, self.save_dir.is_some(), "save_dir"),
        ];
        match needs.into_iter().find(|(_, given, is_met, _)| given.is_some() && !is_met) {
            Some((name, given, _, other)) => {
                let allowed = format!("None without {other}; give {other} too");
                Err(Error::argument(name, given.unwrap_or_default(), allowed))
            }
            None => Ok(()),
        }
    }

    /// The learning rate of optimizer step `step` of `total`, counted from 0.
    pub fn learning_rate_at(&self, step: usize, total: usize) -> f64 {
        if self.learning_rate == 0.0 {
            return 0.0;
        }
        let least = self.min_learning_rate / self.learning_rate;
        self.learning_rate * self.schedule.factor(step, self.warmup_steps, total, least)
    }
}

fn one_of(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_refused_by_name() {
        let plain = TrainerOptions::default();
        plain.validate().unwrap();
        let refused = |change: fn(&mut TrainerOptions)| {
            let mut options = TrainerOptions::default();
            change(&mut options);
            match options.validate() {
                Err(Error::InvalidArgument { name, .. }) => name,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(|o| o.batch_size = 0), "batch_size");
        assert_eq!(refused(|o| o.max_steps = Some(0)), "max_steps");
        assert_eq!(refused(|o| o.max_length = 1), "max_length");
        assert_eq!(refused(|o| o.learning_rate = f64::NAN), "learning_rate");
        assert_eq!(refused(|o| o.min_learning_rate = 1.0), "min_learning_rate");
        assert_eq!(refused(|o| o.betas.1 = 1.0), "betas");
        assert_eq!(refused(|o| o.max_grad_norm = Some(0.0)), "max_grad_norm");
        assert_eq!(refused(|o| o.label_smoothing = 1.5), "label_smoothing");
        assert!(Schedule::from_name("step").is_err());
        for name in Schedule::NAMES {
            assert!(Schedule::from_name(name).is_ok());
        }
    }

    #[test]
    fn settings_that_would_do_nothing_are_refused() {
        let plain = TrainerOptions::default;
        let refused = |options: TrainerOptions, has_eval_data| match options.refuse_unused(has_eval_data) {
            Err(Error::InvalidArgument { name, .. }) => Some(name),
            _ => None,
        };
        let patience = || TrainerOptions { early_stopping_patience: Some(1), ..plain() };
        let evaluates = || TrainerOptions { eval_steps: Some(2), ..plain() };
        assert_eq!(refused(patience(), false).as_deref(), Some("early_stopping_patience"));
        assert_eq!(refused(evaluates(), false).as_deref(), Some("eval_steps"));
        assert_eq!((refused(patience(), true), refused(evaluates(), true)), (None, None));
        let saves = |save_dir| TrainerOptions { save_steps: Some(2), save_dir, ..plain() };
        assert_eq!(refused(saves(None), true).as_deref(), Some("save_steps"));
        assert_eq!(refused(saves(Some("here".into())), true), None);
    }

    #[test]
    fn options_survive_writing_and_reading() {
        let options = TrainerOptions {
            learning_rate: 0.1 + 0.2,
            betas: (1.0 / 3.0, 0.7 / 3.0),
            max_grad_norm: None,
            max_steps: Some(7),
            schedule: Schedule::Linear,
            save_dir: Some("somewhere".into()),
            ..TrainerOptions::default()
        };
        let again: TrainerOptions = serde_json::from_str(&serde_json::to_string(&options).unwrap()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{options:?}"));
    }
}
