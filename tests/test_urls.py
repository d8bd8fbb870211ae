"""URLs among a command's arguments: taken where a bucket will do, refused elsewhere, and never made a folder `gs:`."""

from pathlib import Path

import pytest

from jaxgeom import cli
from jaxgeom.buckets import places
from jaxgeom.commands.urls import without_urls
from jaxgeom.errors import UserError
from jaxgeom.lock import refuse_if_held


def test_paths_of_buckets_have_copies_and_lead_back(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for copy in (places.working_copy, places.reading_copy):
        assert places.url_of(copy("gs://some-bucket/a b/run/")) == "gs://some-bucket/a b/run"
        assert places.named(f"{copy('gs://b1c/run')}/x: bad") == "gs://b1c/run/x: bad"
    assert places.working_copy("gs://b1c/run") != places.reading_copy("gs://b1c/run")
    assert places.url_of(tmp_path / "run") is None and places.checkpoints_of("run") == Path("run/checkpoints")
    for bad in ("gs://", "gs://bucket", "gs://bucket/", "gs:///run", "gs://bucket/../x", "gs://bucket//x", "gs://B/x"):
        with pytest.raises(UserError, match="gs://BUCKET/FOLDER"):
            places.checked(bad)


def test_what_is_read_and_trained_to_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    read, work = (tmp_path / f"jaxgeom/gs/{kind}/bkt" for kind in ("read", "work"))
    words = ["--model", "gs://bkt/run@16", "--data=gs://bkt/d.jsonl", "--eval-data", "math=gs://bkt/e", "gs://bkt/f"]
    found, remote = without_urls("train opd", [*words, "--out", "gs://bkt/new", "--reward", "mine:f", "--lr", "1e-5"])
    assert found == [
        "--model", f"{read}/run@16", f"--data={read}/d.jsonl", "--eval-data", f"math={read}/e", f"{read}/f",
        "--out", f"{work}/new", "--reward", "mine:f", "--lr", "1e-5",
    ]  # fmt: skip
    assert remote.inputs == ["gs://bkt/run@16", "gs://bkt/d.jsonl", "gs://bkt/e", "gs://bkt/f"]
    assert without_urls("study", ["e.py", "--out=gs://bkt/s"])[0] == ["e.py", f"--out={work}/s"]
    assert without_urls("report", ["gs://bkt/s/"])[1].page_of == "gs://bkt/s"
    # An option of what is written takes one value: what stands behind it is read.
    assert without_urls("export", ["--to", "here", "gs://bkt/f"])[0] == ["--to", "here", f"{read}/f"]
    assert without_urls("between", ["--out", "o", "gs://bkt/f", "gs://bkt/g"])[0][2:] == [f"{read}/f", f"{read}/g"]
    assert without_urls("study", ["--out", "gs://bkt/s", "gs://bkt/f"])[0] == ["--out", f"{work}/s", f"{read}/f"]
    plain = ["--out", "runs/a:b", "--note", "3:/4", "--filter", "C:/x"]
    assert without_urls("compare", plain)[0] == plain


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("compare", ["a", "b", "--out", "gs://bkt/x"]),
        ("compare", ["a", "b", "--out", "x", "--cache", "gs://bkt/x"]),
        ("between", ["a", "b", "--out", "gs://bkt/x"]),
        ("trajectory", ["a", "b", "--out", "gs://bkt/x"]),
        ("validate", ["m", "--recipe", "sft", "--out", "gs://bkt/x"]),
        ("plan", ["--json", "gs://bkt/x"]),
        ("export", ["run", "--to", "gs://bkt/x"]),
        ("train sft", ["--out", "s3://bkt/x"]),
        ("train sft", ["--out", "gs:/bkt/x"]),
        ("train sft", ["--out=GS://bkt/x"]),
        ("train rlvr", ["--data", "https://host/d.jsonl"]),
        ("study", ["hf://org/e.py"]),
        ("report", ["file:///tmp/run"]),
    ],
)
def test_other_urls_are_refused_in_a_line_and_nothing_is_written(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command.split(), *words]) == 2
    said = capsys.readouterr().err
    url = next(word for word in words if ":/" in word).rpartition("=")[2]
    assert said.count("\n") == 1 and url in said
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_was_a_url_is_never_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (Path("gs://bkt/run"), Path("s3://bkt/run")):
        with pytest.raises(UserError, match="is no path on this machine"):
            refuse_if_held(path)
    Path("gs:").mkdir()
    refuse_if_held(Path("gs:/bkt/run"))
