//! Joining an adapter's tensors to the sites of a model: everything fits, or nothing is applied.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::layout::{self, Layout, Problem};
use super::parts::{Parts, Training};
use super::random::Hash;
use super::site::Naming;
use super::target::Matcher;
use super::{ADAPTERS, AdapterFile, LoraConfig, Site, Sites, code, file};
use crate::nn::{Adapter, AdapterSet};
use crate::weight::Format;
use crate::{Error, Result};

/// One site that an adapter of some configuration changes.
pub(super) struct Planned<'a> {
    pub(super) site: &'a Site,
    /// The site's path as the adapter knows it.
    pub(super) path: String,
    pub(super) layout: Layout,
}

/// All sites that `config` changes; `path` is for messages.
///
/// # Errors
/// [`Error::InvalidAdapter`] with `unknown_target` where it adapts none, and for what cannot be honoured.
pub(super) fn plan<'a>(
    config: &LoraConfig,
    sites: &'a Sites,
    naming: &Naming,
    path: &Path,
) -> Result<Vec<Planned<'a>>> {
    let matcher = Matcher::new(config, path)?;
    let mut planned = Vec::new();
    let mut is_targeted = false;
    for site in sites.iter() {
        let name = naming.in_file(&site.path);
        match layout::layout(config, &matcher, site, &name)? {
            Ok(layout) if layout.tensors.is_empty() => {}
            Ok(layout) => {
                is_targeted |= layout.is_target;
                planned.push(Planned { site, path: name, layout });
            }
            Err((code, problem)) => return Err(Error::adapter(path, code, problem)),
        }
    }
    if !is_targeted {
        let mut ends: Vec<&str> = sites.iter().filter_map(|site| site.path.rsplit('.').next()).collect();
        ends.sort_unstable();
        ends.dedup();
        let layers = config.layers_to_transform.as_ref();
        let layers = layers.map(|layers| format!(" in layers_to_transform {layers:?}")).unwrap_or_default();
        let problem = format!(
            "target_modules {} match no module of the model{layers}; it has {}",
            config.target_modules,
            ends.join(", ")
        );
        return Err(Error::adapter(path, code::UNKNOWN_TARGET, problem));
    }
    Ok(planned)
}

/// An adapter that fits a model.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    pub(super) set: Arc<AdapterSet>,
    /// Bytes that its tensors take beside the model.
    pub(super) size_in_bytes: usize,
    pub(super) num_parameters: usize,
    /// The adapted modules, by the last parts of their paths.
    pub(super) targets: Vec<String>,
}

/// Joins `file` to `sites` under `name`.
///
/// # Errors
/// [`Error::InvalidAdapter`] with all problems of the first kind found.
pub(super) fn bind(file: &AdapterFile, sites: &Sites, name: &str) -> Result<Bound> {
    let paths = || file.tensors().keys().filter_map(|name| Some(layout::split(name)?.0));
    let naming = Naming::detect(sites, paths());
    let planned = plan(file.config(), sites, &naming, file.path())?;
    let layers = match_tensors(file, &planned, sites)?;
    check_copies(file, sites, &naming)?;
    let (mut size_in_bytes, mut num_parameters) = (0, 0);
    let mut on_device = Vec::with_capacity(planned.len());
    for tensors in layers {
        let mut layer = BTreeMap::new();
        for (name, tensor) in tensors {
            num_parameters += tensor.elem_count();
            size_in_bytes += tensor.elem_count() * sites.dtype().size_in_bytes();
            layer.insert(name, tensor.to_device(sites.device())?.to_dtype(sites.dtype())?);
        }
        on_device.push(layer);
    }
    let generation = content_hash(file, &planned)?;
    let set = assemble(name, generation, &planned, on_device, None)?;
    Ok(Bound { set: Arc::new(set), size_in_bytes, num_parameters, targets: target_names(&planned) })
}

/// Builds the layers of a set, one for each planned site.
pub(super) fn assemble(
    name: &str,
    generation: u64,
    planned: &[Planned],
    tensors: Vec<BTreeMap<&'static str, Tensor>>,
    training: Option<&Training>,
) -> Result<AdapterSet> {
    let mut layers: HashMap<String, Arc<dyn Adapter>> = HashMap::with_capacity(planned.len());
    for (planned, tensors) in planned.iter().zip(tensors) {
        let scaling = planned.layout.scaling;
        let parts = Parts { site: planned.site, tensors, scaling, training: training.cloned() };
        for kind in ADAPTERS {
            if let Some(adapter) = (kind.build)(&parts)? {
                layers.insert(planned.site.path.clone(), adapter);
                break;
            }
        }
    }
    Ok(AdapterSet::new(name, generation, layers))
}

/// The last parts of the paths of adapted modules, each once, in the model's order.
pub(super) fn target_names(planned: &[Planned]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for planned in planned.iter().filter(|planned| planned.layout.is_target) {
        let end = planned.path.rsplit('.').next().unwrap_or_default();
        if !names.iter().any(|name| name == end) {
            names.push(end.to_owned());
        }
    }
    names
}

/// For each planned site its tensors from the file; every tensor of the file belongs to one, or to a module that
/// computes nothing here.
pub(super) fn match_tensors(
    file: &AdapterFile,
    planned: &[Planned],
    sites: &Sites,
) -> Result<Vec<BTreeMap<&'static str, Tensor>>> {
    let mut left: BTreeMap<(&str, &'static str), (&String, &Tensor)> = (file.tensors().iter())
        .filter_map(|(name, tensor)| Some((layout::split(name)?, (name, tensor))))
        .collect();
    let mut problems: Vec<Problem> = Vec::new();
    let mut layers = Vec::with_capacity(planned.len());
    for Planned { path, layout, .. } in planned {
        let mut layer = BTreeMap::new();
        let mut missing = Vec::new();
        for (suffix, shape) in &layout.tensors {
            match left.remove(&(path.as_str(), *suffix)) {
                Some((name, tensor)) => {
                    check_tensor(name, tensor, shape, &mut problems)?;
                    layer.insert(*suffix, tensor.clone());
                }
                None => missing.push(*suffix),
            }
        }
        let code = if layer.is_empty() { code::MISSING_TENSOR } else { code::MISSING_PAIR };
        problems.extend(missing.into_iter().map(|suffix| (code, format!("{path}.{suffix} is missing"))));
        layers.push(layer);
    }
    let unknown = |(name, _): &(&String, &Tensor)| {
        (code::UNKNOWN_KEY, format!("tensor {name} belongs to no module that the configuration adapts"))
    };
    let unmatched = left.iter().filter(|((path, _), _)| !sites.is_unused(path));
    problems.extend(unmatched.map(|(_, tensor)| unknown(tensor)));
    report(file.path(), problems)?;
    Ok(layers)
}

fn check_tensor(name: &str, tensor: &Tensor, shape: &[usize], problems: &mut Vec<Problem>) -> Result<()> {
    if tensor.dims() != shape {
        let problem = format!("tensor {name} has shape {:?}, expected {shape:?}", tensor.dims());
        problems.push((code::SHAPE_MISMATCH, problem));
    } else if !is_finite(tensor)? {
        problems.push((code::NOT_FINITE, format!("tensor {name} holds NaN or infinity")));
    }
    Ok(())
}

/// The order in which kinds of problems are reported: causes before their consequences.
const PRIORITY: &[&str] =
    &[code::UNKNOWN_KEY, code::MISSING_PAIR, code::MISSING_TENSOR, code::SHAPE_MISMATCH, code::NOT_FINITE];

fn report(path: &Path, problems: Vec<Problem>) -> Result<()> {
    let Some(first) = PRIORITY.iter().find(|code| problems.iter().any(|(of, _)| of == *code)) else {
        return Ok(());
    };
    let of_kind = problems.into_iter().filter(|(of, _)| of == first).map(|(_, problem)| problem).collect();
    Err(file::invalid(path, first, of_kind))
}

/// Whether a contiguous f32 tensor on the CPU has neither NaN nor infinity.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    with_values(tensor, |values| values.iter().all(|value| value.is_finite()))
}

/// Hands over the values of a contiguous f32 tensor on the CPU.
fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        return Err(Error::internal("adapter", "its file's tensors are not on the CPU"));
    };
    let values = &storage.as_slice::<f32>()?[layout.start_offset()..][..tensor.elem_count()];
    Ok(f(values))
}

/// A hash of what the adapter computes: its tensors, where they go, and how they are scaled.
pub(super) fn content_hash(file: &AdapterFile, planned: &[Planned]) -> Result<u64> {
    let mut hash = Hash::default();
    for (name, tensor) in file.tensors() {
        hash.bytes(name.as_bytes());
        for size in tensor.dims() {
            hash.bytes(&(*size as u64).to_le_bytes());
        }
        with_values(tensor, |values| hash.floats(values))?;
    }
    for planned in planned {
        hash.bytes(planned.path.as_bytes());
        hash.bytes(&planned.layout.scaling.to_le_bytes());
    }
    Ok(hash.finish())
}

/// Refuses an adapter whose file carries base weights that are not the model's.
pub(super) fn check_copies(file: &AdapterFile, sites: &Sites, naming: &Naming) -> Result<()> {
    for name in file.copies() {
        let path =
            name.strip_suffix(layout::BASE_WEIGHT).map_or(name.as_str(), |path| path.trim_end_matches('.'));
        let Some(site) = sites.iter().find(|site| naming.in_file(&site.path) == path) else {
            let problem = format!("tensor {name} belongs to no module of the model");
            return Err(file.invalid(code::UNKNOWN_KEY, vec![problem]));
        };
        let Some(copy) = file.copy(name)? else { continue };
        let (out, inn) = site.weight.shape();
        if copy.dims() != [out, inn] {
            let problem = format!(
                "the adapter was made for a base model whose {path} has shape {:?}; here it is [{out}, {inn}]",
                copy.dims()
            );
            return Err(file.invalid(code::SHAPE_MISMATCH, vec![problem]));
        }
        if !is_same_weight(site, &copy)? {
            let problem =
                format!("the adapter was made for a base model with another {path} than this one's");
            return Err(file.invalid(code::BASE_CHANGED, vec![problem]));
        }
    }
    Ok(())
}

/// Whether a site's weight is `copy` but for rounding to its dtype; quantised weights cannot tell.
fn is_same_weight(site: &Site, copy: &Tensor) -> Result<bool> {
    /// Rows compared at a time.
    const BLOCK: usize = 4096;
    let tolerance = match site.weight.format() {
        Format::F32 | Format::F16 => 1e-3,
        Format::BF16 => 1e-2,
        _ => return Ok(true),
    };
    let rows = copy.dim(0)?;
    for first in (0..rows).step_by(BLOCK) {
        let count = BLOCK.min(rows - first);
        let ids: Vec<u32> = (first as u32..(first + count) as u32).collect();
        let own = site.weight.rows(&ids, DType::F32)?.to_device(copy.device())?;
        let other = copy.narrow(0, first, count)?;
        let same = with_values(&own, |own| {
            with_values(&other, |other| {
                own.iter().zip(other).all(|(a, b)| (a - b).abs() <= tolerance * a.abs().max(b.abs()) + 1e-6)
            })
        })??;
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}
