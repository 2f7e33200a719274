//! Messages to text through a model's chat template, as transformers' `apply_chat_template` does.
//!
//! It chooses the template and prepares its variables; [`template_engine`](super::template_engine)
//! renders. It does not tokenize.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::config::shorten;
use super::template_engine::CompiledTemplate;
use super::{ChatOptions, Tokenizer};
use crate::error::{Error, Result};

/// Stands at the end of the message that is to be continued, to be found in the rendered text.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The names that a message's reasoning goes by; templates read the first.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The variables that are arguments of their own.
const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

impl Tokenizer {
    /// The template that is used for messages without tools.
    pub fn chat_template(&self) -> Option<&str> {
        self.config().chat_templates.get("default").map(String::as_str)
    }

    /// Renders `messages`, a list of objects with a `role`, through the model's chat template.
    ///
    /// # Errors
    /// `InvalidConfig` if there is no template or it is malformed; `InvalidArgument` if messages or options
    /// are of the wrong form, or the template refuses them.
    pub fn apply_chat_template(&self, messages: &Value, options: &ChatOptions) -> Result<String> {
        let messages = prepare_messages(messages)?;
        let template = CompiledTemplate::new(self.select_template(options)?)?;
        if options.continue_final_message {
            return self.render_open(&template, messages, options);
        }
        template.render(&self.variables(messages, options)?)
    }

    /// The source of the template that `options` ask for.
    pub(super) fn select_template<'a>(&'a self, options: &'a ChatOptions) -> Result<&'a str> {
        let templates = &self.config().chat_templates;
        if let Some(template) = &options.template {
            return Ok(templates.get(template).unwrap_or(template));
        }
        let for_tools = options.tools.as_ref().and_then(|_| templates.get("tool_use"));
        for_tools.or_else(|| templates.get("default")).map(String::as_str).ok_or_else(|| missing(templates))
    }

    /// Everything the template sees.
    pub(super) fn variables(
        &self,
        messages: Vec<Value>,
        options: &ChatOptions,
    ) -> Result<Map<String, Value>> {
        if let Some(name) = RESERVED.iter().find(|name| options.variables.contains_key(**name)) {
            return Err(Error::argument("variables", name, "names other than the template's own arguments"));
        }
        if let Some(tools) = options.tools.as_ref().filter(|tools| !tools.is_array()) {
            return Err(Error::argument("tools", shorten(tools), "a list of JSON schemas"));
        }
        let tokens = self.config().named_tokens.iter();
        let mut variables: Map<String, Value> =
            tokens.map(|(name, token)| (name.clone(), Value::from(token.as_str()))).collect();
        variables.insert("documents".into(), Value::Null);
        variables.extend(options.variables.clone());
        variables.insert("messages".into(), Value::Array(messages));
        variables.insert("tools".into(), options.tools.clone().unwrap_or(Value::Null));
        variables.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        Ok(variables)
    }

    /// Renders with the last message left open: it is tagged, and the text ends where the tag is.
    fn render_open(
        &self,
        template: &CompiledTemplate,
        mut messages: Vec<Value>,
        options: &ChatOptions,
    ) -> Result<String> {
        if options.add_generation_prompt {
            let allowed = "false together with add_generation_prompt";
            return Err(Error::argument("continue_final_message", true, allowed));
        }
        let last = messages.last_mut().and_then(|message| message.get_mut("content"));
        let Some(content) = last.and_then(last_text) else {
            return Err(Error::argument("messages", "a last message without text", "text to continue"));
        };
        let wanted = content.trim().to_string();
        content.push_str(CONTINUE_TAG);
        let rendered = template.render(&self.variables(messages, options)?)?;
        match rendered.rfind(CONTINUE_TAG.trim_end()) {
            Some(at) if rendered.contains(&wanted) => {
                let open = &rendered[..at];
                let kept_spaces = rendered[at..].starts_with(CONTINUE_TAG);
                Ok(if kept_spaces { open } else { open.trim_end() }.to_string())
            }
            _ => Err(Error::argument(
                "continue_final_message",
                true,
                "a template that renders the last message whole",
            )),
        }
    }
}

/// The text of a message's content: itself, or the last text of a list of parts.
fn last_text(content: &mut Value) -> Option<&mut String> {
    match content {
        Value::String(text) => Some(text),
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    }
}

/// Checks the messages and drops empty fields, which many templates would print or trip over.
pub(super) fn prepare_messages(messages: &Value) -> Result<Vec<Value>> {
    let list = match messages {
        Value::Array(list) if !list.is_empty() => list,
        other => return Err(Error::argument("messages", shorten(other), "a list of at least one message")),
    };
    list.iter().enumerate().map(|(index, message)| prepare_message(index, message)).collect()
}

fn prepare_message(index: usize, message: &Value) -> Result<Value> {
    let Value::Object(fields) = message else {
        let allowed = "an object with \"role\" and \"content\"";
        return Err(Error::argument(format!("messages[{index}]"), shorten(message), allowed));
    };
    if !fields.get("role").is_some_and(Value::is_string) {
        let allowed = "a field \"role\" with a string, such as \"user\"";
        return Err(Error::argument(format!("messages[{index}]"), shorten(message), allowed));
    }
    let filled = fields.iter().filter(|(_, value)| !value.is_null());
    let mut fields: Map<String, Value> = filled.map(|(key, value)| (key.clone(), value.clone())).collect();
    let reasoning = REASONING_FIELDS.iter().find_map(|field| fields.get(*field)).cloned();
    if let Some(reasoning) = reasoning {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".into(), reasoning);
    }
    Ok(Value::Object(fields))
}

fn missing(templates: &BTreeMap<String, String>) -> Error {
    let reason = if templates.is_empty() {
        "the model has no chat template; pass one, or a plain prompt".to_string()
    } else {
        let names: Vec<&str> = templates.keys().map(String::as_str).collect();
        format!("the model has no default chat template; choose one of {}", names.join(", "))
    };
    Error::config("tokenizer_config.json", "chat_template", reason)
}
