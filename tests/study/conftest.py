"""The models of the study's tests, and its report."""

import json
from pathlib import Path

import pytest

from tests.tiny import write_tiny_model

EXPERIMENT = Path(__file__).with_name("experiment_tiny.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and a teacher, where EXPERIMENT looks for them."""
    directory = tmp_path_factory.mktemp("models")
    write_tiny_model(directory / "base", seed=0, dtype="bfloat16")
    write_tiny_model(directory / "teacher", seed=1, hidden_size=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_MODELS", str(directory))
        yield directory


def read_report(out):
    """report.json of a study; NaN or infinity in it is an error."""

    def refuse(constant):
        raise AssertionError(f"{constant} in report.json")

    return json.loads((out / "report.json").read_text(), parse_constant=refuse)
