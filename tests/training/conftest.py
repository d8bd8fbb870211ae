"""The run that the tests of going on, of damage and of `--force` start from."""

import shutil

import pytest

from jaxgeom.buckets import hold
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


@pytest.fixture(scope="session")
def _served():
    """An object store for all tests of this process: its libraries take its address once."""
    from tests import object_store  # the other tests here do without its packages

    with object_store.Served() as served, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{served.port}")
        yield served.objects


@pytest.fixture
def bucket(_served, tmp_path, monkeypatch):
    """The store, and a machine without any copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine"))
    monkeypatch.setattr(hold, "_SETTLED", 0.0)
    return _served
