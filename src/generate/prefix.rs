//! Caches of recent requests, kept so that a request with the same beginning need not compute it again.
//!
//! Entries are keyed by their tokens and by the adapter's content; the least recently used go first when the byte
//! limit is reached.

use crate::nn::KvCache;

/// Entries beyond this number are dropped even if they are small.
const MAX_ENTRIES: usize = 32;

#[derive(Debug)]
struct Entry {
    tokens: Vec<u32>,
    adapter: Option<u64>,
    cache: KvCache,
}

/// The store; the most recently used entry is last.
#[derive(Debug, Default)]
pub(super) struct PrefixStore {
    entries: Vec<Entry>,
    limit_bytes: usize,
}

/// Number of leading tokens that both have.
pub(super) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

impl PrefixStore {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { entries: Vec::new(), limit_bytes }
    }

    /// Bytes held.
    pub(super) fn size_in_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.cache.size_in_bytes()).sum()
    }

    /// Keeps the cache of `tokens`; an entry that it continues is replaced.
    pub(super) fn insert(&mut self, tokens: Vec<u32>, adapter: Option<u64>, cache: KvCache) {
        let covered = |entry: &Entry| {
            entry.adapter == adapter
                && common_prefix(&entry.tokens, &tokens) == entry.tokens.len().min(tokens.len())
        };
        if tokens.is_empty()
            || self.entries.iter().any(|entry| covered(entry) && entry.tokens.len() >= tokens.len())
        {
            return;
        }
        self.entries.retain(|entry| !covered(entry));
        self.entries.push(Entry { tokens, adapter, cache });
        let limit = self.limit_bytes;
        self.shrink_to(limit);
    }

    /// Drops entries until at most `bytes` are held.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        while !self.entries.is_empty() && (self.entries.len() > MAX_ENTRIES || self.size_in_bytes() > bytes) {
            self.entries.remove(0);
        }
    }

    /// The entry that shares most leading tokens with `tokens`, and how many.
    pub(super) fn best(&mut self, tokens: &[u32], adapter: Option<u64>) -> Option<(usize, &KvCache)> {
        let (index, shared) = (self.entries.iter().enumerate())
            .filter(|(_, entry)| entry.adapter == adapter)
            .map(|(index, entry)| (index, common_prefix(&entry.tokens, tokens)))
            .max_by_key(|(_, shared)| *shared)
            .filter(|(_, shared)| *shared > 0)?;
        let entry = self.entries.remove(index);
        self.entries.push(entry);
        self.entries.last().map(|entry| (shared, &entry.cache))
    }
}
