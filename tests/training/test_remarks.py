"""What a run says of its numbers: when it is lost, and what it did."""

import math

import pytest

from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training import OPDSettings, RLVRSettings, SFTSettings, objective_of
from jaxgeom.training.logs import Log, read_json_lines
from jaxgeom.training.remarks import cannot_go_on, last_numbers, repeated_prompts
from tests.tiny import tiny_config

COMMON = dict(steps=2, batch_size=8, optimizer=AdamWSettings(learning_rate=1e-3))
IN_NATS = {
    "sft": (SFTSettings(**COMMON), True),
    "rlvr": (RLVRSettings(**COMMON, normalize_by_std=False, reward=("math=100",)), False),
    "a constant": (OPDSettings(**COMMON, advantage="constant", advantage_constant=60.0), False),
    "gaps": (OPDSettings(**COMMON), False),
    "full": (OPDSettings(**COMMON, support="full"), True),
    "full, sharpened": (OPDSettings(**COMMON, support="full", temperature=0.1), False),
    "full, mixed with rewards": (OPDSettings(**COMMON, support="full", alpha=0.5), False),
    "full, few tokens": (OPDSettings(**COMMON, support="full", keep_tokens=0.1), False),
    "full, pulled to the start": (OPDSettings(**COMMON, support="full", kl_coefficient=100.0), False),
    "full, the distance measured": (OPDSettings(**COMMON, support="full", kl_coefficient=0.0), True),
}


@pytest.mark.parametrize("form", IN_NATS)
def test_a_loss_is_too_large_only_where_guessing_is_its_measure(form):
    settings, is_in_nats = IN_NATS[form]
    model = Qwen3(tiny_config())
    assert objective_of(settings, model, [model] if settings.is_taught else []).is_in_nats is is_in_nats


def test_what_is_lost_whatever_its_loss_is():
    healthy = {"loss": -413.0, "grad_norm": 1.0, "update_norm": 0.1, "param_norm": 10.0}
    assert cannot_go_on(healthy, None) is None
    assert cannot_go_on(healthy, 50) == f"the loss is -413, beyond {10 * math.log(50):.3g}, ten times that of guessing"
    for name, said in (("loss", "loss is NaN"), ("grad_norm", "gradient is NaN"), ("update_norm", "update is NaN")):
        assert said in (cannot_go_on(healthy | {name: math.nan}, None) or "")
    assert "larger than the weights'" in (cannot_go_on(healthy | {"update_norm": 11.0}, None) or "")


def test_what_is_undefined_is_left_out_of_the_log(tmp_path):
    with Log(SFTSettings(**COMMON), tmp_path, None, {}) as log:
        log.step(1, {"loss": 1.0, "leakage": math.nan, "leakage_max": math.nan, "share": math.inf}, {}, None)
        log.flush()
    (row,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert row["loss"] == 1.0 and not {"leakage", "leakage_max", "share"} & row.keys()


def test_the_last_numbers_are_of_the_last_rollout_too():
    rollout = {"step": 1, "loss": 3.0, "reward": 0.5, "response_length": 7.0, "truncated": 0.25}
    (said,) = last_numbers([rollout, {"step": 2, "loss": 1.0}])
    assert said == "step 2: loss 1, reward 0.5, response_length 7, truncated 0.25"


@pytest.mark.parametrize("rows, is_said", [(39, True), (40, False)])
def test_more_prompts_than_rows_are_said(rows, is_said):
    settings = RLVRSettings(**COMMON | {"batch_size": 80}, samples_per_prompt=4, updates_per_rollout=2)
    assert (repeated_prompts(settings, rows) == f"a rollout of 40 prompts from {rows} rows repeats prompts") is is_said
    assert repeated_prompts(SFTSettings(**COMMON), 1) is None
