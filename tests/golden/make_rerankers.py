"""Makes tiny cross-encoders and what sentence-transformers scores with them, and quantised vectors.

    python tests/golden/make_rerankers.py

`encoders/<family>/rerank*/` are sequence-classification repositories, `expected.safetensors` beside
them the scores of `encoders/pairs.json`; `encoders/quantised.safetensors` the reduced precisions.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.util import quantize_embeddings
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging

import encoder_tokenizers
from make_encoders import BERT_SIZES, ENCODERS, HIDDEN, MODERN_CONFIG, XLM_CONFIG, modernbert_old_words
from reference import fresh, pin, randomise, write_json, write_tensors

PAIRS = [
    ("Which planet is red?", "Mars is often called the red planet."),
    ("Which planet is red?", "A small cat sleeps on the warm chair."),
    ("How do people learn?", "They listen, they read and they try."),
    ("", "Nobody knows how deep the sea is."),
    ("A map", ""),
    ("the bread", "Bread is baked in the oven, and the baker sells it in the morning, and the boats stay in the harbour, "
     "and the river rises, and rain falls on the roof, and everyone can see that it is wide."),
    ("naïve café 東京", "Une petite école près du café 🙂"),
]  # fmt: skip


@dataclass
class Case:
    """One cross-encoder: model, tokenizer, labels, and what its config says about the activation."""

    name: str
    model_type: str
    config: dict
    tokenizer: Callable[[Path, int], int]
    seed: int
    labels: int = 1
    # written into config.json
    extra: dict = field(default_factory=dict)
    rewrite: Callable[[dict], dict] | None = None


SIGMOID = "torch.nn.modules.activation.Sigmoid"
IDENTITY = "torch.nn.modules.linear.Identity"
CASES = [
    Case("bert/rerank", "bert", BERT_SIZES, encoder_tokenizers.bert, 41),
    # As the MS MARCO models: raw scores, said in the config.
    Case("bert/rerank-identity", "bert", {**BERT_SIZES, "hidden_act": "gelu_new"}, encoder_tokenizers.bert, 42,
         extra={"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.0.1"}}),
    # As the NLI models: three labels.
    Case("bert/rerank-labels", "bert", BERT_SIZES, encoder_tokenizers.bert, 43, labels=3),
    Case("roberta/rerank", "roberta", {**XLM_CONFIG, "bos_token_id": 0, "eos_token_id": 2}, encoder_tokenizers.roberta, 44,
         extra={"sbert_ce_default_activation_function": SIGMOID}),
    Case("xlm-roberta/rerank", "xlm-roberta", {**XLM_CONFIG, "bos_token_id": 0, "eos_token_id": 2},
         encoder_tokenizers.xlm_roberta, 45),
    Case("mpnet/rerank", "mpnet", {**BERT_SIZES, "max_position_embeddings": 66}, encoder_tokenizers.mpnet, 46),
    Case("modernbert/rerank", "modernbert", {**MODERN_CONFIG, "classifier_pooling": "mean"}, encoder_tokenizers.modernbert, 47),
    Case("modernbert/rerank-cls", "modernbert", {**MODERN_CONFIG, "classifier_pooling": "cls", "classifier_bias": True},
         encoder_tokenizers.modernbert, 48, rewrite=modernbert_old_words),
    Case("distilbert/rerank", "distilbert",
         dict(dim=HIDDEN, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=64, pad_token_id=0),
         encoder_tokenizers.distilbert, 49),
]  # fmt: skip


def write_model(case: Case, directory: Path) -> None:
    offset = 2 if case.model_type in ("roberta", "xlm-roberta", "mpnet") else 0
    vocab = case.tokenizer(directory, case.config["max_position_embeddings"] - offset)
    config = AutoConfig.for_model(case.model_type, vocab_size=vocab, num_labels=case.labels, **case.config)
    model = AutoModelForSequenceClassification.from_config(config)
    randomise(model.named_parameters(), case.seed)
    model.save_pretrained(directory)
    path = directory / "config.json"
    values = json.loads(path.read_text()) | case.extra
    write_json(path, case.rewrite(values) if case.rewrite else values)


def make(case: Case) -> None:
    directory = fresh(ENCODERS / case.name)
    write_model(case, directory)
    model = CrossEncoder(str(directory), device="cpu", local_files_only=True)
    score = lambda **kw: torch.stack([torch.as_tensor(model.predict([p], **kw)[0]) for p in PAIRS])  # noqa: E731
    out = {"scores": score(), "logits": score(activation_fn=torch.nn.Identity())}
    if case.labels > 1:
        out["softmax"] = score(apply_softmax=True)
    for i, (left, right) in enumerate(PAIRS):
        encoded = model.tokenizer(left, right, truncation=True, max_length=model.max_length)
        out[f"input_ids_{i}"] = torch.tensor(encoded["input_ids"])
    short = CrossEncoder(str(directory), device="cpu", local_files_only=True, max_length=16)
    out["scores_16"] = torch.stack([torch.as_tensor(short.predict([p])[0]) for p in PAIRS])
    write_tensors(directory / "expected.safetensors", out)
    if case.labels == 1:
        documents = [right for _, right in PAIRS]
        ranked = model.rank(PAIRS[0][0], documents, batch_size=1)
        write_json(directory / "ranked.json", [{"corpus_id": r["corpus_id"], "score": float(r["score"])} for r in ranked])
    print(case.name, [round(s, 4) for s in out["logits"].flatten().tolist()])


def make_quantised() -> None:
    """The reduced precisions of six vectors of 20 numbers (no multiple of 8), with ranges from three sources."""
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(6, 20, generator=generator).numpy()
    # A dimension that never changes, and exact zeros.
    vectors[:, 3] = 0.25
    vectors[2, 5:9] = 0.0
    calibration = torch.randn(50, 20, generator=generator).numpy()
    ranges = np.stack([np.full(20, -1.0), np.full(20, 1.5)]).astype(np.float32)
    out = {"vectors": vectors, "calibration": calibration, "ranges": ranges}
    for precision in ("int8", "uint8"):
        out[precision] = quantize_embeddings(vectors, precision)
        out[f"{precision}_calibrated"] = quantize_embeddings(vectors, precision, calibration_embeddings=calibration)
        out[f"{precision}_ranges"] = quantize_embeddings(vectors, precision, ranges=ranges)
    for precision in ("binary", "ubinary"):
        out[precision] = quantize_embeddings(vectors, precision)
        out[f"{precision}_one"] = quantize_embeddings(vectors[0], precision)
    write_tensors(ENCODERS / "quantised.safetensors", {k: torch.from_numpy(v.copy()) for k, v in out.items()})


def main() -> None:
    pin("torch", "transformers", "sentence-transformers", "tokenizers")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    write_json(ENCODERS / "pairs.json", PAIRS)
    make_quantised()
    for case in CASES:
        make(case)


if __name__ == "__main__":
    main()
