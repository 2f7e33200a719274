//! What is put before a text, and when.

use crate::models::known_prompts;
use crate::{Error, Result};

/// What a text is to a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Nothing in particular.
    #[default]
    Plain,
    /// What is searched for.
    Query,
    /// What is searched.
    Document,
}

/// Prompts by name, and the one for texts without a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prompts {
    pub(super) named: Vec<(String, String)>,
    pub(super) default: Option<String>,
}

impl Prompts {
    /// Adds prompts, in place of those of the same name.
    pub(super) fn extend(&mut self, prompts: Vec<(String, String)>) {
        for (name, prompt) in prompts {
            match self.named.iter_mut().find(|(known, _)| *known == name) {
                Some(entry) => entry.1 = prompt,
                None => self.named.push((name, prompt)),
            }
        }
    }

    /// Fills in what a well-known model called `name` was trained with, if there is no prompt at all yet; then empty
    /// prompts for queries and documents, if there are none.
    pub(super) fn complete(&mut self, name: &str) {
        if self.named.iter().all(|(_, prompt)| prompt.is_empty())
            && let Some(known) = known_prompts(name)
        {
            self.extend(vec![
                ("query".into(), known.query.into()),
                ("document".into(), known.document.into()),
            ]);
        }
        for role in ["query", "document"] {
            if self.get(role).is_none() {
                self.named.push((role.to_owned(), String::new()));
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, prompt)| prompt.as_str())
    }

    /// The prompt of one call: the given text, the named one, the role's, or the default.
    pub(super) fn choose(&self, role: Role, name: Option<&str>, prompt: Option<&str>) -> Result<String> {
        if let Some(prompt) = prompt {
            return Ok(prompt.to_owned());
        }
        let missing = |argument: &str, name: &str| {
            let names: Vec<String> = self.named.iter().map(|(known, _)| format!("{known:?}")).collect();
            Error::argument(argument, format!("{name:?}"), format!("one of {}", names.join(", ")))
        };
        if let Some(name) = name {
            return Ok(self.get(name).ok_or_else(|| missing("prompt_name", name))?.to_owned());
        }
        let names: &[&str] = match role {
            Role::Plain => &[],
            Role::Query => &["query"],
            Role::Document => &["document", "passage", "corpus"],
        };
        if let Some(prompt) = names.iter().find_map(|name| self.get(name)) {
            return Ok(prompt.to_owned());
        }
        match &self.default {
            Some(name) => Ok(self.get(name).ok_or_else(|| missing("default_prompt_name", name))?.to_owned()),
            None => Ok(String::new()),
        }
    }
}
