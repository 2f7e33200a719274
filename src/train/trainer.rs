//! The training loop as an iterator.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::batching::{BatchRules, Batches, Position, count_steps};
use super::checkpoints::Checkpoints;
use super::dataset::{Dataset, DatasetStats, ROWS_NAME, TrainingData};
use super::gradients::{Gradients, Machine, Map};
use super::optimizer::{AdamW, clip, global_norm};
use super::options::{Checkpointing, TrainerOptions};
use super::row::{Example, RowEncoder};
use crate::adapter::{AdapterFile, TrainableAdapter};
use crate::models::Model;
use crate::{Error, Result};

/// Rows of a batch are computed together up to this many tokens: enough for full speed, and more would only take memory.
const PASS_TOKENS: usize = 1024;

/// Bytes of intermediate results that are kept where the trainer decides.
const KEPT_BYTES: usize = 400 << 20;

/// What one optimizer step did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: usize,
    /// Mean loss over all predicted tokens of the step, before the update.
    pub loss: f64,
    /// The learning rate that was used.
    pub learning_rate: f64,
    /// Norm of all gradients together, before it was cut.
    pub grad_norm: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Tokens that were processed in a second, predicted or not.
    pub tokens_per_second: f64,
    /// How long the step took, without evaluation and saving.
    pub seconds: f64,
    /// How often the data has been gone through.
    pub epoch: f64,
    /// Mean loss over the evaluation data, where it was computed after this step.
    pub eval_loss: Option<f64>,
}

/// What a run remembers from step to step, apart from tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) step: usize,
    pub(super) position: Position,
    #[serde(with = "super::exact")]
    pub(super) best_eval_loss: Option<f64>,
    pub(super) evaluations_without_progress: usize,
    pub(super) is_finished: bool,
}

/// Trains one adapter of one model; iterate over it for one [`StepMetrics`] per optimizer step.
///
/// ```
/// use candlewick::train::{Trainer, TrainerOptions, TrainingData};
/// use candlewick::{LoadOptions, Model};
/// let model = Model::load("candlewick/tiny", &LoadOptions::default())?;
/// let rows = vec![serde_json::json!({"text": "a red hen ran"}), serde_json::json!({"text": "the sun set"})];
/// let options = TrainerOptions { max_steps: Some(2), learning_rate: 1e-2, ..Default::default() };
/// let mut trainer = Trainer::new(&model, TrainingData::Rows(rows), None, options)?;
/// let losses: Vec<f64> = trainer.by_ref().map(|step| Ok(step?.loss)).collect::<candlewick::Result<_>>()?;
/// assert!(losses[1] < losses[0]);
/// # Ok::<(), candlewick::Error>(())
/// ```
#[derive(Debug)]
pub struct Trainer {
    pub(super) model: Model,
    pub(super) options: TrainerOptions,
    pub(super) adapter: TrainableAdapter,
    pub(super) optimizer: AdamW,
    pub(super) progress: Progress,
    pub(super) data: Dataset,
    eval_data: Option<Dataset>,
    batches: Batches,
    map: Map,
    total_steps: usize,
    checkpoints: Option<Checkpoints>,
    /// A step that was taken, where its evaluation or saving failed.
    unreported: Option<StepMetrics>,
}

impl Trainer {
    /// A trainer at its beginning.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for impossible settings, [`Error::InvalidData`] for unusable rows,
    /// [`Error::InvalidAdapter`] where the adapter does not fit the model.
    pub fn new(
        model: &Model,
        data: TrainingData,
        eval_data: Option<TrainingData>,
        options: TrainerOptions,
    ) -> Result<Self> {
        Self::interruptible(model, data, eval_data, options, &AtomicBool::new(false))
    }

    /// As [`Trainer::new`], given up once `cancelled` is set.
    pub fn interruptible(
        model: &Model,
        data: TrainingData,
        eval_data: Option<TrainingData>,
        options: TrainerOptions,
        cancelled: &AtomicBool,
    ) -> Result<Self> {
        options.validate()?;
        options.refuse_unused(eval_data.is_some())?;
        let adapter = match &options.adapter {
            Some(file) => TrainableAdapter::continued(model, file, options.seed)?,
            None => TrainableAdapter::fresh(model, &options.lora, options.seed)?,
        };
        Self::assemble(model, (data, eval_data), options, adapter, Progress::default(), cancelled)
    }

    pub(super) fn assemble(
        model: &Model,
        (data, eval_data): (TrainingData, Option<TrainingData>),
        options: TrainerOptions,
        adapter: TrainableAdapter,
        progress: Progress,
        cancelled: &AtomicBool,
    ) -> Result<Self> {
        if model.decoder().head().is_none() {
            let reason = "it has no language-model head; only models that give logits can be trained";
            return Err(Error::argument("model", model.name(), reason));
        }
        let encoder = RowEncoder::new(model, options.max_length)?;
        let data = Dataset::open(data, encoder.clone(), options.max_steps.is_none(), cancelled)?;
        let eval_data = eval_data.map(|data| Dataset::open(data, encoder, true, cancelled)).transpose();
        let eval_data = eval_data.map_err(of_evaluation)?;
        let rules = BatchRules::from(&options);
        let total_steps = match options.max_steps {
            Some(steps) => steps,
            None => {
                count_steps(rules, &data, options.epochs, options.gradient_accumulation_steps, cancelled)?
            }
        };
        report_truncation(data.stats(), options.max_length);
        if options.packing && options.max_steps.is_none() {
            report_few_steps(&options, data.stats(), total_steps);
        }
        let decays = |name: &str| !name.ends_with("bias");
        let parameters = adapter.parameters().iter();
        let parameters = parameters.map(|parameter| (parameter.var.clone(), decays(&parameter.name)));
        Ok(Self {
            optimizer: AdamW::new((&options).into(), parameters)?,
            batches: Batches::new(rules, &data, progress.position)?,
            map: Map::new(model, &adapter),
            checkpoints: options
                .save_dir
                .clone()
                .map(|directory| Checkpoints::new(directory, options.keep_last)),
            model: model.clone(),
            options,
            adapter,
            progress,
            data,
            eval_data,
            total_steps,
            unreported: None,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The settings.
    pub fn options(&self) -> &TrainerOptions {
        &self.options
    }

    /// Optimizer steps taken.
    pub fn step_count(&self) -> usize {
        self.progress.step
    }

    /// Optimizer steps that the run will have taken in the end, unless it stops early.
    pub fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// What was found in the training data.
    pub fn data_stats(&self) -> DatasetStats {
        self.data.stats()
    }

    /// Number of values that are trained.
    pub fn num_parameters(&self) -> usize {
        self.adapter.num_parameters()
    }

    /// Whether no further step will be taken.
    pub fn is_finished(&self) -> bool {
        self.progress.is_finished || self.progress.step >= self.total_steps
    }

    /// The adapter as of the last whole step.
    pub fn adapter(&self) -> Result<AdapterFile> {
        self.adapter.snapshot()
    }

    /// The next optimizer step; `None` at the end. When `cancelled` is set the step is given up within a layer's time,
    /// and the next call takes it again.
    ///
    /// # Errors
    /// [`Error::Diverged`] where loss or gradients are not finite; the adapter stays as of the last good step.
    pub fn next_step(&mut self, cancelled: &AtomicBool) -> Option<Result<StepMetrics>> {
        if self.is_finished() {
            return None;
        }
        let begin = self.batches.position();
        match self.try_step(cancelled) {
            Ok((mut metrics, ends_epoch)) => {
                let after = self.after_step(&mut metrics, ends_epoch, cancelled);
                self.unreported = after.is_err().then_some(metrics);
                Some(after.map(|()| metrics))
            }
            Err(error) => {
                self.progress.is_finished = matches!(error, Error::Diverged { .. });
                match Batches::new(BatchRules::from(&self.options), &self.data, begin) {
                    Ok(batches) => self.batches = batches,
                    Err(error) => return Some(Err(error)),
                }
                Some(Err(error))
            }
        }
    }

    /// The last step, where [`Trainer::next_step`] failed although it was taken: its evaluation or saving went wrong.
    pub fn take_unreported(&mut self) -> Option<StepMetrics> {
        self.unreported.take()
    }

    /// The flag says whether an epoch ended.
    fn try_step(&mut self, cancelled: &AtomicBool) -> Result<(StepMetrics, bool)> {
        let (examples, ends_epoch) = self.next_examples()?;
        let metrics = self.step_on(&examples, cancelled)?;
        self.progress.position = self.batches.position();
        Ok((StepMetrics { epoch: self.batches.progress(), ..metrics }, ends_epoch))
    }

    /// One optimizer step on given batches instead of the next ones of the data.
    ///
    /// # Errors
    /// As [`Trainer::next_step`]; nothing has changed where it fails.
    pub fn step_on(&mut self, batches: &[Vec<Example>], cancelled: &AtomicBool) -> Result<StepMetrics> {
        let begun = Instant::now();
        let targets: usize = batches.iter().flatten().map(Example::targets).sum();
        if targets == 0 {
            return Err(Error::argument("batches", "no token to predict", "at least one"));
        }
        let mut gradients: Gradients = vec![None; self.adapter.parameters().len()];
        let mut sum = 0.0;
        let step = self.progress.step + 1;
        self.adapter.clock().set_training(true);
        let machine = self.machine(cancelled, batches);
        for (pass, rows) in batches.iter().flat_map(|batch| passes(batch)).enumerate() {
            // Dropout differs from pass to pass, and does not depend on when a run was interrupted.
            self.adapter.clock().begin_pass(((step as u64) << 24) + pass as u64);
            sum += machine.backward(&rows, 1.0 / targets as f64, &mut gradients)?;
        }
        let loss = sum / targets as f64;
        let grad_norm = self.update(gradients, loss, step)?;
        self.progress.step = step;
        let seconds = begun.elapsed().as_secs_f64().max(1e-9);
        let tokens: usize = batches.iter().flatten().map(|example| example.ids.len()).sum();
        Ok(StepMetrics {
            step,
            loss,
            learning_rate: self.options.learning_rate_at(step - 1, self.total_steps),
            grad_norm,
            tokens: targets,
            tokens_per_second: tokens as f64 / seconds,
            seconds,
            epoch: self.progress.position.epoch as f64,
            eval_loss: None,
        })
    }

    /// The batches of one optimizer step, all of one epoch, and whether it ends with them.
    fn next_examples(&mut self) -> Result<(Vec<Vec<Example>>, bool)> {
        let mut step = Vec::new();
        let mut empty_epochs = 0;
        while step.len() < self.options.gradient_accumulation_steps {
            match self.batches.next(&self.data)? {
                Some(rows) => {
                    let examples = rows.iter().map(|row| self.data.example(*row as usize));
                    step.push(examples.collect::<Result<_>>()?);
                }
                None if !step.is_empty() => return Ok((step, true)),
                None if empty_epochs > 0 => {
                    let reason = "no row has a token to learn; check labels, masks and max_length";
                    return Err(Error::InvalidData {
                        origin: ROWS_NAME.into(),
                        line: None,
                        reason: reason.into(),
                    });
                }
                None => empty_epochs += 1,
            }
        }
        Ok((step, self.batches.is_at_epoch_end()))
    }

    /// Clips the gradients and moves the parameters; the norm before clipping.
    fn update(&mut self, gradients: Gradients, loss: f64, step: usize) -> Result<f64> {
        let missing = |index: usize| {
            let name = &self.adapter.parameters()[index].name;
            Error::internal("training", format!("no gradient reached {name}"))
        };
        let gradients =
            gradients.into_iter().enumerate().map(|(i, gradient)| gradient.ok_or_else(|| missing(i)));
        let mut gradients = gradients.collect::<Result<Vec<Tensor>>>()?;
        let norm = global_norm(&gradients)?;
        if !loss.is_finite() || !norm.is_finite() {
            return Err(Error::Diverged { step, loss });
        }
        if let Some(max_norm) = self.options.max_grad_norm {
            clip(&mut gradients, norm, max_norm)?;
        }
        let learning_rate = self.options.learning_rate_at(step - 1, self.total_steps);
        self.optimizer.update(&gradients, learning_rate).map_err(|error| match error {
            Error::Diverged { .. } => Error::Diverged { step, loss },
            other => other,
        })?;
        self.adapter.clock().parameters_changed();
        Ok(norm)
    }

    /// Evaluates, saves and decides about stopping. The step itself counts, whatever happens here.
    fn after_step(
        &mut self,
        metrics: &mut StepMetrics,
        ends_epoch: bool,
        cancelled: &AtomicBool,
    ) -> Result<()> {
        let step = metrics.step;
        let is_last = step >= self.total_steps;
        let is_due = |every: Option<usize>| every.is_some_and(|every| step.is_multiple_of(every));
        let evaluates = match self.options.eval_steps {
            Some(_) => is_due(self.options.eval_steps),
            None => ends_epoch,
        };
        if self.eval_data.is_some() && (evaluates || is_last) {
            let loss = self.evaluate(cancelled)?;
            metrics.eval_loss = loss;
            self.judge(loss)?;
        }
        if let Some(checkpoints) = &self.checkpoints
            && is_due(self.options.save_steps)
        {
            checkpoints.save(self, step)?;
        }
        if self.is_finished()
            && let Some(directory) = &self.options.save_dir
        {
            self.save(directory)?;
        }
        Ok(())
    }

    /// Notes an evaluation: the best adapter is kept, and too long a time without progress ends the run.
    fn judge(&mut self, loss: Option<f64>) -> Result<()> {
        let Some(loss) = loss else { return Ok(()) };
        // NaN is no progress, and would be the best for ever.
        if loss.is_finite() && self.progress.best_eval_loss.is_none_or(|best| loss < best) {
            self.progress.best_eval_loss = Some(loss);
            self.progress.evaluations_without_progress = 0;
            if let Some(checkpoints) = &self.checkpoints {
                checkpoints.save_best(&self.adapter()?)?;
            }
        } else {
            self.progress.evaluations_without_progress += 1;
        }
        if let Some(patience) = self.options.early_stopping_patience
            && self.progress.evaluations_without_progress >= patience
        {
            self.progress.is_finished = true;
        }
        Ok(())
    }

    /// The mean loss over the predicted tokens of the evaluation data; `None` where there is none.
    pub fn evaluate(&self, cancelled: &AtomicBool) -> Result<Option<f64>> {
        self.eval_data.as_ref().map(|data| self.mean_loss(data, cancelled)).transpose()
    }

    /// The mean loss over the predicted tokens of any data.
    pub fn evaluate_on(&self, data: TrainingData, cancelled: &AtomicBool) -> Result<f64> {
        let encoder = RowEncoder::new(&self.model, self.options.max_length)?;
        self.mean_loss(&Dataset::open(data, encoder, true, cancelled)?, cancelled)
    }

    fn mean_loss(&self, data: &Dataset, cancelled: &AtomicBool) -> Result<f64> {
        self.adapter.clock().set_training(false);
        let (mut sum, mut targets) = (0.0, 0);
        let mut rows: Vec<Example> = Vec::new();
        let mut tokens = 0;
        let machine = self.machine(cancelled, &[]);
        for index in 0..=data.len() {
            let next = if index < data.len() { Some(data.example(index)?) } else { None };
            let is_full = next.as_ref().is_none_or(|next| tokens + next.ids.len() > PASS_TOKENS);
            if is_full && !rows.is_empty() {
                targets += rows.iter().map(Example::targets).sum::<usize>();
                sum += machine.loss(&rows.iter().collect::<Vec<_>>())?;
                rows.clear();
                tokens = 0;
            }
            if let Some(next) = next.filter(|next| next.targets() > 0) {
                tokens += next.ids.len();
                rows.push(next);
            }
        }
        Ok(sum / targets.max(1) as f64)
    }

    fn machine<'a>(&'a self, cancelled: &'a AtomicBool, examples: &[Vec<Example>]) -> Machine<'a> {
        let layers = self.model.decoder().num_layers();
        let longest = examples.iter().flat_map(|batch| passes(batch)).map(|rows| tokens_of(&rows)).max();
        let kept_layers = match self.options.gradient_checkpointing {
            Checkpointing::On => 0,
            Checkpointing::Off => layers,
            Checkpointing::Auto => {
                KEPT_BYTES / (self.model.layer_activation_bytes() * longest.unwrap_or(1).max(1))
            }
        };
        Machine {
            model: &self.model,
            adapter: &self.adapter,
            map: &self.map,
            label_smoothing: self.options.label_smoothing,
            kept_layers: kept_layers.min(layers),
            cancelled,
        }
    }

    /// The gradients that the next step would use, before they are cut, by the parameters' names in the file.
    ///
    /// # Errors
    /// As [`Trainer::next_step`]; nothing is changed.
    pub fn gradients(&self, rows: &[Example]) -> Result<BTreeMap<String, Tensor>> {
        let targets: usize = rows.iter().map(Example::targets).sum();
        let mut gradients: Gradients = vec![None; self.adapter.parameters().len()];
        let never = AtomicBool::new(false);
        let examples = [rows.to_vec()];
        let machine = self.machine(&never, &examples);
        for rows in passes(rows) {
            machine.backward(&rows, 1.0 / targets.max(1) as f64, &mut gradients)?;
        }
        let named = self.adapter.parameters().iter().zip(gradients);
        named
            .map(|(parameter, gradient)| {
                let missing =
                    || Error::internal("training", format!("no gradient reached {}", parameter.name));
                Ok((parameter.name.clone(), gradient.ok_or_else(missing)?))
            })
            .collect()
    }
}

impl Iterator for Trainer {
    type Item = Result<StepMetrics>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_step(&AtomicBool::new(false))
    }
}

fn tokens_of(rows: &[&Example]) -> usize {
    rows.iter().map(|row| row.ids.len()).sum()
}

/// The rows of a batch in groups of at most [`PASS_TOKENS`] tokens, at least one row each.
fn passes(batch: &[Example]) -> Vec<Vec<&Example>> {
    let mut groups: Vec<Vec<&Example>> = Vec::new();
    let mut tokens = 0;
    for row in batch {
        match groups.last_mut() {
            Some(group) if tokens + row.ids.len() <= PASS_TOKENS => group.push(row),
            _ => {
                groups.push(vec![row]);
                tokens = 0;
            }
        }
        tokens += row.ids.len();
    }
    groups
}

/// The same error, saying of which data it speaks.
fn of_evaluation(error: Error) -> Error {
    match error {
        Error::InvalidData { origin, line, reason } => {
            let origin = origin.replacen(ROWS_NAME, "the evaluation data", 1);
            Error::InvalidData { origin, line, reason }
        }
        other => other,
    }
}

/// Fewer steps than this hardly move an adapter.
const FEW_STEPS: usize = 10;

/// Short rows that are packed make fewer steps than those who count rows expect.
fn report_few_steps(options: &TrainerOptions, stats: DatasetStats, total_steps: usize) {
    let rows = stats.rows - stats.rows_without_targets;
    let batches = rows.div_ceil(options.batch_size);
    let unpacked = options.epochs * batches.div_ceil(options.gradient_accumulation_steps);
    if total_steps < FEW_STEPS && unpacked > total_steps {
        log::warn!(
            "{rows} rows make {total_steps} optimizer steps, as packing fills batches of up to {} tokens; without packing \
             they would be {unpacked}. More epochs, max_steps, or a smaller batch_size or max_length also make more",
            options.batch_size.saturating_mul(options.max_length)
        );
    }
}

fn report_truncation(stats: DatasetStats, max_length: usize) {
    if stats.truncated_rows > 0 {
        log::warn!(
            "{} of {} rows are longer than {max_length} tokens and were cut; {} tokens are lost",
            stats.truncated_rows,
            stats.rows,
            stats.truncated_tokens
        );
    }
    if stats.rows_without_targets > 0 {
        log::warn!(
            "{} of {} rows have nothing to learn and are left out",
            stats.rows_without_targets,
            stats.rows
        );
    }
}
