//! Which matrix gets which format when a model is quantised: llama.cpp's recipes, by their names.
//!
//! It encodes nothing: formats and their encoders are the weights' business. Norms and biases are never quantised.
//! Source: <https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp>.

use std::sync::Arc;

use candle_core::DType;

use super::Model;
use crate::nn::{DecoderConfig, Embedding, Linear};
use crate::weight::{BlockFormat, FORMATS, Format, GgmlWeight, Weight};
use crate::{Error, Result};

/// How a recipe treats the matrices that matter most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    /// All alike.
    None,
    Small,
    Medium,
    Large,
}

/// Names of recipes beside those of the plain formats; a plain name with a recipe of its own stands for the middle one.
const RECIPES: [(&str, Format, Mix); 11] = [
    ("q2_k", Format::Q2K, Mix::Medium),
    ("q3_k", Format::Q3K, Mix::Medium),
    ("q3_k_s", Format::Q3K, Mix::Small),
    ("q3_k_m", Format::Q3K, Mix::Medium),
    ("q3_k_l", Format::Q3K, Mix::Large),
    ("q4_k", Format::Q4K, Mix::Medium),
    ("q4_k_s", Format::Q4K, Mix::Small),
    ("q4_k_m", Format::Q4K, Mix::Medium),
    ("q5_k", Format::Q5K, Mix::Medium),
    ("q5_k_s", Format::Q5K, Mix::Small),
    ("q5_k_m", Format::Q5K, Mix::Medium),
];

/// A way to quantise one model.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    name: String,
    format: Format,
    mix: Mix,
    layers: usize,
    /// Query heads for each key-value head.
    group: usize,
    /// The embedding serves as the head.
    tied: bool,
}

impl Recipe {
    /// The recipe of a name for a model of this shape.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with all names.
    pub(super) fn named(name: &str, shape: &DecoderConfig) -> Result<Self> {
        let wanted = name.to_ascii_lowercase();
        let mixed =
            RECIPES.iter().find(|(known, ..)| *known == wanted).map(|(_, format, mix)| (*format, *mix));
        let mut plain = FORMATS.iter().filter(|entry| entry.can_be_written());
        let plain = plain.find(|entry| entry.name == wanted).map(|entry| (entry.format, Mix::None));
        let Some((format, mix)) = mixed.or(plain) else {
            let written = FORMATS.iter().filter(|entry| entry.can_be_written()).map(|entry| entry.name);
            let mut names: Vec<&str> = written.chain(RECIPES.iter().map(|(name, ..)| *name)).collect();
            names.sort_unstable();
            names.dedup();
            return Err(Error::argument("quantize", format!("{name:?}"), names.join(", ")));
        };
        Ok(Self {
            name: wanted,
            format,
            mix,
            layers: shape.windows.len(),
            group: shape.num_attention_heads / shape.num_key_value_heads.max(1),
            tied: shape.tie_word_embeddings,
        })
    }

    /// The format for the matrix `name` with rows of `inn` values; `None` leaves it as it is.
    pub(super) fn choose(&self, name: &str, inn: usize) -> Option<&'static BlockFormat> {
        let wanted = BlockFormat::of(self.wanted(name))?;
        let fitting = wanted.fitting(inn);
        match fitting {
            Some(fitting) if fitting.format == wanted.format => {}
            Some(fitting) => log::info!(
                "{name}: rows of {inn} values are no multiple of {}; using {} instead of {} ({})",
                wanted.format.block_elements(),
                fitting.name,
                wanted.name,
                self.name
            ),
            None => {
                log::info!("{name}: rows of {inn} values fit no block; it stays as it is ({})", self.name)
            }
        }
        fitting
    }

    fn wanted(&self, name: &str) -> Format {
        let is_head = name.starts_with("lm_head.") || (self.tied && name.contains("embed_tokens."));
        if is_head {
            let wide = matches!(self.format, Format::Q8_0 | Format::MXFP4);
            return if wide { Format::Q8_0 } else { Format::Q6K };
        }
        let more = |format: Format, when: bool| if when { format } else { self.format };
        let Some(layer) = layer_of(name) else { return self.format };
        let (layers, part) = (self.layers, name);
        if part.contains(".v_proj.") {
            return match (self.format, self.mix) {
                (Format::Q2K, Mix::Medium) => {
                    if self.group >= 4 {
                        Format::Q4K
                    } else {
                        Format::Q3K
                    }
                }
                (Format::Q3K, Mix::Medium) => {
                    if layer < 2 {
                        Format::Q5K
                    } else {
                        Format::Q4K
                    }
                }
                (Format::Q3K, Mix::Large) => Format::Q5K,
                (Format::Q4K | Format::Q5K, Mix::Medium) => more(Format::Q6K, more_bits(layer, layers)),
                (Format::Q4K, Mix::Small) => more(Format::Q5K, layer < 4),
                (Format::IQ4NL, _) => more(Format::Q5K, self.group >= 4),
                (format, _) => format,
            };
        }
        if part.contains(".down_proj.") {
            return match (self.format, self.mix) {
                (Format::Q2K, Mix::Medium) => Format::Q3K,
                (Format::Q3K, Mix::Medium) => {
                    if layer < layers / 16 {
                        Format::Q5K
                    } else {
                        Format::Q4K
                    }
                }
                (Format::Q3K, Mix::Large) => Format::Q5K,
                (Format::Q4K | Format::Q5K, Mix::Medium) => more(Format::Q6K, more_bits(layer, layers)),
                (Format::Q4K, Mix::Small) | (Format::IQ4NL, _) => more(Format::Q5K, layer < layers / 8),
                (format, _) => format,
            };
        }
        if part.contains(".o_proj.") {
            return match (self.format, self.mix) {
                (Format::Q2K, Mix::Medium) => Format::Q3K,
                (Format::Q3K, Mix::Medium) => Format::Q4K,
                (Format::Q3K, Mix::Large) => Format::Q5K,
                (format, _) => format,
            };
        }
        self.format
    }
}

/// The first and last eighth of the layers, and every third in between.
fn more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// The number in `…layers.N.…`.
fn layer_of(name: &str) -> Option<usize> {
    name.split_once("layers.")?.1.split('.').next()?.parse().ok()
}

impl Model {
    /// The same model with its matrices in a quantised format: `"q8_0"`, `"q4_0"`, `"q4_k"`, … or one of llama.cpp's
    /// mixtures such as `"q4_k_m"`.
    ///
    /// As llama.cpp does, the head keeps at least six bits, and a matrix whose rows are no multiple of 256 takes a format
    /// of shorter blocks (with a log line). Norms and biases stay as they are.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with all names for one that is unknown.
    ///
    /// ```
    /// use candlewick::{LoadOptions, Model};
    /// let model = Model::load("candlewick/tiny", &LoadOptions::default())?;
    /// let small = model.quantize("q8_0")?;
    /// assert!(small.size_in_bytes() < model.size_in_bytes());
    /// # Ok::<(), candlewick::Error>(())
    /// ```
    pub fn quantize(&self, format: &str) -> Result<Self> {
        let recipe = Recipe::named(format, self.shape())?;
        let decoder = self.decoder();
        let convert = |path: &str, weight: &Arc<dyn Weight>| -> Result<Option<Arc<dyn Weight>>> {
            let chosen = recipe.choose(&format!("{path}.weight"), weight.shape().1);
            let Some(target) = chosen.filter(|target| target.format != weight.format()) else {
                return Ok(None);
            };
            if weight.format().is_quantized() {
                log::warn!(
                    "{path}: converting from {:?} to {}, which loses twice",
                    weight.format(),
                    target.name
                );
            }
            let matrix = GgmlWeight::quantize(path, &weight.dequantize(DType::F32)?, target, None)?;
            Ok(Some(matrix.on(self.device(), self.dtype())?))
        };
        let table = decoder.embedding();
        let new_table = convert(table.path(), table.weight())?;
        let mut linear = |old: &Linear| -> Result<Option<Linear>> {
            let weight = match Arc::ptr_eq(old.weight(), table.weight()) {
                true => new_table.clone(),
                false => convert(old.path(), old.weight())?,
            };
            Ok(weight.map(|weight| Linear::new(old.path(), weight, old.bias().cloned())))
        };
        let mut embedding = |old: &Embedding| -> Result<Option<Embedding>> {
            Ok(new_table.clone().map(|weight| old.with_weight(weight)))
        };
        Ok(self.with_decoder(decoder.replaced(&mut linear, &mut embedding)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(name: &str, tied: bool) -> Recipe {
        let (format, mix) =
            RECIPES.iter().find(|r| r.0 == name).map_or((Format::Q4_0, Mix::None), |r| (r.1, r.2));
        Recipe { name: name.into(), format, mix, layers: 24, group: 7, tied }
    }

    #[test]
    fn the_middle_recipe_gives_more_bits_to_some_layers() {
        // llama.cpp's Q4_K_M of a model with 24 layers.
        let recipe = recipe("q4_k_m", false);
        let six: Vec<usize> = (0..24)
            .filter(|layer| {
                recipe.wanted(&format!("model.layers.{layer}.mlp.down_proj.weight")) == Format::Q6K
            })
            .collect();
        assert_eq!(six, [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]);
        assert_eq!(recipe.wanted("model.layers.3.self_attn.v_proj.weight"), Format::Q4K);
        assert_eq!(recipe.wanted("model.layers.5.self_attn.v_proj.weight"), Format::Q6K);
        assert_eq!(recipe.wanted("model.layers.5.self_attn.q_proj.weight"), Format::Q4K);
        assert_eq!(recipe.wanted("model.embed_tokens.weight"), Format::Q4K);
        assert_eq!(recipe.wanted("lm_head.weight"), Format::Q6K);
    }

    #[test]
    fn rows_that_do_not_fit_take_shorter_blocks() {
        let recipe = recipe("q4_k_m", true);
        let name = |name, inn| recipe.choose(name, inn).map(|format| format.name);
        assert_eq!(name("model.layers.4.mlp.up_proj.weight", 896), Some("q5_0"));
        assert_eq!(name("model.layers.4.mlp.up_proj.weight", 1024), Some("q4_k"));
        assert_eq!(name("model.embed_tokens.weight", 896), Some("q8_0"));
        assert_eq!(name("model.layers.4.mlp.up_proj.weight", 100), None);
    }
}
