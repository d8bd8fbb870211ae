"""The page of two runs: figures, both nulls, sentences, undefined statistics."""

import io
import json
import re

import pytest
from rich.console import Console

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, between_runs
from jaxgeom.report import print_table, write_report
from jaxgeom.report.findings_between import between_findings
from tests.comparison import disk


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("between")
    origin = disk.weights()
    sides = {"origin": origin, "<b>a</b>": disk.moved(origin, 3e-5, 1), "b": disk.moved(origin, 3e-5, 2)}
    paths = [disk.write(folder / str(place), side) for place, side in enumerate(sides.values())]
    checkpoints = [open_checkpoint(path) for path in paths]
    checkpoints[1].name = "<b>a</b>"
    return between_runs(*checkpoints, CompareSettings(subspace_k=4), out=folder / "out"), folder / "out"


def test_the_page_has_its_figures_and_both_nulls(measured):
    report, out = measured
    page = write_report(out).read_text(encoding="utf-8")
    names = {"masks", "updates", "layers"}
    figures = out / "figures"
    assert {p.stem for p in figures.glob("*.svg")} == {p.stem for p in figures.glob("*.png")} == names
    assert page.count('<svg class="plot" role="img"') == page.count("How to read this") == len(names)
    texts = re.findall(r"How to read this\.</strong> (.*?)</p>", page)
    assert [len(re.split(r"(?<=[.])\s+(?=[A-Z])", text)) for text in texts] == [2, 2, 2]
    assert "<b>a</b>" not in page and "&lt;b&gt;a&lt;/b&gt;" in page
    assert not re.search(r"https?:|@import", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    data = json.loads(re.search(r'id="matrix-data">(.*?)</script>', page, re.DOTALL).group(1))
    columns = {column["key"]: place for place, column in enumerate(data["columns"])}
    assert len(data["data"][0]) == 14 and "jaccard_z" in columns
    row = report["matrices"][3]
    assert data["data"][columns["jaccard_rounding_null"]][3] == pytest.approx(row["jaccard_rounding_null"], rel=1e-4)
    assert data["columns"][columns["jaccard_rounding_null"]]["label"].endswith(": rounding null")


def test_sentences_and_table_give_value_and_nulls(measured):
    report, _ = measured
    sentences = between_findings(report)
    entry = report["summary"]["jaccard"]
    for value in (entry["mean"], entry["null"], entry["rounding_null"]):
        assert f"{100 * value:.1f} %" in sentences[0]
    assert "about what size and rounding alone give" in sentences[0] and "chance gives" in sentences[3]
    console = Console(width=120, record=True, file=io.StringIO())
    print_table(report, console)
    text = console.export_text()
    assert "rounding null" in text and f"{100 * entry['rounding_null']:.1f} %" in text


def test_the_report_says_at_which_k_it_was_taken(measured):
    report, out = measured
    assert report["settings"]["used"] == {"subspace_k": {"4": 14}}
    assert '<span class="aside used">K = 4</span>' in (out / "report.html").read_text(encoding="utf-8")


def test_what_is_undefined_is_said(tmp_path):
    path = disk.write(tmp_path / "w", disk.weights())
    same = open_checkpoint(path)
    report = between_runs(same, same, same, out=tmp_path / "out")
    sentences = " ".join(between_findings(report))
    assert report["summary"]["jaccard"]["mean"] is None and "Undefined for every matrix" in sentences
    assert "no entry of the matrix changed" in sentences or "nothing changed" in sentences
    assert "undefined" in write_report(tmp_path / "out").read_text(encoding="utf-8")
