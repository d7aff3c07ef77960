"""A minute of tests/attack: damaged inputs are refused in one line, or change nothing; and the attack notices a change."""

import io
import os
import random
from types import SimpleNamespace

import pytest

from attack import damage, run, worker

SEED, INPUTS = 20, 4


@pytest.mark.parametrize("subproject", run.SUBPROJECTS)
def test_no_damage_ends_in_a_traceback_a_hang_or_another_result(subproject):
    """For Conv/ffcv only the configuration is attacked, because its loops take a minute to compile."""
    if subproject == "Conv/ffcv" and not os.environ.get("FFCV_REQUIRED"):
        pytest.importorskip("ffcv", reason="FFCV is not installed; bash Conv/ffcv/install.sh installs it")
    counts, examples = run.run(0, INPUTS, SEED, (subproject,), "--config" if subproject == "Conv/ffcv" else "")
    assert not examples, f"{run.table(counts)}\n{examples}"
    harmless = ("refused", "same", "missed", "told")
    assert counts and all(sum(found[kind] for kind in harmless) == INPUTS for found in counts.values())
    assert sum(found["refused"] for found in counts.values()) > 0


def test_a_warning_that_good_inputs_give_too_tells_nothing(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good/x").write_bytes(b"1")

    def read(folder):
        content = (folder / "x").read_bytes()
        print("warning: as always")
        print("warning: of this" if content == b"2" else "")
        return content

    def outcome(content):
        reader = SimpleNamespace(targets=[("x", lambda was, rng: ("changed", content))], call=read)
        printed, good = worker.read(reader, tmp_path / "good", tmp_path / "work")
        usual = set(printed.splitlines())
        return worker.attempt(reader, 0, tmp_path / "good", tmp_path / "work", good, usual, io.StringIO(), [])["outcome"]

    assert [outcome(content) for content in (b"1", b"2", b"3")] == ["same", "told", "silent"]


def test_the_damage_is_a_function_of_the_seed_and_seldom_none():
    content = bytes(range(256)) * 4
    made = [[damage.of_bytes(content, random.Random(seed)) for seed in range(100)] for _ in range(2)]
    assert made[0] == made[1] and sum(found != content for _, found in made[0]) > 90
    assert len({name.split()[0] for name, _ in made[0]}) >= 10
