"""Makes tiny embedding models in sentence-transformers' layout and what that library computes.

    python tests/golden/make_encoders.py [family/case …]

`encoders/<family>/<case>/` is a repository as users have it, `expected.safetensors` beside it the
token embeddings and sentence vectors of `encoders/texts.json`; README.md says more.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from transformers.utils import logging

import encoder_tokenizers
from reference import GOLDEN, fresh, pin, randomise, write_json, write_tensors

ENCODERS = GOLDEN / "encoders"
TEXTS = [
    "A small cat sleeps.",
    "Which planet is known as the red planet?",
    "",
    "   ",
    "naïve café, 東京 🙂 Straße",
    "The quick brown fox jumps over the lazy dog and runs into the forest, and nobody knows how deep it is there.",
    "Numbers 1, 2 and 30:\nyes (no)!",
]
OLD_POOLING = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
HIDDEN = 24
BERT_SIZES = dict(
    hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, max_position_embeddings=64
)


@dataclass
class Case:
    """One repository: model, tokenizer, modules after the transformer, and how its files are spelled."""

    name: str
    model_type: str
    config: dict
    tokenizer: Callable[[Path, int], int]
    seed: int
    # None: a bare transformers repository without modules.json
    pooling: str | list[str] | None = "mean"
    include_prompt: bool = True
    # after pooling: ("Dense", {...}), ("LayerNorm", {...}), ("Normalize", {})
    modules: list[tuple[str, dict]] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str | None = "cosine"
    truncate_dim: int | None = None
    max_length: int | None = None
    do_lower_case: bool = False
    # spelled as sentence-transformers 2 to 4 and transformers 4 did
    old_spelling: bool = False
    # saved from the masked-language model: names start with the family's prefix, and there is a head too
    with_head: bool = False
    rewrite: Callable[[dict], dict] | None = None
    # for a spelling transformers itself cannot read: applied after it has computed the expectations
    rewrite_last: Callable[[dict], dict] | None = None


def nomic_hub_words(config: dict) -> dict:
    """The config as nomic-ai's repositories spell it, in the words of their own code."""
    return {
        "activation_function": "swiglu",
        "architectures": ["NomicBertModel"],
        "causal": False,
        "layer_norm_epsilon": config["layer_norm_eps"],
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "model_type": "nomic_bert",
        "n_embd": config["hidden_size"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_layer": config["num_hidden_layers"],
        "n_positions": config["max_position_embeddings"],
        "pad_vocab_size_multiple": 64,
        "parallel_block": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "torch_dtype": "float32",
        "transformers_version": "4.37.2",
        "type_vocab_size": config["type_vocab_size"],
        "use_rms_norm": False,
        "vocab_size": config["vocab_size"],
    }


def modernbert_old_words(config: dict) -> dict:
    parameters = config.pop("rope_parameters")
    config["global_rope_theta"] = parameters["full_attention"]["rope_theta"]
    config["local_rope_theta"] = parameters["sliding_attention"]["rope_theta"]
    config.pop("layer_types")
    config["global_attn_every_n_layers"] = 3
    return config


NORMALIZE: tuple[str, dict] = ("Normalize", {})
DENSE_TANH = ("Dense", {"in_features": 3 * HIDDEN, "out_features": 20, "bias": True, "activation": "Tanh"})
DENSE_PLAIN = ("Dense", {"in_features": HIDDEN, "out_features": 12, "bias": False, "activation": "Identity"})
RETRIEVAL = {"query": "query: ", "passage": "passage: "}
NOMIC = dict(model_type="nomic_bert", tokenizer=encoder_tokenizers.bert)
NOMIC_CONFIG = {**BERT_SIZES, "type_vocab_size": 2}
MODERN_CONFIG = dict(
    hidden_size=HIDDEN, num_hidden_layers=4, num_attention_heads=3, intermediate_size=36, max_position_embeddings=64,
    local_attention=8, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
)  # fmt: skip
XLM_CONFIG = {**BERT_SIZES, "max_position_embeddings": 66, "pad_token_id": 1, "type_vocab_size": 1}

CASES = [
    Case("bert/mean", "bert", BERT_SIZES, encoder_tokenizers.bert, 1, modules=[NORMALIZE], similarity="dot"),
    # As repositories of 2021: bert. prefix, language-model head left in, legacy pooling, short limit, lower-casing.
    Case("bert/cls-old", "bert", BERT_SIZES, encoder_tokenizers.bert, 2, pooling="cls", max_length=12,
         do_lower_case=True, similarity=None, old_spelling=True, with_head=True),
    Case("bert/several", "bert", {**BERT_SIZES, "hidden_act": "gelu_new"}, encoder_tokenizers.bert, 3,
         pooling=["cls", "max", "mean"], modules=[DENSE_TANH, NORMALIZE], similarity="euclidean"),
    Case("bert/plain", "bert", {**BERT_SIZES, "hidden_act": "relu"}, encoder_tokenizers.bert, 4, pooling=None),
    # Heads of 3 dimensions, which only rotations would mind.
    Case("bert/odd-heads", "bert", {**BERT_SIZES, "num_attention_heads": 8}, encoder_tokenizers.bert, 31, modules=[NORMALIZE]),
    Case("mpnet/mean", "mpnet", {**BERT_SIZES, "max_position_embeddings": 66, "relative_attention_num_buckets": 32},
         encoder_tokenizers.mpnet, 5, modules=[NORMALIZE], max_length=24, old_spelling=True),
    Case("roberta/max", "roberta", {**XLM_CONFIG, "bos_token_id": 0, "eos_token_id": 2}, encoder_tokenizers.roberta, 6,
         pooling="max", prompts={"query": "search: ", "task": "task "}, default_prompt="task", old_spelling=True,
         similarity="manhattan"),
    Case("xlm-roberta/prompts", "xlm-roberta", {**XLM_CONFIG, "bos_token_id": 0, "eos_token_id": 2},
         encoder_tokenizers.xlm_roberta, 7, prompts=RETRIEVAL, modules=[NORMALIZE], with_head=True),
    Case("distilbert/dense", "distilbert",
         dict(dim=HIDDEN, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=64, pad_token_id=0),
         encoder_tokenizers.distilbert, 8, pooling="mean_sqrt_len_tokens", modules=[DENSE_PLAIN], old_spelling=True,
         with_head=True),
    Case("modernbert/prompt-excluded", "modernbert", MODERN_CONFIG, encoder_tokenizers.modernbert, 9,
         include_prompt=False, prompts={"query": "Find: ", "document": "Text: "}),
    Case("modernbert/cls-old", "modernbert", {**MODERN_CONFIG, "norm_bias": True, "attention_bias": True, "mlp_bias": True},
         encoder_tokenizers.modernbert, 10, pooling="cls", old_spelling=True, with_head=True,
         rewrite=modernbert_old_words),
    Case("nomic_bert/layer-norm", config=NOMIC_CONFIG, seed=11, **NOMIC, truncate_dim=16,
         prompts={"query": "search_query: ", "document": "search_document: "},
         modules=[("LayerNorm", {"dimension": HIDDEN}), NORMALIZE]),
    Case("nomic_bert/hub", config=NOMIC_CONFIG, seed=12, **NOMIC, old_spelling=True, rewrite_last=nomic_hub_words),
    Case("qwen3/last-token", "qwen3",
         dict(hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
              intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=310,
              rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
         encoder_tokenizers.qwen, 13, pooling="lasttoken", modules=[NORMALIZE],
         prompts={"query": "Instruct: Find it\nQuery:", "document": ""}),
    Case("qwen3/weighted", "qwen3",
         dict(hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
              intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=310,
              rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
         encoder_tokenizers.qwen, 14, pooling="weightedmean", prompts={"query": "ask: "}, include_prompt=False,
         old_spelling=True),
]  # fmt: skip


def write_model(case: Case, directory: Path, vocab: int) -> None:
    config = AutoConfig.for_model(case.model_type, vocab_size=vocab, **case.config)
    factory = AutoModelForMaskedLM if case.with_head else AutoModel
    model = factory.from_config(config)
    randomise(model.named_parameters(), case.seed)
    model.save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    if case.rewrite:
        config = case.rewrite(config)
    if case.old_spelling and "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.36.0"
        if parameters := config.pop("rope_parameters", None):
            config |= {"rope_theta": parameters["rope_theta"], "rope_scaling": None}
            config.pop("layer_types", None)
        if case.model_type in ("bert", "roberta"):
            config["position_embedding_type"] = "absolute"
    write_json(path, config)


def write_module(case: Case, directory: Path, kind: str, options: dict) -> None:
    directory.mkdir()
    generator = torch.Generator().manual_seed(1000 + case.seed)
    draw = lambda *shape: 0.4 * torch.randn(*shape, generator=generator)  # noqa: E731
    if kind == "Dense":
        tensors = {"linear.weight": draw(options["out_features"], options["in_features"])}
        if options["bias"]:
            tensors["linear.bias"] = draw(options["out_features"])
        config = {k: options[k] for k in ("in_features", "out_features", "bias")}
        name = {"Tanh": "torch.nn.modules.activation.Tanh", "Identity": "torch.nn.modules.linear.Identity"}
        config["activation_function"] = name[options["activation"]]
        if not case.old_spelling:
            config |= {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    elif kind == "LayerNorm":
        tensors = {"norm.weight": 1 + draw(options["dimension"]), "norm.bias": draw(options["dimension"])}
        config = options
    else:
        return
    write_json(directory / "config.json", config)
    write_tensors(directory / "model.safetensors", tensors)


def pooling_config(case: Case) -> dict:
    modes = [case.pooling] if isinstance(case.pooling, str) else case.pooling
    if case.old_spelling:
        old = {key: mode in modes for mode, key in OLD_POOLING.items()}
        return {"word_embedding_dimension": HIDDEN, "include_prompt": case.include_prompt, **old}
    mode = modes[0] if len(modes) == 1 else modes
    return {"embedding_dimension": HIDDEN, "pooling_mode": mode, "include_prompt": case.include_prompt}


def write_layout(case: Case, directory: Path) -> None:
    """modules.json and the folders it names, in the paths of the old or of the new library."""
    base, own = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules"
    new = {"Transformer": f"{base}.transformer", "Dense": f"{base}.dense", "Normalize": f"{base}.normalize",
           "Pooling": f"{own}.pooling", "LayerNorm": f"{own}.layer_norm"}  # fmt: skip
    entries = [("Transformer", ""), ("Pooling", "1_Pooling")]
    entries += [(kind, f"{i + 2}_{kind}") for i, (kind, _) in enumerate(case.modules)]
    place = lambda kind: "sentence_transformers.models" if case.old_spelling else new[kind]  # noqa: E731
    listed = [{"idx": i, "name": str(i), "path": p, "type": f"{place(k)}.{k}"} for i, (k, p) in enumerate(entries)]
    write_json(directory / "modules.json", listed)
    (directory / "1_Pooling").mkdir()
    write_json(directory / "1_Pooling" / "config.json", pooling_config(case))
    for i, (kind, options) in enumerate(case.modules):
        write_module(case, directory / f"{i + 2}_{kind}", kind, options)
    if case.max_length or case.old_spelling:
        write_json(directory / "sentence_bert_config.json",
                   {"max_seq_length": case.max_length, "do_lower_case": case.do_lower_case})  # fmt: skip
    general: dict = {"__version__": {"sentence_transformers": "2.2.2" if case.old_spelling else "6.2.0"}}
    if case.prompts or case.default_prompt or case.similarity or case.truncate_dim:
        general |= {"prompts": case.prompts, "default_prompt_name": case.default_prompt}
        general["similarity_fn_name"] = case.similarity
        if case.truncate_dim:
            general["truncate_dim"] = case.truncate_dim
    write_json(directory / "config_sentence_transformers.json", general)


def expect(case: Case, directory: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Vectors of every text encoded alone, so that no padding can play a part."""
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    model[0].auto_model.set_attn_implementation("eager")
    encode = lambda f=model.encode, **kw: torch.stack([torch.from_numpy(f(t, **kw)) for t in TEXTS])  # noqa: E731
    out = {"sentences": encode(), "normalized": encode(normalize_embeddings=True)}
    out["truncated_normalized"] = encode(truncate_dim=8, normalize_embeddings=True)
    out["queries"], out["documents"] = encode(model.encode_query), encode(model.encode_document)
    for name in case.prompts:
        out[f"prompt.{name}"] = encode(prompt_name=name)
    out["prompt_text"] = encode(prompt="a map: ")
    for i, text in enumerate(TEXTS):
        out[f"tokens_{i}"] = model.encode(text, output_value="token_embeddings", prompt="")
        out[f"input_ids_{i}"] = model.preprocess([text])["input_ids"][0]
    out["similarity"] = model.similarity(out["sentences"], out["sentences"])
    facts = {
        "dimension": model.get_embedding_dimension(),
        "max_length": model.max_seq_length,
        "similarity": str(model.similarity_fn_name),
        "prompts": model.prompts,
    }
    return out, facts


def make(case: Case) -> None:
    directory = fresh(ENCODERS / case.name)
    # RoBERTa's kind keeps two positions for padding.
    offset = 2 if case.model_type in ("roberta", "xlm-roberta", "mpnet") else 0
    vocab = case.tokenizer(directory, case.config["max_position_embeddings"] - offset)
    write_model(case, directory, vocab)
    if case.pooling:
        write_layout(case, directory)
    tensors, facts = expect(case, directory)
    write_tensors(directory / "expected.safetensors", tensors)
    write_json(directory / "expected.json", facts)
    if case.rewrite_last:
        path = directory / "config.json"
        write_json(path, case.rewrite_last(json.loads(path.read_text())))
    kib = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) // 1024
    spread = tensors["sentences"].std(dim=0).mean().item()
    print(f"{case.name}: {kib} KiB, {facts}, spread {spread:.3f}")


def make_pooling() -> None:
    """Every pooling mode over the same three ragged texts, with and without a prompt of two tokens."""
    generator = torch.Generator().manual_seed(77)
    lengths, hidden = (5, 1, 9), 6
    rows = [torch.randn(n, hidden, generator=generator) for n in lengths]
    out = {f"tokens_{i}": row for i, row in enumerate(rows)}
    for mode in Pooling.POOLING_MODES:
        for excluded in (0, 2):
            pool = Pooling(hidden, mode, include_prompt=excluded == 0)
            for i, row in enumerate(rows):
                if excluded >= len(row):
                    continue
                features = {"token_embeddings": row[None], "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
                if excluded:
                    features["prompt_length"] = excluded
                out[f"{mode}.{excluded}.{i}"] = pool(features)["sentence_embedding"][0]
    write_tensors(ENCODERS / "pooling.safetensors", out)


def main() -> None:
    pin("torch", "transformers", "sentence-transformers", "tokenizers")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    wanted = sys.argv[1:]
    ENCODERS.mkdir(exist_ok=True)
    write_json(ENCODERS / "texts.json", TEXTS)
    make_pooling()
    for case in CASES:
        if not wanted or case.name in wanted:
            make(case)


if __name__ == "__main__":
    main()
