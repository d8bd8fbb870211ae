"""The tables of a plan on a console: of no width is a number cut."""

import io

import jax
import pytest
from rich.console import Console

from jaxgeom.planning.chips import CHIPS, roofline
from jaxgeom.planning.collectives import Collective
from jaxgeom.planning.counting import Counts
from jaxgeom.planning.planning import Plan
from jaxgeom.planning.programs import Planned
from jaxgeom.planning.search import Largest
from jaxgeom.planning.settings import PlanSettings
from jaxgeom.planning.topologies import Topology
from jaxgeom.planning.writing import print_judgement, print_programs


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_number_is_cut(width):
    chip = CHIPS["TPU v5 lite"]
    sent = [Collective("collective-permute", ("data", "fsdp"), 646 * 2**30, 1.18 * 2**40)]
    counts = Counts(flops=381e12, bytes=36.9 * 2**40, collectives=sent)
    times = roofline(chip, flops=counts.flops, memory=counts.bytes, sent=counts.sent)
    whole = Planned("rollout.decoding_weights", 2**30, 438 << 20, 2**20, 7, 2 << 30, counts, times, 1.0)
    train = whole._replace(name="train", outputs=None, counts=None, seconds=None, temporary=24 << 30)
    settings = PlanSettings(model="qwen3-8b", topology="v5e:8x8", objective="rlvr")
    topology = Topology("v5e:8x8", jax.devices()[:1], 1575 << 20, chip)
    expected = {"rollout.decoding_weights": 1.9e14, "train": 1e15}
    plan = Plan(settings, topology, {"fsdp": 1}, 64, [train, whole], expected, 0, Largest(32, False), [])
    printed = io.StringIO()
    print_programs(plan, Console(file=printed, width=width, color_system=None))
    text = printed.getvalue()
    assert "…" not in text
    words = [
        "381T",
        "2.01",
        "36.9T",
        "1.18T",
        "1.93",
        "49.5",
        "6.49",
        "646G",
        "438M",
        "HBM",
        "24G",
        "rollout.decoding_weights",
    ]
    assert width < 80 or all(word in text.split() for word in words)
    assert max(map(len, text.splitlines())) <= max(width, 80)


@pytest.mark.parametrize(
    ("largest", "said"),
    [
        (Largest(32, True, 40), "fits; largest batch that fits: 32, compiled; 40 does not fit"),
        (Largest(32, True), "fits; largest batch that fits: 32, compiled; none larger was compiled"),
        (Largest(32, False, 40), "fits; largest batch that fits: 32, estimated"),
    ],
)
def test_what_is_known_of_the_largest_batch_is_said(largest, said):
    settings = PlanSettings(model="m[bold]/[/a]", topology="v5e:8x8", objective="sft")
    plan = Plan(settings, Topology("v5e:8x8", jax.devices()[:1], 1, None), {}, 8, [], {}, 0, largest, ["a [/a] b"])
    printed = io.StringIO()
    for part in (print_programs, print_judgement):
        part(plan, Console(file=printed, width=200, color_system=None))
    first, *_, advice, last = printed.getvalue().splitlines()
    assert last == said and advice == "a [/a] b" and first.startswith("sft of m[bold]/[/a], batch 8")  # as it is named
