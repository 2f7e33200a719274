//! The places of a model where an adapter can be plugged in.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::device;
use crate::models::Model;
use crate::nn::Linear;
use crate::weight::Weight;

/// What a site computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteKind {
    /// A linear layer inside of the stack.
    Linear,
    /// The token embedding.
    Embedding,
    /// The layer that gives logits, which may share its weight with the embedding.
    Head,
}

/// One such place.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its path as the checkpoint spells it.
    pub path: String,
    /// What it computes.
    pub kind: SiteKind,
    /// Its frozen weight `[out, in]`, for an embedding `[vocab, hidden]`.
    pub weight: Arc<dyn Weight>,
    /// Its bias `[out]`.
    pub bias: Option<Tensor>,
}

impl Site {
    /// The site of a linear layer.
    pub fn linear(linear: &Linear, kind: SiteKind) -> Self {
        Self {
            path: linear.path().to_owned(),
            kind,
            weight: Arc::clone(linear.weight()),
            bias: linear.bias().cloned(),
        }
    }
}

/// All sites of one model, in the model's order.
#[derive(Debug, Clone)]
pub struct Sites {
    list: Vec<Site>,
    index: HashMap<String, usize>,
    unused: &'static [&'static str],
    device: Device,
    dtype: DType,
}

impl Sites {
    /// The sites of a decoder: its embedding, its linear layers, its head.
    pub fn of(model: &Model) -> Self {
        let decoder = model.decoder();
        let embedding = decoder.embedding();
        let mut list = vec![Site {
            path: embedding.path().to_owned(),
            kind: SiteKind::Embedding,
            weight: Arc::clone(embedding.weight()),
            bias: None,
        }];
        let head = decoder.head();
        decoder.linears(&mut |linear| {
            if head.is_none_or(|head| head.path() != linear.path()) {
                list.push(Site::linear(linear, SiteKind::Linear));
            }
        });
        list.extend(head.map(|head| Site::linear(head, SiteKind::Head)));
        Self::new(list, model.device().clone(), device::compute_dtype(model.device(), model.dtype()))
    }

    /// Any sites, of a model on `device` whose activations have `dtype`.
    pub fn new(list: Vec<Site>, device: Device, dtype: DType) -> Self {
        let index = list.iter().enumerate().map(|(index, site)| (site.path.clone(), index)).collect();
        Self { list, index, unused: &[], device, dtype }
    }

    /// The same with modules that checkpoints have and nothing here computes; adapters may change them in vain.
    pub fn with_unused(self, modules: &'static [&'static str]) -> Self {
        Self { unused: modules, ..self }
    }

    /// Whether the module at `path` computes nothing here.
    pub(super) fn is_unused(&self, path: &str) -> bool {
        path.split('.').any(|part| self.unused.contains(&part))
    }

    /// The site at `path`.
    pub fn find(&self, path: &str) -> Option<&Site> {
        self.index.get(path).map(|index| &self.list[*index])
    }

    /// All sites.
    pub fn iter(&self) -> std::slice::Iter<'_, Site> {
        self.list.iter()
    }

    /// The device of the model.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of the model's activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

/// How the paths of a file relate to those of the model: the two may differ in one leading part, as a model with a
/// head (`model.layers…`) and one without (`layers…`) do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Naming {
    Same,
    /// The file has this part more.
    Longer(String),
    /// The file has the model's first part less.
    Shorter,
}

impl Naming {
    /// The naming under which some of a file's paths are sites.
    pub(super) fn detect<'a>(sites: &Sites, paths: impl Iterator<Item = &'a str> + Clone) -> Self {
        if paths.clone().any(|path| sites.find(path).is_some()) {
            return Self::Same;
        }
        let longer = paths
            .clone()
            .find_map(|path| path.split_once('.').filter(|(_, rest)| sites.find(rest).is_some()));
        if let Some((first, _)) = longer {
            return Self::Longer(first.to_owned());
        }
        let short: std::collections::HashSet<&str> =
            sites.iter().filter_map(|site| Some(site.path.split_once('.')?.1)).collect();
        if paths.clone().any(|path| short.contains(path)) { Self::Shorter } else { Self::Same }
    }

    /// The file's path for the model's.
    pub(super) fn in_file(&self, path: &str) -> String {
        match self {
            Self::Same => path.to_owned(),
            Self::Longer(first) => format!("{first}.{path}"),
            Self::Shorter => path.split_once('.').map_or(path, |(_, rest)| rest).to_owned(),
        }
    }
}
