//! Whether a model is told which of two texts a token is from.
//!
//! Backbones with an embedding of segments use the first row for everything unless the tokenizer gives token types,
//! and that is a matter of its class, not of its vocabulary. Source: `model_input_names` of transformers' tokenizers.

use crate::tokenizer::TokenizerConfig;

/// Classes that give token types unless their files say otherwise, without `Tokenizer` and `Fast`.
const CLASSES: &[&str] = &[
    "Albert",
    "Bert",
    "BertJapanese",
    "BigBird",
    "ConvBert",
    "Deberta",
    "DebertaV2",
    "Electra",
    "Ernie",
    "Funnel",
    "Herbert",
    "LayoutLM",
    "Lxmert",
    "MobileBert",
    "RemBert",
    "RoFormer",
    "Splinter",
    "SqueezeBert",
    "XLNet",
];

/// Families whose usual tokenizer is one of those.
const FAMILIES: &[&str] = &["bert", "nomic_bert"];

/// Whether the tokenizer of a model of this type gives token types.
pub(super) fn are_given(config: &TokenizerConfig, model_type: &str) -> bool {
    if let Some(names) = &config.input_names {
        return names.iter().any(|name| name == "token_type_ids");
    }
    match config.class.as_deref() {
        Some(class) => {
            let class = class.strip_suffix("Fast").unwrap_or(class);
            class.strip_suffix("Tokenizer").is_some_and(|class| CLASSES.contains(&class))
        }
        None => FAMILIES.contains(&model_type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_win_over_classes_and_classes_over_families() {
        let config = |class: Option<&str>, names: Option<&[&str]>| TokenizerConfig {
            class: class.map(str::to_owned),
            input_names: names.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            ..TokenizerConfig::default()
        };
        assert!(are_given(&config(Some("BertTokenizer"), None), "bert"));
        assert!(are_given(&config(Some("BertTokenizerFast"), None), "roberta"));
        assert!(are_given(&config(None, None), "bert"));
        assert!(are_given(
            &config(Some("TokenizersBackend"), Some(&["input_ids", "token_type_ids"])),
            "bert"
        ));
        assert!(!are_given(&config(Some("BertTokenizer"), Some(&["input_ids", "attention_mask"])), "bert"));
        for class in
            ["TokenizersBackend", "PreTrainedTokenizerFast", "DistilBertTokenizer", "RobertaTokenizer"]
        {
            assert!(!are_given(&config(Some(class), None), "bert"), "{class}");
        }
        assert!(!are_given(&config(None, None), "roberta"));
    }
}
