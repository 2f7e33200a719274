"""What several test files need. The fixture ``tiny_model`` comes from candlewick's own pytest plugin."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import candlewick as cw

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"

# A shell starts what runs in its background with Ctrl-C ignored, which children would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture
def greedy(tiny_model):
    return cw.Generator(tiny_model, max_new_tokens=24, temperature=0.0)


@pytest.fixture
def sampling(tiny_model):
    """A generator whose text depends on the seed."""
    return cw.Generator(tiny_model, max_new_tokens=24, temperature=1.0, top_k=0, top_p=1.0)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a small valid checkpoint, for tests that break it."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "qwen2" / "tied", directory)
    (directory / "expected.safetensors").unlink()
    return directory


@pytest.fixture
def small(repository):
    """A model of a few thousand random weights, with token ids instead of words."""
    with cw.Model.from_pretrained(repository / "tests/golden/qwen2/tied", device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory):
    """The directory of a random model that takes seconds over a long prompt."""
    directory = tmp_path_factory.mktemp("slow") / "model"
    directory.mkdir()
    hidden, intermediate, layers, heads, vocab = 256, 512, 16, 4, 512
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    random = np.random.default_rng(0)

    def matrix(rows, columns):
        return (random.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden), "model.norm.weight": np.ones(hidden, np.float32)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = np.ones(hidden, np.float32)
        for name in "qkvo":
            tensors[f"{at}.self_attn.{name}_proj.weight"] = matrix(hidden, hidden)
        for name in ("gate", "up"):
            tensors[f"{at}.mlp.{name}_proj.weight"] = matrix(intermediate, hidden)
        tensors[f"{at}.mlp.down_proj.weight"] = matrix(hidden, intermediate)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    words = {f"w{index}": index for index in range(vocab)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


@pytest.fixture(scope="session")
def random_adapter(tmp_path_factory):
    """The directory of a random adapter for the bundled model that changes what it says."""
    directory = tmp_path_factory.mktemp("adapter")
    hidden, layers, rank = 128, 4, 2
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    tensors = {}
    for layer in range(layers):
        at = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{at}.lora_A.weight"] = random.standard_normal((rank, hidden)).astype(np.float32) * 0.2
        tensors[f"{at}.lora_B.weight"] = random.standard_normal((hidden, rank)).astype(np.float32) * 0.2
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


@pytest.fixture
def run_python(tmp_path):
    """Run a program in a Python of its own and return the finished process."""

    def run(*arguments, stdin="", timeout=120, env=None):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env=os.environ | (env or {}),
            check=False,
        )

    return run
