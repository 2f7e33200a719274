//! The pre-norm decoder stack that most language models of today share.
//!
//! It runs in three kinds of steps, embed, layer, finish, so that training can keep only the inputs of layers and
//! recompute the rest.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{
    Attention, AttentionConfig, Embedding, GatedMlp, KvCache, KvLayout, Linear, Pass, RmsNorm, Rope,
    RopeConfig,
};
use crate::Result;
use crate::kernels::add::add;
use crate::kernels::gated_act::Activation;
use crate::weight::{Scope, Weight};

/// What distinguishes one decoder from another.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the activations.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Query heads of a layer.
    pub num_attention_heads: usize,
    /// Key-value heads of a layer.
    pub num_key_value_heads: usize,
    /// Dimension of a head.
    pub head_dim: usize,
    /// Epsilon of all norms.
    pub rms_norm_eps: f64,
    /// The feed-forward activation.
    pub activation: Activation,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward block has biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised for each head.
    pub qk_norm: bool,
    /// The rotation.
    pub rope: RopeConfig,
    /// For each layer its sliding window, if any.
    pub windows: Vec<Option<usize>>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
}

#[derive(Debug, Clone)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
}

impl Block {
    fn forward(&self, x: &Tensor, pass: &mut Pass, layer: usize) -> Result<Tensor> {
        let attended = self.self_attn.forward(&self.input_layernorm.forward(x)?, pass, layer)?;
        let (x, normed) = self.post_attention_layernorm.forward_add(&attended, x)?;
        add(&x, &self.mlp.forward(&normed, pass)?)
    }
}

/// A stored part of a model.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// A matrix, in whichever format.
    Matrix(&'a Arc<dyn Weight>),
    /// A norm's weight or a bias.
    Vector(&'a Tensor),
}

/// Embedding, layers, final norm, and the head where the checkpoint is a language model.
#[derive(Debug, Clone)]
pub struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Option<Linear>,
    ropes: Vec<Rope>,
    layout: Arc<KvLayout>,
    device: Device,
}

impl Decoder {
    /// Reads a decoder below `backbone`, and its head below `root` unless `headless`.
    ///
    /// `cache_dtype` is the element type of new key-value caches.
    pub fn load(
        backbone: &Scope,
        root: &Scope,
        config: &DecoderConfig,
        cache_dtype: DType,
        headless: bool,
    ) -> Result<Self> {
        let embed_tokens =
            Embedding::load(&backbone.at("embed_tokens"), config.vocab_size, config.hidden_size)?;
        let layers = (config.windows.iter().enumerate())
            .map(|(index, window)| load_block(&backbone.at("layers").at(index), config, *window))
            .collect::<Result<Vec<_>>>()?;
        let norm = RmsNorm::load(&backbone.at("norm"), config.hidden_size, config.rms_norm_eps)?;
        let lm_head = match (headless, config.tie_word_embeddings) {
            (true, _) => None,
            (false, true) => Some(Linear::new("lm_head", Arc::clone(embed_tokens.weight()), None)),
            (false, false) => {
                Some(Linear::load(&root.at("lm_head"), config.hidden_size, config.vocab_size, false)?)
            }
        };
        let layout = KvLayout {
            windows: layers.iter().map(|block| block.self_attn.window()).collect(),
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            dtype: cache_dtype,
            device: backbone.device().clone(),
            max_tokens: config.rope.context_length(),
        };
        let ropes = vec![Rope::new(config.rope.clone())];
        Ok(Self {
            embed_tokens,
            layers,
            norm,
            lm_head,
            ropes,
            layout: Arc::new(layout),
            device: backbone.device().clone(),
        })
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Prepares the pass and embeds its tokens: `[tokens, hidden]`.
    pub fn embed(&self, pass: &mut Pass) -> Result<Tensor> {
        pass.prepare_rope(&self.ropes, &self.device)?;
        self.embed_tokens.forward(pass)
    }

    /// Runs layer `index`: `[tokens, hidden]` to the same.
    pub fn layer(&self, index: usize, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        self.layers[index].forward(x, pass, index)
    }

    /// The final norm: `[tokens, hidden]` to the same.
    pub fn finish(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }

    /// The language-model head, where the checkpoint has one.
    pub fn head(&self) -> Option<&Linear> {
        self.lm_head.as_ref()
    }

    /// The token embedding.
    pub fn embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    /// The linear layers in order; a head of its own comes last, a tied one not at all.
    pub fn linears<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        for block in &self.layers {
            block.self_attn.linears(visit);
            block.mlp.linears(visit);
        }
        if let Some(head) = self.lm_head.as_ref().filter(|_| !self.is_tied()) {
            visit(head);
        }
    }

    /// The linear layers of layer `index`, in order.
    pub fn layer_linears<'a>(&'a self, index: usize, visit: &mut dyn FnMut(&'a Linear)) {
        self.layers[index].self_attn.linears(visit);
        self.layers[index].mlp.linears(visit);
    }

    /// The same decoder with some parts replaced; what a closure gives `None` for is shared.
    ///
    /// A head that is tied to a replaced embedding keeps the old weight.
    pub fn replaced(
        &self,
        linear: &mut dyn FnMut(&Linear) -> Result<Option<Linear>>,
        embedding: &mut dyn FnMut(&Embedding) -> Result<Option<Embedding>>,
    ) -> Result<Self> {
        let mut new = self.clone();
        let blocks = new.layers.iter_mut();
        let inner =
            blocks.flat_map(|block| block.self_attn.linears_mut().into_iter().chain(block.mlp.linears_mut()));
        for place in inner.chain(&mut new.lm_head) {
            if let Some(replacement) = linear(place)? {
                *place = replacement;
            }
        }
        if let Some(replacement) = embedding(&new.embed_tokens)? {
            new.embed_tokens = replacement;
        }
        Ok(new)
    }

    /// Every stored part under its name in a checkpoint; a tied head is not repeated.
    pub fn parts(&self) -> Vec<(String, Part<'_>)> {
        let table = &self.embed_tokens;
        let prefix = table.path().strip_suffix("embed_tokens").unwrap_or_default();
        let mut parts = vec![
            (format!("{}.weight", table.path()), Part::Matrix(table.weight())),
            (format!("{prefix}norm.weight"), Part::Vector(self.norm.weight())),
        ];
        for (index, block) in self.layers.iter().enumerate() {
            let own = [
                ("input_layernorm", &block.input_layernorm),
                ("post_attention_layernorm", &block.post_attention_layernorm),
            ];
            for (name, norm) in own.into_iter().chain(block.self_attn.norms()) {
                parts.push((format!("{prefix}layers.{index}.{name}.weight"), Part::Vector(norm.weight())));
            }
        }
        self.linears(&mut |linear| {
            parts.push((format!("{}.weight", linear.path()), Part::Matrix(linear.weight())));
            parts.extend(linear.bias().map(|bias| (format!("{}.bias", linear.path()), Part::Vector(bias))));
        });
        parts
    }

    /// Whether the head is the embedding.
    pub fn is_tied(&self) -> bool {
        self.lm_head.as_ref().is_some_and(|head| Arc::ptr_eq(head.weight(), self.embed_tokens.weight()))
    }

    /// An empty cache.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.layout)
    }

    /// The shape of caches.
    pub fn cache_layout(&self) -> &Arc<KvLayout> {
        &self.layout
    }

    /// Whether cached keys of one sequence can serve another that starts with the same tokens.
    pub fn prefixes_can_be_shared(&self) -> bool {
        !self.ropes.iter().any(Rope::depends_on_length)
    }

    /// Parameters that are neither in a linear layer's weight nor in the embedding.
    pub fn small_parameters(&self) -> usize {
        let mut count = self.norm.weight().elem_count();
        for block in &self.layers {
            count += block.input_layernorm.weight().elem_count()
                + block.post_attention_layernorm.weight().elem_count();
            count += block.self_attn.norm_parameters();
        }
        self.linears(&mut |linear| count += linear.bias().map_or(0, Tensor::elem_count));
        count
    }
}

fn load_block(scope: &Scope, config: &DecoderConfig, window: Option<usize>) -> Result<Block> {
    let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
    let attention = AttentionConfig {
        hidden,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        qkv_bias: config.qkv_bias,
        output_bias: config.output_bias,
        qk_norm_eps: config.qk_norm.then_some(eps),
        window,
        rope: 0,
        rope_style: config.rope.style,
    };
    Ok(Block {
        input_layernorm: RmsNorm::load(&scope.at("input_layernorm"), hidden, eps)?,
        self_attn: Attention::load(&scope.at("self_attn"), attention)?,
        post_attention_layernorm: RmsNorm::load(&scope.at("post_attention_layernorm"), hidden, eps)?,
        mlp: GatedMlp::load(
            &scope.at("mlp"),
            hidden,
            config.intermediate_size,
            config.mlp_bias,
            config.activation,
        )?,
    })
}
