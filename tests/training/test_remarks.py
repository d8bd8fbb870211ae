"""What a run says of its numbers: when it is lost, and what it did."""

import math

import pytest

from jaxgeom.models import Qwen3
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training import OPDSettings, RLVRSettings, SFTSettings, objective_of
from jaxgeom.training.remarks import cannot_go_on
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
