//! What GGUF calls things, and what Hugging Face calls them.
//!
//! The architecture names are part of the format: they decide the prefix of the metadata keys, and whether the rows
//! of the query and key projections were reordered by the converter.

/// An architecture that can be translated.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`, and the prefix of its keys.
    pub(super) name: &'static str,
    /// `architectures` of `config.json`.
    pub(super) class: &'static str,
    /// Rows of a rotated head lie as pairs (0, d/2, 1, d/2+1, …) and not as halves.
    pub(super) interleaved: bool,
    /// Biases on q, k and v are implied, not a setting.
    pub(super) implied_bias: bool,
}

pub(super) const ARCHITECTURES: [Architecture; 3] = [
    Architecture { name: "llama", class: "LlamaForCausalLM", interleaved: true, implied_bias: false },
    Architecture { name: "qwen2", class: "Qwen2ForCausalLM", interleaved: false, implied_bias: true },
    Architecture { name: "qwen3", class: "Qwen3ForCausalLM", interleaved: false, implied_bias: false },
];

/// A windowed model of the first architecture is known by another name elsewhere.
pub(super) const WINDOWED: (&str, &str) = ("mistral", "MistralForCausalLM");

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const HEAD: &str = "output.weight";
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

const TOP: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The Hugging Face name of a GGUF tensor, where there is one.
pub(super) fn to_hugging_face(name: &str) -> Option<String> {
    let (stem, suffix) = split_suffix(name)?;
    if let Some((_, long)) = TOP.iter().find(|(short, _)| *short == stem) {
        return Some(format!("{long}.{suffix}"));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let (_, long) = BLOCK.iter().find(|(short, _)| *short == part)?;
    is_number(layer).then(|| format!("model.layers.{layer}.{long}.{suffix}"))
}

/// The GGUF name of a Hugging Face tensor, where there is one.
pub(super) fn from_hugging_face(name: &str) -> Option<String> {
    let (stem, suffix) = split_suffix(name)?;
    if let Some((short, _)) = TOP.iter().find(|(_, long)| *long == stem) {
        return Some(format!("{short}.{suffix}"));
    }
    let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    let (short, _) = BLOCK.iter().find(|(_, long)| *long == part)?;
    is_number(layer).then(|| format!("blk.{layer}.{short}.{suffix}"))
}

fn split_suffix(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, suffix)| ["weight", "bias"].contains(suffix))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Which rotated heads a stored tensor holds: `Some(true)` those of the queries, `Some(false)` those of the keys.
pub(super) fn rotated(name: &str) -> Option<bool> {
    let part = name.strip_prefix("blk.")?.split('.').nth(1)?;
    match part {
        "attn_q" => Some(true),
        "attn_k" => Some(false),
        _ => None,
    }
}

/// Where each row of the halves order lies in the pairs order.
///
/// A head of `d` rows is stored as (0, d/2, 1, d/2+1, …): halves row `half · d/2 + i` is pairs row `2 i + half`.
pub(super) fn pairs_row(row: usize, head_rows: usize) -> usize {
    let (head, inside) = (row / head_rows, row % head_rows);
    let half = head_rows / 2;
    head * head_rows + 2 * (inside % half) + inside / half
}
