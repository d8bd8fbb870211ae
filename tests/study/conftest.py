"""The models of the study's tests, and its command run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_tiny_model

EXPERIMENT = Path(__file__).with_name("experiment_tiny.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    write_tiny_model(directory / "base", seed=0, dtype="bfloat16")
    write_tiny_model(directory / "teacher", seed=1, hidden_size=48)
    return directory


def command(models, *arguments):
    """The command line and its environment, in which EXPERIMENT finds `models`."""
    environment = os.environ | {"TINY_MODELS": str(models), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return [sys.executable, "-m", "jaxgeom.cli", *map(str, arguments)], environment


def run(models, *arguments):
    """Runs the command to its end."""
    line, environment = command(models, *arguments)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)


def read_report(out):
    """report.json of a study; NaN or infinity in it is an error."""

    def refuse(constant):
        raise AssertionError(f"{constant} in report.json")

    return json.loads((out / "report.json").read_text(), parse_constant=refuse)
