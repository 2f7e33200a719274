//! Prompts that well-known embedding models were trained with but whose repositories do not say so.
//!
//! Sources: the model cards of those repositories.

/// What to put before queries and before documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPrompts {
    /// Before a query.
    pub query: &'static str,
    /// Before a document.
    pub document: &'static str,
}

const INSTRUCT: &str =
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ";
const QWEN: &str =
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:";

/// The first entry whose words are all part of the name wins.
const KNOWN: &[(&[&str], KnownPrompts)] = &[
    (&["e5-", "-instruct"], KnownPrompts { query: INSTRUCT, document: "" }),
    (&["e5-"], KnownPrompts { query: "query: ", document: "passage: " }),
    (&["bge-", "-en"], {
        KnownPrompts { query: "Represent this sentence for searching relevant passages: ", document: "" }
    }),
    (&["bge-", "-zh"], KnownPrompts { query: "为这个句子生成表示以用于检索相关文章：", document: "" }),
    (&["nomic-embed-text"], KnownPrompts { query: "search_query: ", document: "search_document: " }),
    (&["qwen3-embedding"], KnownPrompts { query: QWEN, document: "" }),
];

/// The prompts of the model called `name`, a hub id or a directory; its last part counts.
pub fn known_prompts(name: &str) -> Option<KnownPrompts> {
    let last = name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next()?.to_ascii_lowercase();
    // At the start of a word, so that a name that merely ends in these letters is not taken for one of them.
    let contains = |word: &&str| {
        let at_start = |(index, _): (usize, _)| index == 0 || last[..index].ends_with(['-', '_']);
        word.starts_with('-') && last.contains(*word) || last.match_indices(*word).any(at_start)
    };
    KNOWN.iter().find(|(words, _)| words.iter().all(contains)).map(|(_, prompts)| *prompts)
}

#[cfg(test)]
mod tests {
    use super::known_prompts;

    #[test]
    fn names_are_recognised_by_their_last_part() {
        let query = |name| known_prompts(name).map(|prompts| prompts.query);
        assert_eq!(query("intfloat/multilingual-e5-small"), Some("query: "));
        assert_eq!(query("/models/e5-base-v2/"), Some("query: "));
        assert!(query("intfloat/multilingual-e5-large-instruct").unwrap().starts_with("Instruct: "));
        assert!(query("BAAI/bge-small-en-v1.5").unwrap().starts_with("Represent"));
        assert_eq!(known_prompts("BAAI/bge-small-en-v1.5").unwrap().document, "");
        assert_eq!(query("nomic-ai/nomic-embed-text-v1.5"), Some("search_query: "));
        assert_eq!(query("BAAI/bge-m3"), None);
        assert_eq!(query("sentence-transformers/all-MiniLM-L6-v2"), None);
        assert_eq!(query("e5-models/other"), None);
    }
}
