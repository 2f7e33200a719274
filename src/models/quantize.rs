//! Which matrix gets which format when a model is quantised: llama.cpp's recipes, by their names.
//!
//! It encodes nothing: formats and their encoders are the weights' business. Norms and biases are never quantised.
//! Source: <https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp>.

use std::path::Path;
use std::sync::Arc;

use candle_core::DType;

use super::{LoadOptions, Model};
use crate::checkpoint::gguf::ImportanceMatrix;
use crate::nn::{DecoderConfig, Embedding, Linear};
use crate::weight::{BlockFormat, FORMATS, Format, GgmlWeight, Target, Weight};
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

/// Names of recipes beside those of the plain formats, and their `general.file_type`; a plain name with a recipe of its
/// own stands for the middle one.
const RECIPES: [(&str, Format, Mix, u32); 12] = [
    ("q2_k", Format::Q2K, Mix::Medium, 10),
    ("q2_k_s", Format::Q2K, Mix::Small, 21),
    ("q3_k", Format::Q3K, Mix::Medium, 12),
    ("q3_k_s", Format::Q3K, Mix::Small, 11),
    ("q3_k_m", Format::Q3K, Mix::Medium, 12),
    ("q3_k_l", Format::Q3K, Mix::Large, 13),
    ("q4_k", Format::Q4K, Mix::Medium, 15),
    ("q4_k_s", Format::Q4K, Mix::Small, 14),
    ("q4_k_m", Format::Q4K, Mix::Medium, 15),
    ("q5_k", Format::Q5K, Mix::Medium, 17),
    ("q5_k_s", Format::Q5K, Mix::Small, 16),
    ("q5_k_m", Format::Q5K, Mix::Medium, 17),
];

/// `general.file_type` of recipes that are one format.
const FILE_TYPES: [(Format, u32); 8] = [
    (Format::Q4_0, 2),
    (Format::Q4_1, 3),
    (Format::Q8_0, 7),
    (Format::Q5_0, 8),
    (Format::Q5_1, 9),
    (Format::Q6K, 18),
    (Format::IQ4NL, 25),
    (Format::MXFP4, 38),
];

/// What recipes look at in a model beside the names of its matrices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    layers: usize,
    /// Query heads for each key-value head.
    group: usize,
    /// The embedding serves as the head.
    tied: bool,
}

impl From<&DecoderConfig> for Layout {
    fn from(shape: &DecoderConfig) -> Self {
        Self {
            layers: shape.windows.len(),
            group: shape.num_attention_heads / shape.num_key_value_heads.max(1),
            tied: shape.tie_word_embeddings,
        }
    }
}

/// A way to quantise one model.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    name: String,
    format: Format,
    mix: Mix,
    layout: Layout,
    /// What matters in each column is known, though perhaps not here.
    weighted: bool,
    importance: Option<Arc<ImportanceMatrix>>,
}

impl Recipe {
    /// The recipe that the options ask for, if any.
    ///
    /// # Errors
    /// As [`Recipe::named`], and those of reading the importance matrix.
    pub(super) fn of(options: &LoadOptions, shape: &DecoderConfig) -> Result<Option<Self>> {
        match (&options.quantize, &options.importance) {
            (Some(name), importance) => Self::named(name, importance.as_deref(), shape).map(Some),
            (None, Some(path)) => {
                let got = format!("{} and no format", path.display());
                Err(Error::argument("importance", got, "quantize to be given beside it"))
            }
            (None, None) => Ok(None),
        }
    }

    /// The recipe of a name for a model of this shape, with an importance matrix from a file.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with all names; those of [`ImportanceMatrix::open`].
    fn named(name: &str, importance: Option<&Path>, shape: &DecoderConfig) -> Result<Self> {
        let wanted = name.to_ascii_lowercase();
        let mixed = RECIPES.iter().find(|(known, ..)| *known == wanted);
        let mut plain = FORMATS.iter().filter(|entry| entry.can_be_written());
        let plain = plain.find(|entry| entry.name == wanted).map(|entry| (entry.format, Mix::None));
        let Some((format, mix)) = mixed.map(|(_, format, mix, _)| (*format, *mix)).or(plain) else {
            let written = FORMATS.iter().filter(|entry| entry.can_be_written()).map(|entry| entry.name);
            let mut names: Vec<&str> = written.chain(RECIPES.iter().map(|(name, ..)| *name)).collect();
            names.sort_unstable();
            names.dedup();
            return Err(Error::argument("quantize", format!("{name:?}"), names.join(", ")));
        };
        if importance.is_none() && (format, mix) == (Format::Q2K, Mix::Small) {
            return Err(Error::argument(
                "quantize",
                "\"q2_k_s\" alone",
                "an importance matrix beside it, or q2_k",
            ));
        }
        let importance = importance.map(ImportanceMatrix::open).transpose()?.map(Arc::new);
        let weighted = importance.is_some();
        Ok(Self { name: wanted, weighted, importance, ..Self::new(format, mix, shape.into()) })
    }

    fn new(format: Format, mix: Mix, layout: Layout) -> Self {
        Self { name: String::new(), format, mix, layout, weighted: false, importance: None }
    }

    /// The number by which GGUF files call the recipe that gives matrices, by name, these formats and numbers of columns.
    pub(super) fn file_type(layout: Layout, matrices: &[(&str, Format, usize)]) -> Option<u32> {
        let plain = FILE_TYPES.iter().map(|(format, number)| (*format, Mix::None, *number));
        let mixed = RECIPES.iter().map(|(_, format, mix, number)| (*format, *mix, *number));
        let mut all = plain.chain(mixed).flat_map(|one| [(one, false), (one, true)]);
        let found = all.find(|((format, mix, _), weighted)| {
            let recipe = Self { weighted: *weighted, ..Self::new(*format, *mix, layout) };
            matrices.iter().all(|(name, format, inn)| {
                let fitting = BlockFormat::of(recipe.wanted(name)).and_then(|wanted| wanted.fitting(*inn));
                fitting.map_or(!format.is_quantized(), |fitting| fitting.format == *format)
            })
        });
        found.map(|((.., number), _)| number)
    }

    /// What to convert the matrix `name` with rows of `inn` values to; `None` leaves it as it is.
    pub(super) fn target(&self, name: &str, inn: usize) -> Option<Target> {
        let format = self.choose(name, inn)?;
        let importance = self.importance.as_ref().and_then(|matrix| matrix.get(name));
        if let (Some(matrix), None) = (&self.importance, &importance) {
            log::info!("{name}: {} does not say what matters in it", matrix.path().display());
        }
        Some(Target { format, importance })
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
                log::warn!("{name}: rows of {inn} values fit no block; it stays as it is ({})", self.name)
            }
        }
        fitting
    }

    fn wanted(&self, name: &str) -> Format {
        let is_head = name.starts_with("lm_head.") || (self.layout.tied && name.contains("embed_tokens."));
        if is_head {
            let wide = matches!(self.format, Format::Q8_0 | Format::MXFP4);
            return if wide { Format::Q8_0 } else { Format::Q6K };
        }
        let more = |format: Format, when: bool| if when { format } else { self.format };
        let Some(layer) = layer_of(name) else { return self.format };
        let (layers, part, weighted) = (self.layout.layers, name, self.weighted);
        if part.contains(".v_proj.") {
            return match (self.format, self.mix) {
                (Format::Q2K, Mix::Medium) => {
                    if self.layout.group >= 4 {
                        Format::Q4K
                    } else {
                        Format::Q3K
                    }
                }
                (Format::Q2K, Mix::Small) => more(Format::Q4K, self.layout.group >= 4),
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
                (Format::IQ4NL, _) => more(Format::Q5K, self.layout.group >= 4),
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
                (Format::Q4K, Mix::Small) => more(Format::Q5K, layer < layers / 8),
                (Format::Q2K, Mix::Small) => more(Format::Q4K, layer < layers / 8),
                (Format::IQ4NL, _) if !weighted => more(Format::Q5K, layer < layers / 8),
                (Format::Q4_0, _) if weighted => more(Format::Q4_1, layer < layers / 8),
                (Format::Q5_0, _) if weighted => more(Format::Q5_1, layer < layers / 8),
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
        self.quantize_by(format, None)
    }

    /// As [`Model::quantize`], with an importance matrix of llama.cpp's: a file that says how much each column of each
    /// matrix matters, from activations of sample texts.
    ///
    /// # Errors
    /// Also [`Error::Io`] and [`Error::InvalidCheckpoint`] of that file, and [`Error::InvalidArgument`] where it is of
    /// another model.
    pub fn quantize_by(&self, format: &str, importance: Option<&Path>) -> Result<Self> {
        let recipe = Recipe::named(format, importance, self.shape())?;
        let decoder = self.decoder();
        let convert = |path: &str, weight: &Arc<dyn Weight>| -> Result<Option<Arc<dyn Weight>>> {
            let name = format!("{path}.weight");
            let chosen = recipe.target(&name, weight.shape().1);
            let Some(target) = chosen.filter(|target| target.format.format != weight.format()) else {
                return Ok(None);
            };
            if weight.format().is_quantized() {
                log::warn!(
                    "{path}: converting from {:?} to {}, which loses twice",
                    weight.format(),
                    target.format.name
                );
            }
            let values = weight.dequantize(DType::F32)?;
            let matrix = GgmlWeight::quantize(&name, &values, target.format, target.importance.as_deref())?;
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
    use crate::checkpoint::gguf::GgufSource;

    fn recipe(name: &str, layout: Layout) -> Recipe {
        let mixed = RECIPES.iter().find(|r| r.0 == name).map(|r| (r.1, r.2));
        let plain = FORMATS.iter().find(|format| format.name == name).map(|f| (f.format, Mix::None));
        let (format, mix) = mixed.or(plain).unwrap();
        Recipe::new(format, mix, layout)
    }

    #[test]
    fn recipes_give_every_matrix_the_format_that_llama_cpp_gives_it() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/recipes.json");
        let fixture = crate::checkpoint::read_json(path).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
        let mut seen = 0;
        for model in fixture["models"].as_object().unwrap().values() {
            let layout = Layout {
                layers: number(&model["layers"]),
                group: number(&model["heads"]) / number(&model["kv_heads"]),
                tied: model["tied"].as_bool().unwrap(),
            };
            let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
            let parts = parts.into_iter().chain(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
            let inner =
                parts.flat_map(|part| (0..layout.layers).map(move |i| format!("model.layers.{i}.{part}")));
            let names = inner.chain(["model.embed_tokens".into(), "lm_head".into()]);
            let names: Vec<String> = names.map(|name| format!("{name}.weight")).collect();
            for (key, formats) in model["formats"].as_object().unwrap() {
                let name = key.trim_end_matches(" weighted");
                let recipe = Recipe { weighted: key != name, ..recipe(name, layout) };
                let mut matrices = Vec::new();
                for matrix in &names {
                    let stored = GgufSource::gguf_name(matrix).unwrap();
                    let Some(columns) = model["columns"].get(&stored).map(number) else { continue };
                    let chosen = recipe.choose(matrix, columns).unwrap();
                    let expected = formats.get(&stored).unwrap_or(&formats[""]);
                    assert_eq!(chosen.name, expected, "{key}: {stored}");
                    matrices.push((matrix.as_str(), chosen.format, columns));
                    seen += 1;
                }
                assert_eq!(matrices.len(), model["columns"].as_object().unwrap().len());
                // Where rows do not fit, another recipe may give the very same.
                let found = Recipe::file_type(layout, &matrices).unwrap();
                let expected = fixture["file_types"][name].as_u64().unwrap();
                assert!(layout.tied || u64::from(found) == expected, "{key}: {found}");
            }
        }
        assert!(seen > 5000, "{seen}");
    }

    #[test]
    fn a_mixture_is_known_by_its_formats() {
        let layout = Layout { layers: 24, group: 7, tied: false };
        let formats = |recipe: &Recipe| -> Vec<(String, Format, usize)> {
            let name = |i, part: &str| format!("model.layers.{i}.{part}.weight");
            let parts = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"];
            let parts = parts.into_iter().flat_map(|part| (0..24).map(move |i| name(i, part)));
            parts.map(|name| (name.clone(), recipe.wanted(&name), 256)).collect()
        };
        for (name, .., number) in RECIPES {
            let formats = formats(&recipe(name, layout));
            let borrowed: Vec<_> =
                formats.iter().map(|(name, format, inn)| (name.as_str(), *format, *inn)).collect();
            assert_eq!(Recipe::file_type(layout, &borrowed), Some(number), "{name}");
        }
        assert_eq!(
            Recipe::file_type(layout, &[("model.layers.0.mlp.down_proj.weight", Format::Q8K, 256)]),
            None
        );
    }

    #[test]
    fn the_middle_recipe_gives_more_bits_to_some_layers() {
        // llama.cpp's Q4_K_M of a model with 24 layers.
        let recipe = recipe("q4_k_m", Layout { layers: 24, group: 7, tied: false });
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
        let recipe = recipe("q4_k_m", Layout { layers: 24, group: 7, tied: true });
        let name = |name, inn| recipe.choose(name, inn).map(|format| format.name);
        assert_eq!(name("model.layers.4.mlp.up_proj.weight", 896), Some("q5_0"));
        assert_eq!(name("model.layers.4.mlp.up_proj.weight", 1024), Some("q4_k"));
        assert_eq!(name("model.embed_tokens.weight", 896), Some("q8_0"));
        assert_eq!(name("model.layers.4.mlp.up_proj.weight", 100), None);
    }
}
