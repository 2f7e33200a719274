//! Self-attention with grouped key-value heads, rotary positions, and caches that come with the pass.

use candle_core::Tensor;

use super::{Linear, Pass, RmsNorm};
use crate::kernels::attention::{AttentionArgs, KeyValues, attention, cached_attention};
use crate::kernels::rope::{RopeStyle, rope};
use crate::weight::Scope;
use crate::{Error, Result};

/// Shapes and kinds of one attention layer.
#[derive(Debug, Clone)]
pub struct AttentionConfig {
    /// Width of the activations.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimension of one head.
    pub head_dim: usize,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Epsilon of the norms on each head's queries and keys, where there are such norms.
    pub qk_norm_eps: Option<f64>,
    /// A token sees this many tokens, itself included; all earlier ones where `None`.
    pub window: Option<usize>,
    /// Index of the rotation among the model's.
    pub rope: usize,
    /// Which dimensions form a rotated pair.
    pub rope_style: RopeStyle,
}

/// Causal self-attention.
#[derive(Debug, Clone)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
    config: AttentionConfig,
}

impl Attention {
    /// Reads `q_proj`, `k_proj`, `v_proj`, `o_proj` and perhaps `q_norm`, `k_norm` below `scope`.
    pub fn load(scope: &Scope, config: AttentionConfig) -> Result<Self> {
        let (hidden, dim) = (config.hidden, config.head_dim);
        let (query, grouped) = (config.heads * dim, config.kv_heads * dim);
        let norms = match config.qk_norm_eps {
            Some(eps) => Some((
                RmsNorm::load(&scope.at("q_norm"), dim, eps)?,
                RmsNorm::load(&scope.at("k_norm"), dim, eps)?,
            )),
            None => None,
        };
        Ok(Self {
            q_proj: Linear::load(&scope.at("q_proj"), hidden, query, config.qkv_bias)?,
            k_proj: Linear::load(&scope.at("k_proj"), hidden, grouped, config.qkv_bias)?,
            v_proj: Linear::load(&scope.at("v_proj"), hidden, grouped, config.qkv_bias)?,
            o_proj: Linear::load(&scope.at("o_proj"), query, hidden, config.output_bias)?,
            norms,
            config,
        })
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`; appends to cache layer `layer` where the pass has caches.
    pub fn forward(&self, x: &Tensor, pass: &mut Pass, layer: usize) -> Result<Tensor> {
        let (tokens, config) = (x.dims()[0], &self.config);
        // [tokens, heads * head_dim] -> [tokens, heads, head_dim]
        let split = |y: Tensor, heads: usize| y.reshape((tokens, heads, config.head_dim));
        let mut q = split(self.q_proj.forward(x, pass)?, config.heads)?;
        let mut k = split(self.k_proj.forward(x, pass)?, config.kv_heads)?;
        let v = split(self.v_proj.forward(x, pass)?, config.kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let Some(tables) = pass.rope(config.rope) else {
            return Err(Error::internal("attention", "the rotation tables of this pass were not prepared"));
        };
        q = rope(&q, &tables.cos, &tables.sin, config.rope_style)?;
        k = rope(&k, &tables.cos, &tables.sin, config.rope_style)?;
        let y = self.attend(&q, &k, &v, pass, layer)?;
        self.o_proj.forward(&y.reshape((tokens, config.heads * config.head_dim))?, pass)
    }

    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, pass: &mut Pass, layer: usize) -> Result<Tensor> {
        let batch = pass.batch();
        let args = AttentionArgs {
            offsets: batch.offsets(),
            scale: 1.0 / (self.config.head_dim as f32).sqrt(),
            causal: true,
            window: self.config.window,
            bias: None,
        };
        let Some(caches) = pass.caches() else {
            return attention(q, k, v, &args);
        };
        for (index, cache) in caches.iter_mut().enumerate() {
            let rows = batch.rows(index);
            cache.append(
                layer,
                &k.narrow(0, rows.start, rows.len())?,
                &v.narrow(0, rows.start, rows.len())?,
            )?;
        }
        let views = caches.iter().map(|cache| cache.view(layer)).collect::<Result<Vec<KeyValues>>>()?;
        cached_attention(q, &views, &args)
    }

    pub(super) fn linears<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        for linear in [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj] {
            visit(linear);
        }
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.o_proj]
    }

    /// The norms on heads, by name.
    pub(super) fn norms(&self) -> impl Iterator<Item = (&'static str, &RmsNorm)> {
        let pair = self.norms.iter();
        pair.flat_map(|(q, k)| [("self_attn.q_norm", q), ("self_attn.k_norm", k)])
    }

    pub(super) fn norm_parameters(&self) -> usize {
        self.norms.as_ref().map_or(0, |(q, k)| q.weight().elem_count() + k.weight().elem_count())
    }

    pub(super) fn window(&self) -> Option<usize> {
        self.config.window
    }
}
