//! Sampling, stop rules, the scheduler and the engine thread that together turn prompts into tokens.

mod engine;
mod generator;
mod prefix;
mod request;
mod sampler;
mod scheduler;
mod sequence;
mod stop;
mod stream;
mod text;

pub use engine::Engine;
pub use generator::{Generator, Prompt};
pub use request::{GenerationOptions, Request, check_options};
pub use sampler::{Sampled, Sampler, SamplingParams};
pub use scheduler::{Scheduler, SchedulerOptions};
pub use stop::{Emit, StopMatcher, StopRules};
pub use stream::{Event, FinishReason, Generation, StopReason, StreamToken, TokenStream};
