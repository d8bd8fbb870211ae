"""Arms: what is refused, which run takes from which, what goes on, the plan on the screen, and a study of them."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.progress import Reporter
from jaxgeom.study import Arm, At, DataFiles, Experiment, load_experiment, measuring
from jaxgeom.study.identity import has_new_arms, study_config, study_differences
from jaxgeom.study.plan import Clock, Stage, planned_runs, require_steps, say_plan
from jaxgeom.training import ConfineSettings, OPDSettings, SFTSettings
from jaxgeom.training.checkpointing import Resume
from tests.study.conftest import EXPERIMENT, read_report

ARMS = EXPERIMENT.with_name("experiment_arms.py")
COMMON = dict(batch_size=8, optimizer=AdamWSettings(learning_rate=1e-3), save_every=4)
OPD = OPDSettings(**COMMON, steps=10)
SFT = SFTSettings(**COMMON, steps=10)
DELTA = dataclasses.replace(OPD, confine=ConfineSettings(confine="updates"))
DATA = DataFiles(demonstrations=Path("a"), demonstrations_continued=Path("b"), prompts=Path("c"), heldout=Path("d"))


def _experiment(*arms, **fields):
    return Experiment(**(dict(name="x", teacher=Path("teacher"), data=DATA, arms=arms) | fields))


BASE = Arm("base", Path("model"), SFT, shared=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: _experiment(BASE, BASE), "two are called 'base'"),
        (lambda: _experiment(BASE, Arm("Base", BASE, OPD)), "two are called 'Base'"),
        (lambda: _experiment(Arm("a", At("b"), OPD)), "a: start='b': no such arm; there are a"),
        (lambda: _experiment(Arm("a", Path("b"), OPD), Arm("b", Path("m"), SFT)), "the arm is At('b')"),
        (lambda: _experiment(Arm("a", At("b"), OPD), Arm("b", At("a"), OPD)), "a from b from a"),
        (lambda: _experiment(BASE, Arm("a", BASE, DELTA, basis_from=At("a"))), "a from a"),
        (lambda: _experiment(BASE, Arm("a", BASE.at(step=11), OPD)), "at step 11: base saves steps 1 to 10"),
        (lambda: _experiment(BASE, Arm("a", BASE.at(step=0), OPD)), "at step 0"),
        (lambda: BASE.at(share=0.0), "share=0.0: must be in (0, 1]"),
        (lambda: BASE.at(share=1.5), "share=1.5"),
        (lambda: BASE.at(step=3, share=0.5), "one of the two"),
        (lambda: _experiment(Arm("a/b", Path("model"), SFT)), "'a/b'"),
        (lambda: _experiment(Arm("a", Path("model"), SFT, seeds=(0, 0))), "a: seeds=(0, 0)"),
        (lambda: Arm("a", Path("model"), SFT, seeds=(1,), shared=True), "a: seeds=(1,): a shared arm"),
        (
            lambda: _experiment(Arm("p", Path("model"), SFT, seeds=(0, 1)), Arm("a", At("p"), OPD, seeds=(0, 2))),
            "a: start='p': a has seed 2, and p has (0, 1)",
        ),
        (lambda: Arm("a", Path("model"), SFT, teacher=Path("t")), "sft has no teacher"),
        (lambda: _experiment(Arm("a", Path("model"), OPD), teacher=None), "a: teacher=None"),
        (lambda: Arm("a", Path("model"), SFT, data="prompts"), "data='prompts': sft learns from demonstrations"),
        (lambda: Arm("a", Path("model"), DELTA), "a: confine=updates with basis=delta needs basis_from"),
        (lambda: Arm("a", Path("model"), OPD, basis_from=At("b")), "a: basis_from="),
        (lambda: Arm("a", Path("model"), OPD, color="red"), "color='red'"),
        (lambda: Arm("a", Path("model"), OPD, label="\n"), "label='\\n'"),
        (lambda: _experiment(), "nothing to train"),
        (lambda: _experiment(anchor=SFT), "base=None"),
        (lambda: _experiment(opd=OPD), "anchor=None: opd is given"),
        (lambda: _experiment(Arm("OPD", BASE, OPD), anchor=SFT, opd=OPD, base=Path("b")), "two are called 'OPD'"),
    ],
)  # fmt: skip
def test_arms_that_cannot_be_run_are_refused_on_construction(make, words):
    with pytest.raises(UserError) as refused:
        make()
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_share_is_the_nearest_step():
    assert [At("a", share=share).step_of(10) for share in (0.01, 0.2, 0.25, 1.0)] == [1, 2, 3, 10]
    assert At("a").step_of(10) == 10 and At("a", 7).step_of(10) == 7


def test_runs_take_from_the_run_of_their_seed_and_come_after_it(tmp_path):
    inside = Arm("inside", At("opd", share=0.2), DELTA, basis_from=At("opd", step=3))
    alone = Arm("alone", At("opd", share=0.2), OPD, seeds=(1,), teacher=(Path("t"), Path("u")))
    sft = Arm("sft", At("alone"), SFT)
    runs = planned_runs(_experiment(inside, alone, sft, Arm("opd", BASE, OPD), BASE, seeds=(0, 1)), tmp_path)
    told = {(run.arm.name, run.seed): run for run in runs}
    assert len(told) == len(runs) == 1 + 2 + 2 + 1 + 2
    order = list(told)
    for run in runs:
        for path in (run.inputs.model, run.inputs.basis_from):
            if path is not None and path != Path("model"):
                taken = next(one for one in runs if str(path).startswith(f"{one.directory}@"))
                assert order.index((taken.arm.name, taken.seed)) < order.index((run.arm.name, run.seed))
    assert [key for key in order if key[0] == "inside"] == [("inside", 0), ("inside", 1)]
    assert order.index(("opd", 0)) < order.index(("inside", 0)) < order.index(("opd", 1))
    for seed in (0, 1):
        run = told["inside", seed]
        assert run.inputs.model == Path(f"{tmp_path}/runs/opd/seed{seed}@2")
        assert run.inputs.basis_from == Path(f"{tmp_path}/runs/opd/seed{seed}@3")
        assert told["opd", seed].needed == (2, 3) and told["opd", seed].inputs.model == Path(f"{tmp_path}/runs/base@10")
        assert told["sft", seed].inputs.model == Path(f"{tmp_path}/runs/alone/seed1@10")  # its only seed
    assert told["alone", 1].inputs.teachers == (Path("t"), Path("u")) and told["opd", 0].inputs.teachers
    assert [told[key].inputs.data for key in (("base", 0), ("sft", 0), ("opd", 0))] == [Path("a"), Path("b"), Path("c")]


def test_the_usual_four_are_arms_too(models, tmp_path):
    experiment = load_experiment(EXPERIMENT)
    runs = planned_runs(experiment.with_seeds(2), tmp_path)
    assert [run.label for run in runs] == [
        "SFT (anchor)", "OPD, seed 0", "RLVR, seed 0", "SFT continued, seed 0",
        "OPD, seed 1", "RLVR, seed 1", "SFT continued, seed 1",
    ]  # fmt: skip
    assert runs[0].directory == tmp_path / "runs" / "sft_anchor" and runs[1].directory.name == "seed0"
    assert {run.inputs.model for run in runs[1:]} == {Path(f"{tmp_path}/runs/sft_anchor@60")}
    more = dataclasses.replace(experiment, arms=(Arm("late", At("opd", share=0.5), experiment.opd),))
    assert planned_runs(more, tmp_path)[-1].inputs.model == Path(f"{tmp_path}/runs/opd/seed0@3")


def test_more_arms_go_on_and_another_start_does_not(models):
    experiment = load_experiment(EXPERIMENT)
    late = Arm("late", At("opd", share=0.5), dataclasses.replace(experiment.opd, temperature=0.5))
    more = dataclasses.replace(experiment, arms=(late,))

    def config(of):
        return json.loads(json.dumps(study_config(of, "1")))

    def changed(arm, **fields):
        return study_differences(config(more), config(dataclasses.replace(experiment, arms=(arm,), **fields)))

    few, many = config(experiment), config(more)
    assert not study_differences(few, many) and has_new_arms(few, many)
    assert not study_differences(many, few) and not has_new_arms(many, few)
    assert not changed(dataclasses.replace(late, start=At("opd", step=3), label="later", seeds=(4,)))
    assert changed(dataclasses.replace(late, start=At("opd"))) == ['late.start: "opd@3" there, "opd@6" asked for']
    assert changed(dataclasses.replace(late, start=At("rlvr", 3))) == ['late.start: "opd@3" there, "rlvr@3" asked for']
    assert "late.temperature" in changed(dataclasses.replace(late, settings=experiment.opd))[0]
    assert "late.objective" in changed(dataclasses.replace(late, settings=experiment.rlvr))[0]
    other = changed(dataclasses.replace(late, teacher=experiment.base))
    assert other == [f"late.teacher: {experiment.teacher} there, {experiment.base} given now, with other content"]
    # A longer parent, whose share is now at another step.
    longer = changed(late, opd=dataclasses.replace(experiment.opd, steps=12))
    assert longer == ['late.start: "opd@3" there, "opd@6" asked for']


def test_a_study_from_before_there_were_arms_goes_on(models):
    experiment = load_experiment(EXPERIMENT)
    held = json.loads(json.dumps(study_config(experiment, "1")))
    del held["experiment"]["arms"]
    names = {"sft_anchor.start": "base", "opd.teacher": "teacher"}
    held["contents"] = {names.get(name, name): digest for name, digest in held["contents"].items()}
    assert not study_differences(held, study_config(experiment, "2"))
    held["contents"]["teacher"] = "another"
    said = study_differences(held, study_config(experiment, "2"))
    assert said == [f"teacher: {experiment.teacher} has other content now"]


def test_the_plan_and_the_time_left_are_said(tmp_path):
    stream = io.StringIO()
    reporter = Reporter(Console(file=stream, width=300))
    inside = Arm("inside", At("opd", share=0.2), DELTA, basis_from=At("opd", share=0.2), label="OPD inside")
    experiment = _experiment(BASE, Arm("opd", BASE, OPD, label="OPD"), inside, seeds=(0, 1, 2))
    say_plan(experiment, planned_runs(experiment, tmp_path), reporter)
    said = stream.getvalue().splitlines()
    assert said[0] == "plan: 3 arms, 7 runs"
    assert said[1:] == [
        "  base: sft, 10 steps, from model",
        "  OPD: opd, 10 steps × 3 seeds, from base",
        "  OPD inside: opd, 10 steps × 3 seeds, from OPD at step 2, confined by updates (delta basis of OPD at step 2)",
    ]
    (tmp_path / "stages.json").write_text('{"train a": 30.0}')
    clock = Clock(tmp_path / "stages.json", reporter)
    kinds = ("train a", "train opd")
    clock.plan([
        Stage("train a", "training a", 10, kinds, is_done=True), Stage("train b", "training b", 20, ("b", "train opd")),
        Stage("train c", "training c", 20, ("c", "train sft")),
    ])  # fmt: skip
    for name in ("train a", "train b", "train c", "compare"):
        clock.stage(name, lambda: None)
    assert stream.getvalue().splitlines()[4:] == [
        "training b (stage 1 of 2, about 1 min 00 s left and 1 not yet known)", "training c (stage 2 of 2)",
    ]  # fmt: skip
    assert [row["name"] for row in clock.rows()] == ["train a", "train b", "train c", "compare"]
    assert clock.rows()[0]["seconds"] >= 30.0


def test_a_step_that_was_passed_unsaved_is_refused(tmp_path, monkeypatch):
    runs = planned_runs(_experiment(BASE, Arm("a", BASE.at(step=3), OPD)), tmp_path)
    require_steps(runs)
    for step in (0, 4):
        (tmp_path / "runs" / "base" / "checkpoints" / str(step) / "params").mkdir(parents=True)
    require_steps(runs)  # no checkpoint is whole: the run begins anew
    monkeypatch.setattr("jaxgeom.study.plan.find_resume", lambda *_, **__: Resume(4, {}, []))
    with pytest.raises(UserError, match="an arm takes from step 3, .* take one of 0, 4, or delete this run"):
        require_steps(runs)


@pytest.fixture(scope="module")
def study(models, tmp_path_factory):
    from jaxgeom.study import run_study

    out, stream = tmp_path_factory.mktemp("arms") / "out", io.StringIO()
    run_study(load_experiment(ARMS), out, reporter=Reporter(Console(file=stream, width=300)))
    return out, stream.getvalue()


def test_a_study_of_arms(study):
    out, said = study
    assert "plan: 3 arms, 3 runs" in said and "training SFT longer, seed 0 (stage 2 of 6" in said
    assert sorted(path.name for path in (out / "runs" / "longer" / "seed0" / "checkpoints").iterdir()) == [
        "0",
        "1",
        "2",
    ]
    report = read_report(out)
    assert list(report["methods"]) == ["longer", "inside", "start"]
    assert [method["label"] for method in report["methods"].values()] == ["SFT longer", "inside", "start"]
    assert report["methods"]["start"]["objective"] == "sft"
    assert report["methods"]["inside"]["origin"] == "SFT longer at step 1"
    assert report["methods"]["inside"]["confined"] == {
        "by": "coordinates", "basis": "delta", "rank": 2, "side": "right"
    }  # fmt: skip
    assert report["methods"]["inside"]["leakage"]["largest"] < 1e-6 and "leakage" not in report["methods"]["longer"]
    page = (out / "report.html").read_text()
    assert "from SFT longer at step 1" in page and "--own-123456: #123456" in page and "confined by coordinates" in page
    assert any("inside, confined by coordinates" in sentence for sentence in report["findings"])
    assert report["settings"]["arms"]["inside"]["start"] == {"arm": "longer", "step": None, "share": 0.5}


def test_a_confined_arm_stays_in_the_early_subspace_of_its_parent(study):
    """Against an SVD in float64 of what the files hold."""
    out, _ = study
    ends = [f"longer/seed0@{step}" for step in (0, 1)] + [f"inside/seed0@{step}" for step in (0, 2)]
    start, early, begun, end = (open_checkpoint(f"{out}/runs/{run}") for run in ends)
    for name in start:
        np.testing.assert_array_equal(early[name].read(), begun[name].read())
    name = "model.layers.1.self_attn.q_proj.weight"
    before, after, first, last = (one[name].read().astype(np.float64) for one in (start, early, begun, end))
    basis = np.linalg.svd(after - before)[2][:2].T
    update = last - first
    assert np.linalg.norm(update) > 0
    assert np.linalg.norm(update - update @ basis @ basis.T) < 1e-3 * np.linalg.norm(update)


def test_an_interrupted_measurement_goes_on_with_the_next_checkpoint(study, tmp_path, monkeypatch):
    """And has measured what an undisturbed one has; what was kept of other settings, or damaged, counts for nothing."""
    out = shutil.copytree(study[0], tmp_path / "out")
    experiment = load_experiment(ARMS)
    run = next(run for run in planned_runs(experiment, out) if run.arm.name == "longer")
    written = ("report.json", "trajectory.json", "matrices.csv")
    before = [(run.measures / name).read_text().replace(str(study[0]), str(out)) for name in written]
    (run.measures / "done").unlink()
    measured, plainly = [], measuring.compare_checkpoints

    def stopped(*arguments, **options):
        if len(measured) == 1:
            raise KeyboardInterrupt
        return counted(*arguments, **options)

    def counted(initial, final, *arguments, **options):
        measured.append(final.name)
        return plainly(initial, final, *arguments, **options)

    def interrupted(settings=experiment.measure):
        measured.clear()
        monkeypatch.setattr(measuring, "compare_checkpoints", stopped)
        with pytest.raises(KeyboardInterrupt):
            measuring.measure(run, settings, Reporter(quiet=True))

    kept = run.measures / "report-1.json"
    interrupted(dataclasses.replace(experiment.measure, mask_rank=3))
    interrupted()
    kept.write_text(kept.read_text().replace('"fro_norm": ', '"fro_norm": 1', 1))
    interrupted()
    assert measured == [f"{run.directory}@1"] and kept.exists()
    measured.clear()
    monkeypatch.setattr(measuring, "compare_checkpoints", counted)
    measuring.measure(run, experiment.measure, Reporter(quiet=True))
    assert measured == [f"{run.directory}@2"] and not list(run.measures.glob("report-*"))
    assert [(run.measures / name).read_text() for name in written] == before


def test_a_finished_study_of_arms_is_not_run_again(jaxgeom, study, monkeypatch):
    monkeypatch.setattr("jaxgeom.study.runner.write_report", lambda out: out)  # the page costs more than all else
    result = jaxgeom("study", ARMS, "--out", study[0])
    assert result.status == 0 and "training" not in result.out and "measuring" not in result.out
