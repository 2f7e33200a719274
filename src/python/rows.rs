//! Training data from Python: a path, or anything that gives rows.

use std::path::PathBuf;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};
use serde_json::{Map, Value};

use crate::Error;
use crate::train::{NeededRows, ROW_KINDS, TrainingData};

/// How many rows are read between two looks for Ctrl-C.
const ROWS_PER_LOOK: usize = 256;

/// How deep a row may be nested.
const DEPTH: usize = 64;

/// How much is read of something that does not say how many rows it has.
pub(super) enum Limit {
    /// All of it.
    None,
    /// What a run needs.
    Needed(NeededRows),
    /// So many rows.
    Rows(usize),
}

impl Limit {
    fn is_reached(&mut self, rows: &[Value]) -> bool {
        match self {
            Self::None => false,
            Self::Needed(needed) => rows.last().is_some_and(|row| needed.is_met_by(row)),
            Self::Rows(limit) => rows.len() >= *limit,
        }
    }
}

/// A path to a file of rows, or rows themselves, which are read to their end; of what has no length, only up to `limit`.
///
/// What has a length and items but cannot be iterated over, like torch's datasets, is read item by item.
pub(super) fn training_data(
    name: &str,
    given: &Bound<'_, PyAny>,
    mut limit: Limit,
) -> PyResult<TrainingData> {
    if !given.is_instance_of::<PyBytes>()
        && let Ok(path) = given.extract::<PathBuf>()
    {
        return Ok(TrainingData::File(path));
    }
    if given.cast::<PyMapping>().is_ok() || given.is_instance_of::<PyBytes>() {
        return Err(unusable(name, given)?);
    }
    if given.len().is_ok() {
        limit = Limit::None;
    }
    let mut rows = Vec::new();
    if given.hasattr("__iter__")? {
        for row in given.try_iter()? {
            push(name, &mut rows, &row?)?;
            if limit.is_reached(&rows) {
                break;
            }
        }
    } else if given.hasattr("__getitem__")? && given.hasattr("__len__")? {
        for index in 0..given.len()? {
            push(name, &mut rows, &given.get_item(index)?)?;
        }
    } else {
        return Err(unusable(name, given)?);
    }
    Ok(TrainingData::Rows(rows))
}

/// Evaluation data, which is read to its end.
pub(super) fn evaluation_data(given: Option<&Bound<'_, PyAny>>) -> PyResult<Option<TrainingData>> {
    given.map(|data| training_data("eval_dataset", data, Limit::None)).transpose()
}

fn unusable(name: &str, given: &Bound<'_, PyAny>) -> PyResult<PyErr> {
    let kind = given.get_type().name()?.to_string();
    let hint = if given.cast::<PyMapping>().is_ok() { "; of several splits choose one" } else { "" };
    Ok(PyTypeError::new_err(format!(
        "{name}: got {kind}, expected the path of a .jsonl file, or rows: a list or another iterable of dict{hint}"
    )))
}

/// What messages of the core call the argument.
fn words(name: &str) -> &'static str {
    if name == "eval_dataset" { "the evaluation data" } else { "the data set" }
}

fn push(name: &str, rows: &mut Vec<Value>, row: &Bound<'_, PyAny>) -> PyResult<()> {
    if rows.len().is_multiple_of(ROWS_PER_LOOK) {
        row.py().check_signals()?;
    }
    let index = rows.len();
    rows.push(used(row).map_err(|reason| Error::InvalidData {
        origin: format!("{}, row {} (index {index})", words(name), index + 1),
        line: None,
        reason,
    })?);
    Ok(())
}

/// A row as JSON. Fields that are not used keep only their names, as they may hold anything.
fn used(row: &Bound<'_, PyAny>) -> Result<Value, String> {
    let said = |error: PyErr| error.to_string();
    let fields = match row.cast::<PyDict>() {
        Ok(fields) => fields.as_mapping(),
        Err(_) => match row.cast::<PyMapping>() {
            Ok(fields) => fields,
            Err(_) => return value(row),
        },
    };
    let names: Vec<String> = (fields.keys().map_err(said)?.iter())
        .map(|name| name.str()?.extract())
        .collect::<PyResult<_>>()
        .map_err(said)?;
    // Only what is asked for: some data sets make their values at this moment.
    let get = |name: &str| match names.iter().any(|other| other == name) {
        true => fields.get_item(name).map(|item| (!item.is_none()).then_some(item)).map_err(said),
        false => Ok(None),
    };
    let mut map: Map<_, _> = names.iter().map(|name| (name.clone(), Value::Null)).collect();
    for (kind, used) in ROW_KINDS {
        if get(kind)?.is_none() {
            continue;
        }
        for name in *used {
            if let Some(item) = get(name)? {
                let value = read(&item, DEPTH - 1).map_err(|reason| format!("{name:?}: {reason}"))?;
                map.insert((*name).to_owned(), value);
            }
        }
        break;
    }
    Ok(Value::Object(map))
}

/// A Python value as JSON; arrays become lists. What cannot be said in JSON is told in words.
pub(super) fn value(given: &Bound<'_, PyAny>) -> Result<Value, String> {
    read(given, DEPTH)
}

fn read(given: &Bound<'_, PyAny>, depth: usize) -> Result<Value, String> {
    let said = |error: PyErr| error.to_string();
    if depth == 0 {
        return Err(format!("it is nested more than {DEPTH} deep"));
    }
    if given.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(text) = given.cast::<PyString>() {
        return Ok(Value::String(text.to_str().map_err(said)?.to_owned()));
    }
    if let Ok(flag) = given.cast::<PyBool>() {
        return Ok(Value::Bool(flag.is_true()));
    }
    if given.is_instance_of::<PyInt>() {
        return given.extract::<i64>().map(Value::from).map_err(|_| "a number is out of range".to_owned());
    }
    if given.is_instance_of::<PyFloat>() {
        let number = given.extract::<f64>().map_err(said)?;
        return serde_json::Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| format!("{number} is not a finite number"));
    }
    if given.is_instance_of::<PyList>() || given.is_instance_of::<PyTuple>() {
        return list(given, depth);
    }
    if let Ok(fields) = given.cast::<PyDict>() {
        return fields
            .iter()
            .map(|entry| field(&entry.0, &entry.1, depth))
            .collect::<Result<Map<_, _>, _>>()
            .map(Value::Object);
    }
    // Arrays of any library, and their single numbers.
    if given.hasattr("tolist").map_err(said)? {
        return read(&given.call_method0("tolist").map_err(said)?, depth - 1);
    }
    if let Ok(fields) = given.cast::<PyMapping>() {
        let items = fields.items().map_err(said)?;
        let pair = |entry: Bound<'_, PyAny>| {
            let (key, item): (Bound<'_, PyAny>, Bound<'_, PyAny>) = entry.extract().map_err(said)?;
            field(&key, &item, depth)
        };
        return items.iter().map(pair).collect::<Result<Map<_, _>, _>>().map(Value::Object);
    }
    if let (false, Ok(items)) = (given.is_instance_of::<PyBytes>(), given.try_iter()) {
        let items = items.map(|item| read(&item.map_err(said)?, depth - 1));
        return items.collect::<Result<_, _>>().map(Value::Array);
    }
    let kind = given.get_type().name().map_err(said)?;
    Err(format!("a value is of type {kind}, expected text, numbers, lists or dictionaries"))
}

fn list(given: &Bound<'_, PyAny>, depth: usize) -> Result<Value, String> {
    let said = |error: PyErr| error.to_string();
    let items = given.try_iter().map_err(said)?.map(|item| read(&item.map_err(said)?, depth - 1));
    items.collect::<Result<_, _>>().map(Value::Array)
}

fn field(key: &Bound<'_, PyAny>, item: &Bound<'_, PyAny>, depth: usize) -> Result<(String, Value), String> {
    let said = |error: PyErr| error.to_string();
    let name = match key.cast::<PyString>() {
        Ok(name) => name.to_str().map_err(said)?.to_owned(),
        Err(_) => return Err(format!("the name of a field is {}, expected text", key.repr().map_err(said)?)),
    };
    match read(item, depth - 1) {
        Ok(value) => Ok((name, value)),
        Err(reason) => Err(format!("{name:?}: {reason}")),
    }
}
