//! The vocabulary of a GGUF file as a `tokenizers` pipeline.
//!
//! Two kinds are known: byte-level BPE ("gpt2", with the pre-tokenizer that `tokenizer.ggml.pre` names) and
//! SentencePiece's BPE ("llama", whose merges follow from the scores of the tokens). Other kinds are refused by name.

use std::collections::{BTreeMap, HashMap};

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizerSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::metadata::{GgufMetadata, GgufValue};
use super::pre_tokenizer;
use crate::{Error, Result};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const TEMPLATE: &str = "tokenizer.chat_template";

/// SentencePiece's stand-in for a space.
const SPACE: &str = "\u{2581}";
/// Every token of a real vocabulary comes from one or two pairs; far more means a file made to exhaust memory.
const MAX_MERGES_PER_TOKEN: usize = 32;
/// Longer tokens of a vocabulary with scores are not worth the quadratic search for their parts.
const MAX_SCORED_BYTES: usize = 512;

/// Control tokens that end a text, whatever the file says of them.
pub(super) const ENDS: [&str; 8] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
];

/// A vocabulary and what the file says beside it.
#[derive(Debug, Clone)]
pub struct GgufTokenizer {
    /// The pipeline, which adds the special tokens that the file asks for.
    pub tokenizer: Tokenizer,
    /// `bos_token`, `eos_token`, `unk_token`, `pad_token` and their text.
    pub named_tokens: BTreeMap<String, String>,
    /// All ids that end a text.
    pub end_token_ids: Vec<u32>,
    /// Chat templates by name; the usual one is called `"default"`.
    pub chat_templates: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

struct Token<'a> {
    id: u32,
    text: &'a str,
    kind: Kind,
    score: f64,
}

pub(super) fn build(metadata: &GgufMetadata) -> Result<GgufTokenizer> {
    let tokens = read_tokens(metadata)?;
    let (mut tokenizer, add_bos) = match metadata.string(MODEL)? {
        Some("gpt2") => byte_level(metadata, &tokens)?,
        Some("llama") => sentence_piece(metadata, &tokens)?,
        Some(other) => {
            let reason =
                format!("got {other:?}, expected \"gpt2\" or \"llama\"; load the Hugging Face files instead");
            return Err(metadata.invalid(MODEL, reason));
        }
        None => return Err(metadata.invalid(MODEL, "missing; the file holds no tokenizer")),
    };
    let special = Special::read(metadata)?;
    add_tokens(&mut tokenizer, &tokens, &special)?;
    let text = |id: u32| tokens.get(id as usize).map_or("", |t| t.text);
    let bos = special.bos.filter(|_| special.add_bos.unwrap_or(add_bos));
    let eos = special.eos.filter(|_| special.add_eos.unwrap_or(false));
    if bos.is_some() || eos.is_some() {
        tokenizer
            .with_post_processor(Some(template(bos.map(|id| (id, text(id))), eos.map(|id| (id, text(id))))?));
    }
    let names = [
        ("bos_token", special.bos),
        ("eos_token", special.eos),
        ("unk_token", special.unk),
        ("pad_token", special.pad),
    ];
    let named_tokens =
        names.into_iter().filter_map(|(name, id)| Some((name.to_string(), text(id?).to_string()))).collect();
    Ok(GgufTokenizer {
        tokenizer,
        named_tokens,
        end_token_ids: end_ids(metadata)?,
        chat_templates: chat_templates(metadata)?,
    })
}

/// The ids of all tokens that end a text: those the file names, and control tokens that are known to.
pub(super) fn end_ids(metadata: &GgufMetadata) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(token_id(metadata, name)?);
    }
    if let (Some(tokens), Some(types)) = (metadata.array(TOKENS)?, metadata.array(TYPES)?) {
        for (id, (token, kind)) in tokens.iter().zip(types.iter()).enumerate() {
            let ends = kind.as_u64() == Some(3) && token.as_str().is_some_and(|t| ENDS.contains(&t));
            if let Some(id) = u32::try_from(id).ok().filter(|_| ends) {
                ids.push(id);
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

/// The id of a role; a vocabulary with scores has its first three tokens in a fixed order.
fn token_id(metadata: &GgufMetadata, name: &str) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let tokens = metadata.array(TOKENS)?.map_or(usize::MAX, |tokens| tokens.len());
    let usual = match name {
        "unknown" => Some(0),
        "bos" => Some(1),
        "eos" => Some(2),
        _ => None,
    };
    let scored = metadata.string(MODEL)? == Some("llama");
    let usual = usual.filter(|&id| scored && (id as usize) < tokens);
    // Some converters wrote -1 or 4294967295 for a token that does not exist.
    if matches!(metadata.get(&key), Some(GgufValue::Integer(-1 | 0xffff_ffff))) {
        return Ok(usual);
    }
    let Some(id) = metadata.unsigned(&key)? else { return Ok(usual) };
    match u32::try_from(id) {
        Ok(id) if (id as usize) < tokens => Ok(Some(id)),
        _ => Err(metadata.invalid(&key, format!("got {id}, the vocabulary has {tokens} tokens"))),
    }
}

/// The tokens with a role.
struct Special {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
}

impl Special {
    fn read(metadata: &GgufMetadata) -> Result<Self> {
        Ok(Self {
            bos: token_id(metadata, "bos")?,
            eos: token_id(metadata, "eos")?,
            unk: token_id(metadata, "unknown")?,
            pad: token_id(metadata, "padding")?,
            add_bos: metadata.boolean("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.boolean("tokenizer.ggml.add_eos_token")?,
        })
    }
}

fn read_tokens(metadata: &GgufMetadata) -> Result<Vec<Token<'_>>> {
    let tokens = metadata.array(TOKENS)?.ok_or_else(|| metadata.invalid(TOKENS, "missing"))?;
    let mut types = per_token(metadata, TYPES, tokens.len())?;
    let mut scores = per_token(metadata, SCORES, tokens.len())?;
    let mut list = Vec::new();
    for (id, value) in tokens.iter().enumerate() {
        let text = value
            .as_str()
            .ok_or_else(|| metadata.invalid(TOKENS, format!("token {id} is not UTF-8 text")))?;
        let id = u32::try_from(id).map_err(|_| metadata.invalid(TOKENS, "more tokens than ids"))?;
        let kind = match types.as_mut().and_then(Iterator::next).and_then(|v| v.as_u64()) {
            Some(2) => Kind::Unknown,
            Some(3) => Kind::Control,
            Some(4) => Kind::UserDefined,
            Some(5) => Kind::Unused,
            Some(6) => Kind::Byte,
            _ => Kind::Normal,
        };
        let score = scores.as_mut().and_then(Iterator::next).and_then(|v| v.as_f64()).unwrap_or(0.0);
        list.push(Token { id, text, kind, score });
    }
    Ok(list)
}

fn per_token<'a>(
    metadata: &'a GgufMetadata,
    key: &str,
    tokens: usize,
) -> Result<Option<impl Iterator<Item = GgufValue<'a>> + use<'a>>> {
    match metadata.array(key)? {
        Some(array) if array.len() != tokens => {
            Err(metadata.invalid(key, format!("{} entries for {tokens} tokens", array.len())))
        }
        Some(array) => Ok(Some(array.iter())),
        None => Ok(None),
    }
}

/// Token texts to ids; fillers of a padded vocabulary stand for nothing.
fn vocabulary<'a>(metadata: &GgufMetadata, tokens: &[Token<'a>]) -> Result<HashMap<&'a str, u32>> {
    let mut vocabulary = HashMap::with_capacity(tokens.len());
    for token in tokens.iter().filter(|t| t.kind != Kind::Unused && !t.text.is_empty()) {
        if let Some(first) = vocabulary.insert(token.text, token.id) {
            let reason = format!("token {:?} has the ids {first} and {}", token.text, token.id);
            return Err(metadata.invalid(TOKENS, reason));
        }
    }
    Ok(vocabulary)
}

fn owned(vocabulary: &HashMap<&str, u32>) -> Vocab {
    vocabulary.iter().map(|(text, id)| (text.to_string(), *id)).collect()
}

fn byte_level(metadata: &GgufMetadata, tokens: &[Token<'_>]) -> Result<(Tokenizer, bool)> {
    let name = metadata.string(PRE)?.unwrap_or_else(|| {
        log::warn!(
            "the GGUF file does not name its pre-tokenizer; text may be split in another way than in training"
        );
        "default"
    });
    let Some(rules) = pre_tokenizer::find(name) else {
        return Err(
            metadata.invalid(PRE, format!("{name:?} is not known; known: {}", pre_tokenizer::known()))
        );
    };
    let vocabulary = vocabulary(metadata, tokens)?;
    let array = metadata.array(MERGES)?.ok_or_else(|| metadata.invalid(MERGES, "missing"))?;
    let mut merges = Vec::new();
    let mut joined = String::new();
    for (rank, value) in array.iter().enumerate() {
        let text = value
            .as_str()
            .ok_or_else(|| metadata.invalid(MERGES, format!("entry {rank} is not UTF-8 text")))?;
        // The first part may itself begin with a space.
        let space = text.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let Some((left, right)) = space.map(|at| (&text[..at], &text[at + 1..])) else {
            return Err(metadata.invalid(MERGES, format!("entry {rank} is not a pair: {text:?}")));
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        // A pair whose parts or whole are no tokens can never apply.
        if [left, right, &joined].iter().all(|part| vocabulary.contains_key(part)) {
            merges.push((left.to_string(), right.to_string()));
        }
    }
    let model = BPE::builder().vocab_and_merges(owned(&vocabulary), merges);
    let model = model.ignore_merges(rules.ignore_merges).build().map_err(internal)?;
    let mut tokenizer = Tokenizer::new(model);
    if rules.composed {
        tokenizer.with_normalizer(Some(NFC)).map_err(internal)?;
    }
    let mut stages: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in rules.patterns {
        let pattern = SplitPattern::Regex(pattern.to_string());
        stages.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(internal)?.into());
    }
    stages.push(ByteLevel::new(false, true, false).into());
    tokenizer.with_pre_tokenizer(Some(PreTokenizerSequence::new(stages)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok((tokenizer, rules.add_bos))
}

fn sentence_piece(metadata: &GgufMetadata, tokens: &[Token<'_>]) -> Result<(Tokenizer, bool)> {
    if metadata.array(SCORES)?.is_none() {
        return Err(metadata.invalid(SCORES, "missing"));
    }
    let vocabulary = vocabulary(metadata, tokens)?;
    let merges = merges_by_score(metadata, tokens, &vocabulary)?;
    let mut model =
        BPE::builder().vocab_and_merges(owned(&vocabulary), merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = tokens.iter().find(|t| t.kind == Kind::Unknown) {
        model = model.unk_token(unknown.text.to_string());
    }
    let mut tokenizer = Tokenizer::new(model.build().map_err(internal)?);
    let prefix = metadata.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        normalizers.push(Prepend::new(SPACE.to_string()).into());
    }
    normalizers.push(Replace::new(" ", SPACE).map_err(internal)?.into());
    tokenizer.with_normalizer(Some(NormalizerSequence::new(normalizers))).map_err(internal)?;
    let mut decoders = vec![
        Replace::new(SPACE, " ").map_err(internal)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
    Ok((tokenizer, true))
}

/// SentencePiece joins the pair whose result has the best score; as ranked merges, all pairs of the better token come
/// first, and among the pairs of one token or of equals the longer left part.
fn merges_by_score(
    metadata: &GgufMetadata,
    tokens: &[Token<'_>],
    vocabulary: &HashMap<&str, u32>,
) -> Result<Vec<(String, String)>> {
    let mut found: Vec<(f64, usize, usize, u32, u32)> = Vec::new();
    let joins = |token: &&Token<'_>| matches!(token.kind, Kind::Normal | Kind::UserDefined);
    for token in tokens.iter().filter(joins) {
        if token.text.len() > MAX_SCORED_BYTES {
            let reason = format!(
                "token {} has {} bytes, at most {MAX_SCORED_BYTES} are supported",
                token.id,
                token.text.len()
            );
            return Err(metadata.invalid(TOKENS, reason));
        }
        let length = token.text.chars().count();
        let first = found.len();
        for (characters, (at, _)) in token.text.char_indices().enumerate().skip(1) {
            let (left, right) = token.text.split_at(at);
            if let (Some(&left), Some(&right)) = (vocabulary.get(left), vocabulary.get(right)) {
                found.push((token.score, characters, length - characters, left, right));
            }
        }
        found[first..].sort_by_key(|&(.., left, right)| (left, right));
        if found.len() > MAX_MERGES_PER_TOKEN * tokens.len() {
            return Err(metadata.invalid(TOKENS, "the tokens are parts of each other in too many ways"));
        }
    }
    // Stable, so that equals keep the order of their ids.
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    let text = |id: u32| tokens.get(id as usize).map_or("", |t| t.text).to_string();
    Ok(found.into_iter().map(|(.., left, right)| (text(left), text(right))).collect())
}

/// Tokens that are found in a text before anything else.
fn add_tokens(tokenizer: &mut Tokenizer, tokens: &[Token<'_>], special: &Special) -> Result<()> {
    let named = [special.bos, special.eos, special.unk, special.pad];
    let added = tokens.iter().filter(|t| !t.text.is_empty()).filter_map(|token| {
        let is_special =
            token.kind == Kind::Control || token.kind == Kind::Unknown || named.contains(&Some(token.id));
        let added = (is_special || token.kind == Kind::UserDefined) && token.kind != Kind::Unused;
        added.then(|| AddedToken::from(token.text, is_special).normalized(false))
    });
    let added: Vec<AddedToken> = added.collect();
    tokenizer.add_tokens(added).map(drop).map_err(internal)
}

fn template(bos: Option<(u32, &str)>, eos: Option<(u32, &str)>) -> Result<TemplateProcessing> {
    let mut single = vec!["$A"];
    let mut pair = vec!["$A", "$B:1"];
    let mut tokens = Vec::new();
    if let Some((id, text)) = bos {
        single.insert(0, "bos");
        pair.splice(0..0, ["bos"]);
        pair.insert(2, "bos:1");
        tokens
            .push(SpecialToken::new("bos".to_string(), vec![id], vec![text.to_string()]).map_err(internal)?);
    }
    if let Some((id, text)) = eos {
        single.push("eos");
        let middle = pair.iter().position(|p| *p == "$A").map_or(1, |at| at + 1);
        pair.insert(middle, "eos");
        pair.push("eos:1");
        tokens
            .push(SpecialToken::new("eos".to_string(), vec![id], vec![text.to_string()]).map_err(internal)?);
    }
    TemplateProcessing::builder()
        .try_single(single)
        .and_then(|builder| builder.try_pair(pair))
        .map_err(internal)?
        .special_tokens(tokens)
        .build()
        .map_err(internal)
}

fn chat_templates(metadata: &GgufMetadata) -> Result<BTreeMap<String, String>> {
    let mut templates = BTreeMap::new();
    if let Some(text) = metadata.string(TEMPLATE)? {
        templates.insert("default".to_string(), text.to_string());
    }
    for key in metadata.keys() {
        if let Some(name) = key.strip_prefix(TEMPLATE).and_then(|rest| rest.strip_prefix('.'))
            && let Some(text) = metadata.string(key)?
        {
            templates.insert(name.to_string(), text.to_string());
        }
    }
    Ok(templates)
}

fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::internal("building the tokenizer of a GGUF file", source)
}
