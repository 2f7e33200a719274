"""What trainers and adapter configurations take, refuse and show."""

import inspect

import pytest

import candlewick as cw


def id_rows(count):
    """Rows of a few ids each, for the small models."""
    rows = []
    for index in range(count):
        ids = [(7 * index + 3 * place * place) % 40 for place in range(3 + 5 * index % 11)]
        rows.append({"input_ids": ids, "labels": ids})
    return rows


def test_settings_that_would_do_nothing_are_refused(small):
    for keyword, needed in (
        ("eval_steps", "eval_dataset"),
        ("early_stopping_patience", "eval_dataset"),
        ("save_steps", "save_dir"),
    ):
        with pytest.raises(cw.InvalidArgumentError, match=f"{keyword}: got 2, .*{needed}"):
            cw.Trainer(small, id_rows(3), **{keyword: 2})


def test_names_may_come_in_any_iterable():
    names = ["v_proj", "q_proj"]
    assert cw.LoraConfig(target_modules=tuple(names)).target_modules == names
    assert cw.LoraConfig(target_modules=iter(names)).target_modules == names
    assert cw.LoraConfig(target_modules=dict.fromkeys(names)).target_modules == names
    assert cw.LoraConfig(target_modules=dict.fromkeys(names).keys()).target_modules == names
    # Sets have another order in every process.
    assert cw.LoraConfig(target_modules=set(names)).target_modules == sorted(names)
    assert cw.LoraConfig(target_modules=frozenset(names)).target_modules == sorted(names)
    assert cw.LoraConfig(modules_to_save={"lm_head"}).modules_to_save == ["lm_head"]
    for wrong in (3, [3], [b"q_proj"], b"q_proj"):
        with pytest.raises(TypeError, match=r"expected (a )?str"):
            cw.LoraConfig(target_modules=wrong)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("norm", "model.norm.*not trained"),
        ("input_layernorm", "input_layernorm.*not trained"),
        ("layers.0", "layernorm.*not trained"),
        ("lm_haed", "matches no module"),
    ],
)
def test_what_is_saved_whole_must_be_trained(small, name, reason):
    with pytest.raises(cw.AdapterError, match=f"modules_to_save: .{name}.*{reason}"):
        cw.Trainer(small, id_rows(2), lora=cw.LoraConfig(modules_to_save=["lm_head", name]))
    trainer = cw.Trainer(small, id_rows(2), lora=cw.LoraConfig(modules_to_save=["lm_head", "layers.0.mlp"]))
    assert next(trainer).step == 1


def test_settings_that_peft_refuses_are_refused(small):
    for keywords, name in (
        ({"layers_pattern": "layers"}, "layers_pattern"),
        ({"target_modules": r".*\.q_proj", "layers_to_transform": [0]}, "layers_to_transform"),
        ({"lora_bias": True, "init_lora_weights": "gaussian"}, "lora_bias"),
        ({"rank": 2**31}, "rank"),
        ({"rank_pattern": {"q_proj": 2**40}}, "rank"),
    ):
        with pytest.raises(cw.InvalidArgumentError, match=f"{name}: got"):
            cw.LoraConfig(**keywords)
    with pytest.raises(cw.AdapterError, match=r"\[\"zzz\"\] match no module of the model;"):
        cw.Trainer(small, id_rows(2), lora=cw.LoraConfig(target_modules=["zzz"]))
    with pytest.raises(cw.AdapterError, match=r"match no module of the model in layers_to_transform \[99\]"):
        cw.Trainer(small, id_rows(2), lora=cw.LoraConfig(layers_to_transform=[99]))
    with pytest.raises(cw.AdapterError, match=r"rank_pattern: \"\(q_proj\" is not a regular expression"):
        cw.Trainer(small, id_rows(2), lora=cw.LoraConfig(rank_pattern={"(q_proj": 2}))


def test_an_adapter_that_no_machine_holds(small):
    with pytest.raises(cw.InvalidArgumentError, match=r"rank: got 2000000000, .*bytes"):
        cw.Trainer(small, id_rows(2), lora=cw.LoraConfig(rank=2_000_000_000, target_modules="all-linear"))


def test_a_configuration_of_peft_is_taken(small):
    class Foreign:
        """What peft.LoraConfig looks like."""

        peft_type = "LORA"

        def to_dict(self):
            return {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": {"q_proj"}, "bias": "none"}

    trainer = cw.Trainer(small, id_rows(2), lora=Foreign())
    assert trainer.adapter.rank == 2
    with pytest.raises(TypeError, match="lora: got dict, expected a LoraConfig"):
        cw.Trainer(small, id_rows(2), lora={"r": 2})


def test_defaults_are_in_the_signatures():
    parameters = inspect.signature(cw.Trainer).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    expected = {
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "gradient_checkpointing": "auto",
        "keep_last": 3,
        "max_grad_norm": 1.0,
        "show_progress_bar": None,
    }
    assert {name: defaults[name] for name in expected} == expected
    resumed = inspect.signature(cw.Trainer.resume).parameters
    assert resumed.keys() - {"directory"} == parameters.keys()
    lora = inspect.signature(cw.LoraConfig).parameters
    assert {name: getattr(cw.LoraConfig(), name) for name in lora if lora[name].default is not None} == {
        name: parameter.default for name, parameter in lora.items() if parameter.default is not None
    }
    assert [name for name, parameter in lora.items() if parameter.kind is not parameter.KEYWORD_ONLY] == ["rank"]


def test_sizes_that_are_taken_literally(small):
    rows = id_rows(5)
    trainer = cw.Trainer(small, rows, gradient_accumulation_steps=2**40, packing=False)
    assert trainer.total_steps == 1
    assert next(trainer).step == 1
    assert cw.Trainer(small, rows, epochs=10**9, packing=False, batch_size=2).total_steps == 3 * 10**9
    assert cw.Trainer(small, rows, epochs=10**9, shuffle=False, max_length=40, batch_size=1).total_steps >= 10**9
    assert cw.Trainer(small, rows, epochs=10**9).total_steps == 10**9


def test_a_step_counts_though_saving_failed(small, tmp_path):
    trainer = cw.Trainer(small, id_rows(3), max_steps=3, save_dir=tmp_path / "run", save_steps=1)
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(OSError, match="run"):
        next(trainer)
    assert (trainer.step_count, [metrics.step for metrics in trainer.history]) == (1, [1])
    (tmp_path / "run").unlink()
    assert next(trainer).step == 2
    assert [metrics.step for metrics in trainer.history] == [1, 2]
