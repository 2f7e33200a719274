"""Rows from everywhere, and what every mistake in them is called."""

import collections.abc
import datetime as dt
import itertools
import json
import logging
import math
import pickle

import numpy as np
import pytest

import candlewick as cw

TEXTS = [
    {"text": "the red fox said hello to nobody"},
    {"text": "a small boat sailed to the green moon"},
    {"text": "seven clocks sang under the bridge"},
    {"text": "my hat is made of rain"},
    {"text": "the door was painted with soup"},
]


def id_rows(count):
    """Rows of a few ids each, for the small models."""
    rows = []
    for index in range(count):
        ids = [(7 * index + 3 * place * place) % 40 for place in range(3 + 5 * index % 11)]
        rows.append({"input_ids": ids, "labels": ids})
    return rows


class Columns:
    """What a Hugging Face data set looks like to those who do not import it."""

    def __init__(self, columns, convert=list):
        self._columns = {name: convert(values) for name, values in columns.items()}
        self.column_names = list(columns)

    def __len__(self):
        return len(self._columns[self.column_names[0]])

    def __getitem__(self, key):
        if isinstance(key, str):
            return self._columns[key]
        return {name: values[key] for name, values in self._columns.items()}

    def __iter__(self):
        return (self[index] for index in range(len(self)))


class Items:
    """What a torch data set looks like: it never says that it is at its end."""

    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, index):
        return TEXTS[index % len(TEXTS)]


def losses(model, data, **keywords):
    keywords = {"packing": False, "batch_size": 2, "epochs": 2, "learning_rate": 1e-2} | keywords
    return [metrics.loss for metrics in cw.Trainer(model, data, **keywords)]


def test_every_source_of_rows_is_the_same(tiny_model, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in TEXTS) + "\n")
    expected = losses(tiny_model, TEXTS)
    assert len(expected) == 2 * math.ceil(len(TEXTS) / 2)
    assert losses(tiny_model, str(path)) == expected
    assert losses(tiny_model, path) == expected
    assert losses(tiny_model, tuple(TEXTS)) == expected
    assert losses(tiny_model, (row for row in TEXTS)) == expected
    assert losses(tiny_model, Columns({"text": [row["text"] for row in TEXTS]})) == expected
    assert losses(tiny_model, Items()) == expected


def test_arrays_are_lists(small):
    rows = id_rows(4)
    expected = losses(small, rows)
    assert losses(small, [{key: np.array(ids) for key, ids in row.items()} for row in rows]) == expected
    ids = [np.array(row["input_ids"], dtype=np.int32) for row in rows]
    assert losses(small, Columns({"input_ids": ids, "labels": ids})) == expected


def loss_of(model, row):
    return cw.Trainer(model, [{"text": "anything"}]).evaluate([row])


def test_row_kinds(tiny_model):
    tokenizer = tiny_model.tokenizer
    end = tokenizer.token_to_id(tokenizer.decode(tokenizer.eos_token_ids[:1], skip_special_tokens=False))
    whole = [*tokenizer.encode("the cat sat on the mat"), end]
    prompt = len(tokenizer.encode("the cat sat"))
    assert loss_of(tiny_model, {"text": "the cat sat on the mat"}) == loss_of(
        tiny_model, {"input_ids": whole, "labels": whole}
    )
    completion = {"prompt": "the cat sat", "completion": " on the mat"}
    labels = [-100] * prompt + whole[prompt:]
    assert loss_of(tiny_model, completion) == loss_of(tiny_model, {"input_ids": whole, "labels": labels})
    question = [{"role": "user", "content": "Who are you?"}]
    chat = [*question, {"role": "assistant", "content": "A cat."}]
    start = tokenizer.apply_chat_template(question, tokenize=True)
    whole = tokenizer.apply_chat_template(chat, add_generation_prompt=False, tokenize=True)
    assert whole[: len(start)] == start
    expected = loss_of(tiny_model, {"input_ids": start, "labels": start})
    assert loss_of(tiny_model, {"messages": chat}) != expected
    by_hand = tiny_model.logits(whole).astype(np.float64)
    by_hand -= np.log(np.exp(by_hand).sum(axis=1, keepdims=True))
    answer = len(tokenizer.encode("A cat.", add_special_tokens=False))
    # The turn ends with its special token, which is learnt; what a template puts after that is not.
    places = range(len(start), len(start) + answer + 1)
    wanted = -np.mean([by_hand[place - 1, whole[place]] for place in places])
    assert loss_of(tiny_model, {"messages": chat}) == pytest.approx(wanted, rel=1e-4)
    assert loss_of(tiny_model, {"prompt": question, "completion": chat[1:]}) == loss_of(tiny_model, {"messages": chat})


BAD_ROWS = [
    ("text", "expected an object"),
    ({"body": "x"}, "found the fields body"),
    ({}, "none"),
    ({"text": 5}, "not a string"),
    ({"prompt": "x"}, 'no "completion"'),
    ({"messages": [{"role": "user", "content": "x"}]}, "no message of the assistant"),
    ({"input_ids": [1, 2.5]}, "whole numbers"),
    ({"input_ids": [1, 10**9]}, "token id 1000000000"),
    ({"input_ids": [1, 2], "labels": [1]}, "1 labels for 2"),
    ({"input_ids": []}, "no tokens"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_rows_are_named(tiny_model, tmp_path, row, reason):
    good = {"text": "fine"}
    with pytest.raises(cw.DataError, match=rf"row 3 \(index 2\): .*{reason}"):
        cw.Trainer(tiny_model, [good, good, row])
    with pytest.raises(cw.DataError, match=rf"evaluation data, row 2 \(index 1\): .*{reason}"):
        cw.Trainer(tiny_model, [good], eval_dataset=iter([good, row]))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [good, row])))
    with pytest.raises(cw.DataError, match=rf"rows\.jsonl, line 2: .*{reason}"):
        cw.Trainer(tiny_model, path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": object()}, '"text": a value is of type object'),
        ({"text": b"bytes"}, "type bytes"),
        ({1: "x"}, "found the fields 1;"),
        ({"text": float("nan")}, "not a finite number"),
        ({"input_ids": [2**70]}, "out of range"),
    ],
)
def test_rows_that_are_no_json(tiny_model, row, reason):
    with pytest.raises(cw.DataError, match=rf"row 1 \(index 0\): .*{reason}"):
        cw.Trainer(tiny_model, [row])


def test_fields_that_are_not_used_may_hold_anything(tiny_model, tmp_path):
    class Lazy(collections.abc.Mapping):
        """Makes its values when they are asked for."""

        def __init__(self, row):
            self.row = row

        def __getitem__(self, name):
            assert name == "text"
            return self.row[name]

        def __iter__(self):
            return iter(self.row)

        def __len__(self):
            return len(self.row)

    others = {
        "score": math.nan,
        "hash": 2**64 - 1,
        "seen": dt.datetime.now(),
        "raw": b"bytes",
        "image": object(),
        "table": {1: 2},
        "labels": math.inf,
        "messages": None,
        3: "three",
    }
    others["self"] = others
    expected = losses(tiny_model, TEXTS)
    assert losses(tiny_model, [text | others for text in TEXTS]) == expected
    assert losses(tiny_model, [Lazy(text | {"score": 1}) for text in TEXTS]) == expected
    ids = [{"input_ids": tiny_model.tokenizer.encode(text["text"])} for text in TEXTS]
    assert losses(tiny_model, [row | {"text": math.nan, "score": object()} for row in ids]) == losses(tiny_model, ids)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(text | {"score": math.nan, "list": [-math.inf, 1]}) for text in TEXTS))
    assert losses(tiny_model, path) == expected
    with pytest.raises(cw.DataError, match="found the fields body, score;"):
        cw.Trainer(tiny_model, [{"body": "x", "score": math.nan}])


def test_of_a_source_without_an_end_only_what_is_used_is_read(small):
    def endless(read):
        for row in itertools.cycle(id_rows(9)):
            read.append(row)
            yield row

    read = []
    keywords = {"max_steps": 3, "batch_size": 2, "gradient_accumulation_steps": 2, "packing": False, "shuffle": False}
    trainer = cw.Trainer(small, endless(read), **keywords)
    assert trainer.train().steps == 3
    assert len(read) == 3 * 2 * 2
    assert trainer.history[-1].epoch == 1.0
    whole = cw.Trainer(small, list(itertools.islice(itertools.cycle(id_rows(9)), 100)), **keywords)
    assert [metrics.loss for metrics in whole] == [metrics.loss for metrics in trainer.history]

    read = []
    keywords = {"max_steps": 3, "batch_size": 2, "max_length": 20, "shuffle": False}
    trainer = cw.Trainer(small, endless(read), **keywords)
    assert trainer.train().steps == 3
    tokens = [min(len(row["input_ids"]), 20) for row in read]
    assert sum(tokens[:-1]) < 3 * 2 * 20 <= sum(tokens)
    assert trainer.history[-1].epoch <= 1.0

    with pytest.raises(cw.DataError, match=r"row 2 \(index 1\)"):
        cw.Trainer(small, itertools.chain([id_rows(1)[0], {"body": 1}], endless([])), max_steps=5)
    assert cw.Trainer(small, itertools.cycle(id_rows(2)), max_steps=1).data_stats["rows"] > 2


def test_a_source_without_an_end_is_gone_on_with(small, tmp_path):
    keywords = {"max_steps": 4, "batch_size": 2, "packing": False}
    trainer = cw.Trainer(small, itertools.cycle(id_rows(9)), **keywords)
    first = next(trainer)
    trainer.save_state(tmp_path)
    rest = [metrics.loss for metrics in trainer]
    again = cw.Trainer.resume(small, tmp_path, itertools.cycle(id_rows(9)), **keywords)
    assert ([metrics.loss for metrics in again], first.step, len(rest)) == (rest, 1, 3)
    longer = cw.Trainer.resume(small, tmp_path, itertools.cycle(id_rows(9)), max_steps=9)
    assert longer.train().steps == 9


def test_a_row_that_contains_itself(tiny_model):
    messages = [{"role": "assistant", "content": "x"}]
    messages[0]["self"] = messages
    row = {"messages": messages}
    with pytest.raises(cw.DataError, match="nested"):
        cw.Trainer(tiny_model, [row])


def test_data_that_is_none(tiny_model, tmp_path):
    with pytest.raises(cw.DataError, match="no rows"):
        cw.Trainer(tiny_model, [])
    with pytest.raises(FileNotFoundError, match="absent"):
        cw.Trainer(tiny_model, tmp_path / "absent.jsonl")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n{oops}\n')
    with pytest.raises(cw.DataError, match=r"rows\.jsonl, line 2: not valid JSON") as caught:
        cw.Trainer(tiny_model, path)
    assert (caught.value.source, caught.value.line) == (str(path), 2)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.source, again.line) == (str(caught.value), str(path), 2)
    for wrong in (5, None, b"rows.jsonl", {"text": "x"}):
        with pytest.raises(TypeError, match="train_dataset"):
            cw.Trainer(tiny_model, wrong)
    with pytest.raises(TypeError, match="splits"):
        cw.Trainer(tiny_model, {"train": TEXTS})


def test_an_error_of_the_iterable_is_passed_on(tiny_model):
    def rows():
        yield TEXTS[0]
        raise RuntimeError("the well is dry")

    with pytest.raises(RuntimeError, match="the well is dry"):
        cw.Trainer(tiny_model, rows())


def test_cutting_is_counted_and_logged(small, caplog):
    rows = [{"input_ids": [3] * 30}, {"input_ids": [4] * 10}, {"input_ids": [5]}]
    with caplog.at_level(logging.WARNING, "candlewick"):
        trainer = cw.Trainer(small, rows, max_length=12, packing=False, batch_size=1)
    assert trainer.data_stats == {
        "rows": 3,
        "tokens": 23,
        "truncated_rows": 1,
        "truncated_tokens": 18,
        "rows_without_targets": 1,
    }
    assert "1 of 3 rows are longer than 12 tokens" in caplog.text
    assert "18 tokens" in caplog.text
    assert sorted(metrics.tokens for metrics in trainer) == [9, 11]


def test_packing_fills_batches_by_tokens(small, caplog):
    rows = [{"input_ids": [7] * 8} for _ in range(12)]
    with caplog.at_level(logging.WARNING, "candlewick"):
        trainer = cw.Trainer(small, rows, batch_size=2, max_length=24, epochs=2)
    # 48 tokens are 6 rows: two steps an epoch; counted by rows they would be six.
    assert trainer.total_steps == 4 == len(list(trainer))
    assert "without packing they would be 12" in caplog.text
    assert cw.Trainer(small, rows, batch_size=2, packing=False, epochs=2).total_steps == 12
    assert cw.Trainer(small, rows, batch_size=2, packing=False, gradient_accumulation_steps=4).total_steps == 2
