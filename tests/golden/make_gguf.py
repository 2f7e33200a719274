"""Makes the GGUF files of `gguf/` with the `gguf` package, checked against llama.cpp.

    python tests/golden/make_gguf.py

Needs the checkpoints of make_models.py. Tensor names come from the package's own map, and llama.cpp
must compute the logits that transformers computed; vocabularies are split by `tokenizers` or
`sentencepiece`, and llama.cpp must agree wherever it has the same rules.
"""

from __future__ import annotations

import ctypes
import io
import json
import unicodedata
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from llama_cpp import Llama
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from reference import GOLDEN, fresh, pin, write_json, write_tensors

OUT = GOLDEN / "gguf"
# What llama.cpp loses to its half-precision cache and its own order of additions.
TOLERANCE = 0.02
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}

MODELS = {
    # name: checkpoint, stored type of the matrices (None keeps the checkpoint's), tensors per part
    "plain": ("llama/plain", None, 0),
    "bias": ("llama/bias", None, 0),
    "linear": ("llama/linear", None, 0),
    "llama3": ("llama/llama3", None, 0),
    "yarn": ("qwen2/yarn", None, 0),
    "bf16": ("qwen2/bf16", None, 0),
    "split": ("qwen3/untied", Type.F16, 9),
    "q8_0": ("llama/llama3", Type.Q8_0, 0),
    "q4_0": ("qwen2/tied", Type.Q4_0, 0),
}


def pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """The row order in which GGUF keeps q and k of the llama architecture: halves become pairs."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def add_config(writer: gguf.GGUFWriter, config, theta: float, rope: dict) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config.vocab_size)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind == "llama3":
        frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        original = rope["original_max_position_embeddings"]
        turns = original / (2 * torch.pi / frequencies)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        factors = 1 / ((1 - smooth) / rope["factor"] + smooth)
        writer.add_tensor("rope_freqs.weight", factors.to(torch.float32).numpy())
    elif kind != "default":
        raise SystemExit(f"no way to write rope {kind}")


def make_model(name: str, checkpoint: str, matrices: Type | None, per_part: int) -> None:
    source = GOLDEN / checkpoint
    spelled = json.loads((source / "config.json").read_text())
    rope = spelled.get("rope_parameters") or spelled.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or spelled.get("rope_theta", 10000.0)
    config = AutoConfig.from_pretrained(source)
    path = OUT / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, config.model_type, split_max_tensors=per_part)
    writer.add_tokenizer_model("none")
    add_config(writer, config, theta, rope)
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    rounded = {}
    for tensor_name, tensor in sorted(load_file(source / "model.safetensors").items()):
        data = tensor.to(torch.float32).numpy()
        stored = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}[tensor.dtype]
        if matrices is not None and data.ndim == 2:
            # Rows that are no multiple of a block stay in half precision, as converters keep them.
            fits = data.shape[1] % gguf.GGML_QUANT_SIZES[matrices][0] == 0
            stored = matrices if fits else Type.F16
        if data.ndim == 1:
            stored = Type.F32
        if config.model_type == "llama" and tensor_name.endswith(("q_proj.weight", "q_proj.bias")):
            data = pairs(data, config.num_attention_heads)
        if config.model_type == "llama" and tensor_name.endswith(("k_proj.weight", "k_proj.bias")):
            data = pairs(data, config.num_key_value_heads)
        blocks = gguf.quantize(data, stored)
        writer.add_tensor(names.get_name(tensor_name, (".weight", ".bias")), blocks, raw_dtype=stored)
        if gguf.GGML_QUANT_SIZES[stored][0] > 1:
            # The rows as they must come back: the same blocks in Hugging Face order.
            rounded[tensor_name] = gguf.quantize(tensor.to(torch.float32).numpy(), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if rounded:
        write_tensors(OUT / f"{name}.blocks.safetensors", {k: torch.from_numpy(v) for k, v in rounded.items()})
    check_logits(name, source, sorted(OUT.glob(f"{name}*.gguf"))[0], matrices)
    if rounded:
        keep_logits(name, source)


def keep_logits(name: str, source: Path) -> None:
    """What llama.cpp computes from blocks with activations in 8 bits, and everything else in f32."""
    expected = load_file(source / "expected.safetensors")
    logits = {}
    for key in sorted(key for key in expected if key.startswith("input_ids_")):
        ids = expected[key].tolist()
        llm = Llama(
            str(OUT / f"{name}.gguf"),
            n_ctx=256,
            logits_all=True,
            n_threads=1,
            type_k=Type.F32,
            type_v=Type.F32,
            verbose=False,
        )
        llm.eval(ids)
        logits[key.replace("input_ids", "logits")] = torch.from_numpy(np.array(llm.scores[: len(ids)]))
    write_tensors(OUT / f"{name}.logits.safetensors", logits)


def check_logits(name: str, source: Path, path: Path, matrices: Type | None) -> None:
    """llama.cpp computes from the file what transformers computes from the checkpoint."""
    expected = load_file(source / "expected.safetensors")
    ids = expected["input_ids_2"].tolist()
    want = expected["logits_2"].numpy()
    if matrices in (Type.Q8_0, Type.Q4_0):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                fits = parameter.ndim == 2 and parameter.shape[1] % gguf.GGML_QUANT_SIZES[matrices][0] == 0
                if fits:
                    blocks = gguf.quantize(parameter.numpy(), matrices)
                    parameter.copy_(torch.from_numpy(gguf.dequantize(blocks, matrices)))
            want = model(torch.tensor([ids])).logits[0].numpy()
    llm = Llama(str(path), n_ctx=256, logits_all=True, n_threads=1, verbose=False)
    llm.eval(ids)
    got = np.array(llm.scores[: len(ids)])
    error = np.abs(got - want).max() / np.abs(want).max()
    print(f"{name}: llama.cpp differs by {error:.1e} of the largest logit")
    # Its kernels for blocks round the activations to 8 bits too.
    if error > (0.1 if matrices in (Type.Q8_0, Type.Q4_0) else TOLERANCE):
        raise SystemExit(f"{name}: llama.cpp does not agree")


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# As in the tokenizer.json of the models that these names stand for.
PRE = {
    "llama-bpe": (rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{TAIL}",),
    "smaug-bpe": (rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{TAIL}",),
    "qwen2": (rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{TAIL}",),
    "deepseek-r1-qwen": (rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{TAIL}",),
    "qwen35": (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"),
    "default": (
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ),
}
COMPOSED = {"qwen2", "qwen35"}
IGNORE_MERGES = {"llama-bpe", "tekken"}
ADD_BOS = {"llama-bpe", "tekken"}

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces   and\ttabs \t ",
    "It's they'll WE'VE i'd I'M don'T",
    "1 12 123 1234 12345 3.14159",
    "line\nline\r\n\n\n  indented\n",
    "naïve café über Ångström",
    unicodedata.normalize("NFD", "naïve café Ångström"),
    "日本語のテキスト、中文字符。한국어 텍스트",
    "नमस्ते दुनिया สวัสดี",
    "emoji 👩‍👩‍👧 🎉🎉 end",
    "CamelCaseWord ABCdef xXx HTTPServer",
    "if (x <= 10) { return a[0] + \"b\"; } // done",
    "price: $5+3=8 ~ 50% ^2 | a/b\n/c",
    "non\u00a0breaking\u2003em\u3000wide",
    "the the the other then there",
    "<|im_start|>user\nHi<|im_end|> <think>x</think>",
    "a<|im_end|>",
    "\u2581 under \u2581\u2581bar",
    "\x00\x7f\ufffd",
]


def corpus() -> list[str]:
    words = "the other then there hello world return indented emoji price they will don't 123 café naïve über "
    return [words * 4, "CamelCase ABC def HTTP Server x = 10; return a[0]\n\n  indented\n", *TEXTS[2:17]]


SPECIALS = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<think>", "</think>"]


def make_byte_level() -> None:
    """One vocabulary, split in each of the known ways."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PRE["llama-bpe"][0]), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=460, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(corpus(), trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    # A word that no merge builds: only a vocabulary that ignores merges finds it whole.
    vocabulary.append("Ġunder")
    merges = [" ".join(pair) for pair in model["merges"]]
    first = len(vocabulary)
    tokens = [*vocabulary, *SPECIALS, *USER_DEFINED, "[PAD1]", "[PAD2]"]
    kinds = [gguf.TokenType.NORMAL] * first + [gguf.TokenType.CONTROL] * 3
    kinds += [gguf.TokenType.USER_DEFINED] * 2 + [gguf.TokenType.UNUSED] * 2
    expected = {}
    for pre, patterns in PRE.items():
        path = OUT / f"vocab-{pre}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
        writer.add_bos_token_id(first)
        writer.add_eos_token_id(first + 2)
        writer.add_chat_template("{{ messages[0].content }}")
        finish_vocabulary(writer)
        reference = Tokenizer(
            models.BPE(
                vocab={token: i for i, token in enumerate(vocabulary)},
                merges=[tuple(m.split(" ")) for m in merges],
                ignore_merges=pre in IGNORE_MERGES,
            )
        )
        if pre in COMPOSED:
            reference.normalizer = normalizers.NFC()
        splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
        reference.pre_tokenizer = pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        reference.decoder = decoders.ByteLevel()
        reference.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIALS])
        reference.add_tokens([AddedToken(t, normalized=False) for t in USER_DEFINED])
        expected[pre] = compare(path, lambda text: reference.encode(text).ids, reference.decode, first, pre in COMPOSED)
        # One file is enough: the others differ in the name only, which the test changes itself.
        if pre != "llama-bpe":
            path.unlink()
    write_json(
        OUT / "vocab-byte-level.json",
        {"texts": TEXTS, "ids": expected, "bos": {pre: pre in ADD_BOS for pre in PRE}, "first_special": first},
    )


def compare(path: Path, encode, decode, bos: int, composed: bool) -> list[dict]:
    """The reference's ids and text; complains where llama.cpp sees it differently."""
    llm = Llama(str(path), vocab_only=True, verbose=False)
    rows = []
    for text in TEXTS:
        ids = encode(text)
        theirs = llm.tokenize(text.encode(), add_bos=False, special=True)
        if theirs != ids and not (composed and unicodedata.normalize("NFC", text) != text):
            print(f"{path.stem}: llama.cpp splits {text!r} as {theirs}, the reference as {ids}")
        rows.append({"ids": ids, "text": decode(ids)})
    return rows


def finish_vocabulary(writer: gguf.GGUFWriter) -> None:
    """What llama.cpp needs to open a file without tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_sentence_piece() -> None:
    """A SentencePiece BPE vocabulary with byte fallback, split by sentencepiece itself."""
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in corpus() for line in text.splitlines() if line.strip()] * 3),
        model_writer=proto,
        model_type="bpe",
        vocab_size=560,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=0.995,
        user_defined_symbols=["<think>"],
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue())
    tokens, scores, kinds = [], [], []
    for i in range(processor.get_piece_size()):
        tokens.append(processor.id_to_piece(i))
        scores.append(processor.get_score(i))
        kind = gguf.TokenType.NORMAL
        if processor.is_unknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif processor.is_control(i):
            kind = gguf.TokenType.CONTROL
        elif processor.is_byte(i):
            kind = gguf.TokenType.BYTE
        elif tokens[-1] == "<think>":
            kind = gguf.TokenType.USER_DEFINED
        kinds.append(kind)
    path = OUT / "vocab-scores.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    finish_vocabulary(writer)
    llm = Llama(str(path), vocab_only=True, verbose=False)
    rows = []
    for text in TEXTS:
        ids, decoded = processor.encode(text), processor.decode(processor.encode(text))
        theirs = llm.tokenize(text.encode(), add_bos=False, special=True)
        if "<think>" in text:
            # A text that begins after such a token gets a space in front, which sentencepiece does not do.
            ids, decoded = theirs, None
        if theirs != ids:
            print(f"{path.stem}: llama.cpp splits {text!r} as {theirs}, sentencepiece as {ids}")
        rows.append({"ids": ids, "text": decoded})
    write_json(OUT / "vocab-scores.json", {"texts": TEXTS, "ids": rows, "bos_id": processor.bos_id()})


def main() -> None:
    pin("torch", "transformers", "tokenizers", "gguf", "sentencepiece", "llama_cpp_python")
    silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(silence, None)
    fresh(OUT)
    for name, (checkpoint, matrices, per_part) in MODELS.items():
        make_model(name, checkpoint, matrices, per_part)
    make_byte_level()
    make_sentence_piece()


if __name__ == "__main__":
    main()
