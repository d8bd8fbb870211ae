"""The run that the tests of going on, of damage and of `--force` start from."""

import shutil

import pytest

from tests.training import runs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Model, demonstrations, prompts."""
    return runs.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def finished(inputs, tmp_path_factory):
    """The run, undisturbed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert runs.train(inputs, out) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")
