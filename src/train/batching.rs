//! Which rows come together, and in which order.
//!
//! Rows are never padded and never see each other, so a batch is only a list of rows. The order of an epoch follows
//! from the seed and the epoch's number alone; a place in it is two numbers, which is all that resuming needs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::dataset::Dataset;
use super::row::Example;
use super::{Random, TrainerOptions};
use crate::Result;

/// Without packing, rows are grouped by length within this many batches.
const WINDOW_BATCHES: usize = 50;

/// How batches are formed.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchRules {
    batch_size: usize,
    /// The most tokens of a packed batch.
    budget: usize,
    packing: bool,
    shuffle: bool,
    seed: u64,
}

impl From<&TrainerOptions> for BatchRules {
    fn from(options: &TrainerOptions) -> Self {
        Self {
            batch_size: options.batch_size,
            budget: options.batch_size.saturating_mul(options.max_length),
            packing: options.packing,
            shuffle: options.shuffle,
            seed: options.seed,
        }
    }
}

/// A place in the data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Epochs that are over.
    pub epoch: usize,
    /// Rows of this epoch's order that windows before the current one took.
    window: usize,
    /// Batches of the current window that were taken.
    taken: usize,
}

/// Walks through the batches of one epoch after the other.
#[derive(Debug)]
pub(super) struct Batches {
    rules: BatchRules,
    position: Position,
    order: Vec<u32>,
    /// Batches of the current window that are left.
    left: VecDeque<Vec<u32>>,
    /// Rows that the current window spans.
    span: usize,
}

impl Batches {
    /// At the beginning of the data, or where an earlier walk stopped.
    pub(super) fn new(rules: BatchRules, data: &Dataset, position: Position) -> Result<Self> {
        let order = order(&rules, data.len(), position.epoch);
        let mut batches = Self { rules, position, order, left: VecDeque::new(), span: 0 };
        if position.taken > 0 {
            batches.fill_window(data)?;
            batches.left.drain(..position.taken.min(batches.left.len()));
        }
        Ok(batches)
    }

    /// Where the next batch begins.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// The share of the current epoch that is over.
    pub(super) fn progress(&self) -> f64 {
        let window = if self.left.is_empty() { 0 } else { self.span };
        let batches = (self.position.taken + self.left.len()).max(1);
        let rows = self.position.window as f64 + (window * self.position.taken) as f64 / batches as f64;
        self.position.epoch as f64 + rows / self.order.len().max(1) as f64
    }

    /// The rows of the next batch; `None` at the end of an epoch, after which the next one begins.
    pub(super) fn next(&mut self, data: &Dataset) -> Result<Option<Vec<u32>>> {
        while self.left.is_empty() {
            if self.position.window >= self.order.len() {
                self.position = Position { epoch: self.position.epoch + 1, ..Position::default() };
                self.order = order(&self.rules, data.len(), self.position.epoch);
                return Ok(None);
            }
            self.fill_window(data)?;
            if self.left.is_empty() {
                self.position.window += self.span;
            }
        }
        let batch = self.left.pop_front();
        self.position.taken += 1;
        if self.left.is_empty() {
            self.position = Position { window: self.position.window + self.span, taken: 0, ..self.position };
            self.skip_rows_without_targets(data)?;
        }
        Ok(batch)
    }

    /// Whether the next batch belongs to the next epoch.
    pub(super) fn is_at_epoch_end(&self) -> bool {
        self.left.is_empty() && self.position.window >= self.order.len()
    }

    fn skip_rows_without_targets(&mut self, data: &Dataset) -> Result<()> {
        while let Some(row) = self.order.get(self.position.window)
            && lengths(data, *row)?.1 == 0
        {
            self.position.window += 1;
        }
        Ok(())
    }

    /// Forms the batches of the window at the current position.
    fn fill_window(&mut self, data: &Dataset) -> Result<()> {
        let rows = &self.order[self.position.window..];
        let (batches, span) = if self.rules.packing {
            pack(rows, &self.rules, |row| lengths(data, row))?
        } else {
            group(rows, &self.rules, self.position, |row| lengths(data, row))?
        };
        (self.left, self.span) = (batches, span);
        Ok(())
    }
}

/// Tokens and targets of a row.
fn lengths(data: &Dataset, row: u32) -> Result<(usize, usize)> {
    if let Some(lengths) = data.lengths() {
        let (tokens, targets) = lengths[row as usize];
        return Ok((tokens as usize, targets as usize));
    }
    let example: Example = data.example(row as usize)?;
    Ok((example.ids.len(), example.targets()))
}

/// The order of rows in an epoch (Fisher and Yates).
fn order(rules: &BatchRules, rows: usize, epoch: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    if rules.shuffle {
        let mut random = Random::new(rules.seed, &format!("order of epoch {epoch}"));
        for last in (1..rows).rev() {
            order.swap(last, random.below(last + 1));
        }
    }
    order
}

/// One batch of as many rows as fit into the budget, and the rows it took from the order.
fn pack(
    rows: &[u32],
    rules: &BatchRules,
    lengths: impl Fn(u32) -> Result<(usize, usize)>,
) -> Result<(VecDeque<Vec<u32>>, usize)> {
    let (mut batch, mut tokens, mut span) = (Vec::new(), 0, 0);
    for &row in rows {
        let (length, targets) = lengths(row)?;
        if targets > 0 {
            if !batch.is_empty() && tokens + length > rules.budget {
                break;
            }
            batch.push(row);
            tokens += length;
        }
        span += 1;
    }
    let batches = if batch.is_empty() { VecDeque::new() } else { VecDeque::from([batch]) };
    Ok((batches, span))
}

/// Batches of a fixed number of rows; where order is free, of similar lengths.
fn group(
    rows: &[u32],
    rules: &BatchRules,
    position: Position,
    lengths: impl Fn(u32) -> Result<(usize, usize)>,
) -> Result<(VecDeque<Vec<u32>>, usize)> {
    let wanted = rules.batch_size.saturating_mul(if rules.shuffle { WINDOW_BATCHES } else { 1 });
    let (mut window, mut span) = (Vec::new(), 0);
    for &row in rows {
        if window.len() == wanted {
            break;
        }
        let (length, targets) = lengths(row)?;
        if targets > 0 {
            window.push((length, row));
        }
        span += 1;
    }
    if rules.shuffle {
        window.sort_by_key(|(length, _)| *length);
    }
    let mut batches: Vec<Vec<u32>> =
        (window.chunks(rules.batch_size)).map(|chunk| chunk.iter().map(|(_, row)| *row).collect()).collect();
    if rules.shuffle {
        let name = format!("batches of epoch {} from row {}", position.epoch, position.window);
        let mut random = Random::new(rules.seed, &name);
        for last in (1..batches.len()).rev() {
            batches.swap(last, random.below(last + 1));
        }
    }
    Ok((batches.into(), span))
}

/// Number of optimizer steps in `epochs` epochs.
pub(super) fn count_steps(
    rules: BatchRules,
    data: &Dataset,
    epochs: usize,
    accumulation: usize,
    cancelled: &AtomicBool,
) -> Result<usize> {
    let mut walk = Batches::new(rules, data, Position::default())?;
    let mut epoch_steps = || -> Result<usize> {
        let mut batches = 0usize;
        while walk.next(data)?.is_some() {
            batches += 1;
        }
        Ok(batches.div_ceil(accumulation))
    };
    let first = epoch_steps()?;
    // Only the order of packed rows changes how many batches they make, and not even that where one is enough.
    if !(rules.packing && rules.shuffle) || first <= 1 && accumulation == 1 {
        return Ok(first.saturating_mul(epochs));
    }
    let mut steps = first;
    for _ in 1..epochs {
        if cancelled.load(Ordering::Relaxed) {
            return Err(super::interrupted());
        }
        steps += epoch_steps()?;
    }
    Ok(steps)
}
