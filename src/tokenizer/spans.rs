//! Where the assistant speaks in a rendered chat, for a loss on its words alone.
//!
//! A template with `{% generation %}` blocks says so itself. For others the chat is rendered up to each
//! assistant turn with the generation prompt, which is what a model sees before it speaks, and up to
//! its end. Some templates write a turn, or what stands before it, differently when more follows
//! (reasoning that is dropped, a system message that moves to the last question). Then the content of
//! the turn, or of the message before it, is exchanged for a mark, and what surrounds the mark tells.
//! A turn that cannot be found with certainty is an error, never a guess.

use std::cell::LazyCell;
use std::ops::Range;

use serde_json::Value;

use super::chat_template::prepare_messages;
use super::template_engine::{CompiledTemplate, MARK_VARIABLE};
use super::{ChatOptions, RenderedChat, Tokenizer};
use crate::error::{Error, Result};

impl Tokenizer {
    /// Renders `messages` and says where the assistant speaks, all turns included.
    ///
    /// A turn includes the token that ends it, but not the header that introduces it.
    ///
    /// # Errors
    /// As [`apply_chat_template`](Self::apply_chat_template); `InvalidArgument` also if a turn cannot be
    /// found in the text, or if `options` ask for a text that does not end with the last message.
    pub fn assistant_spans(&self, messages: &Value, options: &ChatOptions) -> Result<RenderedChat> {
        if options.continue_final_message {
            return Err(Error::argument("continue_final_message", true, "false for assistant spans"));
        }
        let messages = prepare_messages(messages)?;
        let template = CompiledTemplate::new(self.select_template(options)?)?;
        let renderer = Renderer { tokenizer: self, template: &template, options };
        if template.marks_generation {
            return renderer.marked(messages);
        }
        let text = renderer.render(&messages, options.add_generation_prompt)?;
        let mut assistant: Vec<Range<usize>> = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if message.get("role").and_then(Value::as_str) == Some("assistant") {
                let after = assistant.last().map_or(0, |range| range.end);
                let span = renderer.locate(&text, &messages, index, after).ok_or_else(|| {
                    let value = format!("an assistant turn {index} that the text does not show whole");
                    let allowed = "a chat template with {% generation %} blocks for such messages";
                    Error::argument("messages", value, allowed)
                })?;
                assistant.push(span);
            }
        }
        Ok(RenderedChat { text, assistant })
    }

    /// The turn without the space that a template writes after the token that ends it.
    fn without_space_after_end<'a>(&self, turn: &'a str) -> &'a str {
        let trimmed = turn.trim_end();
        let mut ends = self.eos_token_ids().iter().filter_map(|&id| self.id_to_token(id));
        if ends.any(|token| trimmed.ends_with(&token)) { trimmed } else { turn }
    }

    /// The end after the first token at or after `from` that ends a generation.
    fn end_of_turn(&self, text: &str, from: usize) -> Option<usize> {
        let ends = self.eos_token_ids().iter().filter_map(|&id| self.id_to_token(id));
        ends.filter_map(|token| Some(from + text[from..].find(&token)? + token.len())).min()
    }

    /// Length in bytes of what two texts begin with alike, in whole characters and whole added tokens.
    fn agreement(&self, text: &str, other: &str) -> usize {
        let agreed = common_prefix(text, other);
        if agreed == text.len() || agreed == other.len() {
            return agreed;
        }
        let added = self.inner().get_added_vocabulary().get_added_tokens_decoder();
        let cut = |token: &[u8]| {
            let starts = agreed.saturating_sub(token.len().saturating_sub(1))..agreed;
            starts.into_iter().find(|&start| text.as_bytes()[start..].starts_with(token))
        };
        added.values().filter_map(|token| cut(token.content.as_bytes())).min().unwrap_or(agreed)
    }
}

/// Renders parts of one chat.
struct Renderer<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a CompiledTemplate,
    options: &'a ChatOptions,
}

impl Renderer<'_> {
    fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String> {
        let options = ChatOptions { add_generation_prompt, ..self.options.clone() };
        self.template.render(&self.tokenizer.variables(messages.to_vec(), &options)?)
    }

    /// Renders with a mark around what the template calls generated, and takes the marks out.
    fn marked(&self, messages: Vec<Value>) -> Result<RenderedChat> {
        let mut variables = self.tokenizer.variables(messages, self.options)?;
        let mark = unused_mark(&Value::Object(variables.clone()).to_string());
        variables.insert(MARK_VARIABLE.into(), mark.as_str().into());
        let marked = self.template.render(&variables)?;
        let mut chat = RenderedChat::default();
        for (index, part) in marked.split(&mark).enumerate() {
            let start = chat.text.len();
            chat.text.push_str(part);
            if index % 2 == 1 && !part.is_empty() {
                chat.assistant.push(start..chat.text.len());
            }
        }
        Ok(chat)
    }

    /// The assistant turn `index` in `text`, not before `after`.
    fn locate(&self, text: &str, messages: &[Value], index: usize, after: usize) -> Option<Range<usize>> {
        // Three renderings find an ordinary turn; its content is only looked for where they do not.
        let content = LazyCell::new(|| self.content_span(text, messages, index));
        let words = messages[index].get("content").and_then(Value::as_str).unwrap_or_default().trim();
        let start = self
            .start_of_turn(text, &messages[..index])
            .or_else(|| self.start_after_neighbour(text, messages, index));
        let start = match start {
            Some(Start::Prompted(start)) => start,
            other => match (other, &*content) {
                (_, Some(content)) => content.start,
                (Some(Start::Unprompted(start)), None) if words.is_empty() => start,
                _ => return None,
            },
        };
        let end = self.end_by_prefix(text, &messages[..=index]).or_else(|| {
            let known = content.as_ref().map(|content| content.end);
            let agreed = known.and_then(|from| self.end_after_content(text, from, messages, index));
            agreed.or_else(|| self.tokenizer.end_of_turn(text, known.unwrap_or(start)))
        })?;
        let turn = text.get(start..end)?;
        let is_shown = turn.contains(words) || self.shows_content(text, messages, index);
        let end = start + self.tokenizer.without_space_after_end(turn).len();
        (after <= start && start < end && is_shown).then_some(start..end)
    }

    /// Where the model would begin to speak, if the chat before the turn is a beginning of `text`.
    fn start_of_turn(&self, text: &str, before: &[Value]) -> Option<Start> {
        let prompt = self.render(before, true).ok()?;
        let history = self.render(before, false).ok()?;
        // Without a message even an agreement may be chance.
        if before.is_empty() && !text.starts_with(&prompt) {
            return None;
        }
        self.start_behind(text, &prompt, &history)
    }

    /// As [`start_of_turn`](Self::start_of_turn), for templates that write the beginning of a chat
    /// differently when more follows: counted from the content of the message before the turn.
    fn start_after_neighbour(&self, text: &str, messages: &[Value], index: usize) -> Option<Start> {
        let neighbour = index.checked_sub(1)?;
        let end = self.content_span(text, messages, neighbour)?.end;
        let prompt = self.render_exchanged(text, &messages[..index], neighbour, true)?;
        let history = self.render_exchanged(text, &messages[..index], neighbour, false)?;
        let (_, prompt) = prompt.split()?;
        let (_, history) = history.split()?;
        Some(match self.start_behind(&text[end..], prompt, history)? {
            Start::Prompted(start) => Start::Prompted(end + start),
            Start::Unprompted(start) => Start::Unprompted(end + start),
        })
    }

    /// The start of what `text` has behind `prompt`, which is `history` and the generation prompt.
    fn start_behind(&self, text: &str, prompt: &str, history: &str) -> Option<Start> {
        if text.starts_with(prompt) {
            let is_prompted = prompt.len() > history.len();
            return Some(if is_prompted { Start::Prompted } else { Start::Unprompted }(prompt.len()));
        }
        // The prompt may end with words that the model did not take up, such as an opened reasoning.
        let agreed = self.tokenizer.agreement(text, prompt);
        (prompt.starts_with(history) && agreed > history.len()).then_some(Start::Prompted(agreed))
    }

    fn end_by_prefix(&self, text: &str, until: &[Value]) -> Option<usize> {
        let prefix = self.render(until, false).ok()?;
        text.starts_with(&prefix).then_some(prefix.len())
    }

    /// The end of what follows the turn's content at `from`, as far as it also does if the turn is last.
    fn end_after_content(&self, text: &str, from: usize, messages: &[Value], index: usize) -> Option<usize> {
        let alone = self.render_exchanged(text, &messages[..=index], index, false)?;
        let (_, behind) = alone.split()?;
        let agreed = self.tokenizer.agreement(&text[from..], behind);
        (agreed > 0 || behind.is_empty()).then_some(from + agreed)
    }

    /// The place of a message's content, found by rendering the chat with another content there.
    fn content_span(&self, text: &str, messages: &[Value], index: usize) -> Option<Range<usize>> {
        let exchanged = self.render_exchanged(text, messages, index, self.options.add_generation_prompt)?;
        let (before, behind) = exchanged.split()?;
        let fits = before.len() + behind.len() <= text.len();
        (fits && text.starts_with(before) && text.ends_with(behind))
            .then(|| before.len()..text.len() - behind.len())
    }

    fn shows_content(&self, text: &str, messages: &[Value], index: usize) -> bool {
        let exchanged = self.render_exchanged(text, messages, index, self.options.add_generation_prompt);
        exchanged.is_some_and(|exchanged| exchanged.split().is_some())
    }

    /// Renders with a mark, unknown to `text`, in place of the content of one message.
    fn render_exchanged(
        &self,
        text: &str,
        messages: &[Value],
        index: usize,
        add_generation_prompt: bool,
    ) -> Option<Exchanged> {
        let mark = unused_mark(text);
        let mut messages = messages.to_vec();
        *messages.get_mut(index)?.get_mut("content")? = Value::from(mark.as_str());
        Some(Exchanged { text: self.render(&messages, add_generation_prompt).ok()?, mark })
    }
}

/// A chat in which a mark stands for the content of one message.
struct Exchanged {
    text: String,
    mark: String,
}

impl Exchanged {
    /// What stands before and behind the content, if the chat shows it.
    fn split(&self) -> Option<(&str, &str)> {
        self.text.split_once(&self.mark)
    }
}

/// Where a turn begins.
enum Start {
    /// After the generation prompt.
    Prompted(usize),
    /// After the chat before it, by a template that has no generation prompt: a header may follow.
    Unprompted(usize),
}

/// A short text that `text` does not contain, nor its beginning, so that none appears where they meet.
fn unused_mark(text: &str) -> String {
    let beginnings = (0..).map(|number: u64| format!("\u{F8FF}{number}"));
    let mut unused = beginnings.filter(|beginning| !text.contains(beginning));
    unused.next().unwrap_or_default() + "\u{F8FF}"
}

/// Length in bytes of the longest common beginning, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map_or(a.len().min(b.len()), |((at, _), _)| at)
}
