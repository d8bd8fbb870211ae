"""What a reader sees of the figures: nothing is cut off, no two texts overlap, nulls and undefined cells are drawn."""

import pytest
import report_examples as examples
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from jaxgeom.report.figures_compare import compare_drawings, hidden
from jaxgeom.report.figures_study import study_drawings
from jaxgeom.report.figures_trajectory import trajectory_drawings
from jaxgeom.report.style import FIGURES, house_style


def _comparison(*, layers, matrices=None):
    report = examples.compare_report(layers=layers)
    report["settings"]["mask_fraction"] = 0.3
    rows = report["matrices"][:matrices]
    if matrices is not None:
        summary = examples.summarize(rows)
        groups = {"module": {"q": summary}, "layer": {"0": summary}, "sparsity": {"matrices": summary}}
        report |= {"matrices": rows, "summary": summary, "groups": groups}
    for place, row in enumerate(rows):
        row["hidden_by_decile"] = [1e-3 * place if place else None] + [0.9 / n for n in range(1, 10)]
    for group in report["groups"]["sparsity"].values():
        group["sparsity_abs_1e-5"] = group["sparsity_bf16"]
    return compare_drawings(report, rows)


def _trajectory(points, steps):
    content = examples.trajectory(points=points, steps=steps)
    for key in ("nss", "angle_left_mean_deg", "angle_right_mean_deg", "lr_diffusion_ratio", "lr_drift_ratio"):
        values = [1.7e-4 * (i + 1) for i in range(points)]
        content["summary"][key] = {"mean": values, "null": values, "excess": [0.0] * points}
    return trajectory_drawings(content)


def _far_apart(count):
    """Seeds so unlike one another that Student's interval of a share would reach from −80 % to 180 %."""
    report = examples.study_report(seeds=count)
    for method in report["methods"].values():
        for place, seed in enumerate(method["per_seed"]):
            for key in ("sparsity_bf16", "sparsity_abs_1e-5", "overlap_low", "overlap_principal"):
                seed["summary"][key] |= {"mean": (0.95, 0.05, 0.4)[place]}
    return report


def _one_method():
    report = examples.study_report()
    return report | {"methods": {"opd": report["methods"]["opd"]}}


CASES = {
    "one matrix": lambda: _comparison(layers=1, matrices=1),
    "4 layers": lambda: _comparison(layers=4),
    "36 layers": lambda: _comparison(layers=36),
    "one seed": lambda: study_drawings(examples.study_report()),
    "3 seeds": lambda: study_drawings(examples.study_report(seeds=3)),
    "2 seeds far apart": lambda: study_drawings(_far_apart(2)),
    "3 seeds far apart": lambda: study_drawings(_far_apart(3)),
    "one method": lambda: study_drawings(_one_method()),
    "one checkpoint": lambda: _trajectory(1, 200),
    "3 checkpoints": lambda: _trajectory(3, 200),
    "40 checkpoints": lambda: _trajectory(40, 100_000),
}


@pytest.fixture(scope="module", params=CASES)
def drawings(request):
    with house_style():
        yield CASES[request.param]()


def _crossing(texts):
    """The pairs of texts whose boxes share more than the blank rim of a line, by sweeping from left to right."""
    found, texts = [], sorted((box.x0, box.x1, box.y0, box.y1, text) for text, box in texts)
    for place, (_, right, low, high, text) in enumerate(texts):
        for left, _, other_low, other_high, other in texts[place + 1 :]:
            if left >= right - 1:
                break
            if min(high, other_high) - max(low, other_low) > 1:
                found.append((text, other))
    return found


def _texts(figure):
    """Every text that is seen, with its place in pixels; an axis has ticks beyond its ends that are not drawn."""
    found, beyond = [], set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = axis.get_major_ticks() + axis.get_minor_ticks()
        slack = 1e-6 * (high - low)
        beyond |= {t.label1 for t in ticks if not low - slack <= t.get_loc() <= high + slack}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in beyond:
            found.append((text.get_text(), Text.get_window_extent(text)))  # without the arrow of an annotation
    return found


@pytest.mark.filterwarnings("error")  # a layout that finds no room for the panels warns
def test_nothing_is_cut_off_and_no_two_texts_overlap(drawings):
    assert drawings
    for drawing in drawings:
        assert drawing.name in FIGURES
        drawing.figure.draw_without_rendering()
        sheet, texts = drawing.figure.bbox, _texts(drawing.figure)
        cut = [t for t, b in texts if b.x0 < -1 or b.y0 < -1 or b.x1 > sheet.x1 + 1 or b.y1 > sheet.y1 + 1]
        assert not cut, f"{drawing.name}: cut off: {cut}"
        crossing = _crossing(texts)
        assert not crossing, f"{drawing.name}: overlap: {crossing}"


def test_full_colour_of_an_excess_is_never_less_than_a_point():
    """A scale of ±0.005 points would draw what is nothing as the strongest of findings."""
    report = examples.compare_report(layers=4)
    for row in report["matrices"]:
        if row["overlap_low_excess"] is not None:
            row["overlap_low_excess"] = 5e-5 if row["layer"] else -5e-5
    with house_style():
        figure = next(d.figure for d in compare_drawings(report, report["matrices"]) if d.name == "layers")
    assert figure.axes[1].collections[0].get_clim() == (-0.01, 0.01)


def test_modules_are_named_as_such_and_say_where_they_have_no_null():
    """`k (n = 2)` reads as a number; a module without a null is in no mean of all of them."""
    report = examples.compare_report(layers=2)
    for key in ("overlap_low", "overlap_principal"):
        report["groups"]["module"]["k"][key] |= {"null": None, "excess": None}
    with house_style():
        figure = next(d.figure for d in compare_drawings(report, report["matrices"]) if d.name == "overlaps")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "all (n = 13)" and labels[1:3] == ["q_proj (n = 2)", "k_proj (n = 2, no null)"]


def test_the_null_of_a_single_layer_or_checkpoint_is_drawn():
    with house_style():
        compared = {d.name: d.figure for d in _comparison(layers=1, matrices=1)}
        followed = {d.name: d.figure for d in _trajectory(1, 200)}
    for figure in (compared["rotation"], followed["trajectory"]):
        marks = [(line.get_marker(), line.get_markevery()) for line in figure.axes[0].lines]
        assert ("_", [0]) in marks and figure.axes[0].get_xticks().tolist() != []
        assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_undefined_cells_of_the_map_are_hatched():
    with house_style():
        figure = next(d.figure for d in _comparison(layers=4) if d.name == "layers")
    hatched = [
        [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
        for axes in figure.axes[:4]
    ]
    assert [len(found) for found in hatched] == [0, 1, 0, 0]  # the overlap of the one matrix that did not change


def test_panels_without_values_say_whether_they_are_undefined_or_not_measured():
    report = examples.compare_report(layers=2)
    for group in report["groups"]["layer"].values():
        group["hill"] = group["hill"] | {"mean": None, "null": None, "count": 0}
        del group["stable_rank"]
    with house_style():
        figure = next(d.figure for d in compare_drawings(report, report["matrices"]) if d.name == "ranks")
    said = [{text.get_text() for text in axes.texts} for axes in figure.axes]
    assert said == [set(), {"not measured"}, {"undefined"}]


def test_what_an_absolute_tolerance_hides_is_the_mean_over_matrices():
    rows = [{"hidden_by_decile": [0.5, None] + [0.0] * 8}, {"hidden_by_decile": [0.3, None] + [0.2] * 8}, {}]
    with house_style():
        drawing = hidden(rows)
        assert drawing is not None and hidden([{}]) is None
    bars = [patch.get_height() for patch in drawing.figure.axes[0].patches]
    assert bars == pytest.approx([0.4] + [0.1] * 8)
    assert [text.get_text() for text in drawing.figure.axes[0].texts].count("undefined") == 1
