"""Damaged inputs through the command line: each is taken, or refused in one line with nothing written.

The same cases as `python experiments/fuzz.py`, the first 200 of them.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.fuzzing.cases import Outcome, one_line_of, run_case, table
from tests.fuzzing.inputs import KINDS, write_base
from tests.fuzzing.mutations import ODD, damaged_bytes, damaged_value, json_text


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    write_base(directory)
    run_case(directory, 0)  # imports and the first programs count for no case
    return directory


@pytest.mark.parametrize("place", range(len(KINDS)), ids=list(KINDS))
def test_damaged_inputs_are_taken_or_refused_in_one_line(base, place):
    outcomes = [run_case(base, number) for number in range(place, 200, len(KINDS))]
    assert not [one_line_of(outcome) for outcome in outcomes if not outcome.good]
    assert {outcome.result for outcome in outcomes} == {"accepted", "refused"}  # else the damage tests nothing


def test_cases_are_those_of_their_numbers():
    for number in range(50):
        one, two = (np.random.default_rng([0, number]) for _ in range(2))
        value = {"a": [1, {"b": "c"}], "d": None}
        assert json_text(damaged_value(one, value)) == json_text(damaged_value(two, value))
        assert damaged_bytes(one, b"0123456789") == damaged_bytes(two, b"0123456789")


def test_what_json_cannot_hold_stands_in_its_text():
    text = json_text(list(ODD))
    assert "9" * 5000 in text and "[" * 3000 in text and "1e999" in text and '{"a": 1, "a": 2}' in text
    with pytest.raises((RecursionError, ValueError)):
        json.loads(text)


def test_the_table_counts_every_case():
    outcomes = [Outcome("rows", 3, result, "", 0.1) for result in ("accepted", "refused", "refused", "did not end")]
    assert "| rows | 4 | 1 | 2 | 1 |" in table(outcomes) and [outcome.good for outcome in outcomes][-1] is False
