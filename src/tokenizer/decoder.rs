//! The decoders of `tokenizer.json`, rewritten to work token by token.
//!
//! A chain of decoders has two halves. At first every token is a string of its own
//! ([`TokenStage`]); then a `Fuse`, a `ByteLevel` or the end of the chain joins them ([`Joint`]), and
//! what follows works on one growing text ([`TextStage`]). Each stage keeps back only what later
//! input can still change. A stage that needs the whole text at once (a regular expression after the
//! joint) collects it and speaks at the end.
//!
//! It does not look up ids. Source: the `decoders` module of the `tokenizers` crate, whose results
//! these stages reproduce; where that panics (stripping more than there is) they strip what there is.

use tokenizers::DecoderWrapper;

use super::text_stage::{Replacer, TextStage};
use super::token_stage::{DECODER_CLEAN_UP, TokenStage, literal_replace, metaspace_rule};
use crate::error::Result;

/// The spaces that transformers' `clean_up_tokenization` removes, in its order.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// A decoder chain together with what it holds back; cloning a fresh one starts a new text.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    tokens: Vec<TokenStage>,
    joint: Joint,
    text: Vec<TextStage>,
}

/// How tokens become one text.
#[derive(Clone, Debug)]
enum Joint {
    Concatenate,
    Spaces { first: bool },
    Bytes { pending: Vec<u8> },
}

impl Pipeline {
    /// The chain for a tokenizer's decoder; `clean_up` adds transformers' removal of spaces.
    pub(super) fn new(decoder: Option<&DecoderWrapper>, clean_up: bool) -> Result<Self> {
        let mut pipeline = match decoder {
            None => Self { tokens: vec![], joint: Joint::Spaces { first: true }, text: vec![] },
            Some(decoder) => {
                let mut flat = Vec::new();
                flatten(decoder, &mut flat);
                Self::from_chain(&flat)?
            }
        };
        if clean_up {
            pipeline.text.extend(replacements(&CLEAN_UP));
        }
        Ok(pipeline)
    }

    fn from_chain(chain: &[&DecoderWrapper]) -> Result<Self> {
        let mut tokens = Vec::new();
        let mut joint = None;
        let mut text = Vec::new();
        for decoder in chain {
            if joint.is_some() {
                text.extend(text_stages(decoder)?);
            } else {
                match decoder {
                    DecoderWrapper::Fuse(_) => joint = Some(Joint::Concatenate),
                    DecoderWrapper::ByteLevel(_) => joint = Some(Joint::Bytes { pending: Vec::new() }),
                    other => tokens.push(TokenStage::new(other)?),
                }
            }
        }
        Ok(Self { tokens, joint: joint.unwrap_or(Joint::Concatenate), text })
    }

    /// Adds a token; what is final is appended to `out`.
    pub(super) fn push(&mut self, token: String, out: &mut String) -> Result<()> {
        self.push_from(0, token, out)
    }

    /// Ends the text; what was held back is appended to `out`.
    pub(super) fn finish(mut self, out: &mut String) -> Result<()> {
        for index in 0..self.tokens.len() {
            let mut last = Vec::new();
            self.tokens[index].finish(&mut last);
            for token in last {
                self.push_from(index + 1, token, out)?;
            }
        }
        if let Joint::Bytes { pending } = &mut self.joint
            && !pending.is_empty()
        {
            pending.clear();
            self.push_text(0, "\u{FFFD}", out);
        }
        for index in 0..self.text.len() {
            let mut last = String::new();
            self.text[index].finish(&mut last)?;
            self.push_text(index + 1, &last, out);
        }
        Ok(())
    }

    /// Sends a token through the token stages from `index` on.
    fn push_from(&mut self, index: usize, token: String, out: &mut String) -> Result<()> {
        let mut tokens = vec![token];
        for stage in &mut self.tokens[index..] {
            let mut next = Vec::with_capacity(tokens.len());
            for token in tokens {
                stage.push(token, &mut next)?;
            }
            tokens = next;
        }
        for token in tokens {
            let text = self.joint.join(token);
            self.push_text(0, &text, out);
        }
        Ok(())
    }

    /// Sends text through the text stages from `index` on.
    fn push_text(&mut self, index: usize, text: &str, out: &mut String) {
        if text.is_empty() {
            return;
        }
        let Some((stage, _)) = self.text[index..].split_first_mut() else {
            out.push_str(text);
            return;
        };
        let mut next = String::new();
        stage.push(text, &mut next);
        self.push_text(index + 1, &next, out);
    }
}

impl Joint {
    fn join(&mut self, token: String) -> String {
        match self {
            Self::Concatenate => token,
            Self::Spaces { first } => {
                if std::mem::replace(first, false) {
                    token
                } else {
                    format!(" {token}")
                }
            }
            Self::Bytes { pending } => {
                push_bytes(&token, pending);
                drain_utf8(pending)
            }
        }
    }
}

/// Unrolls nested sequences.
fn flatten<'a>(decoder: &'a DecoderWrapper, out: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for inner in sequence.get_decoders() {
                flatten(inner, out);
            }
        }
        other => out.push(other),
    }
}

/// The stages for a decoder that follows the joint and so sees a single token: the whole text.
fn text_stages(decoder: &DecoderWrapper) -> Result<Vec<TextStage>> {
    let replacer = |pattern: &str, content: &str| TextStage::Replace(Replacer::new(pattern, content));
    Ok(match decoder {
        DecoderWrapper::Fuse(_) => vec![],
        DecoderWrapper::Replace(_) => match literal_replace(decoder)? {
            Some((pattern, content)) => vec![replacer(&pattern, &content)],
            None => vec![TextStage::whole(decoder)],
        },
        DecoderWrapper::Strip(strip) => vec![
            TextStage::StripStart { content: strip.content, left: strip.start },
            TextStage::StripEnd { content: strip.content, limit: strip.stop, held: 0 },
        ],
        DecoderWrapper::Metaspace(metaspace) => {
            let (replacement, dropped) = metaspace_rule(metaspace);
            vec![replacer(replacement.encode_utf8(&mut [0; 4]), if dropped { "" } else { " " })]
        }
        DecoderWrapper::WordPiece(pieces) if pieces.cleanup => replacements(&DECODER_CLEAN_UP).collect(),
        DecoderWrapper::WordPiece(_) => vec![],
        DecoderWrapper::BPE(bpe) if !bpe.suffix.is_empty() => vec![replacer(&bpe.suffix, "")],
        _ => vec![TextStage::whole(decoder)],
    })
}

fn replacements(rules: &[(&'static str, &'static str)]) -> impl Iterator<Item = TextStage> {
    rules.iter().map(|(pattern, content)| TextStage::Replace(Replacer::new(pattern, content)))
}

/// Appends the bytes that a token of a byte-level vocabulary stands for; a token with a foreign
/// character (an added token) stands for its own text.
fn push_bytes(token: &str, bytes: &mut Vec<u8>) {
    let length = bytes.len();
    for character in token.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(length);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's mapping of bytes to characters, backwards: printable bytes are themselves, the 68 others
/// are numbered from U+0100.
fn byte_of(character: char) -> Option<u8> {
    match character as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Takes whole characters off the front of `bytes`, U+FFFD for each invalid sequence, and leaves an
/// unfinished character.
fn drain_utf8(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut done = 0;
    loop {
        let rest = &bytes[done..];
        let Err(error) = std::str::from_utf8(rest) else {
            text.push_str(&String::from_utf8_lossy(rest));
            bytes.clear();
            return text;
        };
        let valid = error.valid_up_to();
        text.push_str(&String::from_utf8_lossy(&rest[..valid]));
        done += valid;
        match error.error_len() {
            Some(length) => {
                text.push('\u{FFFD}');
                done += length;
            }
            None => {
                bytes.drain(..done);
                return text;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::Decoder;

    use super::*;

    /// Tokens that the rules of some decoder care about.
    const TOKENS: [&str; 26] = [
        "a", " a", "▁", "▁▁b", "c▁", "<0xE5>", "<0x8F>", "<0xAB>", "<0x41>", "<0xF0>", "<0x20>", "##d", "##",
        "<pad>", "|", "x</w>", "</w>y", "Ġe", "Ã", "©", "ðŁ", " n't", " do not", " .", "  ", "é",
    ];

    fn decoder(json: &str) -> DecoderWrapper {
        serde_json::from_str(json).unwrap()
    }

    /// Sequences of every length up to three, then pseudo-random longer ones.
    fn sequences() -> Vec<Vec<&'static str>> {
        let mut all = vec![vec![]];
        for first in TOKENS {
            all.push(vec![first]);
            all.extend(TOKENS.map(|second| vec![first, second]));
        }
        let mut state = 1_u32;
        for length in (0..500).map(|number| 3 + number % 9) {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                TOKENS[(state >> 8) as usize % TOKENS.len()]
            };
            all.push((0..length).map(|_| next()).collect());
        }
        all
    }

    fn compare(json: &str) {
        let wrapper = decoder(json);
        for tokens in sequences().iter().filter(|tokens| !tokens.is_empty()) {
            let whole = wrapper.decode(tokens.iter().map(|token| token.to_string()).collect()).unwrap();
            let mut pipeline = Pipeline::new(Some(&wrapper), false).unwrap();
            let mut text = String::new();
            for token in tokens {
                pipeline.push(token.to_string(), &mut text).unwrap();
                assert!(whole.starts_with(&text), "{json}: {tokens:?}: {text:?} of {whole:?}");
            }
            pipeline.finish(&mut text).unwrap();
            assert_eq!(text, whole, "{json}: {tokens:?}");
        }
    }

    const REPLACE: &str = r#"{"type":"Replace","pattern":{"String":"▁"},"content":" "}"#;
    const PATTERN: &str = r#"{"type":"Replace","pattern":{"Regex":"[a-c]+"},"content":"<>"}"#;
    const FALLBACK: &str = r#"{"type":"ByteFallback"}"#;
    const FUSE: &str = r#"{"type":"Fuse"}"#;
    const BYTES: &str =
        r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#;
    const PIECES: &str = r###"{"type":"WordPiece","prefix":"##","cleanup":true}"###;
    const PLAIN_PIECES: &str = r###"{"type":"WordPiece","prefix":"##","cleanup":false}"###;
    const CTC: &str = r#"{"type":"CTC","pad_token":"<pad>","word_delimiter_token":"|","cleanup":true}"#;
    const SUFFIX: &str = r#"{"type":"BPEDecoder","suffix":"</w>"}"#;
    const METASPACE: &str =
        r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}"#;
    const NEVER: &str = r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"never","split":true}"#;
    const STRIP: &str = r#"{"type":"Strip","content":" ","start":1,"stop":0}"#;

    #[test]
    fn streams_equal_the_crates_decoders() {
        for alone in [
            REPLACE,
            PATTERN,
            FALLBACK,
            FUSE,
            BYTES,
            PIECES,
            PLAIN_PIECES,
            CTC,
            SUFFIX,
            METASPACE,
            NEVER,
            STRIP,
        ] {
            compare(alone);
            // The same rule before and after the tokens are joined, and in longer chains.
            for chain in [
                format!("{alone},{FUSE}"),
                format!("{FUSE},{alone}"),
                format!("{BYTES},{alone}"),
                format!("{REPLACE},{FALLBACK},{alone}"),
                format!("{REPLACE},{FALLBACK},{FUSE},{STRIP},{alone}"),
            ] {
                compare(&format!(r#"{{"type":"Sequence","decoders":[{chain}]}}"#));
            }
        }
    }

    #[test]
    fn strips_both_ends() {
        let wrapper = decoder(
            r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip","content":" ","start":2,"stop":2}]}"#,
        );
        for (tokens, expected) in [
            (vec!["   a ", " ", " b  ", " "], " a   b "),
            (vec![" ", "a", " "], "a"),
            (vec![" ", " ", " "], ""),
            (vec![], ""),
        ] {
            let mut pipeline = Pipeline::new(Some(&wrapper), false).unwrap();
            let mut text = String::new();
            for token in tokens {
                pipeline.push(token.to_string(), &mut text).unwrap();
            }
            pipeline.finish(&mut text).unwrap();
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn bytes_and_characters_match() {
        let characters: Vec<char> =
            (0..0x3000).filter_map(char::from_u32).filter(|c| byte_of(*c).is_some()).collect();
        let mut bytes: Vec<u8> = characters.iter().filter_map(|&character| byte_of(character)).collect();
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert!(characters.iter().all(|character| alphabet.contains(character)) && characters.len() == 256);
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }
}
