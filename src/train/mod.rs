//! Training of adapters: data, gradients, optimizer, checkpoints.
//!
//! A [`Trainer`] is an iterator of optimizer steps. It calls nobody back: progress bars, early decisions and Ctrl-C are
//! the business of whoever pulls. The model itself is never changed.

mod batching;
mod checkpoints;
mod dataset;
mod exact;
mod gradients;
mod needed;
mod optimizer;
mod options;
mod row;
mod state;
mod trainer;

pub use crate::adapter::Random;
pub use batching::Position;
pub use dataset::{Dataset, DatasetStats, TrainingData};
pub use needed::NeededRows;
pub use optimizer::{AdamW, AdamWConfig, Slot, clip, global_norm};
pub use options::{Checkpointing, Schedule, TrainerOptions};
pub use row::{Example, ROW_KINDS, RowEncoder};
pub use state::SavedRun;
pub use trainer::{StepMetrics, Trainer};

use crate::Error;

/// The error of work that was given up because its caller asked for it.
fn interrupted() -> Error {
    Error::internal("training", "it was interrupted; the adapter is as of the last whole step")
}
