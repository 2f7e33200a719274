//! Which tensors an adapter of some configuration has at some site, under which names and of which shapes.
//!
//! Reading, training and writing all follow this one table. Names are those of PEFT's files below a module's path.

use super::target::Matcher;
use super::{LoraConfig, Site, SiteKind, code};

/// The first factor, `[rank, in]`.
pub(super) const A: &str = "lora_A.weight";
/// The second factor, `[out, rank]`.
pub(super) const B: &str = "lora_B.weight";
/// The second factor's own bias, `[out]`.
pub(super) const B_BIAS: &str = "lora_B.bias";
/// The first factor of an embedding, `[rank, vocab]`.
pub(super) const EMBEDDING_A: &str = "lora_embedding_A";
/// The second factor of an embedding, `[hidden, rank]`.
pub(super) const EMBEDDING_B: &str = "lora_embedding_B";
/// DoRA's lengths, `[out]`.
pub(super) const MAGNITUDE: &str = "lora_magnitude_vector";
/// A replacement of an adapted layer's bias, `[out]`.
pub(super) const BASE_BIAS: &str = "base_layer.bias";
/// A copy of an adapted layer's weight, which PEFT writes for embeddings and heads.
pub(super) const BASE_WEIGHT: &str = "base_layer.weight";
/// A replacement of another layer's bias, `[out]`.
pub(super) const BIAS: &str = "bias";
/// A replacement of a layer's weight.
pub(super) const WEIGHT: &str = "weight";

/// All names; none is the end of another after a dot, except that longer ones come first.
pub(super) const SUFFIXES: &[&str] =
    &[A, B, B_BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, BASE_BIAS, BASE_WEIGHT, BIAS, WEIGHT];

/// A problem with one of the codes of [`code`].
pub(super) type Problem = (&'static str, String);

/// What belongs to one site.
pub(super) struct Layout {
    /// Names and shapes; empty where the adapter leaves the site alone.
    pub(super) tensors: Vec<(&'static str, Vec<usize>)>,
    /// Whether the site gets low-rank factors.
    pub(super) is_target: bool,
    /// The factor on the low-rank change.
    pub(super) scaling: f64,
}

/// The layout of `site`, whose path the configuration knows as `path`; a problem where it cannot be honoured.
pub(super) fn layout(
    config: &LoraConfig,
    matcher: &Matcher,
    site: &Site,
    path: &str,
) -> crate::Result<Result<Layout, Problem>> {
    let (out, inn) = site.weight.shape();
    let is_target = matcher.is_target(path, site.kind)?;
    let mut tensors: Vec<(&'static str, Vec<usize>)> = Vec::new();
    let mut scaling = 1.0;
    if is_target {
        let rank = matcher.rank(path)?;
        scaling = matcher.scaling(path)?;
        if site.kind == SiteKind::Embedding {
            if config.use_dora || config.lora_bias {
                let problem = format!("{path}: DoRA and lora_bias are not supported on an embedding");
                return Ok(Err((code::UNSUPPORTED_KIND, problem)));
            }
            // An embedding is stored as [vocab, hidden].
            tensors.extend([(EMBEDDING_A, vec![rank, out]), (EMBEDDING_B, vec![inn, rank])]);
        } else {
            tensors.extend([(A, vec![rank, inn]), (B, vec![out, rank])]);
            if config.lora_bias {
                tensors.push((B_BIAS, vec![out]));
            }
            if config.use_dora {
                tensors.push((MAGNITUDE, vec![out]));
            }
        }
    } else if matcher.is_saved_whole(path)? {
        tensors.push((WEIGHT, vec![out, inn]));
        if site.bias.is_some() {
            tensors.push((BIAS, vec![out]));
        }
        return Ok(Ok(Layout { tensors, is_target, scaling }));
    }
    if site.bias.is_some() && matcher.replaces_bias(is_target) {
        tensors.push((if is_target { BASE_BIAS } else { BIAS }, vec![out]));
    }
    Ok(Ok(Layout { tensors, is_target, scaling }))
}

/// Splits the name of a tensor in a file into the path of its module and one of [`SUFFIXES`].
pub(super) fn split(name: &str) -> Option<(&str, &'static str)> {
    let mut found: Option<(&str, &'static str)> = None;
    for suffix in SUFFIXES {
        if let Some(path) = name.strip_suffix(suffix).and_then(|path| path.strip_suffix('.'))
            && found.is_none_or(|(_, other)| other.len() < suffix.len())
        {
            found = Some((path, suffix));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_their_longest_suffix() {
        assert_eq!(
            split("model.layers.0.self_attn.q_proj.lora_A.weight"),
            Some(("model.layers.0.self_attn.q_proj", A))
        );
        assert_eq!(split("a.base_layer.bias"), Some(("a", BASE_BIAS)));
        assert_eq!(split("a.lora_B.bias"), Some(("a", B_BIAS)));
        assert_eq!(split("lm_head.weight"), Some(("lm_head", WEIGHT)));
        assert_eq!(split("weight"), None);
        assert_eq!(split("a.lora_C.odd"), None);
    }
}
