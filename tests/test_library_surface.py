"""`import jaxgeom as jg`: `dir` is the public API, it is typed, and what is imported is what is asked for."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import jaxgeom as jg

PACKAGES = {
    "checkpoints", "comparison", "data", "diagnostics", "models", "objectives", "optimizers", "report", "rewards",
    "rollout", "study", "training", "validation",
}  # fmt: skip
NAMES = {
    "CompareSettings", "MatrixSpec", "Qwen3", "Qwen3Config", "Report", "SamplingSettings", "UserError", "__version__",
    "between_runs", "compare", "compare_checkpoints", "load_model", "open_checkpoint", "parameter_specs", "sample",
    "save_model", "train", "trajectory_checkpoints",
}  # fmt: skip


def test_dir_is_the_public_api_and_nothing_else():
    assert set(dir(jg)) == PACKAGES | NAMES == set(jg.__all__)
    for name in dir(jg):
        assert getattr(jg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        jg.trian  # type: ignore[attr-defined]  # noqa: B018


def test_the_names_of_the_contract_are_there():
    diagnostics = """visible_sparsity principal_angles normalized_spectral_shift stable_rank hill_estimate entropy_rank
        top_subspace subspace_similarity principal_mask low_magnitude_mask mask_overlap rounding_null measure summarize
        CHEAP""".split()
    objectives = "grpo_advantages opd_advantages mix_advantages sparsify_tokens policy_gradient_loss sft_loss".split()
    optimizers = "project_gradients project_updates subspace_adamw".split()
    for package, names in ((jg.diagnostics, diagnostics), (jg.objectives, objectives), (jg.optimizers, optimizers)):
        assert set(names) <= set(dir(package))
    assert callable(jg.study.run_study) and callable(jg.study.load_experiment)


def test_no_public_name_hides_the_module_of_its_name():
    root = Path(jg.__file__).parent
    for file in root.rglob("*.py"):
        if file.stem.startswith("__"):
            continue
        room = importlib.import_module(".".join(["jaxgeom", *file.parent.relative_to(root).parts]))
        held = getattr(room, file.stem, None)
        assert held is None or isinstance(held, ModuleType), f"{file.relative_to(root)} is hidden by {held}"


def test_importing_the_package_imports_no_jax():
    code = "import sys, jaxgeom; assert 'jax' not in sys.modules; jaxgeom.study; assert 'jax' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_package_is_typed():
    assert (Path(jg.__file__).parent / "py.typed").is_file()
    project = Path(jg.__file__).parent.parent / "pyproject.toml"
    assert '"jaxgeom" = ["py.typed"]' in project.read_text()
