//! `Trainer`: an iterator of optimizer steps.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::enter::{enter, enter_long};
use super::lora::Lora;
use super::memory::KeepFreed;
use super::metrics::StepMetrics;
use super::model::Model;
use super::registry::{Adapter, to_continue};
use super::rows::{Limit, evaluation_data, training_data};
use super::training::{Keywords, Recompute, check_start, only_one_start};
use super::whole::{Whole, named};
use crate::train::{self, TrainerOptions};
use crate::{Error, Result};

/// A run, which keeps the buffers of one step for the next.
struct Running {
    trainer: train::Trainer,
    kept: Option<KeepFreed>,
}

/// What can be read while a step is under way.
#[derive(Default)]
struct Seen {
    history: Vec<train::StepMetrics>,
    step_count: usize,
    is_finished: bool,
    last_checkpoint: Option<PathBuf>,
    closed: bool,
}

/// Trains an adapter of a model, which itself is never changed.
///
/// A trainer is an iterator: each ``next`` is one optimizer step and gives its ``StepMetrics``. ``train()`` takes all
/// steps that are left, with callbacks and a progress bar. Between two steps everything may be asked of it; Ctrl-C gives
/// up the step under way and leaves adapter and trainer as of the last whole one, ready to go on.
///
/// Rows never see each other and are never padded. With ``packing``, a batch is filled up to ``batch_size * max_length``
/// tokens, so that short rows make few and large steps; without it, a batch is ``batch_size`` rows. An epoch has as many
/// optimizer steps as batches, divided by ``gradient_accumulation_steps`` and rounded up; ``total_steps`` is their number.
///
/// Args:
///     model: The model; quantised ones can be trained on too.
///     train_dataset: The path of a file with a JSON object on each line, which is not read into memory if it is large; or
///         rows: a list, any iterable of dictionaries (read once, so a generator will do for any number of epochs; with
///         ``max_steps``, of one without a length only as many as can be used, so it need not end), or a Hugging Face or
///         torch ``Dataset``. Rows are ``{"text"}``; ``{"prompt", "completion"}``, of which the completion is learnt;
///         ``{"messages"}``, of which the assistant's turns are learnt; or ``{"input_ids", "labels"}``, where -100 is
///         not learnt. Other fields are read over, whatever they hold.
///     eval_dataset: Rows to evaluate on, in the same form.
///     lora: The adapter, as candlewick's ``LoraConfig`` or PEFT's; default ``LoraConfig()``.
///     adapter: Goes on with an adapter instead: a directory of PEFT or mlx-lm, the name of a registered adapter, or an
///         ``Adapter``.
///     learning_rate: The highest learning rate.
///     schedule: How it falls after the warm-up: ``"cosine"``, ``"linear"`` or ``"constant"``, as transformers defines
///         them.
///     warmup_steps: Optimizer steps over which it rises from 0.
///     min_learning_rate: What it does not fall below.
///     batch_size: Rows of a batch; with packing, the number of rows of full length that would fit.
///     gradient_accumulation_steps: Batches of an optimizer step. Its loss is the mean over all their tokens.
///     epochs: How often the data is gone through.
///     max_steps: The number of optimizer steps, whatever ``epochs`` says.
///     max_length: Tokens after which a row is cut; how many were cut is logged.
///     packing: Fill batches by tokens instead of counting rows.
///     weight_decay: Decoupled decay of all parameters but biases.
///     betas: Decay of AdamW's two averages.
///     eps: Keeps AdamW from dividing by 0.
///     max_grad_norm: What the norm of all gradients is cut to, or None.
///     label_smoothing: The share of each target that is spread over the vocabulary.
///     gradient_checkpointing: Whether layers are computed again in the backward pass, which takes less memory and more
///         time; ``"auto"`` keeps as many as fit into a budget.
///     seed: Decides the adapter's start, the order of rows, and dropout.
///     shuffle: Whether rows come in another order in every epoch.
///     eval_steps: Optimizer steps between evaluations; None evaluates after every epoch. The last step evaluates always.
///     early_stopping_patience: Evaluations without progress after which the run ends.
///     save_dir: Where to write the adapter at the end, ``best`` after every evaluation that is better than all before,
///         and checkpoints.
///     save_steps: Optimizer steps between checkpoints ``checkpoint-<step>``.
///     keep_last: Checkpoints that are kept.
///     show_progress_bar: Whether ``train()`` shows a bar; None means if the logger ``candlewick`` shows INFO.
///
/// Raises:
///     InvalidArgumentError: An argument is out of range.
///     DataError: A row cannot be used; the message names file and line.
///     AdapterError: The adapter does not fit the model.
///
/// Examples:
///     >>> import candlewick as cw
///     >>> model = cw.Model.from_pretrained("candlewick/tiny")
///     >>> rows = [{"prompt": "The cat", "completion": " sat on a green moon."}]
///     >>> trainer = cw.Trainer(model, rows, learning_rate=0.02, max_steps=20, schedule="constant")
///     >>> first = next(trainer)
///     >>> result = trainer.train()
///     >>> (result.steps, result.loss < first.loss)
///     (20, True)
///     >>> registry = cw.AdapterRegistry(model)
///     >>> registry.add("moon", trainer.adapter).rank
///     8
#[pyclass(frozen, module = "candlewick", weakref)]
pub(super) struct Trainer {
    inner: Mutex<Option<Running>>,
    seen: Mutex<Seen>,
    model: Py<Model>,
    options: TrainerOptions,
    total_steps: usize,
    num_parameters: usize,
    data: train::DatasetStats,
    show_progress_bar: Option<bool>,
}

fn closed() -> Error {
    Error::argument("trainer", "a closed trainer", "one that was not closed; resume it from a saved state")
}

impl Trainer {
    fn wrap(trainer: train::Trainer, model: Py<Model>, show_progress_bar: Option<bool>) -> Self {
        let seen =
            Seen { step_count: trainer.step_count(), is_finished: trainer.is_finished(), ..Seen::default() };
        Self {
            options: trainer.options().clone(),
            total_steps: trainer.total_steps(),
            num_parameters: trainer.num_parameters(),
            data: trainer.data_stats(),
            inner: Mutex::new(Some(Running { trainer, kept: None })),
            seen: Mutex::new(seen),
            model,
            show_progress_bar,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the trainer without the GIL, once other calls have left it.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut train::Trainer, &AtomicBool) -> Result<T> + Send,
    ) -> PyResult<T> {
        let work = |cancelled: &std::sync::Arc<AtomicBool>| {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let running = inner.as_mut().ok_or_else(closed)?;
            running.kept.get_or_insert_with(KeepFreed::new);
            let result = work(&mut running.trainer, cancelled);
            if running.trainer.is_finished() {
                running.kept = None;
            }
            result
        };
        enter_long(py, work, |_| Ok(()))
    }

    /// Takes a step and notes what it did, even where its caller was interrupted too late to stop it.
    fn step(
        &self,
        trainer: &mut train::Trainer,
        cancelled: &AtomicBool,
    ) -> Result<Option<train::StepMetrics>> {
        let step = trainer.next_step(cancelled).transpose();
        let mut seen = self.seen();
        seen.step_count = trainer.step_count();
        seen.is_finished = trainer.is_finished();
        // The step itself may have been taken before something else failed.
        let step = step.inspect_err(|_| seen.history.extend(trainer.take_unreported()))?;
        let Some(metrics) = step else { return Ok(None) };
        seen.history.push(metrics);
        if let (Some(directory), Some(every)) = (&self.options.save_dir, self.options.save_steps)
            && metrics.step.is_multiple_of(every)
        {
            seen.last_checkpoint = Some(directory.join(format!("checkpoint-{}", metrics.step)));
        }
        Ok(Some(metrics))
    }
}

#[pymethods]
impl Trainer {
    #[new]
    #[pyo3(signature = (model, train_dataset, *, eval_dataset = None, lora = None, adapter = None, learning_rate = 1e-4,
                        schedule = "cosine", warmup_steps: "SupportsIndex" = 0, min_learning_rate = 0.0,
                        batch_size: "SupportsIndex" = 4, gradient_accumulation_steps: "SupportsIndex" = 1,
                        epochs: "SupportsIndex" = 1, max_steps = None, max_length: "SupportsIndex" = 1024,
                        packing = true, weight_decay = 0.01, betas = [0.9, 0.999], eps = 1e-8, max_grad_norm = 1.0,
                        label_smoothing = 0.0, gradient_checkpointing = Recompute::auto(), seed: "SupportsIndex" = 0,
                        shuffle = true, eval_steps = None, early_stopping_patience = None, save_dir = None,
                        save_steps = None, keep_last: "SupportsIndex" = 3, show_progress_bar = None),
           text_signature = "(model, train_dataset, *, eval_dataset=None, lora=None, adapter=None, \
                             learning_rate=0.0001, schedule='cosine', warmup_steps=0, min_learning_rate=0.0, \
                             batch_size=4, gradient_accumulation_steps=1, epochs=1, max_steps=None, max_length=1024, \
                             packing=True, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-08, max_grad_norm=1.0, \
                             label_smoothing=0.0, gradient_checkpointing='auto', seed=0, shuffle=True, \
                             eval_steps=None, early_stopping_patience=None, save_dir=None, save_steps=None, \
                             keep_last=3, show_progress_bar=None)")]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn new(
        py: Python<'_>,
        model: Py<Model>,
        train_dataset: &Bound<'_, PyAny>,
        eval_dataset: Option<&Bound<'_, PyAny>>,
        lora: Option<Lora>,
        adapter: Option<&Bound<'_, PyAny>>,
        learning_rate: f64,
        schedule: &str,
        #[pyo3(from_py_with = named::warmup_steps)] warmup_steps: i64,
        min_learning_rate: f64,
        #[pyo3(from_py_with = named::batch_size)] batch_size: i64,
        #[pyo3(from_py_with = named::gradient_accumulation_steps)] gradient_accumulation_steps: i64,
        #[pyo3(from_py_with = named::epochs)] epochs: i64,
        max_steps: Option<Whole>,
        #[pyo3(from_py_with = named::max_length)] max_length: i64,
        packing: bool,
        weight_decay: f64,
        betas: [f64; 2],
        eps: f64,
        max_grad_norm: Option<f64>,
        label_smoothing: f64,
        gradient_checkpointing: Recompute,
        #[pyo3(from_py_with = named::seed)] seed: i64,
        shuffle: bool,
        eval_steps: Option<Whole>,
        early_stopping_patience: Option<Whole>,
        save_dir: Option<PathBuf>,
        save_steps: Option<Whole>,
        #[pyo3(from_py_with = named::keep_last)] keep_last: i64,
        show_progress_bar: Option<bool>,
    ) -> PyResult<Self> {
        let keywords = Keywords {
            learning_rate: Some(learning_rate),
            schedule: Some(schedule),
            warmup_steps: Some(Whole::Small(warmup_steps)),
            min_learning_rate: Some(min_learning_rate),
            batch_size: Some(Whole::Small(batch_size)),
            gradient_accumulation_steps: Some(Whole::Small(gradient_accumulation_steps)),
            epochs: Some(Whole::Small(epochs)),
            max_steps,
            max_length: Some(Whole::Small(max_length)),
            packing: Some(packing),
            weight_decay: Some(weight_decay),
            betas: Some(betas),
            eps: Some(eps),
            max_grad_norm,
            label_smoothing: Some(label_smoothing),
            gradient_checkpointing: Some(gradient_checkpointing),
            seed: Some(Whole::Small(seed)),
            shuffle: Some(shuffle),
            eval_steps,
            early_stopping_patience,
            save_dir,
            save_steps,
            keep_last: Some(Whole::Small(keep_last)),
        };
        let mut options = TrainerOptions { max_grad_norm: None, ..TrainerOptions::default() };
        keywords.apply(&mut options)?;
        options.validate()?;
        let core = model.get().get()?;
        if let (Some(_), Some(_)) = (&lora, adapter) {
            return Err(only_one_start().into());
        }
        options.adapter = adapter.map(|adapter| to_continue(py, &core, adapter)).transpose()?;
        if let Some(lora) = lora {
            options.lora = lora.0;
        }
        options.refuse_unused(eval_dataset.is_some())?;
        let needed = train::NeededRows::new(&core, &options)?;
        let data = training_data("train_dataset", train_dataset, needed.map_or(Limit::None, Limit::Needed))?;
        let eval_data = evaluation_data(eval_dataset)?;
        let trainer = enter_long(
            py,
            |cancelled| train::Trainer::interruptible(&core, data, eval_data, options, cancelled),
            |_| Ok(()),
        )?;
        Ok(Self::wrap(trainer, model, show_progress_bar))
    }

    /// Goes on with a run from a saved state as if it had not been interrupted.
    ///
    /// Args:
    ///     model: The model of before.
    ///     directory: What ``save_state`` wrote, a checkpoint, or a ``save_dir`` with checkpoints, of which the latest
    ///         is taken.
    ///     train_dataset: The data of before.
    ///     eval_dataset: The evaluation data of before, if there was any.
    ///     lora: As it was.
    ///     adapter: What the run began with, if it went on with an adapter; the state has what became of it.
    ///     learning_rate: As for the class, like all that follow; what is not given is as it was. Train longer with
    ///         another ``epochs`` or ``max_steps``.
    ///     schedule: As for the class.
    ///     warmup_steps: As for the class.
    ///     min_learning_rate: As for the class.
    ///     batch_size: As it was: which rows come next depends on it.
    ///     gradient_accumulation_steps: As it was.
    ///     epochs: As for the class.
    ///     max_steps: As for the class.
    ///     max_length: As it was.
    ///     packing: As it was.
    ///     weight_decay: As for the class.
    ///     betas: As for the class.
    ///     eps: As for the class.
    ///     max_grad_norm: As for the class.
    ///     label_smoothing: As for the class.
    ///     gradient_checkpointing: As for the class.
    ///     seed: As it was.
    ///     shuffle: As it was.
    ///     eval_steps: As for the class.
    ///     early_stopping_patience: As for the class.
    ///     save_dir: As for the class.
    ///     save_steps: As for the class.
    ///     keep_last: As for the class.
    ///     show_progress_bar: As for the class.
    ///
    /// Returns:
    ///     The trainer; its ``history`` begins with the next step.
    ///
    /// Raises:
    ///     CheckpointError: There is no state, or it is damaged.
    ///     DataError: The data is not that of before.
    ///     InvalidArgumentError: An argument is out of range, or would change which rows come next.
    ///
    /// Examples:
    ///     >>> import tempfile
    ///     >>> import candlewick as cw
    ///     >>> model = cw.Model.from_pretrained("candlewick/tiny")
    ///     >>> rows = [{"text": "The sun set."}, {"text": "The moon rose."}]
    ///     >>> trainer = cw.Trainer(model, rows, max_steps=3)
    ///     >>> with tempfile.TemporaryDirectory() as directory:
    ///     ...     first = next(trainer)
    ///     ...     trainer.save_state(directory)
    ///     ...     again = cw.Trainer.resume(model, directory, rows)
    ///     >>> [step.loss for step in trainer] == [step.loss for step in again]
    ///     True
    #[staticmethod]
    #[pyo3(signature = (model, directory, train_dataset, *, eval_dataset = None, lora = None, adapter = None,
                        learning_rate = None, schedule = None, warmup_steps = None, min_learning_rate = None,
                        batch_size = None, gradient_accumulation_steps = None, epochs = None, max_steps = None,
                        max_length = None, packing = None, weight_decay = None, betas = None, eps = None,
                        max_grad_norm = None, label_smoothing = None, gradient_checkpointing = None, seed = None,
                        shuffle = None, eval_steps = None, early_stopping_patience = None, save_dir = None,
                        save_steps = None, keep_last = None, show_progress_bar = None))]
    #[allow(clippy::too_many_arguments)] // The arguments are the public interface.
    fn resume(
        py: Python<'_>,
        model: Py<Model>,
        directory: PathBuf,
        train_dataset: &Bound<'_, PyAny>,
        eval_dataset: Option<&Bound<'_, PyAny>>,
        lora: Option<Lora>,
        adapter: Option<&Bound<'_, PyAny>>,
        learning_rate: Option<f64>,
        schedule: Option<&str>,
        warmup_steps: Option<Whole>,
        min_learning_rate: Option<f64>,
        batch_size: Option<Whole>,
        gradient_accumulation_steps: Option<Whole>,
        epochs: Option<Whole>,
        max_steps: Option<Whole>,
        max_length: Option<Whole>,
        packing: Option<bool>,
        weight_decay: Option<f64>,
        betas: Option<[f64; 2]>,
        eps: Option<f64>,
        max_grad_norm: Option<f64>,
        label_smoothing: Option<f64>,
        gradient_checkpointing: Option<Recompute>,
        seed: Option<Whole>,
        shuffle: Option<bool>,
        eval_steps: Option<Whole>,
        early_stopping_patience: Option<Whole>,
        save_dir: Option<PathBuf>,
        save_steps: Option<Whole>,
        keep_last: Option<Whole>,
        show_progress_bar: Option<bool>,
    ) -> PyResult<Self> {
        let keywords = Keywords {
            learning_rate,
            schedule,
            warmup_steps,
            min_learning_rate,
            batch_size,
            gradient_accumulation_steps,
            epochs,
            max_steps,
            max_length,
            packing,
            weight_decay,
            betas,
            eps,
            max_grad_norm,
            label_smoothing,
            gradient_checkpointing,
            seed,
            shuffle,
            eval_steps,
            early_stopping_patience,
            save_dir,
            save_steps,
            keep_last,
        };
        let core = model.get().get()?;
        let mut run = enter(py, || train::SavedRun::read(&directory))?;
        check_start(py, &core, &run, lora, adapter)?;
        let was_bounded = run.options.max_steps.is_some();
        keywords.change(&mut run.options)?;
        let limit = if was_bounded { Limit::Rows(run.rows()) } else { Limit::None };
        let data = training_data("train_dataset", train_dataset, limit)?;
        let eval_data = evaluation_data(eval_dataset)?;
        let go_on = |cancelled: &std::sync::Arc<AtomicBool>| run.go_on(&core, (data, eval_data), cancelled);
        let trainer = enter_long(py, go_on, |_| Ok(()))?;
        Ok(Self::wrap(trainer, model, show_progress_bar))
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<StepMetrics>> {
        let step = self.with(py, |trainer, cancelled| self.step(trainer, cancelled))?;
        Ok(step.map(StepMetrics::from))
    }

    fn __length_hint__(&self) -> usize {
        let seen = self.seen();
        if seen.is_finished { 0 } else { self.total_steps.saturating_sub(seen.step_count) }
    }

    /// Takes all steps that are left.
    ///
    /// Args:
    ///     callbacks: A callback, or a list of them. A callback is a function of one argument, which is called with the
    ///         ``StepMetrics`` of each step; or an object with any of the methods ``on_train_begin(trainer)``,
    ///         ``on_step(metrics)``, ``on_evaluate(metrics)``, ``on_save(directory)`` and ``on_train_end(result)``. One
    ///         that returns False ends the run after this step, as does one that raises, whose exception is passed on.
    ///
    /// Returns:
    ///     A ``TrainingResult``.
    ///
    /// Raises:
    ///     TrainingDivergedError: A loss or a gradient was not finite; the adapter is as of the last good step.
    ///     KeyboardInterrupt: Ctrl-C; the adapter is as of the last whole step, and the trainer can go on.
    #[pyo3(signature = (callbacks = None))]
    fn train<'py>(
        slf: &Bound<'py, Self>,
        callbacks: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let run = slf.py().import("candlewick._training")?.getattr("run")?;
        run.call1((slf, callbacks, slf.get().show_progress_bar))
    }

    /// The mean loss over all predicted tokens of a data set, without dropout.
    ///
    /// Args:
    ///     dataset: Data in the form of ``train_dataset``; default: the trainer's ``eval_dataset``.
    ///
    /// Returns:
    ///     The loss in nats.
    ///
    /// Raises:
    ///     InvalidArgumentError: There is no data.
    ///     DataError: A row cannot be used.
    #[pyo3(signature = (dataset = None))]
    fn evaluate(&self, py: Python<'_>, dataset: Option<&Bound<'_, PyAny>>) -> PyResult<f64> {
        let data = dataset.map(|data| training_data("dataset", data, Limit::None)).transpose()?;
        self.with(py, |trainer, cancelled| match data {
            Some(data) => trainer.evaluate_on(data, cancelled),
            None => trainer.evaluate(cancelled)?.ok_or_else(|| {
                Error::argument("dataset", "None", "rows, or a trainer that was given an eval_dataset")
            }),
        })
    }

    /// The adapter as of the last whole step; later steps do not change it.
    #[getter]
    fn adapter(&self, py: Python<'_>) -> PyResult<Adapter> {
        Ok(Adapter::new(self.with(py, |trainer, _| trainer.adapter())?))
    }

    /// Writes the adapter as PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``.
    ///
    /// Args:
    ///     directory: Where to; it is made if it is not there.
    fn save(&self, py: Python<'_>, directory: PathBuf) -> PyResult<()> {
        self.with(py, |trainer, _| trainer.save(&directory))
    }

    /// Writes the adapter, and beside it everything that ``resume`` needs.
    ///
    /// Args:
    ///     directory: Where to; it is made if it is not there.
    fn save_state(&self, py: Python<'_>, directory: PathBuf) -> PyResult<()> {
        self.with(py, |trainer, _| trainer.save_state(&directory))
    }

    /// The metrics of every step that this trainer took.
    #[getter]
    fn history(&self) -> Vec<StepMetrics> {
        self.seen().history.iter().map(|metrics| (*metrics).into()).collect()
    }

    /// Optimizer steps taken, those before ``resume`` included.
    #[getter]
    fn step_count(&self) -> usize {
        self.seen().step_count
    }

    /// Optimizer steps that the run will have taken in the end, unless it stops early.
    #[getter]
    fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// Whether no further step will be taken.
    #[getter]
    fn is_finished(&self) -> bool {
        self.seen().is_finished
    }

    /// Number of values that are trained.
    #[getter]
    fn num_parameters(&self) -> usize {
        self.num_parameters
    }

    /// Where checkpoints and the final adapter go, or None.
    #[getter]
    fn save_dir(&self) -> Option<PathBuf> {
        self.options.save_dir.clone()
    }

    /// The directory of the newest checkpoint that this trainer wrote, or None.
    #[getter]
    fn last_checkpoint(&self) -> Option<PathBuf> {
        self.seen().last_checkpoint.clone()
    }

    /// What was found in the training data: ``rows``, their ``tokens`` after cutting, ``truncated_rows`` and
    /// ``truncated_tokens``, and ``rows_without_targets``, which are left out. All are 0 for a large file with
    /// ``max_steps``, which is not looked at beforehand.
    #[getter]
    fn data_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        stats.set_item("rows", self.data.rows)?;
        stats.set_item("tokens", self.data.tokens)?;
        stats.set_item("truncated_rows", self.data.truncated_rows)?;
        stats.set_item("truncated_tokens", self.data.truncated_tokens)?;
        stats.set_item("rows_without_targets", self.data.rows_without_targets)?;
        Ok(stats)
    }

    /// The model.
    #[getter]
    fn model(&self, py: Python<'_>) -> Py<Model> {
        self.model.clone_ref(py)
    }

    /// Gives the memory of adapter, optimizer and data back. Closing twice does nothing.
    fn close(&self, py: Python<'_>) {
        self.seen().closed = true;
        py.detach(|| drop(self.inner.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, py: Python<'_>, _exc: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __reduce__(&self) -> PyResult<Py<PyAny>> {
        Err(PyTypeError::new_err(
            "cannot pickle a Trainer; use save_state, and Trainer.resume in the other process",
        ))
    }

    fn __repr__(&self) -> String {
        let seen = self.seen();
        let end = if seen.closed { ", closed" } else { "" };
        format!(
            "Trainer({}, step {} of {}, num_parameters={}{end})",
            self.model.get().describe(),
            seen.step_count,
            self.total_steps,
            self.num_parameters
        )
    }
}
