//! Methods of Python's strings, lists and mappings that templates call.
//!
//! Most come from minijinja-contrib; here are those it lacks. Methods that change their value are absent,
//! as in transformers' sandbox.

use minijinja::value::{Kwargs, Rest, StringInput, Tuple, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The widest field and indentation; templates are foreign code.
const MAX_WIDTH: usize = 10_000;

/// jinja2's `indent`, within limits.
pub(super) fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let width_asked = if named.has("width") { named.peek("width")? } else { width };
    match width_asked.filter(|width| *width > MAX_WIDTH) {
        Some(width) => Err(too_wide(width)),
        None => minijinja::filters::indent(text, width, first, blank, named),
    }
}

/// jinja2's `format`, within limits.
pub(super) fn format(state: &mut State, format: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    check_widths(format.as_str().unwrap_or_default())?;
    minijinja::filters::format(state, format, args)
}

fn too_wide(width: impl std::fmt::Display) -> Error {
    let detail = format!("a width of {width} is above the limit of {MAX_WIDTH}");
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// Refuses a format with a number in it that no width should have.
fn check_widths(format: &str) -> Result<(), Error> {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    for digits in numbers {
        if digits.parse::<usize>().is_ok_and(|number| number <= MAX_WIDTH) {
            continue;
        }
        return Err(too_wide(digits));
    }
    Ok(())
}

/// Calls `value.method(args)`.
pub(super) fn call_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if method == "format" {
            check_widths(text)?;
        }
        if let Some(result) = string_method(text, method, args) {
            return result;
        }
    }
    unknown_method_callback(state, value, method, args)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        // Python refuses what the engine would split between all characters.
        "split" if args.first().and_then(Value::as_str) == Some("") => nonempty("").map(Value::from),
        "removeprefix" => {
            from_args(args).map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            from_args(args).map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "partition" => from_args(args).and_then(|(separator,): (&str,)| {
            let (before, after) = nonempty(separator).map(|separator| {
                text.split_once(separator).map(|(a, b)| (a, Some(b))).unwrap_or((text, None))
            })?;
            Ok(parts(before, after.map(|_| separator), after))
        }),
        "rpartition" => from_args(args).and_then(|(separator,): (&str,)| {
            Ok(match text.rsplit_once(nonempty(separator)?) {
                Some((before, after)) => parts(before, Some(separator), Some(after)),
                None => parts("", None, Some(text)),
            })
        }),
        "rsplit" => from_args(args)
            .and_then(|(separator, limit): (Option<&str>, Option<i64>)| rsplit(text, separator, limit)),
        "swapcase" => from_args(args).map(|()| {
            let swap = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }),
        "zfill" => from_args(args).map(|(width,): (usize,)| {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let missing = width.min(MAX_WIDTH).saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }),
        _ => return None,
    })
}

fn nonempty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(separator)
}

fn parts(before: &str, separator: Option<&str>, after: Option<&str>) -> Value {
    let part = |text: Option<&str>| Value::from(text.unwrap_or_default());
    Value::from(Tuple::from([Value::from(before), part(separator), part(after)]))
}

/// Splits from the right, at runs of whitespace if there is no separator.
fn rsplit(text: &str, separator: Option<&str>, limit: Option<i64>) -> Result<Value, Error> {
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let mut found = Vec::new();
    let mut rest = text;
    if let Some(separator) = separator {
        let separator = nonempty(separator)?;
        while found.len() < limit
            && let Some((before, after)) = rest.rsplit_once(separator)
        {
            found.push(after);
            rest = before;
        }
        found.push(rest);
    } else {
        rest = rest.trim_end();
        while found.len() < limit
            && let Some((before, after)) = rest.rsplit_once(char::is_whitespace)
        {
            found.push(after);
            rest = before.trim_end();
        }
        if !rest.is_empty() {
            found.push(rest);
        }
    }
    Ok(found.into_iter().rev().map(Value::from).collect())
}
