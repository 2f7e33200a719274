//! How a byte-level vocabulary splits text before merging, by the name in `tokenizer.ggml.pre`.
//!
//! The patterns are those of the `tokenizer.json` files the names stand for. A pattern of a name that is missing here
//! cannot be guessed: text would be split in another way than the model was trained on.

/// What a name stands for.
pub(super) struct PreTokenizer {
    /// Applied one after the other to the pieces the one before it left.
    pub(super) patterns: &'static [&'static str],
    /// A piece that is a token as a whole is not merged from its parts.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with the beginning-of-sequence token where the file does not say.
    pub(super) add_bos: bool,
    /// Whether text is brought into Unicode's composed form first.
    pub(super) composed: bool,
}

pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Up to three digits together.
const DIGITS_3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Every digit alone.
const DIGITS_1: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Every digit alone, combining marks with their letters.
const MARKS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Words split where lower case turns into upper case.
const CASES: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const PLAIN: PreTokenizer =
    PreTokenizer { patterns: &[GPT2], ignore_merges: false, add_bos: false, composed: false };

/// Names that share their rules.
const KNOWN: [(&[&str], PreTokenizer); 10] = [
    (
        &["default"],
        PreTokenizer {
            patterns: &[
                r"[\p{P}\$\+<=>\^~\|]+",
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
                r"\p{N}+",
                r"[0-9][0-9][0-9]",
            ],
            ..PLAIN
        },
    ),
    (&["gpt-2", "phi-2", "a.x-4.0", "mellum", "trillion"], PLAIN),
    (&["smollm", "starcoder", "refact", "minerva-7b"], PreTokenizer { patterns: &[r"\p{N}", GPT2], ..PLAIN }),
    (
        &["llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0"],
        PreTokenizer { patterns: &[DIGITS_3], ignore_merges: true, add_bos: true, ..PLAIN },
    ),
    (&["smaug-bpe"], PreTokenizer { patterns: &[DIGITS_3], ..PLAIN }),
    (&["qwen2"], PreTokenizer { patterns: &[DIGITS_1], composed: true, ..PLAIN }),
    (&["deepseek-r1-qwen", "megrez", "kormo"], PreTokenizer { patterns: &[DIGITS_1], ..PLAIN }),
    (&["qwen35"], PreTokenizer { patterns: &[MARKS], composed: true, ..PLAIN }),
    (&["tekken"], PreTokenizer { patterns: &[CASES], ignore_merges: true, add_bos: true, ..PLAIN }),
    (
        &["deepseek-coder"],
        PreTokenizer {
            patterns: &[
                r"[\r\n]",
                r"\s?\p{L}+",
                r"\s?\p{P}+",
                "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+",
                r"\p{N}",
            ],
            ..PLAIN
        },
    ),
];

pub(super) fn find(name: &str) -> Option<&'static PreTokenizer> {
    KNOWN.iter().find(|(names, _)| names.contains(&name)).map(|(_, rules)| rules)
}

pub(super) fn known() -> String {
    let names: Vec<&str> = KNOWN.iter().flat_map(|(names, _)| names.iter().copied()).collect();
    names.join(", ")
}

/// The name that llama.cpp knows for a way to split text; every use of it says itself whether a text begins with a token.
pub(super) fn name_of(patterns: &[&str], ignore_merges: bool, composed: bool) -> Option<&'static str> {
    let fits = |rules: &PreTokenizer| {
        rules.patterns == patterns && rules.ignore_merges == ignore_merges && rules.composed == composed
    };
    let (names, _) = KNOWN.iter().find(|(_, rules)| fits(rules))?;
    names.first().copied()
}
