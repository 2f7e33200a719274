"""Makes the checkpoint that compare.py measures: the shapes of Qwen2.5-0.5B with random weights.

    PEER_MODELS=DIR python benches/make_models.py

writes `DIR/qwen05b/` in Hugging Face layout (bfloat16, with a byte-level BPE tokenizer of the usual size),
`DIR/qwen05b-bf16.gguf` with the same numbers, and, where llama-cpp-python is installed, its Q8_0, Q4_K_M and
Q4_0 versions. Speed and memory depend on shapes only, so nothing has to be downloaded. Needs torch,
safetensors, tokenizers and gguf. Files that exist are kept.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCAB = 896, 4864, 24, 14, 2, 151936
CONTEXT, THETA, EPSILON = 32768, 1e6, 1e-6
HEAD = HIDDEN // HEADS
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FIRST_SPECIAL = 151643
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Hugging Face's name and GGUF's, for the parts of a layer: [out, in] and, where there is one, the bias.
PARTS = {
    "self_attn.q_proj": ("attn_q", HEADS * HEAD, HIDDEN, True),
    "self_attn.k_proj": ("attn_k", KV_HEADS * HEAD, HIDDEN, True),
    "self_attn.v_proj": ("attn_v", KV_HEADS * HEAD, HIDDEN, True),
    "self_attn.o_proj": ("attn_output", HIDDEN, HEADS * HEAD, False),
    "mlp.gate_proj": ("ffn_gate", INTERMEDIATE, HIDDEN, False),
    "mlp.up_proj": ("ffn_up", INTERMEDIATE, HIDDEN, False),
    "mlp.down_proj": ("ffn_down", HIDDEN, INTERMEDIATE, False),
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def tensors() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Each tensor's name in a Hugging Face file, its name in a GGUF, and its shape."""
    yield "model.embed_tokens.weight", "token_embd.weight", (VOCAB, HIDDEN)
    yield "model.norm.weight", "output_norm.weight", (HIDDEN,)
    for layer in range(LAYERS):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        for part, name in NORMS.items():
            yield f"{ours}.{part}.weight", f"{theirs}.{name}.weight", (HIDDEN,)
        for part, (name, rows, columns, bias) in PARTS.items():
            yield f"{ours}.{part}.weight", f"{theirs}.{name}.weight", (rows, columns)
            if bias:
                yield f"{ours}.{part}.bias", f"{theirs}.{name}.bias", (rows,)


def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """All bytes, then words of two, three and four letters, each merged from a shorter one and a letter."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    words = itertools.chain.from_iterable(
        itertools.product(string.ascii_lowercase, repeat=length) for length in (2, 3, 4)
    )
    for letters in itertools.islice(words, FIRST_SPECIAL - len(tokens)):
        word = "".join(letters)
        merges.append((word[:-1], word[-1]))
        tokens.append(word)
    return tokens, merges


def write_tokenizer(directory: Path) -> None:
    tokens, merges = vocabulary()
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}, indent=2))


def write_checkpoint(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": EPSILON,
        "rope_theta": THETA,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": FIRST_SPECIAL,
        "eos_token_id": FIRST_SPECIAL + 2,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, _, shape in tensors():
        noise = 0.02 * torch.randn(shape, generator=generator)
        weights[name] = (1.0 + noise if "norm" in name else noise).to(torch.bfloat16)
    # Last, because its presence says that the directory is complete.
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def write_gguf(path: Path, weights: dict[str, torch.Tensor]) -> None:
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "qwen2")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    tokens, merges = vocabulary()
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    padding = [f"[PAD{index}]" for index in range(len(tokens) + len(SPECIAL), VOCAB)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens + SPECIAL + padding)
    writer.add_token_types([normal] * len(tokens) + [control] * len(SPECIAL) + [unused] * len(padding))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(FIRST_SPECIAL)
    writer.add_eos_token_id(FIRST_SPECIAL + 2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, theirs, shape in tensors():
        if len(shape) == 1:
            writer.add_tensor(theirs, weights[name].float().numpy())
        else:
            raw = weights[name].view(torch.uint8).numpy()  # [rows, 2 · columns] bytes
            writer.add_tensor(theirs, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


def quantise(source: Path, target: Path, kind: str) -> None:
    from llama_cpp import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = 2
    unfinished = target.with_suffix(".part")
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(unfinished).encode(), ctypes.byref(parameters))
    if status != 0:
        raise SystemExit(f"llama.cpp could not write {target}: status {status}")
    unfinished.rename(target)


def main() -> None:
    if not os.environ.get("PEER_MODELS"):
        raise SystemExit("set PEER_MODELS to the folder that shall hold the models (4 GB)")
    folder = Path(os.environ["PEER_MODELS"])
    torch.set_num_threads(2)
    checkpoint = folder / "qwen05b"
    if not (checkpoint / "model.safetensors").exists():
        write_checkpoint(checkpoint)
    bf16 = folder / "qwen05b-bf16.gguf"
    if not bf16.exists():
        write_gguf(bf16, load_file(checkpoint / "model.safetensors"))
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        sys.exit("llama-cpp-python is not installed: no quantised files were made")
    for kind in ("Q8_0", "Q4_K_M", "Q4_0"):
        target = folder / f"qwen05b-{kind}.gguf"
        if not target.exists():
            quantise(bf16, target, kind)
    print(f"ready: {folder}")


if __name__ == "__main__":
    main()
