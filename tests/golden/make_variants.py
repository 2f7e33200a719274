"""What sentence-transformers computes for repositories of this folder whose files say something else.

    python tests/golden/make_variants.py

`encoders/variants.json` has, for each change, the scores of `encoders/pairs.json` or the sentence
vectors of `encoders/texts.json`. tests/python/test_embedder_repositories.py makes the same changes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers.utils import logging

from make_encoders import ENCODERS, TEXTS
from make_rerankers import PAIRS
from reference import pin, write_json


def edit(path: Path, **changes: object) -> None:
    """Changes fields of a file of JSON."""
    write_json(path, (json.loads(path.read_text()) if path.is_file() else {}) | changes)


def scores(directory: Path) -> list[float]:
    model = CrossEncoder(str(directory), device="cpu", local_files_only=True)
    return [float(model.predict([pair])[0]) for pair in PAIRS]


def vectors(directory: Path) -> list[list[float]]:
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    return [model.encode(text).tolist() for text in TEXTS]


def without_types(directory: Path) -> None:
    edit(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def with_names(directory: Path) -> None:
    edit(directory / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])


def activated(name: str) -> Callable[[Path], None]:
    return lambda directory: edit(directory / "config.json", sentence_transformers={"activation_fn": name})


def saved_by_6(directory: Path) -> None:
    """A cross-encoder as version 6 saves it."""
    model = CrossEncoder(
        str(directory), device="cpu", prompts={"query": "Which planet "}, default_prompt_name="query",
        activation_fn=torch.nn.Tanh(), max_length=24,
    )  # fmt: skip
    model.save_pretrained(str(directory / "saved"))
    for file in list(directory.iterdir()):
        if file.is_file():
            file.unlink()
    for file in (directory / "saved").iterdir():
        shutil.move(file, directory)


def vocabulary_only(directory: Path) -> None:
    """As the oldest repositories: words by line."""
    words = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(words, key=words.get)))
    (directory / "tokenizer.json").unlink()


def nested(directory: Path) -> None:
    """As repositories of 2020: everything of the transformer in a folder."""
    (directory / "0_BERT").mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.move(directory / file, directory / "0_BERT")
    modules = json.loads((directory / "modules.json").read_text())
    modules[0]["path"] = "0_BERT"
    write_json(directory / "modules.json", modules)


def unlisted(directory: Path) -> None:
    """Without a list of modules the other files of sentence-transformers mean nothing."""
    (directory / "modules.json").unlink()
    edit(directory / "sentence_bert_config.json", max_seq_length=5, do_lower_case=True)


def unlisted_causal(directory: Path) -> None:
    (directory / "modules.json").unlink()
    edit(directory / "config.json", architectures=["Qwen3ForCausalLM"])


VARIANTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "without_types": ("bert/rerank", without_types),
    "with_names": ("bert/rerank", with_names),
    "tanh": ("bert/rerank", activated("torch.nn.modules.activation.Tanh")),
    "softsign": ("bert/rerank", activated("torch.nn.modules.activation.Softsign")),
    "untrusted": ("bert/rerank", activated("somebody.code.Tanh")),
    "saved_by_6": ("bert/rerank", saved_by_6),
    "vocabulary_only": ("bert/mean", vocabulary_only),
    "nested": ("bert/mean", nested),
    "unlisted": ("bert/mean", unlisted),
    "unlisted_causal": ("qwen3/last-token", unlisted_causal),
}


def main() -> None:
    pin("torch", "transformers", "sentence-transformers", "tokenizers")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    out = {}
    for name, (case, change) in VARIANTS.items():
        with tempfile.TemporaryDirectory() as room:
            directory = Path(shutil.copytree(ENCODERS / case, Path(room) / "model"))
            change(directory)
            found = scores(directory) if "rerank" in case else vectors(directory)
        out[name] = torch.tensor(found).double().mul(1e7).round().div(1e7).tolist()
        print(name, out[name][:2])
    write_json(ENCODERS / "variants.json", out)


if __name__ == "__main__":
    main()
