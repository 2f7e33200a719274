"""Tiny tokenizers of the kinds encoders come with, trained on a few sentences.

Each function writes `tokenizer.json` and `tokenizer_config.json` into a directory, with the special
tokens at the ids the family expects, and returns the vocabulary's size.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers  # noqa: E402
from tokenizers import processors, trainers  # noqa: E402

from reference import write_json  # noqa: E402

CORPUS = [
    "A small cat sleeps on the warm chair by the fire.",
    "The quick brown fox jumps over the lazy dog and runs into the forest.",
    "Which planet is known as the red planet? Mars is often called the red planet.",
    "Numbers like 1, 2 and 30 appear here, with punctuation: (yes!) and no?",
    "Bread is baked in the oven, and the baker sells it in the morning.",
    "How do people learn to speak a new language? They listen, they read and they try.",
    "Rain falls on the roof; the river rises and the boats stay in the harbour.",
    "Une petite école près du café, naïve et belle. Straße und Brücke.",
    "A map shows where places are, and a clock shows the time.",
    "Nobody knows how deep the sea is, but everyone can see that it is wide.",
]
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special(token: str, **flags: bool) -> AddedToken:
    return AddedToken(token, special=True, normalized=False, **flags)


def finish(tokenizer: Tokenizer, directory: Path, kind: str, limit: int, names: dict[str, str], **extra) -> int:
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {"tokenizer_class": kind, "model_max_length": limit, "clean_up_tokenization_spaces": False}
    write_json(directory / "tokenizer_config.json", config | names | extra)
    return tokenizer.get_vocab_size()


def pieces(limit: int, fold: bool) -> list[tuple[str, bool, int]]:
    """Characters and frequent beginnings and rests of words: (piece, is it a beginning, how often).

    Made by counting, because the trainers of these two models break ties differently at every run.
    """
    words = Counter(re.findall(r"\w+|[^\w\s]", " ".join(CORPUS).lower() if fold else " ".join(CORPUS)))
    found: Counter[tuple[str, bool]] = Counter()
    for word, times in words.items():
        for i in range(len(word)):
            found[word[i], i == 0] += times
        for i in range(1, len(word) + 1):
            if 2 <= i <= 6 or i == len(word) > 1:
                found[word[:i], True] += times
            if len(word) > i and 2 <= len(word) - i <= 4:
                found[word[i:], False] += times
    single = sorted(k for k in found if len(k[0]) == 1)
    longer = sorted((k for k in found if len(k[0]) > 1), key=lambda k: (-found[k] * len(k[0]), k))
    return [(*k, found[k]) for k in single + longer[: limit - len(single)]]


def wordpiece(names: list[str], unknown: str) -> Tokenizer:
    """BERT's kind: lower-cased, accents stripped, words in pieces."""
    vocab = {name: i for i, name in enumerate(names)}
    for piece, is_begin, _ in pieces(190, fold=True):
        vocab.setdefault(piece if is_begin else "##" + piece, len(vocab))
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    tokenizer.add_special_tokens([special(n) for n in names])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ANGLE = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}


def bert(directory: Path, limit: int, kind: str = "BertTokenizer") -> int:
    """BERT: `[PAD]` 0, `[UNK]` 1, `[CLS]` 2, `[SEP]` 3, token type 1 for the second text."""
    tokenizer = wordpiece(list(BERT.values()), "[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return finish(tokenizer, directory, kind, limit, BERT, do_lower_case=True)


def distilbert(directory: Path, limit: int) -> int:
    """DistilBERT: BERT's tokenizer; its model has no token types."""
    return bert(directory, limit, "DistilBertTokenizer")


def mpnet(directory: Path, limit: int) -> int:
    """MPNet: WordPiece with RoBERTa's special tokens, `<s>` 0, `<pad>` 1, `</s>` 2."""
    tokenizer = wordpiece(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], "[UNK]")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    names = ANGLE | {"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"}
    return finish(tokenizer, directory, "MPNetTokenizer", limit, names, do_lower_case=True)


def byte_level(vocab: int, names: list[str], prefix_space: bool, words: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if words:
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(words), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[special(n, lstrip=n in ("<mask>", "[MASK]")) for n in names],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def roberta(directory: Path, limit: int) -> int:
    """RoBERTa: byte-level BPE, `<s>` 0, `<pad>` 1, `</s>` 2, two separators between a pair."""
    tokenizer = byte_level(320, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    names = ANGLE | {"bos_token": "<s>", "eos_token": "</s>"}
    return finish(tokenizer, directory, "RobertaTokenizer", limit, names, add_prefix_space=False)


def modernbert(directory: Path, limit: int) -> int:
    """ModernBERT: byte-level BPE with BERT's special tokens and no token types."""
    tokenizer = byte_level(320, list(BERT.values()), prefix_space=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:0 [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    return finish(tokenizer, directory, "PreTrainedTokenizerFast", limit, BERT, **inputs)


def xlm_roberta(directory: Path, limit: int) -> int:
    """XLM-RoBERTa: a unigram model over words marked with ▁."""
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    scores = {name: 0.0 for name in names} | {"▁": -3.0}
    for piece, is_begin, times in pieces(150, fold=False):
        scores.setdefault("▁" + piece if is_begin and len(piece) > 1 else piece, math.log(times / 3000))
    scores["<mask>"] = 0.0
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=3))
    tokenizer.add_special_tokens([special(n, lstrip=n == "<mask>") for n in [*names, "<mask>"]])
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    words = ANGLE | {"bos_token": "<s>", "eos_token": "</s>"}
    return finish(tokenizer, directory, "XLMRobertaTokenizer", limit, words)


def qwen(directory: Path, limit: int) -> int:
    """Qwen3-Embedding: byte-level BPE that ends every text with `<|endoftext|>`."""
    tokenizer = byte_level(310, [], prefix_space=False, words=QWEN_WORDS)
    tokenizer.add_special_tokens([special(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single="$A <|endoftext|>", pair="$A $B:1 <|endoftext|>:1", special_tokens=[("<|endoftext|>", end)]
        ),
    ])  # fmt: skip
    names = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    return finish(tokenizer, directory, "Qwen2Tokenizer", limit, names, add_prefix_space=False)
