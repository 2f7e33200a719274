//! What a caller says about rendering a chat, and what comes back.

use std::ops::Range;

use serde_json::{Map, Value};

/// How messages are rendered; the default renders them all and adds nothing.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    /// Ends the text with the beginning of an assistant turn.
    pub add_generation_prompt: bool,
    /// JSON schemas of the tools that the model may call.
    pub tools: Option<Value>,
    /// The name of one of the model's templates, or the source of another.
    pub template: Option<String>,
    /// Further variables of the template, such as `enable_thinking`; they win over special tokens.
    pub variables: Map<String, Value>,
    /// Leaves the last message open, for the model to continue.
    pub continue_final_message: bool,
}

/// A rendered conversation with the places of its assistant turns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenderedChat {
    /// The whole text.
    pub text: String,
    /// Byte ranges of what the assistant says, ascending and disjoint.
    pub assistant: Vec<Range<usize>>,
}
