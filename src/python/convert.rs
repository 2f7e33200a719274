//! Values across the boundary: JSON, arrays, prompts.

use candle_core::{DType, Tensor};
use numpy::{Element, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};
use serde_json::Value;

use crate::generate::Prompt;
use crate::{Error, Result};

/// A JSON value as Python's own `json` module reads it.
pub(super) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (value.to_string(),))
}

/// A Python value as Python's own `json` module writes it.
pub(super) fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Value> {
    let options = PyDict::new(value.py());
    options.set_item("ensure_ascii", false)?;
    let text: String =
        value.py().import("json")?.call_method("dumps", (value,), Some(&options))?.extract()?;
    serde_json::from_str(&text).map_err(|error| Error::argument("value", error, "plain JSON values").into())
}

/// A matrix as a C-contiguous float32 array of the same shape.
pub(super) fn matrix<'py>(py: Python<'py>, tensor: &Tensor) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let read = || -> Result<_> {
        let shape = tensor.dims2()?;
        Ok((shape, tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?))
    };
    let ((rows, columns), values) = read()?;
    PyArray1::from_vec(py, values).reshape([rows, columns])
}

/// Values row by row as an array `[rows, columns]`, or `[columns]` unless `many`.
pub(super) fn array<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    columns: usize,
    many: bool,
) -> PyResult<Bound<'_, PyAny>> {
    let rows = values.len().checked_div(columns).unwrap_or(0);
    let flat = PyArray1::from_vec(py, values);
    if many { Ok(flat.reshape([rows, columns])?.into_any()) } else { Ok(flat.into_any()) }
}

/// Vectors as float32 values row by row, and the width of a row; a single vector is one row.
pub(super) fn vectors(value: &Bound<'_, PyAny>) -> PyResult<(Vec<f32>, usize)> {
    let numpy = value.py().import("numpy")?;
    let array = numpy.call_method1("ascontiguousarray", (value, "float32"))?;
    let array: PyReadonlyArray2<'_, f32> = numpy.call_method1("atleast_2d", (array,))?.extract()?;
    Ok((array.as_slice().map_err(PyErr::from)?.to_vec(), array.as_array().ncols()))
}

/// One text, or an iterable of them; the flag says which.
pub(super) fn texts(name: &str, value: &Bound<'_, PyAny>) -> PyResult<(Vec<String>, bool)> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok((vec![text.to_str()?.to_owned()], false));
    }
    let text = |(index, item): (usize, PyResult<Bound<'_, PyAny>>)| -> PyResult<String> {
        let item = item?;
        match item.cast::<PyString>() {
            Ok(text) => Ok(text.to_str()?.to_owned()),
            Err(_) => {
                let kind = item.get_type().name()?;
                Err(PyTypeError::new_err(format!("{name}: item {index} is of type {kind}, expected str")))
            }
        }
    };
    // The keys of a dictionary are hardly what was meant.
    let items = if value.is_instance_of::<PyDict>() { None } else { value.try_iter().ok() };
    let Some(items) = items else {
        let kind = value.get_type().name()?;
        return Err(PyTypeError::new_err(format!("{name}: got {kind}, expected a str or a list of str")));
    };
    Ok((items.enumerate().map(text).collect::<PyResult<_>>()?, true))
}

/// Whether a value is a list, a tuple, or something like an array; text is not.
fn is_sequence(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyList>()
        || value.is_instance_of::<PyTuple>()
        || value.hasattr("tolist").unwrap_or(false)
}

/// A list of token ids; booleans, fractions and negative numbers are refused.
pub(super) fn ids(value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    value.try_iter()?.map(|id| id?.extract::<u32>()).collect::<PyResult<_>>().map_err(|error| {
        let kind = value.get_type();
        if error.is_instance_of::<PyTypeError>(value.py()) {
            return PyTypeError::new_err(format!(
                "token ids must be whole numbers, got {kind} with something else"
            ));
        }
        Error::argument("token ids", "a number out of range", "ids of the vocabulary").into()
    })
}

/// One list of ids, or a list of such lists; the flag says which.
pub(super) fn id_lists(value: &Bound<'_, PyAny>) -> PyResult<(Vec<Vec<u32>>, bool)> {
    if value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyString>() {
        let kind = value.get_type().name()?;
        return Err(PyTypeError::new_err(format!("input_ids: got {kind}, expected a list of token ids")));
    }
    let first = value.try_iter()?.next().transpose()?;
    match first {
        Some(first) if is_sequence(&first) && first.try_iter().is_ok() => {
            let lists = value.try_iter()?.map(|list| ids(&list?)).collect::<PyResult<_>>()?;
            Ok((lists, true))
        }
        _ => Ok((vec![ids(value)?], false)),
    }
}

/// One prompt or several; the flag says which.
pub(super) fn prompts(value: &Bound<'_, PyAny>) -> PyResult<(Vec<Prompt>, bool)> {
    if let Some(prompt) = single_prompt(value)? {
        return Ok((vec![prompt], false));
    }
    let many = value.try_iter()?.map(|item| {
        let item = item?;
        let is_empty = || is_sequence(&item) && item.len().is_ok_and(|len| len == 0);
        single_prompt(&item)?.ok_or_else(|| match is_empty() {
            true => Error::argument("prompt", "no tokens", "at least one token").into(),
            false => unusable_prompt(&item),
        })
    });
    Ok((many.collect::<PyResult<_>>()?, true))
}

fn unusable_prompt(value: &Bound<'_, PyAny>) -> PyErr {
    let kind = value.get_type();
    PyTypeError::new_err(format!(
        "prompt: got {kind}, expected a str, a list of token ids, or a list of messages"
    ))
}

/// A text, a list of ids, or a conversation; `None` for a list of those (the empty list included).
fn single_prompt(value: &Bound<'_, PyAny>) -> PyResult<Option<Prompt>> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Some(Prompt::Text(text.to_str()?.to_owned())));
    }
    if !is_sequence(value) {
        return Err(unusable_prompt(value));
    }
    let Some(first) = value.try_iter()?.next().transpose()? else { return Ok(None) };
    if first.is_instance_of::<PyDict>() {
        return Ok(Some(Prompt::Chat(from_python(value)?)));
    }
    if first.is_instance_of::<PyString>() || (is_sequence(&first) && first.try_iter().is_ok()) {
        return Ok(None);
    }
    Ok(Some(Prompt::Ids(ids(value)?)))
}
