"""Runs that are killed, interrupted and resumed, and what they leave in memory."""

import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import candlewick as cw


def facts(metrics):
    """Everything about a step but how long it took."""
    return {key: value for key, value in metrics.to_dict().items() if "second" not in key}


def tensors(trainer, directory):
    """The trained tensors, by the names of the file."""
    trainer.save(directory)
    return load_file(pathlib.Path(directory) / "adapter_model.safetensors")


def id_rows(count):
    """Rows of a few ids each, for the small models."""
    rows = []
    for index in range(count):
        ids = [(7 * index + 3 * place * place) % 40 for place in range(3 + 5 * index % 11)]
        rows.append({"input_ids": ids, "labels": ids})
    return rows


RUN = {
    "batch_size": 2,
    "max_length": 24,
    "gradient_accumulation_steps": 2,
    "epochs": 3,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
}


@pytest.mark.parametrize("packing", [True, False])
def test_a_resumed_run_is_the_same_to_the_bit(small, tmp_path, packing):
    lora = cw.LoraConfig(dropout=0.2, use_dora=True)
    data = {"eval_dataset": id_rows(3)}
    run = RUN | {"packing": packing}
    whole = cw.Trainer(small, id_rows(25), lora=lora, **run, **data)
    expected = [facts(metrics) for metrics in whole]
    assert len(expected) > 6
    for cut in (1, 4, 6):
        first = cw.Trainer(small, id_rows(25), lora=lora, **run, **data)
        steps = [facts(next(first)) for _ in range(cut)]
        first.save_state(tmp_path / "state")
        second = cw.Trainer.resume(small, tmp_path / "state", iter(id_rows(25)), **data)
        assert second.step_count == cut
        assert second.total_steps == whole.total_steps
        steps += [facts(metrics) for metrics in second]
        assert steps == expected
        assert second.train().steps == len(expected)
        found, wanted = tensors(second, tmp_path / "a"), tensors(whole, tmp_path / "b")
        for name, value in found.items():
            np.testing.assert_array_equal(value, wanted[name])
    cw.AdapterRegistry(small).load("state", tmp_path / "state")


def test_what_resuming_refuses(small, tmp_path):
    trainer = cw.Trainer(small, id_rows(6), max_steps=4, **{k: v for k, v in RUN.items() if k != "epochs"})
    next(trainer)
    trainer.save_state(tmp_path)
    longer = cw.Trainer.resume(small, tmp_path, id_rows(6), max_steps=7, learning_rate=1e-3, batch_size=2)
    assert longer.train().steps == 7
    assert longer.history[0].step == 2
    for keyword, value in (("batch_size", 3), ("packing", False), ("seed", 1), ("max_length", 25), ("shuffle", False)):
        with pytest.raises(cw.InvalidArgumentError, match=keyword):
            cw.Trainer.resume(small, tmp_path, id_rows(6), **{keyword: value})
    with pytest.raises(cw.DataError, match="6 rows"):
        cw.Trainer.resume(small, tmp_path, id_rows(7))
    for other in ({"rank": 4}, {"target_modules": ["q_proj"]}, {"use_dora": True}):
        with pytest.raises(cw.InvalidArgumentError, match=r"lora: .*with which the run began"):
            cw.Trainer.resume(small, tmp_path, id_rows(6), lora=cw.LoraConfig(**other))
    with pytest.raises(cw.InvalidArgumentError, match="one of lora and adapter"):
        cw.Trainer.resume(small, tmp_path, id_rows(6), lora=cw.LoraConfig(), adapter=trainer.adapter)
    with pytest.raises(TypeError, match="learning_rat"):
        cw.Trainer.resume(small, tmp_path, id_rows(6), learning_rat=1.0)
    state = tmp_path / "trainer_state.safetensors"
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(cw.CheckpointError, match="trainer_state"):
        cw.Trainer.resume(small, tmp_path, id_rows(6))
    (tmp_path / "empty").mkdir()
    with pytest.raises(cw.CheckpointError, match="checkpoint"):
        cw.Trainer.resume(small, tmp_path / "empty", id_rows(6))
    with pytest.raises(FileNotFoundError):
        cw.Trainer.resume(small, tmp_path / "absent", id_rows(6))


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"target_modules": "all-linear", "alpha": 1 / 3, "dropout": 0.1},
        {"target_modules": r".*\.(q|k)_proj", "rank_pattern": {"k_proj": 2}, "use_rslora": True},
        {"modules_to_save": ["lm_head"], "bias": "all"},
    ],
)
def test_resuming_takes_the_keywords_of_the_class(small, tmp_path, lora):
    keywords = {"lora": cw.LoraConfig(**lora), "max_steps": 3} | {k: v for k, v in RUN.items() if k != "epochs"}
    keywords |= {"lora": cw.LoraConfig(**lora)}
    trainer = cw.Trainer(small, id_rows(6), **keywords)
    next(trainer)
    trainer.save_state(tmp_path)
    rest = [facts(metrics) for metrics in trainer]
    assert [facts(metrics) for metrics in cw.Trainer.resume(small, tmp_path, id_rows(6), **keywords)] == rest


def test_resuming_a_run_that_went_on_with_an_adapter(small, tmp_path):
    first = cw.Trainer(small, id_rows(6), lora=cw.LoraConfig(rank=2), max_steps=1)
    first.train()
    first.save(tmp_path / "adapter")
    keywords = {"adapter": tmp_path / "adapter", "max_steps": 3}
    trainer = cw.Trainer(small, id_rows(6), **keywords)
    next(trainer)
    trainer.save_state(tmp_path / "state")
    rest = [facts(metrics) for metrics in trainer]
    assert [facts(metrics) for metrics in cw.Trainer.resume(small, tmp_path / "state", id_rows(6), **keywords)] == rest
    other = cw.Trainer(small, id_rows(6), lora=cw.LoraConfig(rank=3), max_steps=1)
    with pytest.raises(cw.InvalidArgumentError, match=r"adapter: .*rank=3.*rank=2"):
        cw.Trainer.resume(small, tmp_path / "state", id_rows(6), adapter=other.adapter)


def test_a_run_that_stopped_early_goes_on_with_more_patience(small, tmp_path):
    keywords = {"eval_dataset": id_rows(2), "eval_steps": 1, "max_steps": 6, "learning_rate": 0.0}
    trainer = cw.Trainer(small, id_rows(6), early_stopping_patience=1, **keywords)
    assert trainer.train().steps == 2
    trainer.save_state(tmp_path)
    same = cw.Trainer.resume(small, tmp_path, id_rows(6), early_stopping_patience=1, **keywords)
    assert (same.is_finished, list(same)) == (True, [])
    patient = cw.Trainer.resume(small, tmp_path, id_rows(6), early_stopping_patience=30, **keywords)
    assert not patient.is_finished
    assert patient.train().steps == 6


def test_a_run_that_diverged_goes_on_with_other_settings(small, tmp_path):
    trainer = cw.Trainer(small, id_rows(6), max_steps=6, learning_rate=1e30, max_grad_norm=None)
    with pytest.raises(cw.TrainingDivergedError):
        trainer.train()
    trainer.save_state(tmp_path)
    before = trainer.step_count
    again = cw.Trainer.resume(small, tmp_path, id_rows(6), learning_rate=1e-5)
    assert not again.is_finished
    assert again.total_steps > before


def test_resuming_knows_the_rows_and_the_model(small, repository, tmp_path):
    rows = id_rows(6)
    trainer = cw.Trainer(small, rows, max_steps=4, packing=False)
    next(trainer)
    trainer.save_state(tmp_path)
    with pytest.raises(cw.DataError, match="another order"):
        cw.Trainer.resume(small, tmp_path, rows[::-1])
    labels = [row | {"labels": [-100, *row["labels"][1:]]} for row in rows]
    with pytest.raises(cw.DataError, match="not those"):
        cw.Trainer.resume(small, tmp_path, labels)
    with (
        cw.Model.from_pretrained(repository / "tests/golden/llama/plain", device="cpu") as other,
        pytest.raises(cw.InvalidArgumentError, match="model: got llama, expected a qwen2 model"),
    ):
        cw.Trainer.resume(other, tmp_path, rows)
    assert cw.Trainer.resume(small, tmp_path, rows).train().steps == 4


KILLED = """
import json, sys
import candlewick as cw
model = cw.Model.from_pretrained(sys.argv[1], device="cpu")
rows = json.loads(sys.argv[2])
trainer = cw.Trainer(model, rows, lora=cw.LoraConfig(dropout=0.1), batch_size=1, packing=False, epochs=40,
                     save_dir=sys.argv[3], save_steps=1, keep_last=2)
for metrics in trainer:
    print(metrics.step, metrics.loss.hex(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal there")
def test_a_killed_run_goes_on_as_if_it_had_not_been(repository, small, tmp_path):
    rows = id_rows(7)
    keywords = {"lora": cw.LoraConfig(dropout=0.1), "batch_size": 1, "packing": False, "epochs": 40}
    expected = [metrics.loss.hex() for metrics in cw.Trainer(small, rows, **keywords)]
    base = repository / "tests/golden/qwen2/tied"
    for steps in (5, 40, 81):
        room = tmp_path / str(steps)
        command = [sys.executable, "-c", KILLED, str(base), json.dumps(rows), str(room)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            seen = []
            for line in child.stdout:
                seen.append(line.split()[1])
                if len(seen) == steps:
                    # In the middle of whatever it is doing now.
                    os.kill(child.pid, signal.SIGKILL)
                    break
        assert seen == expected[:steps]
        resumed = cw.Trainer.resume(small, room, rows)
        assert resumed.step_count >= steps - 1
        begin = resumed.step_count
        assert [metrics.loss.hex() for metrics in resumed] == expected[begin:]
        checkpoints = [path.name for path in room.iterdir() if path.name.startswith("checkpoint-")]
        assert len(checkpoints) == 2


# --- Ctrl-C -----------------------------------------------------------------------------------------------

INTERRUPTED = """
import sys, time
import candlewick as cw
model = cw.Model.from_pretrained(sys.argv[1], device="cpu")
rows = [{"input_ids": [index % 512 for index in range(500)]}] * 40
trainer = cw.Trainer(model, rows, eval_dataset=rows, max_length=500, packing=False, batch_size=40, max_steps=50)
registry = cw.AdapterRegistry(model)
before = registry.add("before", trainer.adapter).generation
print("ready", flush=True)
try:
    CALL
    print("finished", flush=True)
except KeyboardInterrupt:
    print("interrupted", time.monotonic(), flush=True)
assert trainer.step_count == 0, trainer.step_count
assert registry.add("after", trainer.adapter).generation == before
small = cw.Trainer(model, [{"input_ids": [1, 2, 3]}])
print("next", next(small).step, flush=True)
"""

CALLS = {
    "train": "trainer.train()",
    "iterate": "list(trainer)",
    "evaluate": "trainer.evaluate()",
    "open": "cw.Trainer(model, ({'input_ids': [1, 2, 3]} for _ in iter(int, 1)))",
}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a child there")
@pytest.mark.parametrize("call", CALLS)
def test_interrupt(slow_model, call):
    latency = 1e9
    for _ in range(3):
        program = INTERRUPTED.replace("CALL", CALLS[call])
        command = [sys.executable, "-c", program, str(slow_model)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                assert child.stdout.readline() == "ready\n", child.stderr.read()
                time.sleep(0.4)
                sent = time.monotonic()
                child.send_signal(signal.SIGINT)
                out, err = child.communicate(timeout=60)
            finally:
                child.kill()
        words = out.split()
        assert words[0] == "interrupted", out + err
        assert words[2:] == ["next", "1"], out + err
        latency = min(latency, float(words[1]) - sent)
        if latency < 0.3:
            return
    pytest.fail(f"KeyboardInterrupt came after {latency:.2f} s")


def test_an_interrupted_run_goes_on(small):
    """The steps after an interrupt are those of a run without one."""
    keywords = {"max_steps": 6, "batch_size": 2, "packing": False}
    expected = [facts(metrics) for metrics in cw.Trainer(small, id_rows(7), **keywords)]
    trainer = cw.Trainer(small, id_rows(7), **keywords)

    def interrupt(metrics):
        if metrics.step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.train(callbacks=interrupt)
    assert trainer.step_count >= 3
    trainer.train()
    assert [facts(metrics) for metrics in trainer.history] == expected


# --- memory -----------------------------------------------------------------------------------------------

SWAPS = """
import candlewick as cw

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

model = cw.Model.from_pretrained("candlewick/tiny", device="cpu")
generator = cw.Generator(model, max_new_tokens=1, temperature=0.0)
registry = cw.AdapterRegistry(model, max_adapters=2)
trainer = cw.Trainer(model, [{"text": "the red fox"}], lora=cw.LoraConfig(rank=32, target_modules="all-linear"),
                     max_steps=2000)

def swap(number):
    if number % 100 == 0:
        next(trainer)
    name = f"adapter-{number % 2}"
    registry.add(name, trainer.adapter)
    registry.activate(name)
    generator.generate("the")
    if number % 3 == 0:
        registry.unload(name)

for number in range(200):
    swap(number)
before = resident_bytes()
for number in range(1000):
    swap(number)
print((resident_bytes() - before) / 2**20, registry["adapter-0"].size_in_bytes / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_a_thousand_swaps(run_python):
    done = run_python("-c", SWAPS, timeout=600)
    assert done.returncode == 0, done.stderr
    growth, size = map(float, done.stdout.split())
    assert growth < max(16, 20 * size)


def test_trainers_are_freed(small):
    import weakref

    trainer = cw.Trainer(small, id_rows(3), max_steps=2)
    trainer.train(callbacks=lambda _: None)
    reference = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert reference() is None
