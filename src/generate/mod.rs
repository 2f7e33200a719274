//! Sampling, stop rules, the scheduler and the engine thread that together turn prompts into tokens.

mod sampler;
mod stop;

pub use sampler::{Sampled, Sampler, SamplingParams};
pub use stop::{Emit, StopMatcher, StopRules};
