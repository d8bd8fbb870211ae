"""Writing reports: files, self-containment, escaping, undefined values, missing sections, the same bytes twice."""

import json
import re
from html.parser import HTMLParser

import pytest
import report_examples as examples
from matplotlib.figure import Figure

from jaxgeom.comparison.files.report import to_csv_text
from jaxgeom.errors import UserError
from jaxgeom.report import page as page_module
from jaxgeom.report import write_report
from jaxgeom.report.loading import Contents
from jaxgeom.report.style import Drawing, save

HOSTILE = "<script>alert(1)</script>\"'&$\\frac{x}$‮\ud83d"


class _Page(HTMLParser):
    """Elements, ids and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "action", "data", "poster"):
                self.addresses.append(value)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study")
    examples.write(directory, "report.json", examples.study_report(seeds=2))
    examples.write_study_rows(directory)
    return write_report(directory)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    directory = tmp_path_factory.mktemp("comparison")
    examples.write(directory, "report.json", examples.compare_report())
    return write_report(directory)


def _render(report, kind, rows=()):
    return page_module._render(Contents(kind, report, None, list(rows)), [])


STUDY_FIGURES = {"accuracy", "sparsity", "rotation", "overlaps", "ranks", "subspace", "matched"}


def test_a_seed_that_learned_nothing_stands_at_the_top_and_its_rows_are_in_no_table(tmp_path):
    report = examples.study_report(seeds=2)
    for place, seed in enumerate(report["methods"]["rlvr"]["per_seed"]):
        seed["seed"] = place
    report["methods"]["rlvr"]["per_seed"][1] |= {"learned_nothing": "in all 6 steps nothing. To change: <b>this</b>"}
    report["seeds"] = [0, 1]
    rows = [
        {"method": m, "seed": float(s)} | r for m in ("opd", "rlvr") for s in (0, 1) for r in examples.matrix_rows(m)
    ]
    page = _render(report, "study", rows)
    warning = re.search(r'<p class="warning" role="alert">(.*?)</p>', page).group(1)
    assert warning.startswith("RLVR, seed 1 LEARNED NOTHING: in all 6 steps nothing. To change: &lt;b&gt;this")
    assert page.index(warning) < page.index('id="figures"') and page.count("LEARNED NOTHING") == 1
    assert '<span class="aside left-out">without seed 1</span>' in page
    data = json.loads(re.search(r'id="matrix-data">(.*?)</script>', page, re.DOTALL).group(1))
    keys = [column["key"] for column in data["columns"]]
    runs = {*zip(*(data["data"][keys.index(key)] for key in ("method", "seed")), strict=True)}
    assert {(method, float(seed)) for method, seed in runs} == {("opd", 0.0), ("opd", 1.0), ("rlvr", 0.0)}


def test_a_screen_narrower_than_a_figure_says_that_it_can_be_scrolled(study):
    page = study.read_text(encoding="utf-8")
    assert page.count('<p class="swipe"') == page.count('<div class="scroll figure"') == len(STUDY_FIGURES)
    assert re.search(r"\.swipe \{ display: none;", page)
    assert re.search(r"@media \(max-width: 43rem\) \{\s*\.swipe \{ display: block; \}", page)


def test_study_writes_every_figure_and_the_page(study):
    figures = study.parent / "figures"
    assert {p.stem for p in figures.glob("*.svg")} == {p.stem for p in figures.glob("*.png")} == STUDY_FIGURES
    page = study.read_text(encoding="utf-8")
    assert page.count('<svg class="plot" role="img"') == len(STUDY_FIGURES)
    assert page.count("How to read this") == len(STUDY_FIGURES)
    assert "means over seeds" in page and "null " in page and "jaxgeom study experiments/quickstart.py" in page


def test_comparison_writes_its_figures(comparison):
    found = {p.stem for p in (comparison.parent / "figures").glob("*.svg")}
    assert found == {"sparsity", "overlaps", "rotation", "ranks", "layers"}


def test_comparison_names_further_nulls_beside_the_first(comparison):
    text = comparison.read_text(encoding="utf-8")
    row = re.search(r'<tr><th scope="row">overlap, low-magnitude mask</th>.*?</tr>', text).group()
    assert re.search(r"scale profile: [\d.]+ %", row) and re.search(r"permuted: [\d.]+ %", row)
    assert row.count(" pp<") == 3 and "further null" in text.lower()
    principal = re.search(r'<tr><th scope="row">overlap, principal mask</th>.*?</tr>', text).group()
    assert "permuted" not in principal
    assert "overlap, low-magnitude mask: excess (scale profile)" in text
    assert "nulls that keep something of the real update" in text


@pytest.mark.parametrize("which", ["study", "comparison"])
def test_page_asks_for_nothing_outside_and_has_unique_ids(which, request):
    text = request.getfixturevalue(which).read_text(encoding="utf-8")
    page = _Page(text)
    assert not re.search(
        r"https?:|//[a-z]|@import|url\((?!#)",
        re.sub(r"<script.*?</script>|data:image/png[^\"]*", "", text, flags=re.DOTALL),
    )
    assert all(a.startswith(("#", "data:", "figures/", "matrices.csv")) for a in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    internal = {a[1:] for a in page.addresses if a.startswith("#")}
    assert internal <= set(page.ids)


def test_trajectory_twice_gives_the_same_bytes(tmp_path):
    content = examples.trajectory(matrices=True, points=4)
    del content["similarity"]["disjoint"]
    del content["summary"]["hill"], content["summary"]["sim_to_final"], content["summary"]["sim_disjoint"]
    examples.write(tmp_path, "trajectory.json", content)
    write_report(tmp_path)
    files = sorted(p for p in tmp_path.rglob("*") if p.suffix in (".svg", ".png", ".html"))
    first = {p: p.read_bytes() for p in files}
    assert {p.stem for p in files} == {"report", "trajectory", "similarity_full"}
    write_report(tmp_path)
    assert {p: p.read_bytes() for p in files} == first


def test_hostile_names_are_text_everywhere(tmp_path):
    report = examples.study_report()
    report["methods"] = {HOSTILE: report["methods"]["opd"] | {"label": HOSTILE}}
    report |= {"command": HOSTILE, "settings": {HOSTILE: HOSTILE}, "stages": [{"name": HOSTILE}], "findings": [HOSTILE]}
    report |= {"between": [{"a": HOSTILE, "b": HOSTILE}], "matched": {}, "machine": {HOSTILE: HOSTILE}}
    for entry in report["methods"].values():
        entry["trajectory"] = entry["groups"] = None
        entry["per_seed"] = []
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    rows = [{"name": HOSTILE, "module": HOSTILE, "layer": 0, "shape": [1, 1], "sparsity_bf16": 0.5}]
    page = _render({"summary": {}, "inputs": {"initial": {"name": HOSTILE}}, "matrices": rows}, "compare", rows)
    assert "<script>alert" not in page
    data = re.search(r'id="matrix-data">(.*?)</script>', page, re.DOTALL)
    assert data and HOSTILE in json.loads(data[1])["data"][0]


def test_undefined_values_are_dashes_and_never_nan(tmp_path):
    report = examples.compare_report(layers=1)
    for row in report["matrices"]:
        for key in row:
            if key not in ("name", "shape", "layer", "module"):
                row[key] = None
    report["summary"] = examples.summarize(report["matrices"])
    report["groups"] = examples.groups_of(report["matrices"]) if report["summary"].get("x") else {}
    examples.write(tmp_path, "report.json", report)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    visible = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    assert "NaN" not in visible and "None" not in visible
    assert "Undefined for every matrix" in visible and "no statistic that a figure could show" in visible


@pytest.mark.parametrize("kind", ["compare", "study", "trajectory"])
def test_every_section_may_be_missing(tmp_path, kind):
    examples.write(tmp_path, "trajectory.json" if kind == "trajectory" else "report.json", {"schema": 1, "kind": kind})
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<h1>" in text and "matrix-data" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "neither report.json nor"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"kind": "x"}', "kind is 'x'"),
        ('{"answer": 42}', "no report of jaxgeom"),
        ('{"schema": 2}', "schema is 2"),
        ('{"schema": 1, "summary": [1]}', "summary holds a list, not an object"),
        ('{"schema": 1, "matrices": {}}', "matrices holds a dict, not a list"),
        ('{"schema": 1, "groups": {"layer": [1]}}', "groups.layer holds a list"),
        ('{"schema": 1, "inputs": "x"}', "inputs holds a str"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def _texts(page):
    """What stands under the title of each figure."""
    found = re.findall(r"<strong>How to read this\.</strong> (.*?)</p>", page.read_text(encoding="utf-8"), re.DOTALL)
    return [re.split(r"(?<=[.])\s+(?=[A-Z])", text) for text in found]


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trajectory")
    content = examples.trajectory(matrices=True, points=5)
    checkpoints = [{"name": f"run@{step}", "dtype": "float32"} for step in content["steps"]]
    content["inputs"] = {"initial": {"name": "base", "dtype": "float32"}, "checkpoints": checkpoints}
    for key in ("nss", "angle_left_mean_deg", "angle_right_mean_deg", "lr_diffusion_ratio", "lr_drift_ratio"):
        content["summary"][key] = {"mean": [0.1] * 5, "median": None, "null": [0.2] * 5, "excess": [-0.1] * 5}
    examples.write(directory, "trajectory.json", content)
    return write_report(directory)


@pytest.mark.parametrize("which", ["study", "comparison", "trajectory"])
def test_every_figure_is_explained_in_two_sentences(which, request):
    texts = _texts(request.getfixturevalue(which))
    assert texts and [len(sentences) for sentences in texts] == [2] * len(texts)


def test_trajectory_names_its_checkpoints_and_gives_every_step_beside_its_null(trajectory):
    page = trajectory.read_text(encoding="utf-8")
    assert "checkpoints 1" in page and "run@40" in page and "{&#39;name&#39;" not in page
    table = re.search(r'<table id="along">.*?</table>', page, re.DOTALL).group()
    assert table.count("<tr>") == 1 + 5 and "null 31.0" in table and "similarity to the final subspace" in table
    data = json.loads(re.search(r'id="matrix-data">(.*?)</script>', page, re.DOTALL).group(1))
    keys = [column["key"] for column in data["columns"]]
    assert data["data"][keys.index("step")][:5] == [40, 80, 120, 160, 200]
    assert "sim_to_final" in data["headline"]


def test_the_null_is_named_for_every_statistic_that_has_one(tmp_path):
    report = examples.compare_report()
    report["summary"]["sparsity_bf16"] |= {"null": 0.4, "excess": 0.1}
    report["settings"]["null_forms"] = {"sparsity_bf16, density_bf16": "of sparsity", "angle_*": "of angles",
                                        "sparsity_bf16, overlap_*: _profile": "further"}  # fmt: skip
    page = _render(report, "compare", report["matrices"])
    for label, null in (("visible sparsity (bf16)", "of sparsity"), ("mean principal angle, left", "of angles")):
        assert re.search(rf'<th scope="row">{re.escape(label)}</th>.*?>{null}</td>', page)
    assert ">further</td>" not in page


def test_a_report_rewrites_its_rows_and_removes_figures_of_another(tmp_path):
    report = examples.compare_report()
    examples.write(tmp_path, "report.json", report)
    (tmp_path / "figures").mkdir()
    save(Drawing("masks", "old", "", "", Figure(figsize=(1, 1))), tmp_path / "figures")
    for name in ("mine.svg", "path.svg"):  # a user's own, one of them under the name of a figure of ours
        (tmp_path / "figures" / name).write_text("mine", encoding="utf-8")
    write_report(tmp_path)
    assert (tmp_path / "matrices.csv").read_text(encoding="utf-8") == to_csv_text(report["matrices"])
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {
        "sparsity",
        "overlaps",
        "rotation",
        "ranks",
        "layers",
    }
    assert {p.stem for p in (tmp_path / "figures").glob("*.svg")} >= {"mine", "path"}
    assert not (tmp_path / "figures" / "masks.svg").exists()


def test_images_have_the_resolution_that_journals_ask(comparison):
    head = (comparison.parent / "figures" / "overlaps.png").read_bytes()[:24]
    assert int.from_bytes(head[16:20], "big") == 2160  # 183 mm at 300 dots an inch


def test_rows_are_not_read_from_outside_the_directory(tmp_path):
    (tmp_path / "secret.csv").write_text("name,layer\nsecret,1\n", encoding="utf-8")
    inside = tmp_path / "out"
    examples.write(inside, "report.json", {"kind": "study", "matrices_csv": "../secret.csv"})
    assert "secret" not in write_report(inside).read_text(encoding="utf-8")
