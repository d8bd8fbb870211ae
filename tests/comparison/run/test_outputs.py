"""What a measurement writes over: its own files; and what it goes on from: rows that are what it wrote."""

import json
import shutil

import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, compare_checkpoints
from jaxgeom.errors import UserError
from tests.comparison import disk

SETTINGS = CompareSettings(suite="fast", mask_rank=4, angle_k=4)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    initial = {name: weight for name, weight in disk.weights(layers=1).items() if "self_attn" in name}
    return disk.write(folder / "a", initial), disk.write(folder / "b", disk.moved(initial, 1e-3))


def compare(pair, out, **options):
    return compare_checkpoints(*map(open_checkpoint, pair), SETTINGS, out=out, **options)


def stopped(pair, out):
    """A comparison interrupted half way; the lines of its journal."""

    def stop(done: int, total: int, name: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(pair, out, progress=stop)
    return (out / ".partial.jsonl").read_bytes().split(b"\n")


def test_a_bit_of_the_journal_costs_a_row_and_no_wrong_number(pair, tmp_path):
    whole = json.dumps(compare(pair, None).to_json())
    lines = stopped(pair, tmp_path / "out")
    rows = len(lines) - 2
    assert rows >= 2
    for number, line in enumerate(lines[:-1]):
        for place in range(len(line) // 3, len(line), len(line) // 3):
            for path in (tmp_path / "out").iterdir():
                path.unlink()
            spoilt = bytearray(line)
            spoilt[place] ^= 0x01
            text = b"\n".join([*lines[:number], bytes(spoilt), *lines[number + 1 :]])
            (tmp_path / "out" / ".partial.jsonl").write_bytes(text)
            measured: list[str] = []
            report = compare(pair, tmp_path / "out", progress=lambda *what, seen=measured: seen.append(what[2]))
            assert json.dumps(report.to_json()) == whole, (number, place)
            assert len(measured) == len(report.matrices) - (rows - 1 if number else 0)


def test_the_same_files_by_another_path_go_on_and_are_the_same_comparison(pair, tmp_path, monkeypatch):
    out = tmp_path / "out"
    kept = len(stopped(pair, out)) - 2
    monkeypatch.chdir(pair[0].parent)
    measured: list[str] = []
    report = compare(("a", "../" + pair[1].parent.name + "/b"), out, progress=lambda *what: measured.append(what[2]))
    assert len(measured) == len(report.matrices) - kept
    moved = [shutil.copytree(path, tmp_path / path.name) for path in pair]
    assert compare(moved, out).summary == report.summary  # finished: written over by the same content
    with pytest.raises(UserError, match="another comparison"):
        compare((moved[1], moved[1]), out)


@pytest.mark.parametrize("name", ["matrices.csv", "report.html", "report.json", "figures/mine.svg", ".partial.jsonl"])
def test_files_of_the_users_are_not_written_over(pair, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    for force in (False, True):
        with pytest.raises(UserError, match=name.split("/")[0]):
            compare(pair, tmp_path, force=force)
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_an_input_a_run_and_a_study_are_no_output(pair, tmp_path):
    own = [shutil.copytree(path, tmp_path / path.name) for path in pair]
    for side in own:
        held = sorted(path.name for path in side.iterdir())
        with pytest.raises(UserError, match="is measured"):
            compare(own, side, force=True)
        assert sorted(path.name for path in side.iterdir()) == held
    for kind in ("run", "study"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"schema": 1, "kind": kind}))
        with pytest.raises(UserError, match=f"holds a {kind}"):
            compare(own, tmp_path / kind, force=True)
    for room in ("checkpoints", "checkpoints/4", "tokenizer/report"):
        with pytest.raises(UserError, match=f"lies among the {room.split('/')[0]} of the run"):
            compare(own, tmp_path / "run" / room, force=True)
        assert not (tmp_path / "run" / room).exists()


def test_the_figures_of_another_measurement_are_no_output(pair, tmp_path):
    first, second, settings = open_checkpoint(pair[0]), open_checkpoint(pair[1]), CompareSettings(include="q_proj")
    compare_checkpoints(first, second, settings, out=tmp_path / "one")
    figures = tmp_path / "one" / "figures"
    for force in (False, True):
        with pytest.raises(UserError, match=r"figures: holds the figures of .*report.json; choose another --out"):
            compare_checkpoints(first, second, settings, out=figures, force=force)
    compare_checkpoints(first, second, settings, out=tmp_path / "figures")  # of nobody


def test_force_names_what_is_replaced_and_leaves_the_rest(jaxgeom, pair, tmp_path):
    out = tmp_path / "out"
    compare(pair, out)
    (out / "notes.txt").write_text("mine")
    words = ("compare", *pair, "--out", out, "--suite", "fast", "--mask-rank", 3)
    assert jaxgeom(*words).status == 2
    said = jaxgeom(*words, "--force")
    assert said.status == 0, said.err
    first = said.out.splitlines()[0]
    assert "is replaced: matrices.csv, report.json" in first and "notes" not in first
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "report.json").read_text())["settings"]["mask_rank"] == 3
