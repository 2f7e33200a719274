//! One pass forward and backward through a model with an adapter in training.
//!
//! Gradients are formed layer by layer: of a layer either its input is kept and the layer computed again when its turn
//! comes (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"), or what it computed is kept. Logits exist
//! for a few rows at a time only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::row::{Example, IGNORED};
use crate::adapter::TrainableAdapter;
use crate::batch::Batch;
use crate::kernels::cross_entropy::{cross_entropy, cross_entropy_gradient};
use crate::kernels::given::start;
use crate::models::Model;
use crate::nn::{AdapterPlan, AdapterSet, Pass};
use crate::{Error, Result};

/// Logits that exist at one time, in elements.
const LOGITS: usize = 16 << 20;

/// Where each parameter's gradient comes from.
#[derive(Debug)]
pub(super) struct Map {
    embedding: Vec<usize>,
    layers: Vec<Vec<usize>>,
    head: Vec<usize>,
}

impl Map {
    /// Sorts the parameters of `adapter` by the part of `model` that they belong to.
    pub(super) fn new(model: &Model, adapter: &TrainableAdapter) -> Self {
        let decoder = model.decoder();
        let below = |path: &str| -> Vec<usize> {
            let belongs = |name: &str| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
            let parameters = adapter.parameters().iter().enumerate();
            parameters.filter(|(_, parameter)| belongs(&parameter.name)).map(|(index, _)| index).collect()
        };
        let layer = |index: usize| {
            let mut own = Vec::new();
            decoder.layer_linears(index, &mut |linear| own.extend(below(linear.path())));
            own
        };
        Self {
            embedding: below(decoder.embedding().path()),
            layers: (0..decoder.num_layers()).map(layer).collect(),
            head: decoder.head().map(|head| below(head.path())).unwrap_or_default(),
        }
    }

    /// The lowest layer into whose computation some parameter enters.
    fn first_layer(&self) -> usize {
        if !self.embedding.is_empty() {
            return 0;
        }
        self.layers.iter().position(|layer| !layer.is_empty()).unwrap_or(self.layers.len())
    }
}

/// What stays the same from pass to pass.
pub(super) struct Machine<'a> {
    pub(super) model: &'a Model,
    pub(super) adapter: &'a TrainableAdapter,
    pub(super) map: &'a Map,
    pub(super) label_smoothing: f64,
    /// Layers whose intermediate results are kept.
    pub(super) kept_layers: usize,
    pub(super) cancelled: &'a AtomicBool,
}

/// Sums of gradients, in the order of the adapter's parameters.
pub(super) type Gradients = Vec<Option<Tensor>>;

/// A layer on its way back.
enum Layer {
    /// Its input, to compute it again.
    Input(Tensor),
    /// Its input, if that needs a gradient, and its output with everything in between.
    Graph(Option<Var>, Tensor),
}

impl Machine<'_> {
    /// The summed loss over all targets of `rows`.
    pub(super) fn loss(&self, rows: &[&Example]) -> Result<f64> {
        let batch = batch_of(rows);
        let mut pass = self.pass(&batch, self.adapter.untracked());
        let mut x = self.locked(|| self.model.decoder().embed(&mut pass))?;
        for index in 0..self.map.layers.len() {
            x = self.locked(|| self.model.decoder().layer(index, &x, &mut pass))?;
        }
        let hidden = self.locked(|| self.model.decoder().finish(&x))?;
        let mut sum = 0.0;
        self.chunks(rows, |places, labels| {
            let chunk = self.select(&hidden, places)?;
            let logits = self.model.head(&chunk, &pass.select(places))?;
            let (loss, _) = cross_entropy(&logits, labels, self.label_smoothing as f32)?;
            sum += f64::from(loss.to_scalar::<f32>()?);
            Ok(())
        })?;
        Ok(sum)
    }

    /// Adds the gradients of `scale · loss` to `gradients` and returns the summed loss over all targets of `rows`.
    pub(super) fn backward(&self, rows: &[&Example], scale: f64, gradients: &mut Gradients) -> Result<f64> {
        let batch = batch_of(rows);
        let mut plain = self.pass(&batch, self.adapter.untracked());
        let mut tracked = self.pass(&batch, self.adapter.tracked());
        let (embedded, layers, x) = self.forward(&mut plain, &mut tracked)?;
        let first = self.map.first_layer();
        let needs_dx = first < self.map.layers.len();
        let top = Var::from_tensor(&x)?;
        drop(x);
        let hidden = self.locked(|| self.model.decoder().finish(top.as_tensor()))?;
        let (loss, dy) = self.head(&hidden.detach(), rows, &tracked, scale, gradients)?;
        if !needs_dx && self.map.embedding.is_empty() {
            return Ok(loss);
        }
        let grads = self.locked(|| pull(&hidden, &dy))?;
        let mut dy = gradient_of(&grads, top.as_tensor())?;
        drop((grads, top, hidden));
        for (index, layer) in layers.into_iter().enumerate().rev() {
            let index = first + index;
            let (input, output) = match layer {
                Layer::Graph(input, output) => (input, output),
                Layer::Input(x) => {
                    // What comes out of it is known to the layers above, which are done.
                    tracked.set_gradients_only(true);
                    self.track(index, &x, &mut tracked)?
                }
            };
            let grads = self.locked(|| pull(&output, &dy))?;
            self.collect(&grads, &self.map.layers[index], gradients)?;
            match input {
                Some(input) => dy = gradient_of(&grads, input.as_tensor())?,
                None => return Ok(loss),
            }
        }
        if !self.map.embedding.is_empty() {
            let grads = self.locked(|| pull(&embedded, &dy))?;
            self.collect(&grads, &self.map.embedding, gradients)?;
        }
        Ok(loss)
    }

    /// The embedded tokens, the layers that gradients pass through, and what comes out of the last one.
    fn forward(&self, plain: &mut Pass, tracked: &mut Pass) -> Result<(Tensor, Vec<Layer>, Tensor)> {
        let decoder = self.model.decoder();
        let embedded = self.locked(|| {
            decoder.embed(plain)?;
            decoder.embed(tracked)
        })?;
        let (first, count) = (self.map.first_layer(), self.map.layers.len());
        let mut x = embedded.detach();
        let mut layers = Vec::with_capacity(count.saturating_sub(first));
        for index in 0..count {
            if index < first {
                x = self.locked(|| decoder.layer(index, &x, plain))?;
            } else if index + self.kept_layers < count {
                layers.push(Layer::Input(x.clone()));
                x = self.locked(|| decoder.layer(index, &x, plain))?;
            } else {
                let (input, output) = self.track(index, &x, tracked)?;
                x = output.detach();
                layers.push(Layer::Graph(input, output));
            }
        }
        Ok((embedded, layers, x))
    }

    /// Computes layer `index` so that it can be differentiated.
    fn track(&self, index: usize, x: &Tensor, tracked: &mut Pass) -> Result<(Option<Var>, Tensor)> {
        let needs_dx = index > self.map.first_layer() || !self.map.embedding.is_empty();
        let input = if needs_dx { Some(Var::from_tensor(x)?) } else { None };
        let x = input.as_ref().map_or(x, Var::as_tensor);
        let output = self.locked(|| self.model.decoder().layer(index, x, tracked))?;
        Ok((input, output))
    }

    /// The summed loss, and the gradient of `scale` times it for the hidden states.
    fn head(
        &self,
        hidden: &Tensor,
        rows: &[&Example],
        tracked: &Pass,
        scale: f64,
        gradients: &mut Gradients,
    ) -> Result<(f64, Tensor)> {
        let mut sum = 0.0;
        let mut dy = hidden.zeros_like()?;
        self.chunks(rows, |places, labels| {
            let chunk = self.select(hidden, places)?;
            let (loss, dx) = match self.model.decoder().head().filter(|_| self.map.head.is_empty()) {
                Some(head) => {
                    let logits = self.model.head(&chunk, &tracked.select(places))?;
                    let smoothing = self.label_smoothing as f32;
                    let (loss, dlogits) = cross_entropy_gradient(logits, labels, smoothing, scale as f32)?;
                    (loss, head.weight().gradient(&dlogits)?)
                }
                None => self.trained_head(chunk, (places, labels), tracked, scale, gradients)?,
            };
            sum += loss;
            dy = dy.index_add(&Tensor::new(places, hidden.device())?, &dx, 0)?;
            Ok(())
        })?;
        Ok((sum, dy))
    }

    /// The same for some places, with the gradients of the head's own parameters.
    fn trained_head(
        &self,
        chunk: Tensor,
        (places, labels): (&[u32], &[i64]),
        tracked: &Pass,
        scale: f64,
        gradients: &mut Gradients,
    ) -> Result<(f64, Tensor)> {
        let chunk = Var::from_tensor(&chunk)?;
        let logits = self.model.head(chunk.as_tensor(), &tracked.select(places))?;
        let (loss, _) = cross_entropy(&logits, labels, self.label_smoothing as f32)?;
        let sum = f64::from(loss.to_scalar::<f32>()?);
        let grads = (loss * scale)?.backward()?;
        self.collect(&grads, &self.map.head, gradients)?;
        Ok((sum, gradient_of(&grads, chunk.as_tensor())?))
    }

    /// Calls `f` with a few places of hidden states that predict something, and the labels there.
    fn chunks(&self, rows: &[&Example], mut f: impl FnMut(&[u32], &[i64]) -> Result<()>) -> Result<()> {
        let (places, labels) = targets(rows);
        let size = (LOGITS / self.model.vocab_size()).max(1);
        for (places, labels) in places.chunks(size).zip(labels.chunks(size)) {
            self.locked(|| f(places, labels))?;
        }
        Ok(())
    }

    fn select(&self, hidden: &Tensor, places: &[u32]) -> Result<Tensor> {
        Ok(hidden.index_select(&Tensor::new(places, hidden.device())?, 0)?)
    }

    fn pass<'b>(&self, batch: &'b Batch, set: &Arc<AdapterSet>) -> Pass<'b> {
        Pass::new(batch).with_adapters(AdapterPlan::all(Arc::clone(set), batch.tokens()))
    }

    /// Adds the gradients of some parameters; each must be there.
    fn collect(&self, grads: &GradStore, parameters: &[usize], gradients: &mut Gradients) -> Result<()> {
        for &index in parameters {
            let parameter = &self.adapter.parameters()[index];
            let Some(gradient) = grads.get(parameter.var.as_tensor()) else {
                let problem = format!("no gradient reached {}", parameter.name);
                return Err(Error::internal("training", problem));
            };
            gradients[index] = Some(match gradients[index].take() {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            });
        }
        Ok(())
    }

    /// Runs a part of a pass; other work on the model comes in between two of them.
    fn locked<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let cancelled = || self.cancelled.load(Ordering::Relaxed);
        if cancelled() {
            return Err(super::interrupted());
        }
        let _execution = self.model.exclusive()?;
        let result = self.model.interruptible(&cancelled, work);
        if cancelled() { Err(super::interrupted()) } else { result }
    }
}

/// Gradients of everything that `output` was computed from, given its own.
fn pull(output: &Tensor, gradient: &Tensor) -> Result<GradStore> {
    Ok(start(output, gradient)?.backward()?)
}

fn gradient_of(grads: &GradStore, tensor: &Tensor) -> Result<Tensor> {
    match grads.get(tensor) {
        Some(gradient) => Ok(gradient.clone()),
        None => Err(Error::internal("training", "a layer passed no gradient to its input")),
    }
}

fn batch_of(rows: &[&Example]) -> Batch {
    let mut batch = Batch::new();
    rows.iter().for_each(|row| batch.push(&row.ids, 0));
    batch
}

/// Places of hidden states that predict something, in the concatenation of `rows`, and the ids they should predict.
fn targets(rows: &[&Example]) -> (Vec<u32>, Vec<i64>) {
    let (mut places, mut labels) = (Vec::new(), Vec::new());
    let mut start = 0;
    for row in rows {
        // Position `i` predicts token `i + 1`.
        for (place, label) in row.labels.iter().skip(1).enumerate().filter(|(_, label)| **label != IGNORED) {
            places.push((start + place) as u32);
            labels.push(i64::from(*label));
        }
        start += row.ids.len();
    }
    (places, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_predict_the_next_token_of_their_own_row() {
        let row = |ids: &[u32], labels: &[i32]| Example {
            ids: ids.to_vec(),
            labels: labels.to_vec(),
            truncated: 0,
        };
        let rows = [row(&[5, 6, 7], &[5, IGNORED, 7]), row(&[8], &[8]), row(&[9, 10], &[9, 10])];
        let (places, labels) = targets(&rows.iter().collect::<Vec<_>>());
        assert_eq!((places, labels), (vec![1, 4], vec![7, 10]));
    }
}
