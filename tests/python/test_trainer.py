"""Training from Python: what PEFT computes, and what a run does."""

import json
import math
import pathlib
import pickle
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import candlewick as cw

TEXTS = [
    {"text": "the red fox said hello to nobody"},
    {"text": "a small boat sailed to the green moon"},
    {"text": "seven clocks sang under the bridge"},
    {"text": "my hat is made of rain"},
    {"text": "the door was painted with soup"},
]


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


def losses(model, data, **keywords):
    keywords = {"packing": False, "batch_size": 2, "epochs": 2, "learning_rate": 1e-2} | keywords
    return [metrics.loss for metrics in cw.Trainer(model, data, **keywords)]


# --- against PEFT -----------------------------------------------------------------------------------------

CASES = sorted((pathlib.Path(__file__).parents[1] / "golden/training").glob("*/run.json"))
ROOM = 30


def packed(batches):
    """The recorded batches as one list of rows that packing cuts in the same places.

    What is ignored at the end of a row changes nothing, so the last row of each batch can fill it up.
    """
    rows = []
    for batch in batches:
        batch = [{"input_ids": list(row["input_ids"]), "labels": list(row["labels"])} for row in batch]
        left = ROOM - sum(len(row["input_ids"]) for row in batch)
        assert left >= 0
        batch[-1]["input_ids"] += [1] * left
        batch[-1]["labels"] += [-100] * left
        rows += batch
    return rows


def test_there_are_recorded_runs():
    assert len(CASES) > 7


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.parent.name)
def test_trajectories_are_those_of_peft(repository, case, tmp_path):
    run = json.loads(case.read_text())
    recipe = run["recipe"]
    model = cw.Model.from_pretrained(repository / "tests/golden" / run["base"], device="cpu")
    trainer = cw.Trainer(
        model,
        packed(run["batches"]),
        adapter=case.parent / "start",
        batch_size=1,
        max_length=ROOM,
        shuffle=False,
        epochs=6,
        **recipe,
    )
    steps = list(trainer)
    assert len(steps) == len(run["steps"]) == 12
    for metrics, expected in zip(steps, run["steps"], strict=True):
        assert metrics.loss == pytest.approx(expected["loss"], rel=1e-4)
        assert metrics.grad_norm == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert metrics.learning_rate == pytest.approx(expected["learning_rate"], abs=1e-12)
        assert metrics.tokens == expected["tokens"]
    wanted = load_file(case.parent / "expected.safetensors")
    wanted = {name[len("final.") :]: value for name, value in wanted.items() if name.startswith("final.")}
    saved = tensors(trainer, tmp_path)
    assert saved.keys() == wanted.keys()
    for name, value in saved.items():
        assert value.shape == wanted[name].shape
        np.testing.assert_allclose(value, wanted[name], atol=1e-4, err_msg=name)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    start = json.loads((case.parent / "start/adapter_config.json").read_text())
    for field in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias", "target_modules"):
        if isinstance(config[field], list):
            assert sorted(config[field]) == sorted(start[field])
        else:
            assert config[field] == start[field], field


@pytest.mark.parametrize(
    ("lora", "names"),
    [
        ({}, ["self_attn.q_proj", "self_attn.v_proj"]),
        ({"target_modules": ["gate_proj"], "layers_to_transform": 1}, ["mlp.gate_proj"]),
        ({"target_modules": r".*\.[01]\.mlp\.(up|down)_proj"}, ["mlp.down_proj", "mlp.up_proj"]),
        ({"target_modules": "o_proj", "use_dora": True}, ["self_attn.o_proj"]),
    ],
)
def test_a_saved_directory_has_the_names_and_shapes_of_peft(small, tmp_path, lora, names):
    config = cw.LoraConfig(rank=5, alpha=7, **lora)
    saved = tensors(cw.Trainer(small, id_rows(2), lora=config), tmp_path)
    modules = {name.split(".lora_")[0] for name in saved}
    assert sorted({".".join(module.split(".")[-2:]) for module in modules}) == names
    hidden, layers = small.config["hidden_size"], {int(module.split(".layers.")[1].split(".")[0]) for module in modules}
    assert layers == ({1} if "layers_to_transform" in lora else set(range(small.config["num_hidden_layers"])))
    for module in modules:
        assert module.startswith("base_model.model.model.layers.")
        a, b = saved[f"{module}.lora_A.weight"], saved[f"{module}.lora_B.weight"]
        assert a.shape[0] == b.shape[1] == 5
        assert hidden in (a.shape[1], b.shape[0])
        assert a.any()
        assert not b.any()
        if config.use_dora:
            assert saved[f"{module}.lora_magnitude_vector"].shape == (b.shape[0],)


# --- configuration ----------------------------------------------------------------------------------------


def test_lora_config():
    config = cw.LoraConfig()
    assert (config.rank, config.alpha, config.dropout) == (8, 16.0, 0.0)
    assert config.target_modules == ["q_proj", "v_proj"]
    assert not config.use_rslora
    assert not config.use_dora
    every = cw.LoraConfig(
        rank=4,
        alpha=9,
        dropout=0.1,
        target_modules="all-linear",
        exclude_modules=["k_proj"],
        use_rslora=True,
        use_dora=True,
        rank_pattern={"b": 3, "a": 2},
        alpha_pattern={"b": 1.5},
        layers_to_transform=[0, 2],
        layers_pattern="layers",
        modules_to_save=["lm_head"],
        bias="lora_only",
        init_lora_weights="gaussian",
    )
    assert pickle.loads(pickle.dumps(every)) == every != config
    assert eval(repr(every), {"LoraConfig": cw.LoraConfig}) == every
    assert list(every.rank_pattern) == ["b", "a"]
    assert cw.LoraConfig.from_peft(every.to_peft()) == every
    assert every.to_peft()["r"] == 4


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("rank", 0),
        ("rank", -1),
        ("alpha", float("inf")),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("target_modules", []),
        ("bias", "some"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", False),
        ("rank_pattern", {"q_proj": 0}),
        ("layers_to_transform", -1),
    ],
)
def test_refused_lora_arguments(keyword, value):
    with pytest.raises(cw.InvalidArgumentError, match=keyword):
        cw.LoraConfig(**{keyword: value})


def test_lora_arguments_are_keywords():
    with pytest.raises(TypeError):
        cw.LoraConfig(8, 16.0)
    with pytest.raises(TypeError, match="rnak"):
        cw.LoraConfig(rnak=8)
    with pytest.raises(TypeError):
        cw.LoraConfig(target_modules=5)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("schedule", "step"),
        ("warmup_steps", -1),
        ("min_learning_rate", 1.0),
        ("batch_size", 0),
        ("batch_size", -2),
        ("gradient_accumulation_steps", 0),
        ("epochs", 0),
        ("max_steps", 0),
        ("max_length", 1),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("eps", -1.0),
        ("max_grad_norm", 0.0),
        ("label_smoothing", 1.5),
        ("gradient_checkpointing", "sometimes"),
        ("seed", -1),
        ("eval_steps", 0),
        ("early_stopping_patience", 0),
        ("save_steps", 0),
        ("keep_last", 0),
        ("adapter", "nobody"),
    ],
)
def test_refused_arguments(small, keyword, value):
    with pytest.raises(cw.InvalidArgumentError, match=keyword):
        cw.Trainer(small, id_rows(2), **{keyword: value})


@pytest.mark.parametrize(
    ("keyword", "value"), [("learning_rate", "fast"), ("batch_size", 1.5), ("lora", {"rank": 8}), ("betas", 0.9)]
)
def test_wrong_types(small, keyword, value):
    with pytest.raises(TypeError, match=keyword):
        cw.Trainer(small, id_rows(2), **{keyword: value})


def test_arguments_are_keywords(small):
    with pytest.raises(TypeError, match="learning_rat"):
        cw.Trainer(small, id_rows(2), learning_rat=1e-3)
    with pytest.raises(TypeError):
        cw.Trainer(small, id_rows(2), id_rows(2))
    with pytest.raises(cw.InvalidArgumentError, match="lora"):
        cw.Trainer(small, id_rows(2), lora=cw.LoraConfig(), adapter="qv")


def test_unknown_targets_are_named(small):
    with pytest.raises(cw.AdapterError, match=r"c_attn.*q_proj"):
        cw.Trainer(small, id_rows(2), lora=cw.LoraConfig(target_modules=["c_attn"]))


# --- runs -------------------------------------------------------------------------------------------------


def test_the_bundled_model_learns(tiny_model, tmp_path):
    trainer = cw.Trainer(
        tiny_model,
        TEXTS[:2],
        lora=cw.LoraConfig(target_modules="all-linear"),
        max_steps=60,
        learning_rate=1e-2,
        schedule="constant",
    )
    assert trainer.__length_hint__() == 60
    result = trainer.train()
    assert result.steps == len(result.history) == trainer.step_count == 60
    assert result.loss == result.history[-1].loss < 0.1 * result.history[0].loss
    assert result.eval_loss is None
    assert result.seconds > 0
    assert result.tokens_per_second > 0
    assert result.peak_memory_bytes > tiny_model.size_in_bytes
    assert trainer.is_finished
    assert next(trainer, None) is None
    assert trainer.train().steps == 60

    generator = cw.Generator(tiny_model, temperature=0.0)
    before = generator.generate("the red fox").text
    registry = cw.AdapterRegistry(tiny_model)
    registry.add("learnt", trainer.adapter)
    trainer.save(tmp_path)
    registry.load("saved", tmp_path)
    assert generator.generate("the red fox", adapter="learnt").text == " said hello to nobody" != before
    assert generator.generate("the red fox").text == before
    assert registry["learnt"].generation == registry["saved"].generation
    merged = cw.Generator(tiny_model.merge("learnt"), temperature=0.0)
    assert merged.generate("a small boat").text == " sailed to the green moon"
    for name in registry.names():
        registry.unload(name)


def test_results_in_notebooks_and_files(small):
    trainer = cw.Trainer(small, id_rows(3), eval_dataset=id_rows(2), max_steps=3, eval_steps=2)
    result = trainer.train()
    assert result.eval_loss == result.history[-1].eval_loss
    assert [metrics.eval_loss is None for metrics in result.history] == [True, False, False]
    html = result._repr_html_()
    assert "<svg" in html
    assert f"{result.loss:.4f}" in html
    assert "eval" in html
    assert "script" not in html
    assert "TrainingResult(steps=3" in repr(result)
    again = pickle.loads(pickle.dumps(result))
    assert again == result
    assert again.history[0] == result.history[0] != result.history[1]
    assert "step=1" in repr(result.history[0])
    assert cw.StepMetrics(**result.history[0].to_dict()) == result.history[0]


def test_plot(small):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    result = cw.Trainer(small, id_rows(3), eval_dataset=id_rows(2), max_steps=3).train()
    axes = result.plot()
    loss, evaluated = axes.get_lines()
    assert list(loss.get_ydata()) == [metrics.loss for metrics in result.history]
    assert list(evaluated.get_ydata()) == [metrics.eval_loss for metrics in result.history]
    assert result.plot(axes) is axes
    from matplotlib import pyplot as plt

    plt.close("all")


def test_plot_without_matplotlib(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = cw.Trainer(small, id_rows(3), max_steps=1).train()
    with pytest.raises(ImportError, match=r"candlewick\[notebook\]"):
        result.plot()


def test_progress_bar(small, capsys):
    cw.Trainer(small, id_rows(3), max_steps=3, show_progress_bar=True).train()
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "3/3" in shown
    assert "loss=" in shown
    assert "tok/s=" in shown
    cw.Trainer(small, id_rows(3), max_steps=3).train()
    assert capsys.readouterr() == ("", "")


class Recorder:
    """A callback with every method."""

    def __init__(self):
        self.events = []

    def on_train_begin(self, trainer):
        self.events.append(("begin", trainer.step_count))

    def on_step(self, metrics):
        self.events.append(("step", metrics.step))

    def on_evaluate(self, metrics):
        self.events.append(("evaluate", metrics.step))

    def on_save(self, directory):
        self.events.append(("save", directory.name))
        assert (directory / "trainer_state.safetensors").is_file()

    def on_train_end(self, result):
        self.events.append(("end", result.steps))


def test_callbacks(small, tmp_path):
    recorder, seen = Recorder(), []
    trainer = cw.Trainer(
        small, id_rows(3), eval_dataset=id_rows(2), max_steps=4, eval_steps=2, save_dir=tmp_path, save_steps=3
    )
    trainer.train(callbacks=[recorder, lambda metrics: seen.append(metrics.step)])
    assert seen == [1, 2, 3, 4]
    assert recorder.events == [
        ("begin", 0),
        ("step", 1),
        ("step", 2),
        ("evaluate", 2),
        ("step", 3),
        ("save", "checkpoint-3"),
        ("step", 4),
        ("evaluate", 4),
        ("end", 4),
    ]
    assert trainer.last_checkpoint == tmp_path / "checkpoint-3"
    with pytest.raises(TypeError, match="callbacks"):
        trainer.train(callbacks=[5])


def test_a_callback_may_end_the_run(small, tmp_path):
    trainer = cw.Trainer(small, id_rows(3), max_steps=9, save_dir=tmp_path)
    assert trainer.train(callbacks=lambda metrics: metrics.step < 4).steps == 4
    assert (tmp_path / "adapter_model.safetensors").is_file()

    def fail(_):
        raise ZeroDivisionError("enough")

    with pytest.raises(ZeroDivisionError, match="enough"):
        trainer.train(callbacks=[fail])
    assert trainer.step_count == 5
    assert trainer.train().steps == 9
    assert [metrics.step for metrics in trainer.history] == list(range(1, 10))


def test_callbacks_may_use_the_trainer(small, tmp_path):
    trainer = cw.Trainer(small, id_rows(3), eval_dataset=id_rows(2), max_steps=2)
    registry, found = cw.AdapterRegistry(small), []

    def look(metrics):
        trainer.save_state(tmp_path / str(metrics.step))
        registry.add("now", trainer.adapter)
        found.append((trainer.evaluate(), registry["now"].generation))

    trainer.train(callbacks=look)
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_evaluation_stops_early_and_keeps_the_best(small, tmp_path):
    # The evaluation rows contradict the training rows: after a while they are predicted worse and worse.
    rows = [{"input_ids": [5, 6, 7, 8, 9, 10]}]
    other = [{"input_ids": [5, 6, 11, 8, 12, 10]}]
    trainer = cw.Trainer(
        small,
        rows,
        eval_dataset=other,
        learning_rate=3e-2,
        schedule="constant",
        max_steps=200,
        eval_steps=1,
        early_stopping_patience=3,
        save_dir=tmp_path,
        save_steps=1,
        keep_last=2,
    )
    result = trainer.train()
    assert result.steps < 200
    evaluated = [metrics.eval_loss for metrics in result.history]
    best = evaluated.index(min(evaluated))
    assert len(evaluated) - 1 - best == 3
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert names == sorted(["best", f"checkpoint-{result.steps - 1}", f"checkpoint-{result.steps}"])
    again = cw.Trainer(small, rows, adapter=tmp_path / "best")
    assert again.evaluate(other) == pytest.approx(min(evaluated), rel=1e-6)
    assert trainer.evaluate() == pytest.approx(evaluated[-1], rel=1e-6)
    last = cw.Trainer(small, rows, adapter=tmp_path)
    assert last.evaluate(other) == pytest.approx(evaluated[-1], rel=1e-6)
    with pytest.raises(cw.InvalidArgumentError, match="eval_dataset"):
        again.evaluate()


def test_divergence(small):
    rows = id_rows(3)
    trainer = cw.Trainer(small, rows, learning_rate=1e38, max_grad_norm=None, max_steps=9, schedule="constant")
    adapters = [trainer.adapter]
    with pytest.raises(cw.TrainingDivergedError, match="diverged at step") as raised:
        adapters.extend(trainer.adapter for _ in trainer)
    assert raised.value.step == trainer.step_count + 1
    assert not math.isfinite(raised.value.loss) or raised.value.loss >= 0
    assert isinstance(raised.value, ArithmeticError)
    registry = cw.AdapterRegistry(small)
    assert registry.add("after", trainer.adapter).generation == registry.add("before", adapters[-1]).generation
    assert next(trainer, None) is None


def test_going_on_with_an_adapter(repository, small, tmp_path):
    directory = repository / "tests/golden/adapters/qwen2-qv"
    rows = id_rows(3)
    registry = cw.AdapterRegistry(small)
    registry.load("qv", directory)
    wanted = tensors(cw.Trainer(small, rows, adapter=directory), tmp_path / "a")
    for given in ("qv", str(directory), cw.Adapter.load(directory)):
        trainer = cw.Trainer(small, rows, adapter=given, max_steps=2)
        found = tensors(trainer, tmp_path / "b")
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            np.testing.assert_array_equal(value, wanted[name])
        assert json.loads((tmp_path / "b/adapter_config.json").read_text())["r"] == 3
        assert trainer.train().steps == 2
    registry.combine("both", {"qv": 0.5})
    with pytest.raises(cw.InvalidArgumentError, match="combination"):
        cw.Trainer(small, rows, adapter="both")


@pytest.mark.parametrize("quantize", [None, "q8_0"])
def test_other_weights(tiny_model, quantize):
    """The weights of the base and the adapter are independent of each other."""
    dtype = "bfloat16" if quantize is None else "auto"
    expected = losses(tiny_model, TEXTS, epochs=6)
    with cw.Model.from_pretrained("candlewick/tiny", device="cpu", dtype=dtype, quantize=quantize) as model:
        found = losses(model, TEXTS, epochs=6)
        assert found[-1] < 0.8 * found[0]
        np.testing.assert_allclose(found, expected, rtol=0.05)
        trainer = cw.Trainer(model, TEXTS, max_steps=1)
        trainer.train()
        assert cw.AdapterRegistry(model).add("some", trainer.adapter).num_parameters == trainer.num_parameters


def test_recomputed_layers_give_the_same(small):
    expected = losses(small, id_rows(4), gradient_checkpointing=False)
    for choice in (True, "auto"):
        np.testing.assert_allclose(losses(small, id_rows(4), gradient_checkpointing=choice), expected, rtol=1e-6)


def test_seeds(small):
    rows, lora = id_rows(6), cw.LoraConfig(dropout=0.2)
    first = losses(small, rows, seed=3, lora=lora)
    assert losses(small, rows, seed=3, lora=lora) == first
    assert losses(small, rows, seed=4, lora=lora) != first


def test_handles(small):
    trainer = cw.Trainer(small, id_rows(3), max_steps=3)
    assert "step 0 of 3" in repr(trainer)
    assert trainer.model is small
    assert iter(trainer) is trainer
    assert trainer.save_dir is None
    with pytest.raises(TypeError, match="save_state"):
        pickle.dumps(trainer)
    with trainer:
        next(trainer)
    trainer.close()
    assert "closed" in repr(trainer)
    assert trainer.step_count == 1
    for use in (lambda: next(trainer), lambda: trainer.adapter, lambda: trainer.save_state("x"), trainer.train):
        with pytest.raises(cw.InvalidArgumentError, match="closed"):
            use()
    small.close()
    with pytest.raises(cw.InvalidArgumentError, match="closed"):
        cw.Trainer(small, id_rows(3))


def test_a_step_can_be_watched_from_another_thread(small):
    import threading

    trainer = cw.Trainer(small, id_rows(9), max_steps=200)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    generator, seen = cw.Generator(small, max_new_tokens=2, temperature=0.0, ignore_eos=True), set()
    while thread.is_alive():
        seen.add(trainer.step_count)
        generator.generate([1, 2, 3])
        assert trainer.adapter.rank == 8
    thread.join()
    assert len(seen) > 2
    assert trainer.step_count == 200
