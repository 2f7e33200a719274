//! Which modules of a model a configuration means, by PEFT's rules for names and regular expressions.
//!
//! Names match a whole path or its end after a dot; regular expressions are Python's, matched against the whole path.

use std::path::Path;

use fancy_regex::Regex;

use super::{BiasMode, LoraConfig, Modules, SiteKind, code};
use crate::{Error, Result};

/// A configuration with its regular expressions compiled.
pub(super) struct Matcher<'a> {
    config: &'a LoraConfig,
    path: &'a Path,
    targets: Pattern<'a>,
    excluded: Option<Pattern<'a>>,
    saved: Vec<Regex>,
    layers: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

enum Pattern<'a> {
    Names(&'a [String]),
    Regex(Regex),
    AllLinear,
}

impl<'a> Matcher<'a> {
    /// Compiles `config`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::InvalidAdapter`] with `invalid_config` for a malformed regular expression.
    pub(super) fn new(config: &'a LoraConfig, path: &'a Path) -> Result<Self> {
        let compile = |field: &str, given: &str, whole: String| {
            Regex::new(&whole).map_err(|error| {
                // What is wrong by itself is reported without what is put around it.
                let error = Regex::new(given).err().unwrap_or(error);
                let problem = format!("{field}: {given:?} is not a regular expression: {error}");
                Error::adapter(path, code::INVALID_CONFIG, problem)
            })
        };
        let modules = |field: &str, modules: &'a Modules| -> Result<Pattern<'a>> {
            Ok(match modules {
                Modules::Names(names) => Pattern::Names(names),
                Modules::Pattern(pattern) => {
                    Pattern::Regex(compile(field, pattern, format!("^(?:{pattern})$"))?)
                }
                Modules::AllLinear => Pattern::AllLinear,
            })
        };
        let by_end = |field: &str, pattern: &str| compile(field, pattern, format!("^(.*\\.)?({pattern})$"));
        let layers = match config.layers_pattern.as_slice() {
            [] => {
                let any = r"^.*?\.[^.]*\.(?P<layer>\d+)\.";
                vec![compile("layers_pattern", any, any.into())?]
            }
            names => names
                .iter()
                .map(|name| compile("layers_pattern", name, format!(r"^(?:|.*?\.){name}\.(?P<layer>\d+)\.")))
                .collect::<Result<_>>()?,
        };
        let saved = (config.modules_to_save.iter())
            .map(|name| compile("modules_to_save", name, format!(r"^(?:|.*\.){name}(?:$|\..*)")))
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            path,
            targets: modules("target_modules", &config.target_modules)?,
            excluded: (config.exclude_modules.as_ref())
                .map(|excluded| modules("exclude_modules", excluded))
                .transpose()?,
            saved,
            layers,
            ranks: config
                .rank_pattern
                .iter()
                .map(|(pattern, rank)| Ok((by_end("rank_pattern", pattern)?, *rank)))
                .collect::<Result<_>>()?,
            alphas: config
                .alpha_pattern
                .iter()
                .map(|(pattern, alpha)| Ok((by_end("alpha_pattern", pattern)?, *alpha)))
                .collect::<Result<_>>()?,
        })
    }

    /// Whether the site at `path` gets low-rank factors.
    pub(super) fn is_target(&self, path: &str, kind: SiteKind) -> Result<bool> {
        if let Some(excluded) = &self.excluded
            && self.matches(excluded, path, kind)?
        {
            return Ok(false);
        }
        if self.is_saved_whole(path)? {
            return Ok(false);
        }
        if !self.matches(&self.targets, path, kind)? {
            return Ok(false);
        }
        match (&self.targets, &self.config.layers_to_transform) {
            (Pattern::Names(names), Some(wanted)) if !names.iter().any(|name| name == path) => {
                Ok(self.layer_of(path)?.is_some_and(|layer| wanted.contains(&layer)))
            }
            (Pattern::AllLinear, Some(wanted)) => {
                Ok(self.layer_of(path)?.is_some_and(|layer| wanted.contains(&layer)))
            }
            _ => Ok(true),
        }
    }

    /// Whether the site at `path` is trained and saved whole.
    pub(super) fn is_saved_whole(&self, path: &str) -> Result<bool> {
        for pattern in &self.saved {
            if self.is_match(pattern, path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first of `modules_to_save` that does not mean at least one of `sites`, or means one of `others`; with it what it
    /// wrongly means.
    pub(super) fn unsaved<'p>(
        &self,
        sites: &[&str],
        others: &'p [String],
    ) -> Result<Option<(&'a str, Option<&'p str>)>> {
        for (name, pattern) in self.config.modules_to_save.iter().zip(&self.saved) {
            for other in others {
                if self.is_match(pattern, other)? {
                    return Ok(Some((name, Some(other))));
                }
            }
            let mut is_met = false;
            for site in sites {
                is_met |= self.is_match(pattern, site)?;
            }
            if !is_met {
                return Ok(Some((name, None)));
            }
        }
        Ok(None)
    }

    /// Whether the adapter replaces the bias of a site that has one.
    pub(super) fn replaces_bias(&self, is_target: bool) -> bool {
        match self.config.bias {
            BiasMode::None => false,
            BiasMode::LoraOnly => is_target,
            BiasMode::All => true,
        }
    }

    /// The rank at `path`.
    pub(super) fn rank(&self, path: &str) -> Result<usize> {
        for (pattern, rank) in &self.ranks {
            if self.is_match(pattern, path)? {
                return Ok(*rank);
            }
        }
        Ok(self.config.rank)
    }

    /// The factor on the change at `path`.
    pub(super) fn scaling(&self, path: &str) -> Result<f64> {
        let rank = self.rank(path)? as f64;
        let mut alpha = self.config.alpha;
        for (pattern, other) in &self.alphas {
            if self.is_match(pattern, path)? {
                alpha = *other;
                break;
            }
        }
        Ok(if self.config.use_rslora { alpha / rank.sqrt() } else { alpha / rank })
    }

    fn matches(&self, pattern: &Pattern, path: &str, kind: SiteKind) -> Result<bool> {
        Ok(match pattern {
            Pattern::Names(names) => names.iter().any(|name| is_end_of(path, name)),
            Pattern::Regex(regex) => self.is_match(regex, path)?,
            Pattern::AllLinear => kind == SiteKind::Linear,
        })
    }

    fn layer_of(&self, path: &str) -> Result<Option<usize>> {
        for pattern in &self.layers {
            let found = pattern.captures(path).map_err(|error| self.too_hard(pattern, &error))?;
            if let Some(layer) = found.and_then(|captures| captures.name("layer")?.as_str().parse().ok()) {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    fn is_match(&self, pattern: &Regex, path: &str) -> Result<bool> {
        pattern.is_match(path).map_err(|error| self.too_hard(pattern, &error))
    }

    fn too_hard(&self, pattern: &Regex, error: &fancy_regex::Error) -> Error {
        let problem = format!("the regular expression {:?} cannot be matched: {error}", pattern.as_str());
        Error::adapter(self.path, code::INVALID_CONFIG, problem)
    }
}

/// Whether `name` is `path` or what follows one of its dots.
fn is_end_of(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(config: &LoraConfig) -> Vec<&'static str> {
        let matcher = Matcher::new(config, Path::new("test")).unwrap();
        let paths = [
            ("model.embed_tokens", SiteKind::Embedding),
            ("model.layers.0.self_attn.q_proj", SiteKind::Linear),
            ("model.layers.1.self_attn.q_proj", SiteKind::Linear),
            ("model.layers.11.mlp.up_proj", SiteKind::Linear),
            ("lm_head", SiteKind::Head),
        ];
        let chosen = paths.into_iter().filter(|(path, kind)| matcher.is_target(path, *kind).unwrap());
        chosen.map(|(path, _)| path).collect()
    }

    fn names(names: &[&str]) -> Modules {
        Modules::Names(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn names_match_ends_of_paths_after_a_dot() {
        let config = LoraConfig { target_modules: names(&["q_proj", "proj", "head"]), ..Default::default() };
        let q = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"];
        assert_eq!(targets(&config), q);
        let one = LoraConfig { exclude_modules: Some(names(&["0.self_attn.q_proj"])), ..config.clone() };
        assert_eq!(targets(&one), &q[1..]);
        let first = LoraConfig { layers_to_transform: Some(vec![0, 11]), ..config };
        assert_eq!(targets(&first), &q[..1]);
    }

    #[test]
    fn patterns_match_whole_paths_as_in_python() {
        let pattern = |text: &str| LoraConfig {
            target_modules: Modules::Pattern(text.into()),
            ..LoraConfig::default()
        };
        assert_eq!(
            targets(&pattern(r".*\.1.*")),
            ["model.layers.1.self_attn.q_proj", "model.layers.11.mlp.up_proj"]
        );
        assert_eq!(targets(&pattern(r"(?!.*q_proj).*layers.*")), ["model.layers.11.mlp.up_proj"]);
        assert!(targets(&pattern("layers")).is_empty());
        let broken = pattern("(");
        let error = Matcher::new(&broken, Path::new("test")).err().unwrap();
        assert!(matches!(error, Error::InvalidAdapter { code: code::INVALID_CONFIG, .. }));
    }

    #[test]
    fn all_linear_leaves_out_the_head_and_what_is_saved_whole() {
        let config = LoraConfig {
            target_modules: Modules::AllLinear,
            modules_to_save: vec!["layers.1".into(), "lm_head".into()],
            ..LoraConfig::default()
        };
        assert_eq!(targets(&config), ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj"]);
    }

    #[test]
    fn ranks_and_alphas_follow_the_first_pattern_that_matches_an_end() {
        let config = LoraConfig {
            rank: 4,
            alpha: 8.0,
            rank_pattern: vec![("layers.1.self_attn.q_proj".into(), 2), (r"(q|k)_proj".into(), 16)],
            alpha_pattern: vec![("^q_proj".into(), 1.0), (r"mlp\..*".into(), 3.0)],
            use_rslora: true,
            ..LoraConfig::default()
        };
        let matcher = Matcher::new(&config, Path::new("test")).unwrap();
        assert_eq!(matcher.rank("model.layers.1.self_attn.q_proj").unwrap(), 2);
        assert_eq!(matcher.rank("model.layers.0.self_attn.q_proj").unwrap(), 16);
        assert_eq!(matcher.rank("model.layers.0.self_attn.qq_proj").unwrap(), 4);
        assert_eq!(matcher.scaling("model.layers.0.self_attn.q_proj").unwrap(), 2.0);
        assert_eq!(matcher.scaling("model.layers.0.mlp.up_proj").unwrap(), 1.5);
    }
}
