"""Makes `tokenizer/`: tiny tokenizers, and what transformers reads, writes and renders with them.

    python tests/golden/make_tokenizer.py

Each tokenizer is trained here, but only if its `tokenizer.json` is missing: training is not the same
twice, because the trainers visit pairs in the order of a hash map. The expectations come from the
*written* directory, loaded back by transformers. The templates in `tokenizer/chat/` are written by
hand in the manner of the well-known ones; the script only renders them.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import jinja2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from reference import GOLDEN, fresh, pin
from tokenizer_cases import CONVERSATIONS, CORPUS, EXPRESSIONS, PAIRS, TEXTS

HOME = GOLDEN / "tokenizer"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write(path: Path, value: object) -> None:
    """JSON that keeps the order of keys, because templates show it."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def byte_level() -> tuple[Tokenizer, dict]:
    """Bytes as letters, words by a regular expression, as most recent decoders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    tokenizer.enable_padding(pad_token="<|endoftext|>", length=64)
    tokenizer.enable_truncation(8)
    return tokenizer, {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }


def byte_fallback() -> tuple[Tokenizer, dict]:
    """Spaces as underlines, bytes for rare characters, as the first Llama models."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=560, limit_alphabet=60, special_tokens=special, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=model["vocab"],
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer, {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "unk_token": "<unk>",
        "model_max_length": 1000000000000000019884624838656,
        "add_bos_token": True,
        "add_eos_token": False,
    }


def unigram() -> tuple[Tokenizer, dict]:
    """A unigram vocabulary with underlined words, as T5 and XLM-RoBERTa."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=260,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    return tokenizer, {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "special": True},
        "model_max_length": 512,
    }


def wordpiece() -> tuple[Tokenizer, dict]:
    """Lower-case word pieces, as BERT, with a token that only the configuration knows."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return tokenizer, {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "additional_special_tokens": ["[LATE]"],
        "clean_up_tokenization_spaces": True,
        "model_max_length": 128,
    }


TOKENIZERS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "unigram": unigram,
    "wordpiece": wordpiece,
}


def random_sequences(tokenizer, seed: int) -> list[list[int]]:
    """Ids in any order: all of the vocabulary, mostly broken bytes, or single ones repeated."""
    rng = random.Random(seed)
    size = len(tokenizer)
    pieces = [tokenizer.convert_ids_to_tokens(id) for id in range(size)]
    odd = [id for id, piece in enumerate(pieces) if piece.startswith("<0x") or len(piece) == 1]
    odd += [tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens]
    anything = [[rng.randrange(size) for _ in range(rng.randrange(1, 30))] for _ in range(30)]
    broken = [[rng.choice(odd) for _ in range(rng.randrange(1, 12))] for _ in range(40)]
    repeated = [[rng.choice(odd)] * rng.randrange(1, 5) for _ in range(10)]
    return [[], *anything, *broken, *repeated]


def make_tokenizer(name: str, seed: int) -> None:
    directory = HOME / name
    if not (directory / "tokenizer.json").exists():
        tokenizer, config = TOKENIZERS[name]()
        fresh(directory)
        tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
        write(directory / "tokenizer_config.json", {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    reference = PreTrainedTokenizerFast.from_pretrained(directory)
    reference.backend_tokenizer.no_truncation()
    reference.backend_tokenizer.no_padding()

    def decoded(ids: list[int]) -> dict:
        return {
            "ids": ids,
            "text": reference.decode(ids, skip_special_tokens=False),
            "plain": reference.decode(ids, skip_special_tokens=True),
        }

    texts = []
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=True)
        bare = reference.encode(text, add_special_tokens=False)
        texts.append({"input": text, "bare": bare, **decoded(ids)})
    pairs = []
    for first, second in PAIRS:
        for length in (None, 9, 16, 40):
            options = {"truncation": "longest_first", "max_length": length} if length else {}
            # As batches of one: a lone empty second text would count as none.
            out = reference([first], [second], return_token_type_ids=True, **options)
            alone = reference(first, **options)
            pairs.append(
                {
                    "first": first,
                    "second": second,
                    "max_length": length,
                    "ids": out["input_ids"][0],
                    "type_ids": out["token_type_ids"][0],
                    "alone": alone["input_ids"],
                }
            )
    named = {name: reference.convert_tokens_to_ids(token) for name, token in reference.special_tokens_map.items()}
    write(
        directory / "expected.json",
        {
            "vocab_size": len(reference),
            "named": named,
            "texts": texts,
            "pairs": pairs,
            "sequences": [decoded(ids) for ids in random_sequences(reference, seed)],
        },
    )


def make_chats() -> None:
    """What each template makes of each conversation, or that it refuses."""
    templates = {path.stem: path.read_text() for path in sorted((HOME / "chat").glob("*.jinja"))}
    cases = []
    for template, source in templates.items():
        reference = PreTrainedTokenizerFast.from_pretrained(HOME / "byte_level")
        reference.chat_template = source
        # Only as variables of the templates; the vocabulary does not have them.
        names = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
        for conversation in CONVERSATIONS:
            options = {key: value for key, value in conversation.items() if key not in ("name", "messages")}
            case = {"template": template, "conversation": conversation["name"]}
            try:
                case["text"] = reference.apply_chat_template(
                    conversation["messages"], tokenize=False, **names, **options
                )
            except (jinja2.TemplateError, TypeError, ValueError) as error:
                case["error"] = str(error)
            cases.append(case)
    write(HOME / "chat" / "rendered.json", cases)
    write(HOME / "chat" / "conversations.json", CONVERSATIONS)


def make_masks() -> None:
    """Ids and assistant masks of the template that marks what is generated."""
    reference = PreTrainedTokenizerFast.from_pretrained(HOME / "byte_level")
    reference.backend_tokenizer.no_truncation()
    reference.backend_tokenizer.no_padding()
    reference.chat_template = (HOME / "chat" / "marked_chatml.jinja").read_text()
    masks = []
    for conversation in CONVERSATIONS:
        if conversation.get("continue_final_message") or any(
            not isinstance(message.get("content"), str) for message in conversation["messages"]
        ):
            continue
        out = reference.apply_chat_template(
            conversation["messages"], return_assistant_tokens_mask=True, return_dict=True
        )
        masks.append({"conversation": conversation["name"], "ids": out["input_ids"], "mask": out["assistant_masks"]})
    write(HOME / "chat" / "masks.json", masks)


def make_expressions() -> None:
    """Small templates in transformers' environment; a null says that it raises."""
    variables = EXPRESSIONS["variables"]
    cases = []
    for source in EXPRESSIONS["templates"]:
        try:
            text = _compile_jinja_template(source).render(**variables)
        except Exception:  # whatever Python raises, it is a refusal
            text = None
        cases.append({"template": source, "text": text})
    write(HOME / "expressions.json", {"variables": variables, "cases": cases})


def main() -> None:
    pin("transformers", "tokenizers")
    for seed, name in enumerate(TOKENIZERS):
        make_tokenizer(name, seed)
    make_chats()
    make_masks()
    make_expressions()


if __name__ == "__main__":
    main()
