//! How much of a source without an end a run needs.
//!
//! It only counts: rows that cannot be used are reported by whoever opens the data.

use serde_json::Value;

use super::TrainerOptions;
use super::row::RowEncoder;
use crate::Result;
use crate::models::Model;

/// Counts rows until they are enough for a run of a given number of steps to take none of them twice.
#[derive(Debug)]
pub struct NeededRows {
    encoder: RowEncoder,
    packing: bool,
    /// Rows that are still needed, with packing their tokens.
    left: usize,
}

impl NeededRows {
    /// What a run of `max_steps` needs; `None` where only the end of the data ends the run.
    ///
    /// # Errors
    /// What the model's tokenizer reports.
    pub fn new(model: &Model, options: &TrainerOptions) -> Result<Option<Self>> {
        let Some(steps) = options.max_steps else { return Ok(None) };
        let batches = steps.saturating_mul(options.gradient_accumulation_steps);
        let rows = batches.saturating_mul(options.batch_size);
        Ok(Some(Self {
            encoder: RowEncoder::new(model, options.max_length)?,
            packing: options.packing,
            // No batch takes more than its budget, so this many tokens fill every one.
            left: if options.packing { rows.saturating_mul(options.max_length) } else { rows },
        }))
    }

    /// Whether the rows up to this one are enough; an unusable row ends the counting.
    pub fn is_met_by(&mut self, row: &Value) -> bool {
        let Ok(example) = self.encoder.encode(row) else { return true };
        if example.targets() > 0 {
            self.left = self.left.saturating_sub(if self.packing { example.ids.len() } else { 1 });
        }
        self.left == 0
    }
}
