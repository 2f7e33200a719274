//! `StepMetrics`: what one optimizer step did, as a plain, picklable value.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::train;

/// What one optimizer step did.
///
/// Attributes:
///     step: The step, counted from 1.
///     loss: Mean loss in nats over all predicted tokens of the step, before the update.
///     learning_rate: The learning rate that was used.
///     grad_norm: Norm of all gradients together, before it was cut.
///     tokens: Tokens that were predicted, which are those that the loss is about.
///     tokens_per_second: Tokens that were processed in a second, predicted or not.
///     seconds: How long the step took, without evaluation and saving.
///     epoch: How often the data has been gone through, such as 1.5.
///     eval_loss: Mean loss over the evaluation data where it was computed after this step, else None.
///
/// Examples:
///     >>> import candlewick as cw
///     >>> model = cw.Model.from_pretrained("candlewick/tiny")
///     >>> metrics = next(cw.Trainer(model, [{"text": "The sun set."}]))
///     >>> metrics.step, metrics.eval_loss
///     (1, None)
#[pyclass(frozen, get_all, eq, module = "candlewick")]
#[derive(PartialEq)]
pub(super) struct StepMetrics {
    /// The step, counted from 1.
    step: usize,
    /// Mean loss over the predicted tokens.
    loss: f64,
    /// The learning rate that was used.
    learning_rate: f64,
    /// Norm of all gradients before it was cut.
    grad_norm: f64,
    /// Tokens that were predicted.
    tokens: usize,
    /// Tokens processed in a second.
    tokens_per_second: f64,
    /// How long the step took.
    seconds: f64,
    /// How often the data has been gone through.
    epoch: f64,
    /// Mean loss over the evaluation data.
    eval_loss: Option<f64>,
}

impl From<train::StepMetrics> for StepMetrics {
    fn from(metrics: train::StepMetrics) -> Self {
        let train::StepMetrics {
            step,
            loss,
            learning_rate,
            grad_norm,
            tokens,
            tokens_per_second,
            seconds,
            epoch,
            eval_loss,
        } = metrics;
        Self { step, loss, learning_rate, grad_norm, tokens, tokens_per_second, seconds, epoch, eval_loss }
    }
}

#[pymethods]
impl StepMetrics {
    #[new]
    #[pyo3(signature = (step, loss, learning_rate, grad_norm, tokens, tokens_per_second, seconds, epoch, eval_loss = None))]
    #[allow(clippy::too_many_arguments)] // Unpickling and tests of users' callbacks call it.
    fn new(
        step: usize,
        loss: f64,
        learning_rate: f64,
        grad_norm: f64,
        tokens: usize,
        tokens_per_second: f64,
        seconds: f64,
        epoch: f64,
        eval_loss: Option<f64>,
    ) -> Self {
        Self { step, loss, learning_rate, grad_norm, tokens, tokens_per_second, seconds, epoch, eval_loss }
    }

    /// All fields by name, for loggers and tables.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let fields = PyDict::new(py);
        fields.set_item("step", self.step)?;
        fields.set_item("loss", self.loss)?;
        fields.set_item("learning_rate", self.learning_rate)?;
        fields.set_item("grad_norm", self.grad_norm)?;
        fields.set_item("tokens", self.tokens)?;
        fields.set_item("tokens_per_second", self.tokens_per_second)?;
        fields.set_item("seconds", self.seconds)?;
        fields.set_item("epoch", self.epoch)?;
        fields.set_item("eval_loss", self.eval_loss)?;
        Ok(fields)
    }

    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let Self {
            step,
            loss,
            learning_rate,
            grad_norm,
            tokens,
            tokens_per_second,
            seconds,
            epoch,
            eval_loss,
        } = *self;
        (step, loss, learning_rate, grad_norm, tokens, tokens_per_second, seconds, epoch, eval_loss)
            .into_pyobject(py)
    }

    fn __repr__(&self) -> String {
        let eval = self.eval_loss.map(|loss| format!(", eval_loss={loss:.4}")).unwrap_or_default();
        format!(
            "StepMetrics(step={}, loss={:.4}, learning_rate={:.3e}, grad_norm={:.4}, tokens={}, \
             tokens_per_second={:.0}, epoch={:.2}{eval})",
            self.step,
            self.loss,
            self.learning_rate,
            self.grad_norm,
            self.tokens,
            self.tokens_per_second,
            self.epoch
        )
    }
}
