//! Writing a model as a GGUF file, for this crate and for llama.cpp.
//!
//! Weights keep the format they are held in. What the format's readers would compute differently is refused.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use candle_core::DType;

use super::Model;
use super::quantize::Recipe;
use crate::checkpoint::gguf::{GgufEntry, GgufSource, GgufVocabulary, stored_as, to_pairs, write_gguf};
use crate::kernels::gated_act::Activation;
use crate::nn::{Part, Rope, RopeScaling};
use crate::weight::{Format, TensorInfo, to_bytes};
use crate::{Error, Result};

/// `general.file_type` of files with plain matrices.
const PLAIN_TYPES: [(Format, u32); 3] = [(Format::F32, 0), (Format::F16, 1), (Format::BF16, 32)];

/// Divisors of the rotary frequencies.
const ROPE_FACTORS: &str = "rope_freqs.weight";

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::argument("save_gguf", what, "a model that GGUF can express; use save_pretrained instead")
}

fn number(value: usize) -> GgufEntry {
    GgufEntry::U32(u32::try_from(value).unwrap_or(u32::MAX))
}

impl Model {
    /// Writes the model with its tokenizer to one GGUF file, in the formats that its weights are held in.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what GGUF cannot express; [`Error::Io`] where the disk refuses.
    ///
    /// ```
    /// use candlewick::{LoadOptions, Model};
    /// let model = Model::load("candlewick/tiny", &LoadOptions::default())?;
    /// # let path = std::env::temp_dir().join(format!("candlewick-{}.gguf", std::process::id()));
    /// model.quantize("q8_0")?.save_gguf(&path)?;
    /// let again = Model::load(path.to_str().unwrap_or_default(), &LoadOptions::default())?;
    /// assert_eq!(again.vocab_size(), model.vocab_size());
    /// # std::fs::remove_file(&path).ok();
    /// # Ok::<(), candlewick::Error>(())
    /// ```
    pub fn save_gguf(&self, path: impl AsRef<Path>) -> Result<()> {
        let (architecture, pairs) = stored_as(self.model_type())
            .ok_or_else(|| refuse(format!("model type {}", self.model_type())))?;
        // Only this family's readers look for what the others lack.
        self.check_gguf(pairs)?;
        let mut metadata = vec![("general.architecture".to_owned(), GgufEntry::String(architecture.into()))];
        metadata.extend(self.general()?);
        metadata.extend(self.sizes(architecture)?);
        metadata.extend(self.tokenizer_entries()?);
        let factors = self.rope_factors();
        if factors.is_some() && !pairs {
            return Err(refuse("these scaled frequencies in this family"));
        }
        let parts = self.decoder().parts();
        let mut infos = Vec::new();
        let mut sources = HashMap::new();
        for (name, part) in &parts {
            let stored = GgufSource::gguf_name(name).ok_or_else(|| refuse(format!("the tensor {name}")))?;
            let (format, shape) = match part {
                Part::Matrix(weight) => (weight.format(), vec![weight.shape().0, weight.shape().1]),
                Part::Vector(vector) => (Format::F32, vector.dims().to_vec()),
            };
            infos.push((stored.clone(), TensorInfo { format, shape }));
            sources.insert(stored, (name.as_str(), *part));
        }
        if let Some(factors) = &factors {
            infos.push((
                ROPE_FACTORS.to_owned(),
                TensorInfo { format: Format::F32, shape: vec![factors.len()] },
            ));
        }
        write_gguf(path, &metadata, &infos, |stored| match sources.get(stored) {
            Some((name, part)) => self.bytes_of(name, *part, pairs),
            None => Ok(Cow::Owned(factors.iter().flatten().flat_map(|v| v.to_le_bytes()).collect())),
        })
    }

    /// A part's bytes in GGUF's row order.
    fn bytes_of<'a>(&self, name: &str, part: Part<'a>, pairs: bool) -> Result<Cow<'a, [u8]>> {
        let (bytes, rows) = match part {
            Part::Matrix(weight) => (weight.stored()?, weight.shape().0),
            Part::Vector(vector) => {
                (Cow::Owned(to_bytes(&vector.to_dtype(DType::F32)?)?.1), vector.elem_count())
            }
        };
        let rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
        Ok(if pairs && rotated { Cow::Owned(to_pairs(&bytes, rows, self.shape().head_dim)) } else { bytes })
    }

    fn check_gguf(&self, pairs: bool) -> Result<()> {
        let shape = self.shape();
        if shape.activation != Activation::Silu {
            return Err(refuse(format!("the activation {:?}", shape.activation)));
        }
        if shape.rope.rotary_dim != shape.head_dim {
            return Err(refuse("a rotation of a part of each head"));
        }
        if !pairs && (shape.output_bias || shape.mlp_bias || (shape.qk_norm && shape.qkv_bias)) {
            return Err(refuse("biases in this family"));
        }
        match shape.windows.first() {
            Some(first) if shape.windows.iter().any(|window| window != first) => {
                Err(refuse("windows that differ between layers"))
            }
            Some(Some(window)) => {
                log::warn!(
                    "other readers of the file may look further back than its window of {window} tokens"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Name, type and whatever an earlier file said about itself.
    fn general(&self) -> Result<Vec<(String, GgufEntry)>> {
        const OWN: [&str; 4] = [
            "general.architecture",
            "general.alignment",
            "general.file_type",
            "general.quantization_version",
        ];
        let parts = self.decoder().parts();
        let matrices: Vec<(&str, Format, usize)> = parts
            .iter()
            .filter_map(|(name, part)| match part {
                Part::Matrix(weight) => Some((name.as_str(), weight.format(), weight.shape().1)),
                Part::Vector(_) => None,
            })
            .collect();
        let plain = |(known, _): &&(Format, u32)| matrices.iter().all(|(_, format, _)| format == known);
        let plain = PLAIN_TYPES.iter().find(plain).map(|(_, number)| *number);
        let file_type = plain.or_else(|| Recipe::file_type(self.shape().into(), &matrices));
        let mut entries: Vec<(String, GgufEntry)> = file_type
            .map(|number| ("general.file_type".to_owned(), GgufEntry::U32(number)))
            .into_iter()
            .collect();
        entries.push(("general.quantization_version".into(), GgufEntry::U32(2)));
        if let Some(source) = self.gguf() {
            entries.extend(copied(source, |key| key.starts_with("general.") && !OWN.contains(&key)));
        } else {
            let name = Path::new(self.name()).file_name().map(|name| name.to_string_lossy().into_owned());
            entries.extend(name.map(|name| ("general.name".to_owned(), GgufEntry::String(name))));
        }
        Ok(entries)
    }

    fn sizes(&self, architecture: &str) -> Result<Vec<(String, GgufEntry)>> {
        let shape = self.shape();
        let rope = &shape.rope;
        let mut entries = vec![
            ("context_length", number(rope.max_position_embeddings)),
            ("embedding_length", number(shape.hidden_size)),
            ("block_count", number(shape.windows.len())),
            ("feed_forward_length", number(shape.intermediate_size)),
            ("attention.head_count", number(shape.num_attention_heads)),
            ("attention.head_count_kv", number(shape.num_key_value_heads)),
            ("attention.key_length", number(shape.head_dim)),
            ("attention.value_length", number(shape.head_dim)),
            ("attention.layer_norm_rms_epsilon", GgufEntry::F32(shape.rms_norm_eps as f32)),
            ("rope.dimension_count", number(shape.head_dim)),
            ("rope.freq_base", GgufEntry::F32(rope.theta as f32)),
            ("vocab_size", number(shape.vocab_size)),
        ];
        if let Some(Some(window)) = shape.windows.first() {
            entries.push(("attention.sliding_window", number(*window)));
        }
        match &rope.scaling {
            RopeScaling::Default | RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) => {}
            RopeScaling::Linear { factor } => {
                entries.push(("rope.scaling.type", GgufEntry::String("linear".into())));
                entries.push(("rope.scaling.factor", GgufEntry::F32(*factor as f32)));
            }
            RopeScaling::Yarn {
                truncate: true,
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                entries.push(("rope.scaling.type", GgufEntry::String("yarn".into())));
                entries.push(("rope.scaling.factor", GgufEntry::F32(*factor as f32)));
                let original = number(*original_max_position_embeddings as usize);
                entries.push(("rope.scaling.original_context_length", original));
                entries.push(("rope.scaling.yarn_beta_fast", GgufEntry::F32(*beta_fast as f32)));
                entries.push(("rope.scaling.yarn_beta_slow", GgufEntry::F32(*beta_slow as f32)));
                // The usual factor is implied.
                let beyond = attention_factor / (1.0 + 0.1 * factor.ln());
                if (beyond - 1.0).abs() > 1e-9 {
                    entries.push(("rope.scaling.attn_factor", GgufEntry::F32(beyond as f32)));
                }
            }
            RopeScaling::Yarn { .. } => return Err(refuse("YaRN over a range that is not rounded")),
            RopeScaling::Dynamic { .. } => return Err(refuse("dynamic scaling of the rotation")),
        }
        Ok(entries.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)).collect())
    }

    /// What each frequency is divided by, where no name stands for it.
    fn rope_factors(&self) -> Option<Vec<f32>> {
        let rope = &self.shape().rope;
        match &rope.scaling {
            RopeScaling::Factors(factors) => Some(factors.clone()),
            RopeScaling::Llama3 { .. } => {
                let mut plain = rope.clone();
                plain.scaling = RopeScaling::Default;
                let (plain, scaled) = (Rope::new(plain), Rope::new(rope.clone()));
                Some(plain.frequencies().iter().zip(scaled.frequencies()).map(|(a, b)| a / b).collect())
            }
            _ => None,
        }
    }

    fn tokenizer_entries(&self) -> Result<Vec<(String, GgufEntry)>> {
        if let Some(source) = self.gguf() {
            return Ok(copied(source, |key| key.starts_with("tokenizer.")));
        }
        let Ok(tokenizer) = self.tokenizer() else {
            return Ok(vec![("tokenizer.ggml.model".into(), GgufEntry::String("none".into()))]);
        };
        let vocabulary = GgufVocabulary {
            tokenizer: tokenizer.inner(),
            named_tokens: &tokenizer.config().named_tokens,
            end_token_ids: self.eos_token_ids(),
            chat_templates: &tokenizer.config().chat_templates,
            rows: self.vocab_size(),
        };
        vocabulary.entries()
    }
}

/// The metadata of an earlier file under the keys that are wanted, in a fixed order.
fn copied(source: &GgufSource, wanted: impl Fn(&str) -> bool) -> Vec<(String, GgufEntry)> {
    let metadata = source.metadata();
    let mut keys: Vec<&str> = metadata.keys().filter(|key| wanted(key)).collect();
    keys.sort_unstable();
    keys.into_iter().filter_map(|key| Some((key.to_owned(), GgufEntry::copy_of(metadata, key)?))).collect()
}
