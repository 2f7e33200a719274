//! A Rust source file as the layering rules see it: without comments, without strings, as import paths.
//!
//! It is a lexer for these rules, not a parser: it knows where comments, strings and blocks begin and end.

/// One file under `src/`.
pub(super) struct Source {
    /// The path relative to `src/`, with `/`.
    pub(super) path: String,
    /// The text as written.
    pub(super) text: String,
    /// The text with comments blanked.
    pub(super) code: String,
    /// The text with comments and the contents of strings blanked.
    pub(super) bare: String,
}

/// A path such as `crate::nn::{Linear, rope::Kind}` taken apart: one of `nn::Linear`, `nn::rope::Kind`.
#[derive(Debug, PartialEq)]
pub(super) struct Import {
    pub(super) line: usize,
    pub(super) names: Vec<String>,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let (code, bare) = blank(text);
        Self { path: path.to_owned(), text: text.to_owned(), code, bare }
    }

    /// The room: the first folder, or the file of that name.
    pub(super) fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The line of a byte of the text, counted from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// `src/path:line: message`.
    pub(super) fn problem(&self, offset: usize, message: impl std::fmt::Display) -> String {
        format!("src/{}:{}: {message}", self.path, self.line(offset))
    }

    /// Where `word` stands as a whole word in `text`, one of the views of this file.
    pub(super) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        text.match_indices(word).map(|(offset, _)| offset).filter(move |&offset| {
            let before = text[..offset].chars().next_back();
            let after = text[offset + word.len()..].chars().next();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
    }

    /// Every path that starts with the word `root`, in imports and elsewhere, without that word.
    pub(super) fn imports(&self, root: &str) -> Vec<Import> {
        let mut imports = Vec::new();
        for offset in Self::words(&self.bare, root) {
            if let Some(rest) = self.bare[offset + root.len()..].trim_start().strip_prefix("::") {
                let mut paths = Vec::new();
                tree(rest, &mut Vec::new(), &mut paths);
                let line = self.line(offset);
                imports.extend(paths.into_iter().map(|names| Import { line, names }));
            }
        }
        imports
    }

    /// How many modules deep the code at `offset` is: 1 in `room.rs` and `room/mod.rs`.
    pub(super) fn depth(&self, offset: usize) -> usize {
        let parts: Vec<&str> = self.path.split('/').collect();
        let files = parts.len() - usize::from(parts.last() == Some(&"mod.rs"));
        let modules = self.blocks_around(offset).into_iter().filter(|head| has_word(head, "mod"));
        files + modules.count()
    }

    /// What stands before the `{` of each block around `offset`, outermost first.
    pub(super) fn blocks_around(&self, offset: usize) -> Vec<&str> {
        let mut heads = Vec::new();
        let mut start = 0;
        for (index, byte) in self.bare.bytes().enumerate().take(offset) {
            match byte {
                b'{' => heads.push(&self.bare[start..index]),
                b'}' => drop(heads.pop()),
                b';' => {}
                _ => continue,
            }
            start = index + 1;
        }
        heads
    }
}

/// Whether `word` stands in `text` as a whole word.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    Source::words(text, word).next().is_some()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reads one tree of a `use`, and returns what follows it.
fn tree<'a>(text: &'a str, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(rest) = rest.strip_prefix('}') {
                return rest;
            }
            let after = tree(rest, prefix, paths).trim_start();
            let after = after
                .strip_prefix("as ")
                .map_or(after, |alias| alias.trim_start().trim_start_matches(is_word).trim_start());
            rest = after.strip_prefix(',').unwrap_or(after);
            if rest.len() == after.len() && !rest.starts_with('}') {
                return rest; // not a list that Rust would accept
            }
        }
    }
    let end = text.find(|c: char| !is_word(c) && c != '*').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        if !prefix.is_empty() {
            paths.push(prefix.clone()); // a turbofish
        }
        return rest;
    }
    if name == "self" {
        paths.push(prefix.clone());
        return rest;
    }
    prefix.push(name.to_owned());
    let after = match rest.trim_start().strip_prefix("::") {
        Some(deeper) => tree(deeper, prefix, paths),
        None => {
            paths.push(prefix.clone());
            rest
        }
    };
    prefix.pop();
    after
}

/// The text with comments blanked, and the same with the contents of strings blanked too.
fn blank(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let (mut code, mut bare) = (bytes.to_vec(), bytes.to_vec());
    let clear = |view: &mut [u8], from: usize, to: usize| {
        view[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        if rest.starts_with(b"//") || rest.starts_with(b"/*") {
            let end = at + comment_length(rest);
            clear(&mut code, at, end);
            clear(&mut bare, at, end);
            at = end;
        } else if let Some((open, length)) = string_length(rest, word_before) {
            let end = (at + length).min(bytes.len());
            clear(&mut bare, (at + open).min(end), end.saturating_sub(1).max((at + open).min(end)));
            at = end;
        } else {
            at += 1;
        }
    }
    let view = |bytes: Vec<u8>| String::from_utf8(bytes).expect("whole characters are blanked");
    (view(code), view(bare))
}

fn comment_length(text: &[u8]) -> usize {
    if text.starts_with(b"//") {
        return text.iter().position(|&byte| byte == b'\n').unwrap_or(text.len());
    }
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of a string or character literal at the start of `text`, after the length of its opening.
fn string_length(text: &[u8], word_before: bool) -> Option<(usize, usize)> {
    let prefix = if word_before { 0 } else { text.iter().take_while(|b| b"bcr".contains(b)).count() };
    let raw = text[..prefix].contains(&b'r');
    let hashes = if raw { text[prefix..].iter().take_while(|&&b| b == b'#').count() } else { 0 };
    let open = prefix + hashes + 1;
    match text.get(prefix + hashes)? {
        b'"' if raw => {
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let end = text[open..].windows(close.len()).position(|window| window == close);
            Some((open, end.map_or(text.len(), |end| open + end + close.len())))
        }
        b'"' => Some((open, open + escaped_length(&text[open..], b'"'))),
        // A lifetime has no closing quote after its first character.
        b'\'' if !raw => {
            let first = std::str::from_utf8(&text[open..(open + 4).min(text.len())])
                .or_else(|e| std::str::from_utf8(&text[open..open + e.valid_up_to()]))
                .ok()?
                .chars()
                .next()?;
            if first == '\\' || text.get(open + first.len_utf8()) == Some(&b'\'') {
                Some((open, open + escaped_length(&text[open..], b'\'')))
            } else {
                None
            }
        }
        _ => None,
    }
}

/// The length up to and with the closing `quote`, skipping what a backslash escapes.
fn escaped_length(text: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < text.len() && text[at] != quote {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

#[test]
fn comments_and_strings_are_blanked() {
    let source = Source::new(
        "a.rs",
        "let a = \"// no\"; // yes\n/* b /* c */ d */ let 'x' = r#\"unsafe \"e\" \"#; f::<'a>('\\'', '\"', b\"g\"); é",
    );
    assert_eq!(
        source.code,
        "let a = \"// no\";       \n                  let 'x' = r#\"unsafe \"e\" \"#; f::<'a>('\\'', '\"', b\"g\"); é"
    );
    assert_eq!(source.bare.len(), source.text.len());
    assert!(
        !source.bare.contains("unsafe") && !source.bare.contains("no") && source.bare.contains("f::<'a>(")
    );
    assert!(source.bare.ends_with("; é"));
}

#[test]
fn imports_are_taken_apart() {
    let text = "use crate::{Error, nn::{self, rope::{Kind, scale as s}, x}};\nlet a = crate::weight::dense::<u8>();\nuse crate::models::*; // crate::no";
    let source = Source::new("a.rs", text);
    let names: Vec<String> = source.imports("crate").iter().map(|i| i.names.join("::")).collect();
    assert_eq!(
        names,
        ["Error", "nn", "nn::rope::Kind", "nn::rope::scale", "nn::x", "weight::dense", "models::*"]
    );
    assert_eq!(source.imports("crate").last().unwrap().line, 3);
}

#[test]
fn depth_counts_files_and_modules() {
    let text = "fn f() { if x {} }\nmod tests { fn g() { here } }";
    let at = text.find("here").unwrap();
    assert_eq!(Source::new("nn/mod.rs", text).depth(at), 2);
    assert_eq!(Source::new("nn/rope.rs", text).depth(0), 2);
    assert_eq!(Source::new("error.rs", text).depth(at), 2);
}
