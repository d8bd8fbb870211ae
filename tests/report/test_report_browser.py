"""The page in a real browser: it loads, sorts, filters and switches its map, and the console stays silent."""

import pytest
import report_examples as examples
from browser import CHROMIUM, DRIVER, ENTER, MISSING, TAB, open_browser

from jaxgeom.report import page as page_module
from jaxgeom.report.loading import Contents, load

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)

_COLUMN = """
const i = [...document.querySelectorAll("#matrices thead th")].findIndex((th) => th.dataset.key === arguments[0]);
return [...document.querySelectorAll("#matrices tbody tr")].map((tr) => tr.children[i].textContent);
"""
_SORT = """
const th = document.querySelector(`#matrices thead th[data-key="${CSS.escape(arguments[0])}"]`);
th.querySelector("button").click();
return document.querySelector("#matrices thead th[aria-sort]").getAttribute("aria-sort");
"""
_CHOOSE = """
const select = document.getElementById(arguments[0]);
select.value = arguments[1];
if (select.selectedIndex < 0) throw new Error(`no option ${arguments[1]}`);
select.dispatchEvent(new Event("change"));
"""
_MAP = 'return [...document.querySelectorAll("#map tbody td")].map((td) => td.textContent);'


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        yield found


def _write(path, report, kind, rows):
    """The page without figures: this file tests its script."""
    path.write_text(page_module._render(Contents(kind, report, None, rows), []), encoding="utf-8")
    return path.as_uri()


def test_comparison_sorts_filters_and_switches_the_map(browser, tmp_path):
    report = examples.compare_report(layers=12)
    report["matrices"][3]["name"] = "</script><img src=x onerror=console.error('broken')>"
    browser.get(_write(tmp_path / "report.html", report, "compare", report["matrices"]))

    assert browser.run('return document.querySelectorAll("#matrices tbody tr").length') == 50
    assert browser.run('return document.getElementById("count").textContent') == "1–50 of 84"
    assert browser.run('return document.querySelectorAll("#matrices img, #map img").length') == 0

    assert browser.run(_SORT, "sparsity_bf16") == "descending"
    shown = [float(text.split()[0]) for text in browser.run(_COLUMN, "sparsity_bf16")]
    assert shown == sorted(shown, reverse=True) and shown[0] == 100.0
    assert browser.run(_SORT, "sparsity_bf16") == "ascending"
    shown = [float(text.split()[0]) for text in browser.run(_COLUMN, "sparsity_bf16")]
    assert shown == sorted(shown)

    browser.run('document.getElementById("filter").value = "layers.0."; '
                'document.getElementById("filter").dispatchEvent(new Event("input"));')  # fmt: skip
    for _ in range(2):  # the undefined overlap stays last, whichever way round
        browser.run(_SORT, "overlap_low")
        column = browser.run(_COLUMN, "overlap_low")
        assert column[-1] == "–" and "–" not in column[:-1]

    browser.run('document.getElementById("beside").click();')
    assert browser.run("return document.querySelector('#matrices th[data-key=overlap_low_excess]') !== null")

    before = browser.run(_MAP)
    browser.run('const s = document.getElementById("map-statistic"); s.value = "overlap_low_excess"; '
                's.dispatchEvent(new Event("change"));')  # fmt: skip
    after = browser.run(_MAP)
    assert len(before) == len(after) == 12 * 7 and before != after
    assert after[2] == "–" and after[0].endswith("pp")
    assert browser.run('return document.getElementById("map").caption.textContent').startswith("overlap, low")
    assert browser.errors() == []


def test_sorting_needs_no_mouse(browser, tmp_path):
    report = examples.compare_report(layers=2)
    browser.get(_write(tmp_path / "report.html", report, "compare", report["matrices"]))
    browser.run("document.querySelector('#matrices th[data-key=layer] button').focus()")
    sorted_by = (
        'const th = document.activeElement.closest("th"); return [th.dataset.key, th.getAttribute("aria-sort")];'
    )
    browser.press(TAB, ENTER)
    first = browser.run(sorted_by)
    browser.press(ENTER)
    assert [first, browser.run(sorted_by)] == [["sparsity_bf16", "descending"], ["sparsity_bf16", "ascending"]]
    assert browser.errors() == []


def test_the_map_offers_every_statistic_with_its_nulls(browser, tmp_path):
    report = examples.compare_report(layers=2)
    browser.get(_write(tmp_path / "report.html", report, "compare", report["matrices"]))
    offered = browser.run('return [...document.getElementById("map-statistic").options].map((o) => o.value)')
    labels = {"name", "shape", "layer", "module"}
    assert set(offered) == {key for row in report["matrices"] for key in row} - labels
    for key in offered:
        browser.run(_CHOOSE, "map-statistic", key)
        assert any(text != "–" for text in browser.run(_MAP)), key
    assert browser.errors() == []


def test_two_runs_show_the_null_that_the_excess_is_taken_over(browser, tmp_path):
    rows = [
        {
            "name": f"model.layers.{n}.self_attn.q_proj.weight",
            "shape": [8, 8],
            "layer": n,
            "module": "q",
            "jaccard": 0.4,
        }
        | {"jaccard_null": 0.3, "jaccard_rounding_null": 0.35, "jaccard_excess": 0.05, "jaccard_z": 2.0}
        for n in range(3)
    ]
    browser.get(_write(tmp_path / "report.html", {"kind": "between"}, "between", rows))
    browser.run('document.getElementById("beside").click();')
    assert browser.run(_COLUMN, "jaccard_rounding_null") == ["35.0 %"] * 3
    assert browser.errors() == []


def test_a_trajectory_shows_any_of_its_steps(browser, tmp_path):
    content = examples.trajectory(matrices=True, points=4)
    for matrix in content["matrices"]:
        matrix["sim_disjoint"] = [0.2, 0.3, 0.4, None]
    examples.write(tmp_path, "trajectory.json", content)
    contents = load(tmp_path)
    browser.get(_write(tmp_path / "report.html", contents.report, "trajectory", contents.rows))
    browser.run(_CHOOSE, "map-statistic", "sim_disjoint")
    assert set(browser.run(_MAP)) == {"–"}  # at the last step, which is shown first, nothing follows
    browser.run(_CHOOSE, "map-method", "100")
    assert set(browser.run(_MAP)) == {"30.0 %"}
    assert browser.run('return document.getElementById("map").caption.textContent').endswith("step 100")
    assert browser.run(_SORT, "step") == "ascending"
    assert set(browser.run(_COLUMN, "step")) <= {"50", "100"}
    assert browser.errors() == []


def test_study_switches_method_and_asks_for_nothing_outside(browser, tmp_path):
    rows = [{"method": m} | row for m in ("opd", "rlvr") for row in examples.matrix_rows(m)]
    browser.get(_write(tmp_path / "report.html", examples.study_report(), "study", rows))
    first = browser.run(_MAP)
    chosen = browser.run('const s = document.getElementById("map-method"); s.value = "rlvr"; '
                         's.dispatchEvent(new Event("change")); return s.selectedOptions[0].textContent;')  # fmt: skip
    assert chosen == "RLVR"
    assert browser.run(_MAP) != first
    assert browser.run('return performance.getEntriesByType("resource").length') == 0
    assert browser.errors() == []


def test_table_of_a_large_mixture_stays_quick(browser, tmp_path):
    base = examples.matrix_rows("opd", layers=8, experts=8)
    rows = [row | {"name": f"{row['name']}.{copy}"} for copy in range(18_000 // len(base) + 1) for row in base]
    page = tmp_path / "report.html"
    browser.get(_write(page, examples.compare_report(), "compare", rows))
    assert page.stat().st_size < 12e6
    seconds = browser.run(
        'const t = performance.now(); document.querySelectorAll("#matrices thead button")[5].click(); '
        "return (performance.now() - t) / 1000;"
    )
    assert browser.run('return document.querySelectorAll("#matrices tbody tr").length') == 50
    assert seconds < 20  # a table that drew all rows would not come back at all
    assert browser.errors() == []
