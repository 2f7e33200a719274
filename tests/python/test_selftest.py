"""The self-test of a device, on the CPU."""

import sys

import pytest

from candlewick import DeviceError, InvalidArgumentError, cli
from candlewick.selftest import Check, run, table


def test_the_cpu_passes(run_python):
    done = run_python("-m", "candlewick.cli", "selftest", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 60
    assert all(line.startswith("ok ") for line in lines[1:])
    for part in ("attention", "gradient", "greedy tokens", "training steps", "embeddings"):
        assert part in done.stdout
    assert f"{len(lines) - 1} of {len(lines) - 1} checks passed" in done.stderr


def test_a_difference_fails(monkeypatch, capsys):
    row = ("kernel", "f32", 2e-5, 2e-5, 0.1, None)
    rows = [row, ("other", "f16", 3e-3, 2e-3, 0.1, None), ("third", "f32", float("inf"), 1.0, 0.1, "no such kernel")]
    monkeypatch.setattr("candlewick.selftest._selftest", lambda _: rows)
    checks = run("cpu")
    assert [check.passed for check in checks] == [True, False, False]
    assert cli.main(["selftest", "--device", "cpu"]) == cli.EXIT_DIFFERENT
    assert "no such kernel" in capsys.readouterr().out
    assert [line[:4] for line in table(checks).splitlines()[1:]] == ["ok  ", "BAD ", "BAD "]
    assert table([Check(*row)]).count("\n") == 1


def test_devices_that_are_not_there():
    with pytest.raises(InvalidArgumentError):
        run("tpu")
    if sys.platform != "darwin":
        with pytest.raises(DeviceError):
            run("metal")
