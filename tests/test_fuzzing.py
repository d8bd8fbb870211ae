"""Damaged inputs through the command line: each is taken, or refused in one line with nothing written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import command
from tests.fuzzing.cases import Outcome, table
from tests.fuzzing.inputs import KINDS
from tests.fuzzing.mutations import ODD, damaged_bytes, damaged_value, json_text

ROOT = Path(__file__).resolve().parent.parent


def test_two_hundred_damaged_inputs_are_taken_or_refused_in_one_line():
    """In a process without the tests' checked annotations, which would refuse some of them first."""
    line = [sys.executable, str(ROOT / "experiments/fuzz.py"), "--cases", "200", "--resumed", "8"]
    _, environment = command()
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| 0 \|$", done.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == [*KINDS, "resumed"] and rows.pop()[1] == "8"
    for _, count, accepted, refused in rows:  # damage that is always refused, or never, would test little
        assert int(count) == 40 and int(accepted) > 0 and int(refused) > 10


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
    results = ("accepted", "refused", "refused", "was a fault that nothing foresaw")
    outcomes = [Outcome("rows", 3, result, "", 0.1) for result in results]
    assert "| rows | 4 | 1 | 2 | 1 |" in table(outcomes) and [outcome.good for outcome in outcomes][-1] is False
