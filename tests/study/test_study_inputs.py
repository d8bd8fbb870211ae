"""Mistakes of a user's that a study names before it writes anything."""

import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxgeom.study import load_experiment
from tests.command_line import process
from tests.study.conftest import EXPERIMENT
from tests.tiny import write_tiny_model

ARMS = EXPERIMENT.with_name("experiment_arms.py")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('models / "base"', 'models / "absent"'), "absent"),
        (("import os", "import os, absent_module"), "absent_module"),
        (("steps=6", "steps=0"), "steps=0"),
        (("experiment = Experiment(", "other = Experiment("), "experiment"),
        (("common = dict(", "common = dict(("), "line"),
        (("anchor=SFTSettings(", "anchor=0("), "TypeError"),  # of which Python warns first
        (("CompareSettings(angle_k=4", "CompareSettings(device='tpu', angle_k=4"), "device = 'tpu'"),
        (("CompareSettings(angle_k=4", "CompareSettings(include='absent', angle_k=4"), "exclude leave no parameter"),
        (("CompareSettings(angle_k=4", "CompareSettings(include='norm', angle_k=4"), "exclude leave no matrix"),
        (('name="tiny"', 'name="../../x"'), "name='../../x'"),
        (('name="tiny"', 'name=".."'), "name='..'"),
        (('name="tiny",', 'name="tiny", seeds=(),'), "seeds=()"),
        (('name="tiny",', 'name="tiny", seeds=(-1,),'), "seeds=(-1,)"),
        (("models = Path", "raise KeyboardInterrupt\nmodels = Path"), "KeyboardInterrupt"),
        (("models = Path", "raise SystemExit(0)\nmodels = Path"), "SystemExit"),
        (
            ("import os", "import os\nclass Odd(Exception):\n    __str__ = None\nraise Odd"),
            "Odd: (its words cannot be had",
        ),
        (("import os", "import os\0"), "experiment.py: SyntaxError"),
    ],
)
def test_a_bad_experiment_file_is_one_line_and_leaves_no_trace(jaxgeom, models, tmp_path, change, words):
    file = tmp_path / "experiment.py"
    text = EXPERIMENT.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    out = tmp_path / "out"
    result = jaxgeom("study", file, "--out", out)
    assert result.status == 2
    assert result.err.count("\n") == 1 and words in result.err, result.err
    assert not out.exists()


_TAUGHT = (
    'Arm("taught", models / "base", OPDSettings(**common, samples_per_prompt=4),'
    ' teacher=(models / "teacher", models / "base")'
)
_ANSWERED = _TAUGHT.replace("common,", "common, rollouts='teacher',")
_RLVR, _OPD = "RLVRSettings(**common, samples_per_prompt=4", "OPDSettings(**common, samples_per_prompt=4"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((_RLVR, f"{_RLVR}, reward=('absent_module:f',)"), "rlvr: reward=absent_module:f: absent_module cannot be"),
        ((_RLVR, f"{_RLVR}, reward=('json:absent',)"), "rlvr: reward=json:absent: json has no absent"),
        ((_RLVR, f"{_RLVR}, reward=('code',)"), "rlvr: the rows that are made: judged by math, and reward=code"),
        ((_RLVR, f"{_RLVR}, mesh=MeshSettings(data=64)"), "rlvr: mesh sizes"),
        ((_RLVR, f"{_RLVR}, mesh=MeshSettings(expert=2, fsdp=1)"), "rlvr: mesh sizes"),
        ((_OPD, f"{_OPD}, teacher_devices=64"), "opd: --teacher-devices 64: there are"),
        ((_OPD, f"{_OPD}, support='teacher-top-k', top_k=5000"), "opd: top_k=5000: the vocabulary has"),
        ((_RLVR, _RLVR.replace("common", "common | dict(max_new_tokens=10**6)")), "rlvr: max_new_tokens=1000000: the"),
        (('name="tiny",', f'name="tiny", arms=({_TAUGHT}),),'), "taught: 2 teachers are given, and no row"),
        (
            ('name="tiny",', f'name="tiny", arms=({_ANSWERED}),),'),
            "taught: rollouts=teacher: 2 teachers are given",
        ),
    ],
)
def test_what_a_later_arm_cannot_be_trained_with_is_said_first(jaxgeom, models, tmp_path, change, words):
    file = tmp_path / "experiment.py"
    text = EXPERIMENT.read_text().replace("import OPDSettings", "import MeshSettings, OPDSettings")
    text = text.replace("import Experiment,", "import Arm, Experiment,")
    assert change[0] in text
    file.write_text(text.replace(*change))
    result = jaxgeom("study", file, "--out", tmp_path / "out")
    assert result.status == 2
    assert result.err.count("\n") == 1 and words in result.err, result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('models / "base"', "no checkpoint of a run, RUN@STEP"),
        ('Path(f"{models}/run@0")', "step 0 is that run's start"),
        ('Path(f"{models}/run@2")', "1 layers, the model has 2 layers"),
        ("other", "basis_from='other': 1 layers, the model has 2 layers"),
    ],
)
def test_a_basis_that_is_none_of_its_model_is_said_before_the_arms_before_it(
    jaxgeom, models, tmp_path, source, words
):  # fmt: skip
    if not (models / "run").exists():
        write_tiny_model(models / "small", num_hidden_layers=1, dtype="bfloat16")
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}\n')
        arguments = ["--model", models / "small", "--data", rows, "--steps", 2, "--batch-size", 8, "--lr", 1e-3]
        assert jaxgeom("train", "sft", *arguments, "--out", models / "run").status == 0
    file = tmp_path / "experiment.py"
    text = ARMS.read_text().replace("basis_from=early", f"basis_from={source}")
    text = text.replace("experiment = ", 'other = Arm("other", models / "small", SFTSettings(**common, steps=2))\n\n'
                        "experiment = ").replace("arms=(longer,", "arms=(longer, other,")  # fmt: skip
    file.write_text(text)
    result = jaxgeom("study", file, "--out", tmp_path / "out")
    assert result.status == 2
    assert result.err.count("\n") == 1 and "inside: " in result.err and words in result.err, result.err
    assert not (tmp_path / "out").exists()


def test_a_file_that_goes_elsewhere_leaves_the_study_where_it_is(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "experiment.py"
    file.write_text(EXPERIMENT.read_text() + "\nos.chdir('/')\n")
    assert load_experiment(file).name == "tiny"
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize("seeds", [0, 10**9, 10**30])
def test_seeds_that_nobody_can_want_are_refused(jaxgeom, models, tmp_path, seeds):
    said = jaxgeom("study", EXPERIMENT, "--out", tmp_path / "out", "--seeds", seeds)
    assert said.status == 2 and said.err.count("\n") == 1 and f"seeds: {seeds} asked for; between 1 and" in said.err
    assert not (tmp_path / "out").exists()


def test_a_field_that_there_is_not_is_named(models, tmp_path):
    """In a process of its own: where annotations are checked, as in these tests, the message is the checker's."""
    file = tmp_path / "experiment.py"
    file.write_text(EXPERIMENT.read_text().replace("name=", "nmae="))
    result = process("study", file, "--out", tmp_path / "out")
    assert result.status == 2
    assert result.err.count("\n") == 1 and "nmae" in result.err, result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["nan", "truncated", "shape", "vocabulary"])
def test_a_bad_model_is_named_before_anything_is_written(jaxgeom, models, tmp_path, monkeypatch, kind):
    broken = tmp_path / "models"
    for name in ("base", "teacher"):
        shutil.copytree(models / name, broken / name)
    file, tensor = broken / "teacher" / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-64])
    elif kind == "vocabulary":
        shutil.rmtree(broken / "teacher")
        write_tiny_model(broken / "teacher", vocab_size=100)
    else:
        tensors = load_file(file)
        tensors[tensor] = tensors[tensor] * np.float32("nan") if kind == "nan" else tensors[tensor][:-1]
        save_file(tensors, file, metadata={"format": "pt"})
    out = tmp_path / "out"
    monkeypatch.setenv("TINY_MODELS", str(broken))
    result = jaxgeom("study", EXPERIMENT, "--out", out)
    assert result.status == 2 and result.err.count("\n") == 1, result.err
    words = {"nan": tensor, "shape": tensor, "truncated": "model.safetensors", "vocabulary": "has 100 rows"}
    assert words[kind] in result.err
    assert not out.exists()
