//! Bidirectional transformer stacks, from word embeddings to final hidden states.
//!
//! One stack serves all families: they differ in where the norms stand, how positions come in, and what tensors are
//! called, which is data ([`EncoderConfig`], [`EncoderNames`]). It keeps no cache and has no heads. Sources: Devlin et
//! al. 2018 (norms after the residual); Warner et al. 2024 (norms before it, alternating windows).

use candle_core::{Device, Tensor};

use super::relative_bias::RelativeBias;
use super::{Embedding, LayerNorm, Linear, Pass, Rope, RopeConfig};
use crate::kernels::add::add;
use crate::kernels::attention::{AttentionArgs, attention};
use crate::kernels::gated_act::{Activation, activation, gated_act};
use crate::kernels::rope::rope;
use crate::weight::Scope;
use crate::{Error, Result};

/// How a token learns its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Queries and keys are rotated; [`EncoderConfig::ropes`] says how.
    Rotary,
    /// A learned row for each position, counted from 0.
    Learned {
        /// Rows of the table.
        rows: usize,
    },
    /// A learned row for each position, counted from `padding + 1`; padding tokens take row `padding`.
    AfterPadding {
        /// Rows of the table.
        rows: usize,
        /// The id of the padding token.
        padding: u32,
    },
}

impl Positions {
    /// The longest sequence that the table can number, where there is one.
    pub fn max_tokens(self) -> Option<usize> {
        match self {
            Self::Rotary => None,
            Self::Learned { rows } => Some(rows),
            Self::AfterPadding { rows, padding } => Some(rows.saturating_sub(padding as usize + 1)),
        }
    }
}

/// How queries, keys and values are stored below a layer.
#[derive(Debug, Clone, Copy)]
pub enum Projections {
    /// Three layers: query, key, value.
    Separate([&'static str; 3]),
    /// One layer whose outputs are queries, then keys, then values.
    Fused(&'static str),
}

/// The feed-forward block below a layer.
#[derive(Debug, Clone, Copy)]
pub enum FeedForwardNames {
    /// `down(act(up(x)))`.
    Plain([&'static str; 2]),
    /// `down(act(gate(x)) * up(x))`: gate, up, down.
    Gated([&'static str; 3]),
    /// The same with gate and up as one layer, in this order.
    FusedGated([&'static str; 2]),
}

/// What a family calls its tensors, relative to the backbone and to one layer of it.
#[derive(Debug, Clone, Copy)]
pub struct EncoderNames {
    /// The word embedding.
    pub words: &'static str,
    /// The position embedding, where there is one.
    pub positions: &'static str,
    /// The segment embedding, where there is one.
    pub token_types: &'static str,
    /// The norm of the embeddings.
    pub embedding_norm: &'static str,
    /// The relative position bias, where there is one.
    pub relative_bias: &'static str,
    /// The list of layers.
    pub layers: &'static str,
    /// Queries, keys and values.
    pub projections: Projections,
    /// The output projection of attention.
    pub output: &'static str,
    /// The norm of attention.
    pub attention_norm: &'static str,
    /// The feed-forward block.
    pub feed_forward: FeedForwardNames,
    /// The norm of the feed-forward block.
    pub feed_forward_norm: &'static str,
    /// The last norm, where norms stand before the blocks.
    pub final_norm: &'static str,
}

/// What distinguishes one encoder from another.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the activations.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// Epsilon of all norms.
    pub norm_eps: f64,
    /// Whether norms have a bias.
    pub norm_bias: bool,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward block has biases.
    pub mlp_bias: bool,
    /// The feed-forward activation.
    pub activation: Activation,
    /// Whether norms stand before the blocks; the first layer then has none before attention.
    pub pre_norm: bool,
    /// How tokens are numbered.
    pub positions: Positions,
    /// Rows of the segment embedding; 0 where there is none.
    pub token_types: usize,
    /// Buckets of the relative position bias; 0 where there is none.
    pub relative_buckets: usize,
    /// The longest sequence in tokens.
    pub max_tokens: usize,
    /// For each layer its window, if any; a token sees others at most half of it away.
    pub windows: Vec<Option<usize>>,
    /// For each layer its rotation, where positions are rotary: an index into `ropes`.
    pub layer_ropes: Vec<usize>,
    /// The different rotations.
    pub ropes: Vec<RopeConfig>,
    /// What tensors are called.
    pub names: EncoderNames,
}

#[derive(Debug)]
enum Qkv {
    Separate(Box<[Linear; 3]>),
    Fused(Linear),
}

#[derive(Debug)]
enum FeedForward {
    Plain { up: Linear, down: Linear },
    Gated { gate: Linear, up: Linear, down: Linear },
    FusedGated { gate_up: Linear, down: Linear },
}

impl FeedForward {
    fn load(scope: &Scope, config: &EncoderConfig) -> Result<Self> {
        let (hidden, inner, bias) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        let up = |name: &str, width| Linear::load(&scope.at(name), hidden, width, bias);
        let down = |name: &str| Linear::load(&scope.at(name), inner, hidden, bias);
        Ok(match config.names.feed_forward {
            FeedForwardNames::Plain([first, last]) => {
                Self::Plain { up: up(first, inner)?, down: down(last)? }
            }
            FeedForwardNames::Gated([gate, first, last]) => {
                Self::Gated { gate: up(gate, inner)?, up: up(first, inner)?, down: down(last)? }
            }
            FeedForwardNames::FusedGated([first, last]) => {
                Self::FusedGated { gate_up: up(first, 2 * inner)?, down: down(last)? }
            }
        })
    }

    fn forward(&self, x: &Tensor, pass: &Pass, act: Activation) -> Result<Tensor> {
        match self {
            Self::Plain { up, down } => down.forward(&activation(&up.forward(x, pass)?, act)?, pass),
            Self::Gated { gate, up, down } => {
                down.forward(&gated_act(&gate.forward(x, pass)?, &up.forward(x, pass)?, act)?, pass)
            }
            Self::FusedGated { gate_up, down } => {
                let both = gate_up.forward(x, pass)?.chunk(2, 1)?;
                down.forward(&gated_act(&both[0].contiguous()?, &both[1].contiguous()?, act)?, pass)
            }
        }
    }

    fn linears<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        match self {
            Self::Plain { up, down } => [up, down].into_iter().for_each(visit),
            Self::Gated { gate, up, down } => [gate, up, down].into_iter().for_each(visit),
            Self::FusedGated { gate_up, down } => [gate_up, down].into_iter().for_each(visit),
        }
    }
}

#[derive(Debug)]
struct Block {
    qkv: Qkv,
    output: Linear,
    attention_norm: Option<LayerNorm>,
    feed_forward: FeedForward,
    feed_forward_norm: LayerNorm,
    window: Option<usize>,
    rope: Option<usize>,
}

impl Block {
    fn load(scope: &Scope, config: &EncoderConfig, layer: usize) -> Result<Self> {
        let (hidden, names, bias) = (config.hidden_size, &config.names, config.attention_bias);
        let qkv = match names.projections {
            Projections::Separate([q, k, v]) => {
                let load = |name: &str| Linear::load(&scope.at(name), hidden, hidden, bias);
                Qkv::Separate(Box::new([load(q)?, load(k)?, load(v)?]))
            }
            Projections::Fused(name) => Qkv::Fused(Linear::load(&scope.at(name), hidden, 3 * hidden, bias)?),
        };
        let norm = |name: &str| LayerNorm::load(&scope.at(name), hidden, config.norm_eps, config.norm_bias);
        // The embeddings that enter the first layer are normalised already.
        let bare = config.pre_norm && layer == 0;
        Ok(Self {
            qkv,
            output: Linear::load(&scope.at(names.output), hidden, hidden, bias)?,
            attention_norm: if bare { None } else { Some(norm(names.attention_norm)?) },
            feed_forward: FeedForward::load(scope, config)?,
            feed_forward_norm: norm(names.feed_forward_norm)?,
            window: config.windows[layer],
            rope: config.layer_ropes.get(layer).copied(),
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        config: &EncoderConfig,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let norm = |x: &Tensor| match &self.attention_norm {
            Some(norm) => norm.forward(x),
            None => Ok(x.clone()),
        };
        if config.pre_norm {
            let x = add(x, &self.attend(&norm(x)?, pass, config, bias)?)?;
            let normed = self.feed_forward_norm.forward(&x)?;
            return add(&x, &self.feed_forward.forward(&normed, pass, config.activation)?);
        }
        let x = norm(&add(x, &self.attend(x, pass, config, bias)?)?)?;
        let fed = self.feed_forward.forward(&x, pass, config.activation)?;
        self.feed_forward_norm.forward(&add(&x, &fed)?)
    }

    fn attend(
        &self,
        x: &Tensor,
        pass: &Pass,
        config: &EncoderConfig,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (tokens, heads) = (x.dims()[0], config.heads);
        let head_dim = config.hidden_size / heads;
        let [mut q, mut k, v] = match &self.qkv {
            Qkv::Separate(linears) => {
                // [tokens, hidden] -> [tokens, heads, head_dim]
                let split = |linear: &Linear| -> Result<Tensor> {
                    Ok(linear.forward(x, pass)?.reshape((tokens, heads, head_dim))?)
                };
                [split(&linears[0])?, split(&linears[1])?, split(&linears[2])?]
            }
            Qkv::Fused(linear) => {
                // [tokens, 3 * hidden] -> three of [tokens, heads, head_dim]
                let all = linear.forward(x, pass)?.reshape((tokens, 3, heads, head_dim))?;
                let part =
                    |index| -> Result<Tensor> { Ok(all.narrow(1, index, 1)?.squeeze(1)?.contiguous()?) };
                [part(0)?, part(1)?, part(2)?]
            }
        };
        if let Some(index) = self.rope {
            let Some(tables) = pass.rope(index) else {
                return Err(Error::internal(
                    "attention",
                    "the rotation tables of this pass were not prepared",
                ));
            };
            let style = config.ropes[index].style;
            q = rope(&q, &tables.cos, &tables.sin, style)?;
            k = rope(&k, &tables.cos, &tables.sin, style)?;
        }
        let args = AttentionArgs {
            offsets: pass.batch().offsets(),
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: false,
            window: self.window,
            bias,
        };
        let y = attention(&q, &k, &v, &args)?;
        self.output.forward(&y.reshape((tokens, config.hidden_size))?, pass)
    }
}

/// Embeddings, layers, and the final norm where there is one.
#[derive(Debug)]
pub struct Encoder {
    words: Embedding,
    positions: Option<Embedding>,
    token_types: Option<Embedding>,
    embedding_norm: LayerNorm,
    relative_bias: Option<RelativeBias>,
    layers: Vec<Block>,
    final_norm: Option<LayerNorm>,
    ropes: Vec<Rope>,
    config: EncoderConfig,
    device: Device,
}

impl Encoder {
    /// Reads an encoder below `scope`.
    pub fn load(scope: &Scope, config: EncoderConfig) -> Result<Self> {
        let (hidden, names) = (config.hidden_size, config.names);
        let norm = |name: &str| LayerNorm::load(&scope.at(name), hidden, config.norm_eps, config.norm_bias);
        let table = |name: &str, rows: usize| -> Result<Option<Embedding>> {
            if rows == 0 { Ok(None) } else { Ok(Some(Embedding::load(&scope.at(name), rows, hidden)?)) }
        };
        let rows = match config.positions {
            Positions::Rotary => 0,
            Positions::Learned { rows } | Positions::AfterPadding { rows, .. } => rows,
        };
        let relative_bias = match config.relative_buckets {
            0 => None,
            buckets => Some(RelativeBias::load(&scope.at(names.relative_bias), buckets, config.heads)?),
        };
        let layers = scope.at(names.layers);
        Ok(Self {
            words: Embedding::load(&scope.at(names.words), config.vocab_size, hidden)?,
            positions: table(names.positions, rows)?,
            token_types: table(names.token_types, config.token_types)?,
            embedding_norm: norm(names.embedding_norm)?,
            relative_bias,
            layers: (0..config.windows.len())
                .map(|layer| Block::load(&layers.at(layer), &config, layer))
                .collect::<Result<_>>()?,
            final_norm: if config.pre_norm { Some(norm(names.final_norm)?) } else { None },
            ropes: config.ropes.iter().cloned().map(Rope::new).collect(),
            device: scope.device().clone(),
            config,
        })
    }

    /// Final hidden states of all tokens of the pass: `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`Error::Internal`] where the pass was given up, or a sequence is longer than `max_tokens`.
    pub fn hidden_states(&self, pass: &mut Pass) -> Result<Tensor> {
        pass.prepare_rope(&self.ropes, &self.device)?;
        let mut x = self.embed(pass)?;
        let longest = pass.batch().offsets().windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        let bias = self.relative_bias.as_ref().map(|bias| bias.table(longest)).transpose()?;
        for layer in &self.layers {
            x = layer.forward(&x, pass, &self.config, bias.as_ref())?;
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// Word, position and segment embeddings, normalised: `[tokens, hidden]`.
    fn embed(&self, pass: &Pass) -> Result<Tensor> {
        let batch = pass.batch();
        let mut x = self.words.forward(pass)?;
        if let Some(positions) = &self.positions {
            let rows = match self.config.positions {
                Positions::AfterPadding { padding, .. } => after_padding(pass, padding),
                _ => batch.positions().to_vec(),
            };
            x = add(&x, &positions.lookup(&rows)?)?;
        }
        if let Some(token_types) = &self.token_types {
            // A table of one row has nothing to tell apart, whatever the tokenizer says.
            let types = batch.token_types();
            x = if types.is_empty() || self.config.token_types == 1 {
                x.broadcast_add(&token_types.lookup(&[0])?)?
            } else {
                add(&x, &token_types.lookup(types)?)?
            };
        }
        self.embedding_norm.forward(&x)
    }

    /// The linear layers in order.
    pub fn linears<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        for layer in &self.layers {
            match &layer.qkv {
                Qkv::Separate(linears) => linears.iter().for_each(&mut *visit),
                Qkv::Fused(linear) => visit(linear),
            }
            visit(&layer.output);
            layer.feed_forward.linears(visit);
        }
    }
}

/// Rows of the position table where positions count the tokens that are not padding.
fn after_padding(pass: &Pass, padding: u32) -> Vec<u32> {
    let batch = pass.batch();
    let mut rows = Vec::with_capacity(batch.tokens());
    for sequence in 0..batch.sequences() {
        let mut seen = 0;
        for id in &batch.ids()[batch.rows(sequence)] {
            seen += u32::from(*id != padding);
            rows.push(if *id == padding { padding } else { padding + seen });
        }
    }
    rows
}
