//! A chat template, compiled and rendered with what transformers gives it.
//!
//! The engine is minijinja, set up to agree with jinja2 in transformers' sandbox: whitespace control,
//! Python's methods and notations, `raise_exception`, `strftime_now`, `{% generation %}`. Templates are
//! foreign code: their steps and their output are limited, and they reach nothing but their variables.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, State, Value};
use serde_json::{Map, Value as Json};

use super::template_methods::{call_method, format, indent};
use super::template_value::{from_object, python_str, tojson};
use crate::error::{Error, Result};

/// Instructions a rendering may take; a long chat takes a few hundred thousand.
const FUEL: u64 = 20_000_000;

/// Bytes a rendering may produce.
const OUTPUT_LIMIT: usize = 64 << 20;

/// The variable that holds the mark around generated text; without it nothing is marked.
pub(super) const MARK_VARIABLE: &str = "__candlewick_generation_mark";

const NAME: &str = "chat_template";

/// A template that can be rendered any number of times.
pub(super) struct CompiledTemplate {
    environment: Environment<'static>,
    /// Whether the template says itself what the assistant generates.
    pub(super) marks_generation: bool,
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl CompiledTemplate {
    /// # Errors
    /// `InvalidConfig` with the line if the template is malformed.
    pub(super) fn new(source: &str) -> Result<Self> {
        // jinja2 reads every line break as "\n".
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (source, marks_generation) = replace_generation_tags(&source);
        let mut environment = environment()?;
        let added = catch_unwind(AssertUnwindSafe(|| environment.add_template_owned(NAME, source)));
        match added {
            Ok(Ok(())) => Ok(Self { environment, marks_generation }),
            Ok(Err(error)) => Err(Error::config(NAME, "", format!("is malformed: {}", describe(&error)))),
            Err(_) => Err(Error::config(NAME, "", "is malformed")),
        }
    }

    /// # Errors
    /// `InvalidArgument` if the template refuses the messages or fails on them.
    pub(super) fn render(&self, variables: &Map<String, Json>) -> Result<String> {
        let mut output = LimitedOutput(Vec::new());
        let rendering = AssertUnwindSafe(|| {
            let template = self.environment.get_template(NAME)?;
            template.render_captured_to(from_object(variables), &mut output).map(|_| ())
        });
        match catch_unwind(rendering) {
            Ok(Ok(())) => String::from_utf8(output.0)
                .map_err(|error| Error::internal("the chat template produced invalid text", error)),
            Ok(Err(error)) => Err(refusal(&error)),
            Err(_) => Err(Error::argument("messages", "a chat on which the template fails", "another")),
        }
    }
}

/// Turns a rendering error into one that names the caller's remedy.
fn refusal(error: &minijinja::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
            let value = format!("a chat that the chat template refuses ({message})");
            return Error::argument("messages", value, "one that it accepts");
        }
        source = current.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return Error::config(NAME, "", "does not come to an end");
    }
    let value = format!("a chat on which the chat template fails ({})", describe(error));
    Error::argument("messages", value, "messages, tools and variables of the form it was written for")
}

fn describe(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    match error.line() {
        Some(line) => format!("line {line}: {detail}"),
        None => detail,
    }
}

fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|error| Error::internal("setting up the template engine failed", error))?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(call_method);
    environment.set_formatter(|out, _, value| {
        out.write_str(&python_str(value)).map_err(|error| {
            minijinja::Error::new(ErrorKind::WriteFailure, "writing failed").with_source(error)
        })
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| python_str(value));
    environment.add_filter("generation", mark_generation);
    environment.add_filter("indent", indent);
    environment.add_filter("format", format);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment
        .add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.to_vec()));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Seq | Iterable | Map | String | Undefined)
    });
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, minijinja::Error> {
        let message = python_str(message);
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| strftime(&jiff::Zoned::now(), format));
    Ok(environment)
}

/// The length of a value; what is undefined is empty.
fn length(value: &Value) -> Result<usize, minijinja::Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) }
}

/// Python's `strftime`.
fn strftime(time: &jiff::Zoned, format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, time).map_err(|error| {
        let detail = format!("strftime_now cannot write {format:?}");
        minijinja::Error::new(ErrorKind::InvalidOperation, detail).with_source(error)
    })
}

/// The filter that stands for a `{% generation %}` block.
fn mark_generation(state: &State, body: &Value) -> String {
    match state.lookup(MARK_VARIABLE).as_ref().and_then(Value::as_str) {
        Some(mark) => format!("{mark}{body}{mark}"),
        None => body.to_string(),
    }
}

/// Writes `{% generation %}` blocks, which the engine does not have, as filter blocks, which treat
/// whitespace alike. Also says whether there were any.
fn replace_generation_tags(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(at) = rest.find("{%") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let replaced = rest.find("%}").and_then(|end| {
            let inner = &rest[2..end];
            let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
            let replacement = match word {
                "generation" => "filter generation",
                "endgeneration" => "endfilter",
                _ => return None,
            };
            Some((inner.replacen(word, replacement, 1), end + 2))
        });
        let (tag, length) = match replaced {
            Some((inner, length)) => {
                found = true;
                (format!("{{%{inner}%}}"), length)
            }
            None => ("{%".to_string(), 2),
        };
        out.push_str(&tag);
        rest = &rest[length..];
    }
    out.push_str(rest);
    (out, found)
}

/// Collects output up to the limit.
struct LimitedOutput(Vec<u8>);

impl io::Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_LIMIT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the chat template writes without end"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        CompiledTemplate::new(source)?.render(&Map::new())
    }

    #[test]
    fn generation_tags_become_filter_blocks() {
        let (source, found) = replace_generation_tags("{%- generation -%}a{%endgeneration+%}{% set x %}{% ");
        assert_eq!(source, "{%- filter generation -%}a{%endfilter+%}{% set x %}{% ");
        assert!(found);
        let plain = "{{ generation }} {% if generation %}{% endif %} {%";
        assert_eq!(replace_generation_tags(plain), (plain.to_string(), false));
    }

    #[test]
    fn endless_templates_end() {
        let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        let error = render(loops).unwrap_err();
        assert!(error.to_string().contains("does not come to an end"), "{error}");
        let recursion = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
        assert!(matches!(render(recursion), Err(Error::InvalidArgument { .. })));
        let output = "{% set x = 'y' * 9999999 %}{% for a in range(99999) %}{{ x }}{% endfor %}";
        assert!(matches!(render(output), Err(Error::InvalidArgument { .. })));
        for width in [
            "'{:>99999999999}'.format(1)",
            "'{:>{}}'.format(1, 99999999999)",
            "'x'|indent(99999999999)",
            "'%99999999999d'|format(1)",
            "'%99999999999999999999999d'|format(1)",
            "'x'.zfill(99999999999)",
        ] {
            // Refused, cut, or not understood; never done.
            assert!(render(&format!("{{{{ {width} }}}}")).map_or(0, |text| text.len()) < 20_000, "{width}");
        }
        assert_eq!(
            render("{{ '%4d|'|format(1) }}{{ '{:>3}'.format(2) }}{{ 'a\nb'|indent(1) }}").unwrap(),
            "   1|  2a\n b"
        );
    }

    #[test]
    fn failures_are_errors() {
        let error = render("{{ raise_exception('Roles must alternate') }}").unwrap_err();
        assert!(error.to_string().contains("(Roles must alternate)"), "{error}");
        let error = render("a\n{% for %}").err().unwrap();
        assert!(
            matches!(&error, Error::InvalidConfig { reason, .. } if reason.contains("line 2")),
            "{error}"
        );
        // The engine overflows on this slice; whatever it does, it does not take the caller down.
        let _ = render("{{ [1, 2, 3][0:2:-1] }} {{ 'abc'[0:2:-1] }}");
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
        assert!(render(&deep).is_err());
        for source in
            ["{% include 'chat_template' %}", "{% extends 'x' %}", "{% import '/etc/passwd' as x %}"]
        {
            assert!(render(source).is_err(), "{source}");
        }
    }

    #[test]
    fn dates_are_written_as_python_writes_them() {
        let time = jiff::civil::date(2025, 3, 7).at(9, 5, 4, 0).in_tz("UTC").unwrap();
        let cases = [
            ("%d %b %Y", "07 Mar 2025"),
            ("%Y-%m-%d", "2025-03-07"),
            ("%B %-d, %Y", "March 7, 2025"),
            ("%A %a %H:%M:%S", "Friday Fri 09:05:04"),
            ("%I %p %j %y %U %%", "09 AM 066 25 09 %"),
        ];
        for (format, expected) in cases {
            assert_eq!(strftime(&time, format).unwrap(), expected, "{format}");
        }
        assert!(strftime(&time, "%Q%").is_err());
        assert_eq!(render("{{ strftime_now('%Y')|length }}").unwrap(), "4");
    }
}
