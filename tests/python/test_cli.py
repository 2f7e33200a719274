"""The ``candlewick`` command, run as a user runs it."""

import importlib.metadata
import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

import numpy as np
import pytest

import candlewick as cw
from candlewick import _demo, cli

CLI = ("-m", "candlewick.cli")
TINY = "candlewick/tiny"


def test_demo(run_python):
    done = run_python(*CLI, "demo", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert _demo.STORY in done.stdout
    for question in _demo.QUESTIONS:
        answer = done.stdout.split(f"> {question}\n", 1)[1].split("\n")[0].strip()
        assert len(answer.split()) > 2, done.stdout
    before, candle, pirate, after = [
        line.strip() for line in done.stdout.split("stays as it is:\n\n", 1)[1].split("\n")[:4]
    ]
    assert candle.endswith(_demo.CHARACTERS["candle"])
    assert pirate.endswith(_demo.CHARACTERS["pirate"])
    assert before == after != candle
    assert f"{_demo.KEPT}  (candle)" in done.stdout
    best = done.stdout.split(f"{_demo.QUERY!r}:\n\n", 1)[1].split("\n")[0]
    assert best.endswith(_demo.DOCUMENTS[2])


def test_demo_is_the_same_every_time(run_python):
    assert run_python(*CLI, "demo").stdout == run_python(*CLI, "demo").stdout


def test_the_command_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="candlewick")
    assert script.load() is cli.main
    assert shutil.which("candlewick", path=sysconfig.get_path("scripts"))


def test_version(run_python):
    assert run_python(*CLI, "--version").stdout == f"candlewick {cw.__version__}\n"
    assert run_python("-m", "candlewick", "--version").stdout == f"candlewick {cw.__version__}\n"


def test_generate_with_an_adapter(run_python, tiny_model, greedy, tmp_path):
    rows = [{"prompt": "The cat", "completion": " sat on a green moon."}]
    trainer = cw.Trainer(tiny_model, rows, learning_rate=0.02, max_steps=20, schedule="constant")
    trainer.train()
    trainer.save(tmp_path / "moon")
    done = run_python(*CLI, "generate", TINY, "The cat", "-n", "6", "-t", "0", "--adapter", tmp_path / "moon")
    assert done.stdout.strip() != greedy.generate("The cat", max_new_tokens=6).text.strip()
    assert "moon" in done.stdout, done.stderr
    done = run_python(*CLI, "generate", TINY, "The cat", "--adapter", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none" in done.stderr


def test_info_without_a_tokenizer(run_python, checkpoint):
    for file in checkpoint.glob("*token*"):
        file.unlink()
    done = run_python(*CLI, "info", checkpoint)
    assert done.returncode == 0, done.stderr
    assert "no, nor a tokenizer" in done.stdout


def test_generate_equals_the_library(run_python, greedy):
    done = run_python(*CLI, "generate", TINY, "The dog", "-n", "8", "-t", "0")
    assert done.stdout == greedy.generate("The dog", max_new_tokens=8).text + "\n"
    assert done.stderr == ""


def test_generate_options(run_python, greedy):
    done = run_python(*CLI, "generate", TINY, "-", "-n", "8", "-t", "0", "--stats", stdin="The dog")
    assert done.stdout == greedy.generate("The dog", max_new_tokens=8).text + "\n"
    assert "prompt tokens" in done.stderr
    message = [{"role": "user", "content": "Who are you?"}]
    done = run_python(*CLI, "generate", TINY, "Who are you?", "--chat", "-n", "16", "-t", "0", "--stop", ".")
    assert done.stdout == greedy.generate(message, max_new_tokens=16, stop=".").text + "\n"


def test_chat_keeps_the_conversation_until_reset(run_python, greedy):
    lines = ["Who are you?", "What color is the sky?", "/nonsense", "/reset", "What color is the sky?", "/quit", "no"]
    done = run_python(*CLI, "chat", TINY, "-n", "24", "-t", "0", stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    assert "/nonsense" in done.stderr

    conversation = [{"role": "user", "content": lines[0]}]
    first = greedy.generate(conversation, max_new_tokens=24).text
    conversation += [{"role": "assistant", "content": first}, {"role": "user", "content": lines[1]}]
    second = greedy.generate(conversation, max_new_tokens=24).text
    alone = greedy.generate(conversation[-1:], max_new_tokens=24).text
    assert done.stdout == f"{first}\n{second}\n{alone}\n"


def test_chat_ends_with_its_input(run_python):
    assert run_python(*CLI, "chat", TINY, stdin="").returncode == 0


def test_chat_survives_a_message_that_is_too_long(run_python, tiny_model):
    line = "dog " * (tiny_model.context_length + 1)
    done = run_python(*CLI, "chat", TINY, "-n", "4", "-t", "0", stdin=f"{line}\nWho are you?\n")
    assert done.returncode == 0
    assert "/reset" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_info(run_python, tiny_model):
    done = run_python(*CLI, "info", TINY)
    assert f"{tiny_model.num_parameters:,}" in done.stdout
    assert "qwen2" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "./no-such-directory", "Hello"),
        ("generate", TINY, "Hello", "--temperature", "-1"),
        ("info", TINY, "--dtype", "float13"),
        ("info", TINY, "--device", "cuda:63"),
    ],
)
def test_errors_are_one_line(run_python, arguments):
    done = run_python(*CLI, *arguments)
    assert done.returncode == cli.EXIT_ERROR
    assert done.stdout == ""
    assert done.stderr.startswith("candlewick: error: ")
    assert done.stderr.count("\n") == 1


def test_wrong_usage_shows_usage(run_python):
    done = run_python(*CLI, "nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: candlewick")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a child there")
def test_ctrl_c(slow_model):
    child = subprocess.Popen(
        [sys.executable, *CLI, "generate", str(slow_model), "w1 w2", "-n", "30000", "-t", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.read(1)
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == cli.EXIT_INTERRUPTED
    assert "Traceback" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal there")
def test_a_reader_that_leaves_is_no_error(slow_model):
    child = subprocess.Popen(
        [sys.executable, *CLI, "generate", str(slow_model), "w1 w2", "-n", "30000", "-t", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.read(1)
    child.stdout.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait(60) == cli.EXIT_BROKEN_PIPE


ROWS = [{"prompt": "the red fox", "completion": " said hello to nobody"}, {"text": "a small boat"}] * 3
TRAIN = ("train", TINY, "rows.jsonl", "-o", "run", "--no-packing", "--batch-size", "2", "--learning-rate", "0.01")


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_train_equals_the_library(run_python, rows, tiny_model, tmp_path):
    options = (
        "--rank",
        "3",
        "--target-modules",
        "all-linear",
        "--epochs",
        "2",
        "--seed",
        "5",
        "--eval-data",
        str(rows),
    )
    done = run_python(*CLI, *TRAIN, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    trainer = cw.Trainer(
        tiny_model,
        rows,
        eval_dataset=rows,
        lora=cw.LoraConfig(rank=3, alpha=6, target_modules="all-linear"),
        packing=False,
        batch_size=2,
        learning_rate=0.01,
        epochs=2,
        seed=5,
    )
    result = trainer.train()
    assert f"6 steps in 0 s, loss {result.loss:.4f}, evaluation {result.eval_loss:.4f}" in done.stderr.replace(
        " 1 s", " 0 s"
    )
    registry = cw.AdapterRegistry(tiny_model)
    found = registry.load("command", tmp_path / "run")
    assert found.generation == registry.add("library", trainer.adapter).generation
    for name in registry.names():
        registry.unload(name)
    assert (tmp_path / "run" / "best").is_dir()
    done = run_python(*CLI, *TRAIN, "--adapter", "run", "--max-steps", "1")
    assert done.returncode == 0, done.stderr


def test_train_resumes(run_python, rows, tmp_path):
    assert rows.is_file()
    done = run_python(*CLI, *TRAIN, "--max-steps", "3", "--schedule", "constant", "--save-steps", "2")
    assert (tmp_path / "run" / "checkpoint-2").is_dir(), done.stderr
    whole = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "run" / "adapter_model.safetensors").unlink()
    done = run_python(*CLI, *TRAIN, "--resume")
    assert "3 steps" in done.stderr, done.stderr
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == whole
    done = run_python(*CLI, *TRAIN, "--resume", "--seed", "3")
    assert done.returncode == cli.EXIT_ERROR
    assert "seed" in done.stderr


def test_train_names_bad_rows(run_python, rows):
    with rows.open("a") as file:
        file.write('{"body": 5}\n')
    done = run_python(*CLI, *TRAIN)
    assert done.returncode == cli.EXIT_ERROR
    assert "rows.jsonl, line 7" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a child there")
def test_train_stopped_by_ctrl_c_goes_on(run_python, rows, tmp_path):
    child = subprocess.Popen(
        [sys.executable, *CLI, *TRAIN, "--max-steps", "100000", "--save-steps", "5"],
        cwd=rows.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((tmp_path).glob("run/checkpoint-*")):
        time.sleep(0.02)
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == cli.EXIT_INTERRUPTED
    assert "Traceback" not in err
    step = int(err.split("stopped after step ")[1].split(";")[0])
    done = run_python(*CLI, *TRAIN, "--resume", "--max-steps", str(step + 2))
    assert f"{step + 2} steps in" in done.stderr, done.stderr


def test_embed_equals_the_library(run_python, tiny_embedder, tmp_path):
    texts = ["The dog ran home.", "", "A cat."]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    done = run_python(*CLI, "embed", TINY, "texts.txt", "-o", "out.npy")
    assert done.returncode == 0, done.stderr
    wanted = tiny_embedder.encode(texts)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-6)
    for name, read in {"out.json": json.loads, "out.jsonl": lambda text: [*map(json.loads, text.splitlines())]}.items():
        assert run_python(*CLI, "embed", TINY, "texts.txt", "-o", name).returncode == 0
        np.testing.assert_allclose(read((tmp_path / name).read_text()), wanted, atol=1e-6)
    (tmp_path / "latin1.txt").write_bytes("Caf\xe9\n".encode("latin-1"))
    done = run_python(*CLI, "embed", TINY, "latin1.txt")
    assert done.returncode == 2
    assert done.stderr.startswith("candlewick: error: latin1.txt is not text in UTF-8")
    done = run_python(*CLI, "embed", TINY, "-", "--truncate-dim", "3", stdin="The dog ran home.\n")
    np.testing.assert_allclose(json.loads(done.stdout), wanted[0][:3], atol=1e-6)
