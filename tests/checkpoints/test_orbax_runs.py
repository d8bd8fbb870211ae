"""Reading checkpoints of training runs that Orbax itself wrote."""

import json
import logging

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.errors import UserError
from jaxgeom.models import save_model
from tests.tiny import tiny_config, tiny_params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with two steps, and each step's parameters as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config()
    params = tiny_params(config)
    (folder / "config.json").write_text(json.dumps({"model": config.to_hf()}))
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        for step in (3, 10):
            tree = jax.tree.map(lambda leaf, step=step: leaf + step * 1e-3, params)
            manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(tree)))
            save_model(folder.parent / f"hf{step}", config, tree, dtype="float32")
        manager.wait_until_finished()
    return folder


@pytest.mark.parametrize("step", [3, 10])
def test_a_step_reads_as_the_hugging_face_export_of_it(run, step):
    checkpoint, export = open_checkpoint(f"{run}@{step}"), open_checkpoint(run.parent / f"hf{step}")
    assert set(checkpoint) == set(export)
    for name, tensor in checkpoint.items():
        assert tensor.shape == export[name].shape and tensor.dtype == "float32"
        np.testing.assert_array_equal(tensor.read(), export[name].read())
        np.testing.assert_array_equal(tensor.read_rows(2, 5), export[name].read()[2:5])
    assert checkpoint.sha256() == export.sha256() and checkpoint.config["model_type"] == "qwen3"


def test_a_run_opens_at_its_last_step_and_a_step_folder_at_its_own(run):
    assert open_checkpoint(run).sha256() == open_checkpoint(f"{run}@10").sha256()
    assert open_checkpoint(run / "checkpoints" / "3").sha256() == open_checkpoint(f"{run}@3").sha256()


def test_what_a_run_lacks_is_named(run, tmp_path):
    with pytest.raises(UserError, match="no checkpoint at step 4; there are 3, 10"):
        open_checkpoint(f"{run}@4")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint in"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("text", "shown"), [("Failed to write metadata=%s path=%s: %s", False), ("Odd: %s", True)])
def test_what_orbaxs_threads_raise_they_do_not_log_too(text, shown):
    record = logging.LogRecord("absl", logging.ERROR, "file.py", 1, text, ("x",), None)
    assert bool(logging.getLogger("absl").filter(record)) is shown
