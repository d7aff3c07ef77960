"""A minute of tests/attack: damaged inputs are refused in one line, or change nothing; and the attack itself would notice."""

import random

import pytest

from attack import damage, run

SEED = 20
CLEAN = ("data", "Tasks/tabular", "Tasks/text")  # whose readers the attack has found nothing in


@pytest.mark.parametrize("subproject", CLEAN)
def test_no_damage_ends_in_a_traceback_a_hang_or_another_result(subproject):
    counts, examples = run.run(0, 12, SEED, (subproject,))
    assert not examples, f"{run.table(counts)}\n{examples}"
    assert all(found["refused"] + found["same"] + found["missed"] + found["told"] == 12 for found in counts.values())
    assert sum(found["refused"] for found in counts.values()) > 12


def test_the_damage_is_a_function_of_the_seed_and_seldom_none():
    content = bytes(range(256)) * 4
    made = [[damage.of_bytes(content, random.Random(seed)) for seed in range(100)] for _ in range(2)]
    assert made[0] == made[1] and sum(found != content for _, found in made[0]) > 90
    assert len({name.split()[0] for name, _ in made[0]}) >= 10
