//! Whole numbers as arguments, of any size.
//!
//! Python's numbers have no limits, and what is wrong with one can only be said where its name is known. A keyword
//! that may be left out is of the type [`Whole`]; one with a number as default is read by a function of [`named`].

use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

use crate::{Error, Result};

/// A whole number that nobody has checked yet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whole {
    /// One that machines count with.
    Small(i64),
    /// The digits of a larger one.
    Huge(String),
}

impl Whole {
    /// The number of things that the argument `name` asks for.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for less than 0, and for more than can be counted.
    pub(super) fn count(&self, name: &str) -> Result<usize> {
        usize::try_from(self.number(name)?).map_err(|_| self.refused(name, "0 or more"))
    }

    /// The number without a sign, such as one of bytes; as [`Whole::count`].
    pub(super) fn unsigned(&self, name: &str) -> Result<u64> {
        u64::try_from(self.number(name)?).map_err(|_| self.refused(name, "0 or more"))
    }

    /// The token id that the argument `name` has.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what no vocabulary has.
    pub(super) fn token_id(&self, name: &str) -> Result<u32> {
        let id = self.number(name).ok().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.refused(name, "ids of the vocabulary"))
    }

    /// The number itself, whatever its sign.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one beyond 64 bits.
    pub(super) fn number(&self, name: &str) -> Result<i64> {
        match self {
            Self::Small(number) => Ok(*number),
            Self::Huge(_) => Err(self.refused(name, format!("{} to {}", i64::MIN, i64::MAX))),
        }
    }

    fn refused(&self, name: &str, allowed: impl Into<String>) -> Error {
        match self {
            Self::Small(number) => Error::argument(name, number, allowed),
            Self::Huge(digits) => Error::argument(name, digits, allowed),
        }
    }
}

/// [`Whole::count`] of a keyword that may be left out.
pub(super) fn count(name: &str, given: Option<&Whole>) -> Result<Option<usize>> {
    given.map(|given| given.count(name)).transpose()
}

/// [`Whole::unsigned`] of a keyword that may be left out.
pub(super) fn unsigned(name: &str, given: Option<&Whole>) -> Result<Option<u64>> {
    given.map(|given| given.unsigned(name)).transpose()
}

impl FromPyObject<'_, '_> for Whole {
    type Error = PyErr;

    #[cfg(feature = "stubs")]
    const INPUT_TYPE: pyo3::inspect::PyStaticExpr = <i64 as FromPyObject<'_, '_>>::INPUT_TYPE;

    fn extract(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match value.extract::<i64>() {
            Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
                // Python refuses to spell out the longest numbers.
                let digits = value.str().map_or_else(|_| "a huge number".to_owned(), |text| text.to_string());
                Ok(Self::Huge(if digits.len() > 60 { "a huge number".to_owned() } else { digits }))
            }
            number => number.map(Self::Small),
        }
    }
}

/// Reads the keywords that have a number as default; each function is called as its keyword.
pub(super) mod named {
    use super::{PyAny, PyAnyMethods, PyResult, Whole};
    use pyo3::Bound;

    macro_rules! keywords {
        ($($name:ident)*) => {
            $(pub(in super::super) fn $name(value: &Bound<'_, PyAny>) -> PyResult<i64> {
                Ok(value.extract::<Whole>()?.number(stringify!($name))?)
            })*
        };
    }

    macro_rules! keywords_or_none {
        ($($name:ident)*) => {
            $(pub(in super::super) fn $name(value: &Bound<'_, PyAny>) -> PyResult<Option<i64>> {
                let value = value.extract::<Option<Whole>>()?;
                Ok(value.map(|value| value.number(stringify!($name))).transpose()?)
            })*
        };
    }

    keywords_or_none!(logprobs max_new_tokens);
    keywords!(batch_size epochs gradient_accumulation_steps keep_last max_adapters max_length rank seed warmup_steps);
}
