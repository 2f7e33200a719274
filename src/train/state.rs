//! The state of a run in one file, from which it goes on as if it had not been interrupted.
//!
//! The file has everything: adapter, optimizer, settings, progress and the place in the data. It is replaced as a whole,
//! so a process that is killed at any moment leaves the old state or the new one. Randomness needs no state of its own,
//! as it follows from the seed and the step.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checkpoints::latest;
use super::dataset::ROWS_NAME;
use super::trainer::Progress;
use super::{Trainer, TrainerOptions, TrainingData};
use crate::adapter::{AdapterFile, LoraConfig, TrainableAdapter};
use crate::checkpoint::{SafetensorsSource, write_safetensors};
use crate::models::Model;
use crate::weight::{Format, TensorInfo, TensorSource};
use crate::{Error, Result};

/// The file's name.
pub(super) const FILE: &str = "trainer_state.safetensors";

/// The entry of the file's metadata that holds [`Record`].
const RECORD: &str = "candlewick_trainer";

/// The version that this code writes, and the only one it reads.
const VERSION: u32 = 1;

/// What begins the names of tensors: the adapter's, and the optimizer's two averages.
const KINDS: [&str; 3] = ["adapter", "exp_avg", "exp_avg_sq"];

/// Everything that is not a tensor.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    options: TrainerOptions,
    lora: Value,
    optimizer_steps: usize,
    progress: Progress,
    rows: usize,
    tokens: usize,
    /// Where all rows were looked at.
    #[serde(default)]
    content: Option<u64>,
    #[serde(default)]
    model_type: Option<String>,
}

impl Trainer {
    /// Writes the adapter as PEFT's two files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, directory: &Path) -> Result<()> {
        self.adapter()?.write(directory)
    }

    /// Writes the adapter, and beside it what is needed to go on training.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save_state(&self, directory: &Path) -> Result<()> {
        let adapter = self.adapter()?;
        adapter.write(directory)?;
        let stats = self.data.stats();
        let record = Record {
            version: VERSION,
            options: self.options.clone(),
            lora: adapter.config().to_peft(adapter.base_model()),
            optimizer_steps: self.optimizer.step_count(),
            progress: self.progress,
            rows: self.data.len(),
            tokens: stats.tokens,
            content: (stats.tokens > 0).then_some(stats.content),
            model_type: Some(self.model.model_type().to_owned()),
        };
        let record = serde_json::to_string(&record).map_err(|error| Error::internal("saving", error))?;
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for (parameter, slot) in self.adapter.parameters().iter().zip(self.optimizer.slots()) {
            let value = slot.var.as_detached_tensor();
            for (kind, tensor) in KINDS.iter().zip([&value, &slot.exp_avg, &slot.exp_avg_sq]) {
                tensors.insert(format!("{kind}.{}", parameter.name), tensor.clone());
            }
        }
        let info = |tensor: &Tensor| TensorInfo { format: Format::F32, shape: tensor.dims().to_vec() };
        let infos: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), info(tensor))).collect();
        let metadata = BTreeMap::from([(RECORD.to_owned(), record)]);
        write_safetensors(directory.join(FILE), &metadata, &infos, |name| {
            let values = tensors[name].to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        })
    }

    /// Goes on where [`Trainer::save_state`] or the latest checkpoint of a run's directory stopped.
    ///
    /// `change` may adjust settings, for example to train longer; with the settings and data of before, the rest of the
    /// run is the same as if it had not been interrupted.
    ///
    /// # Errors
    /// As [`SavedRun::read`] and [`SavedRun::go_on`].
    pub fn resume(
        model: &Model,
        directory: &Path,
        data: (TrainingData, Option<TrainingData>),
        change: impl FnOnce(&mut TrainerOptions) -> Result<()>,
        cancelled: &AtomicBool,
    ) -> Result<Self> {
        let mut run = SavedRun::read(directory)?;
        change(&mut run.options)?;
        run.go_on(model, data, cancelled)
    }

    fn check_data(&self, record: &Record) -> Result<()> {
        let stats = self.data.stats();
        let Record { rows, tokens, content, .. } = *record;
        let was_seen = tokens > 0 && stats.tokens > 0;
        if self.data.len() == rows && (!was_seen || stats.tokens == tokens) {
            if !was_seen || content.is_none_or(|content| content == stats.content) {
                return Ok(());
            }
            let reason = "the rows are not those with which the state was saved, or in another order; resume with the \
                          same data, or start anew from the saved adapter";
            return Err(Error::InvalidData { origin: ROWS_NAME.into(), line: None, reason: reason.into() });
        }
        Err(Error::InvalidData {
            origin: ROWS_NAME.into(),
            line: None,
            reason: format!(
                "the state was saved with {rows} rows of {tokens} tokens, this data has {} rows of {} tokens; resume with \
                 the same data, or start anew from the saved adapter",
                self.data.len(),
                stats.tokens
            ),
        })
    }
}

/// A run that was saved and can go on.
#[derive(Debug)]
pub struct SavedRun {
    path: PathBuf,
    source: SafetensorsSource,
    record: Record,
    /// Its settings, which may be changed before it goes on.
    pub options: TrainerOptions,
}

impl SavedRun {
    /// Reads what [`Trainer::save_state`] wrote, or the latest checkpoint of a run's directory.
    ///
    /// # Errors
    /// [`Error::InvalidCheckpoint`] for a damaged state.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = latest(directory)?.join(FILE);
        let source = SafetensorsSource::open(&path)?;
        let damaged = |problem: String| Error::checkpoint(&path, problem);
        let record = source.metadata().get(RECORD).ok_or_else(|| damaged(format!("it has no {RECORD}")))?;
        let record: Record = serde_json::from_str(record)
            .map_err(|error| damaged(format!("its {RECORD} is damaged: {error}")))?;
        if record.version != VERSION {
            return Err(damaged(format!("its version is {}, expected {VERSION}", record.version)));
        }
        let mut options = record.options.clone();
        options.lora = LoraConfig::from_peft(&path, &record.lora)?;
        Ok(Self { path, source, record, options })
    }

    /// Rows of the data it was trained on.
    pub fn rows(&self) -> usize {
        self.record.rows
    }

    /// Whether `lora` is what its adapter was made with.
    ///
    /// # Errors
    /// [`Error::InvalidAdapter`] where `lora` does not fit the model.
    pub fn is_of(&self, model: &Model, lora: &LoraConfig) -> Result<bool> {
        let lora = lora.for_model(model)?.to_peft(None).to_string();
        // Read as the saved one was, so that both are rounded alike.
        let lora = serde_json::from_str(&lora).map_err(|error| Error::internal("resuming", error))?;
        Ok(LoraConfig::from_peft(&self.path, &lora)? == self.options.lora)
    }

    /// The trainer as it was saved.
    ///
    /// # Errors
    /// [`Error::InvalidCheckpoint`] for a damaged state, [`Error::InvalidData`] for other data than before.
    pub fn go_on(
        self,
        model: &Model,
        data: (TrainingData, Option<TrainingData>),
        cancelled: &AtomicBool,
    ) -> Result<Trainer> {
        let Self { path, source, record, options } = self;
        options.validate()?;
        if let Some(before) = record.model_type.as_deref().filter(|before| *before != model.model_type()) {
            let allowed = format!("a {before} model, with which the run began");
            return Err(Error::argument("model", model.model_type(), allowed));
        }
        let damaged = |problem: String| Error::checkpoint(&path, problem);
        let mut kinds: [BTreeMap<String, Tensor>; 3] = Default::default();
        for name in source.names() {
            let place = KINDS.iter().position(|kind| name.starts_with(&format!("{kind}.")));
            let Some(place) = place else { return Err(damaged(format!("tensor {name} is unknown"))) };
            let own = name[KINDS[place].len() + 1..].to_owned();
            kinds[place].insert(own, read(&source, &name)?);
        }
        let [adapter, exp_avg, exp_avg_sq] = kinds;
        let file = AdapterFile::from_tensors(&path, options.lora.clone(), adapter);
        let trainable = TrainableAdapter::continued(model, &file, options.seed)?;
        // A run that diverged may go on with other settings, as may one that stopped early with more patience.
        let is_finished = options
            .early_stopping_patience
            .is_some_and(|patience| record.progress.evaluations_without_progress >= patience);
        let progress = Progress { is_finished, ..record.progress };
        let mut trainer = Trainer::assemble(model, data, options, trainable, progress, cancelled)?;
        trainer.check_data(&record)?;
        let average = |of: &BTreeMap<String, Tensor>, name: &str| -> Result<Tensor> {
            let tensor = of.get(name).ok_or_else(|| damaged(format!("an average of {name} is missing")))?;
            Ok(tensor.to_device(model.device())?)
        };
        let averages = trainer.adapter.parameters().iter().map(|parameter| {
            Ok((average(&exp_avg, &parameter.name)?, average(&exp_avg_sq, &parameter.name)?))
        });
        let averages = averages.collect::<Result<Vec<_>>>()?;
        for ((first, second), slot) in averages.iter().zip(trainer.optimizer.slots()) {
            if first.dims() != slot.var.dims() || second.dims() != slot.var.dims() {
                return Err(damaged("an average has another shape than its parameter".into()));
            }
        }
        trainer.optimizer.restore(record.optimizer_steps, averages);
        Ok(trainer)
    }
}

fn read(source: &SafetensorsSource, name: &str) -> Result<Tensor> {
    match source.info(name) {
        Some(info) if info.format == Format::F32 => {
            Ok(Tensor::from_raw_buffer(&source.bytes(name)?, DType::F32, &info.shape, &Device::Cpu)?)
        }
        _ => Err(Error::checkpoint(source.path(), format!("tensor {name} is not f32"))),
    }
}
