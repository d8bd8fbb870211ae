"""`--force` deletes what jaxgeom wrote and can name, says so first, and touches nothing else."""

import os
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxgeom.comparison.one_matrix.base_spectra import BaseCache, measure_base
from jaxgeom.errors import UserError
from jaxgeom.owned_files import KINDS, contents_of
from jaxgeom.report import style
from jaxgeom.training.checkpointing import Checkpoints
from jaxgeom.training.run_directory import _contents, claim_directory
from jaxgeom.training.run_templates import list_templates, remove_templates
from tests.training import runs

OTHER = ["a reason"]


def refused(jaxgeom, inputs, out, *words, root=None, **changes):
    """The command with --force is refused in one line and leaves everything as it was."""
    root = root or out
    held = runs.files(root)
    said = jaxgeom(*runs.arguments(inputs, out, **changes), "--force")
    assert said.status == 2 and said.err.count("\n") == 1, said.err
    assert all(word in said.err for word in words), said.err
    assert runs.files(root) == held


def test_another_run_is_deleted_and_said_first(run):
    said = []
    claim = claim_directory(run, "run", lambda held: OTHER, force=True)
    claim.carry_out({"new": 1}, said.append)
    assert len(said) == 1 and "deletes a run" in said[0] and "checkpoints/" in said[0] and "metrics.jsonl" in said[0]
    assert list(runs.files(run)) == ["config.json"] and [path.name for path in run.iterdir()] == ["config.json"]


def test_nothing_behind_a_link_is_deleted(run, tmp_path):
    link, held = tmp_path / "link", runs.files(run)
    link.symlink_to(run, target_is_directory=True)
    with pytest.raises(UserError, match=r"link: is a link to .*--force deletes nothing behind a link"):
        claim_directory(link, "run", lambda held: OTHER, force=True)
    assert runs.files(run) == held
    claim_directory(link, "run", lambda held: [])  # the same run goes on through it


def test_without_force_nothing_is_deleted(run):
    with pytest.raises(UserError, match="another run .a reason.*--force"):
        claim_directory(run, "run", lambda held: OTHER)


@pytest.mark.parametrize(
    "place", ["notes.txt", "checkpoints/notes.txt", "checkpoints/4/params/x.bin", "tokenizer/mine"]
)
def test_a_run_with_something_else_in_it_is_left_alone(jaxgeom, inputs, run, place):
    (run / place).write_text("mine")
    refused(jaxgeom, inputs, run, place, lr=2e-3)


@pytest.mark.parametrize(
    "place",
    ["events.out.tfevents.999.mine", "checkpoints/77/params/d/" + "a" * 20, "checkpoints/4/params/d/" + "a" * 20],
)
def test_a_name_like_ours_is_not_ours(run, place):
    (run / place).parent.mkdir(parents=True, exist_ok=True)
    (run / place).write_text("mine")
    with pytest.raises(UserError, match=place):
        claim_directory(run, "run", lambda held: OTHER, force=True)


def test_what_a_name_alone_does_not_tell_is_known_by_its_mark(inputs, run, tmp_path, jaxgeom):
    """Rows, figures and spectra of ours go, whole or cut by a kill; files of the same names that are not ours stay."""
    study = tmp_path / "study"
    shutil.copytree(run / "rows", study / "rows")
    figure = Figure(figsize=(1, 1))
    style.save(style.Drawing("ranks", "a title", "read", "alt", figure), study / "figures")
    spectra = BaseCache(study / "measures" / "base_spectra")
    spectra.save("digest", 1, measure_base(np.eye(3, 2, dtype=np.float32), 1, view=None))
    written = sorted(runs.files(study))
    assert contents_of(study, KINDS["study"]).own == written and len(written) >= 5
    for name in written:
        path = study / name
        held = path.read_bytes()
        for kept, own in ((held[: max(len(held) // 2, 600)], True), (b"", True), (b"PK\3\4 mine" + held[700:], False)):
            path.write_bytes(kept)
            assert (name in contents_of(study, KINDS["study"]).own) is own, (name, kept[:20])
    name = next((run / "rows").iterdir()).name
    np.savez(run / "rows" / name, tokens=np.arange(3))
    refused(jaxgeom, inputs, run, f"rows/{name}", lr=2e-3)
    (study / "figures" / "path.svg").write_text("<svg>mine</svg>")
    style.remove_others(study / "figures", set())
    assert [path.name for path in (study / "figures").iterdir()].count("path.svg") == 1
    with pytest.raises(UserError, match=r"path\.svg: would be written over"):
        style.save(style.Drawing("path", "a title", "read", "alt", Figure(figsize=(1, 1))), study / "figures")
    assert (study / "figures" / "path.svg").read_text() == "<svg>mine</svg>"


def test_a_template_of_the_users_own_in_the_tokenizer_is_left_alone(jaxgeom, inputs, run):
    """Neither going on nor --force takes it; of the templates those that the run wrote are listed."""
    folder = run / "tokenizer" / "additional_chat_templates"
    folder.mkdir()
    (folder / "mine.jinja").write_text("{{ messages }}")
    refused(jaxgeom, inputs, run, "additional_chat_templates/mine.jinja", lr=2e-3)
    (folder / "written.jinja").write_text("{{ 1 }}")
    list_templates(run / "tokenizer", ["written.jinja"])
    names = claim_directory(run, "run", lambda held: [], force=True) and _contents(run, "run")
    assert "tokenizer/additional_chat_templates/written.jinja" in names.own
    assert names.foreign == ["tokenizer/additional_chat_templates/mine.jinja"]
    remove_templates(run / "tokenizer")
    assert [path.name for path in folder.iterdir()] == ["mine.jinja"]


def test_an_unfinished_step_is_known_by_what_is_in_it(tmp_path):
    for name in (".6.partial/params/_METADATA", ".7.partial/thesis.txt", ".mine.partial/thesis.txt"):
        (tmp_path / "checkpoints" / name).parent.mkdir(parents=True)
        (tmp_path / "checkpoints" / name).write_text("")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints._folders.begin(7).name == ".7.partial.1"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [".7.partial", ".mine.partial"]


@pytest.mark.parametrize("kind", ["folder", "link", "empty"])
def test_folders_and_links_in_a_run_are_not_followed(jaxgeom, inputs, run, tmp_path, kind):
    if kind == "folder":
        (run / "mine" / "deep").mkdir(parents=True)
        (run / "mine" / "deep" / "paper.tex").write_text("mine")
    elif kind == "empty":
        (run / "mine").mkdir()
    else:
        shutil.move(run / "checkpoints", tmp_path / "large disk")
        (run / "checkpoints").symlink_to(tmp_path / "large disk")
    refused(jaxgeom, inputs, run, "checkpoints" if kind == "link" else "mine", lr=2e-3, root=tmp_path)


def test_a_foreign_folder_is_left_alone(jaxgeom, inputs, tmp_path):
    (tmp_path / "config.json").write_text('{"mine": true}')
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    refused(jaxgeom, inputs, tmp_path, "files that are no run")


def test_an_input_is_never_deleted(jaxgeom, inputs, run, tmp_path):
    own = shutil.copytree(inputs, tmp_path / "own")
    refused(jaxgeom, own, own / "model", "model")
    refused(jaxgeom, own, own, "model")
    refused(jaxgeom, own, run, "holds", "reads", model=f"{run}@4", lr=2e-3)
    refused(jaxgeom, own, run, "holds", "reads", model=run / "checkpoints" / "2", lr=2e-3)
    # A model whose files are links into the run: what they name would go.
    linked = shutil.copytree(own / "model", tmp_path / "linked")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (linked / name).unlink()
        os.symlink(run / "tokenizer" / name, linked / name)
    refused(jaxgeom, own, run, "linked", model=linked, lr=2e-3)


def test_a_study_is_no_run(jaxgeom, inputs, run):
    (run / "config.json").write_text('{"schema": 1, "kind": "study"}')
    refused(jaxgeom, inputs, run, "a study, no run")
