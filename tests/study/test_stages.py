"""What makes a study this study, which of its stages are done, and the types of what an experiment says."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgeom.checkpoints.checksums import write_checksums
from jaxgeom.data import ArithmeticTask
from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.progress import Reporter
from jaxgeom.study import SyntheticData, load_experiment
from jaxgeom.study.identity import study_config, study_differences
from jaxgeom.study.marks import is_marked, mark
from jaxgeom.study.plan import Clock
from jaxgeom.study.results import read_result
from jaxgeom.training import SFTSettings
from jaxgeom.training.run_directory import claim_directory
from tests.study.conftest import EXPERIMENT
from tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def experiment(models):
    return load_experiment(EXPERIMENT)


def test_what_goes_on_and_what_is_another_study(experiment, models, tmp_path):
    held = json.loads(json.dumps(study_config(experiment, "1")))

    def change(**changes):
        return study_differences(held, study_config(dataclasses.replace(experiment, **changes), "2"))

    def of(stage, **changes):
        return {stage: dataclasses.replace(getattr(experiment, stage), **changes)}

    measure = dataclasses.replace(experiment.measure, suite="fast")
    copied = write_tiny_model(tmp_path / "copy", seed=0, dtype="bfloat16")
    assert not change() and not change(name="other", seeds=(0, 1, 2), measure=measure, base=copied)
    assert not change(**of("opd", steps=9, save_every=5)) and not change(**of("anchor", save_every=1))
    assert "anchor.steps: 60 there, 9" in change(**of("anchor", steps=9))[0]
    assert "opd.temperature" in change(**of("opd", temperature=0.5))[0]
    other = write_tiny_model(tmp_path / "other", seed=2, dtype="bfloat16")
    assert change(base=other) == [f"base: {experiment.base} there, {other} given now, with other content"]
    for damaged in ({"experiment": 3}, {"experiment": {}}, {"contents": None}):
        assert "damaged" in study_differences(held | damaged, held)[0]


def test_a_stage_is_done_by_its_key_and_its_files(tmp_path):
    marker, file = tmp_path / "done", tmp_path / "rows.json"
    file.write_text("1")
    assert not is_marked(marker, "key", [file])
    mark(marker, "key", [file])
    assert is_marked(marker, "key", [file]) and not is_marked(marker, "other", [file])
    file.write_text("2")
    assert not is_marked(marker, "key", [file])
    for text in ("", "3", "{}", '{"key": "key"}', "\xff"):
        marker.write_text(text)
        assert not is_marked(marker, "key", [file])


def test_a_study_is_emptied_whole_and_only_of_its_own(experiment, tmp_path):
    out = tmp_path / "out"
    names = ["stages.json", "done", "report.json", "matrices.csv", "report.html", "figures/a-b.svg", "data/done"]
    names += ["data/prompts.jsonl", "runs/sft_anchor/metrics.jsonl", "runs/opd/seed0/checkpoints/2/checksums.json"]
    names += ["runs/opd/seed0/checkpoints/2/params/_METADATA"]
    names += ["runs/opd/seed0/events.out.tfevents.1795658977.vm.2.3"]
    names += ["measures/opd/seed0/report.json", "measures/between.json"]
    names += ["measures/between.done", "measures/opd/seed0/done", "measures/base_spectra/ab12.npz"]
    names += ["measures/opd/seed0/report-2.json", "measures/opd/seed0/.report-2.json.abcd_123"]
    names += ["measures/opd/seed0/.partial.jsonl", "runs/opd/seed0/tokenizer/tokenizer.json"]
    names += [".config.json.abcd_123"]
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("")
    config = study_config(experiment, "1")
    (out / "config.json").write_text(json.dumps(config))
    for mine in ("runs/notes.txt", "runs/opd/seed0/mine", "figures/deep/a.svg", "measures/mine.csv"):
        (out / mine).parent.mkdir(parents=True, exist_ok=True)
        (out / mine).write_text("mine")
        with pytest.raises(UserError, match=mine):
            claim_directory(out, "study", lambda _: ["other"], force=True)
        (out / mine).unlink()
    (out / "figures" / "deep").rmdir()
    with pytest.raises(UserError, match="reads"):
        claim_directory(out, "study", lambda _: ["other"], force=True, inputs=[out / "runs" / "sft_anchor"])
    assert (out / "stages.json").exists()
    claim_directory(out, "study", lambda _: ["other"], force=True).carry_out(config, lambda _: None)
    assert [path.name for path in out.iterdir()] == ["config.json"]


@pytest.mark.parametrize("kind", ["study", "recipe"])
def test_one_whose_configuration_is_damaged_is_called_so(tmp_path, kind):
    """By a checkpoint's own list it is known for what it was, and may be begun anew."""
    step = tmp_path / ("runs/opd/seed0" if kind == "study" else "ours/seed0") / "checkpoints" / "2"
    (step / "key").mkdir(parents=True)
    (step / "key" / "metadata").write_text('{"step": 2}')
    write_checksums(step)
    (tmp_path / "config.json").write_text('{"schema": 1, "ki')
    with pytest.raises(UserError, match=rf"config\.json: damaged: not JSON.*--force deletes the {kind}"):
        claim_directory(tmp_path, kind, lambda _: [])
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="mine.txt"):
        claim_directory(tmp_path, kind, lambda _: [], force=True)
    (tmp_path / "mine.txt").unlink()
    claim_directory(tmp_path, kind, lambda _: [], force=True).carry_out({"new": 1}, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_whose_log_was_removed_has_no_result(tmp_path):
    """Of a log that was begun anew the first accuracy is not that of the start."""
    settings = SFTSettings(steps=4, batch_size=8, optimizer=AdamWSettings(learning_rate=1e-3))
    for rows in (None, [], [{"step": 4, "accuracy": 0.5}], [{"step": 0, "accuracy": 0.5}]):
        if rows is not None:
            (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(UserError, match=r"metrics\.jsonl: the accuracy at step 0 or 4 is not there"):
            read_result(tmp_path, tmp_path, settings, 1)


def test_times_of_stages_that_cannot_be_read_are_none(tmp_path):
    for text in ("[" * 5000, "[]", '{"a": null}', "\xff"):
        (tmp_path / "stages.json").write_text(text)
        assert Clock(tmp_path / "stages.json", Reporter(quiet=True)).rows() == []


# In a process of its own: where annotations are checked, as in these tests, a wrong type is refused before our words.
TYPES = """
import runpy, sys
from jaxgeom.errors import UserError
text = open(sys.argv[1]).read()
for old, new in zip(sys.argv[2::2], sys.argv[3::2]):
    assert old in text
    try:
        exec(compile(text.replace(old, new), "experiment", "exec"), {"__name__": "experiment"})
        print("nothing said")
    except UserError as error:
        print(error)
"""


def test_wrong_types_are_named(models):
    changes = {
        "steps=6": ("steps=80.5", "steps=80.5: a whole number is needed"),
        "batch_size=16": ("batch_size='16'", "batch_size='16': a whole number is needed"),
        'name="tiny",': ("name='tiny', seeds=('a',),", "seeds=('a',): a tuple, each entry a whole number, is needed"),
        "learning_rate=1e-3": ("learning_rate=None", "learning_rate=None: a number is needed"),
        "samples_per_prompt=4),": ("samples_per_prompt=True),", "samples_per_prompt=True: a whole number is needed"),
        "dynamic_filter=False": ("dynamic_filter=1", "dynamic_filter=1: True or False is needed"),
        "demonstrations=100": ("demonstrations=1e2", "demonstrations=100.0: a whole number is needed"),
        "terms=3": ("terms='3'", "terms='3': a whole number is needed"),
        "mask_rank=4": ("mask_rank=4.0", "mask_rank=4.0: a whole number is needed"),
        "base=models /": ("base=3 and 4 or", "base=4: a Path or None is needed"),
    }
    words = [word for old, (new, _) in changes.items() for word in (old, new)]
    line = [sys.executable, "-c", TYPES, str(EXPERIMENT), *words]
    said = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    assert said == [expected for _, expected in changes.values()]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SyntheticData(demonstrations=10**9), "demonstrations=1000000000: at most 4,194,304 rows"),
        (lambda: SyntheticData(prompts=0), "prompts=0: must be positive"),
        (lambda: SyntheticData(seed=-1), "seed=-1: must not be negative"),
        (
            lambda: SyntheticData(task=ArithmeticTask(2, 2), heldout=400),
            "400 held-out problems asked for; .* gives 306",
        ),
        (lambda: ArithmeticTask(terms=10**9), "terms=1000000000: must be at most 256"),
    ],
)
def test_data_that_could_not_be_made_are_refused_before_anything_is(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_sound_types_pass():
    check_types(AdamWSettings(1e-3, clip_norm=None))
    rate = dataclasses.make_dataclass("Rate", [("rate", float), ("norm", float | None)])
    for sound in (rate(1, None), rate(1e-3, 2), rate(0, 0.5)):
        check_types(sound)
    for odd in (rate(True, None), rate(1.0, True), rate("1", None), rate(None, None)):
        with pytest.raises(UserError, match="a number"):
            check_types(odd)


def test_paths_may_be_written_as_text(models, experiment, tmp_path):
    file = tmp_path / "experiment.py"
    file.write_text(EXPERIMENT.read_text().replace('base=models / "base"', 'base=Path(str(models / "base"))'))
    assert isinstance(load_experiment(file).base, Path)
