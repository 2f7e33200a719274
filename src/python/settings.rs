//! What a caller of `Embedder.from_pretrained` wants to be different from what the repository says.

use pyo3::exceptions::PyTypeError;
#[cfg(feature = "stubs")]
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFrozenSet, PySet, PyString};
#[cfg(feature = "stubs")]
use pyo3::{type_hint_identifier, type_hint_subscript, type_hint_union};

use crate::embed::EmbedderOptions;
use crate::models::LoadOptions;

/// One string, or any iterable of them; sets are sorted, as their order differs from run to run.
#[derive(Clone, IntoPyObject)]
pub(super) enum Names {
    One(String),
    Many(Vec<String>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Names {
    type Error = PyErr;
    #[cfg(feature = "stubs")]
    const INPUT_TYPE: PyStaticExpr = type_hint_union!(
        String::INPUT_TYPE,
        type_hint_subscript!(type_hint_identifier!("collections.abc", "Iterable"), String::INPUT_TYPE)
    );

    fn extract(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = given.cast::<PyString>() {
            return Ok(Self::One(text.to_str()?.to_owned()));
        }
        let Ok(items) = given.try_iter() else {
            let kind = given.get_type().name()?;
            return Err(PyTypeError::new_err(format!("got {kind}, expected a str or an iterable of str")));
        };
        let mut names = Vec::new();
        for (index, item) in items.enumerate() {
            let item = item?;
            let Ok(name) = item.cast::<PyString>() else {
                let kind = item.get_type().name()?;
                return Err(PyTypeError::new_err(format!("item {index} is of type {kind}, expected str")));
            };
            names.push(name.to_str()?.to_owned());
        }
        if given.is_instance_of::<PySet>() || given.is_instance_of::<PyFrozenSet>() {
            names.sort();
        }
        Ok(Self::Many(names))
    }
}

/// What was asked to be different from what the repository says.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) pooling: Option<Names>,
    pub(super) normalize: Option<bool>,
    pub(super) max_length: Option<usize>,
    pub(super) prompts: Vec<(String, String)>,
    pub(super) default_prompt_name: Option<String>,
    pub(super) truncate_dim: Option<usize>,
}

impl Settings {
    /// The core's options.
    pub(super) fn options(self, load: LoadOptions) -> EmbedderOptions {
        EmbedderOptions {
            load,
            pooling: match self.pooling {
                None => Vec::new(),
                Some(Names::One(mode)) => vec![mode],
                Some(Names::Many(modes)) => modes,
            },
            normalize: self.normalize,
            max_length: self.max_length,
            prompts: self.prompts,
            default_prompt_name: self.default_prompt_name,
            truncate_dim: self.truncate_dim,
        }
    }

    /// Adds the keywords to those that open the same embedder again.
    pub(super) fn add_to(&self, keywords: &Bound<'_, PyDict>) -> PyResult<()> {
        let prompts = PyDict::new(keywords.py());
        for (name, prompt) in &self.prompts {
            prompts.set_item(name, prompt)?;
        }
        keywords.set_item("prompts", prompts)?;
        keywords.set_item("pooling", self.pooling.clone())?;
        keywords.set_item("normalize", self.normalize)?;
        keywords.set_item("max_length", self.max_length)?;
        keywords.set_item("default_prompt_name", &self.default_prompt_name)?;
        keywords.set_item("truncate_dim", self.truncate_dim)
    }
}

/// Prompts by name.
pub(super) fn prompts(given: &Bound<'_, PyDict>) -> PyResult<Vec<(String, String)>> {
    given.iter().map(|(name, prompt)| Ok((name.extract()?, prompt.extract()?))).collect()
}
