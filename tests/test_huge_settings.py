"""Whole numbers of absurd sizes in every settings class: refused by name, or capped as documented."""

import dataclasses
import json
import typing

import pytest

from jaxgeom.comparison import CompareSettings
from jaxgeom.comparison.settings import MOST_DRAWS
from jaxgeom.data import ArithmeticTask
from jaxgeom.errors import UserError
from jaxgeom.field_types import LARGEST
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.planning.settings import PlanSettings
from jaxgeom.study import SyntheticData
from jaxgeom.training import OPDSettings, RLVRSettings, SFTSettings
from jaxgeom.training.confine_settings import ConfineSettings
from jaxgeom.training.geometry_settings import GeometrySettings
from jaxgeom.training.keep_settings import KeepSettings
from jaxgeom.training.settings import MeshSettings
from tests.tiny import write_tiny_model

RUN: dict[str, typing.Any] = {"steps": 1, "batch_size": 8, "optimizer": AdamWSettings(learning_rate=1e-3)}
CLASSES: dict[typing.Any, dict[str, typing.Any]] = {
    CompareSettings: {},
    SFTSettings: RUN,
    RLVRSettings: RUN,
    OPDSettings: RUN | {"divergence": "forward", "support": "teacher-top-k", "top_k": 8},
    GeometrySettings: {"geometry_every": 1},
    KeepSettings: {"keep": 1},
    ConfineSettings: {"confine": "gradients"},
    PlanSettings: {"model": "qwen3-0.6b", "topology": "local", "objective": "rlvr"},
    SyntheticData: {},
    ArithmeticTask: {},
    MeshSettings: {},
    AdamWSettings: {"learning_rate": 1e-3},
}
FIELDS = [
    (kind, field.name, hint)
    for kind in CLASSES
    for field in dataclasses.fields(kind)
    for hint in [typing.get_type_hints(kind)[field.name]]
    if int in (hint, *typing.get_args(hint))
]


@pytest.mark.parametrize(("kind", "name", "hint"), FIELDS, ids=[f"{kind.__name__}.{name}" for kind, name, _ in FIELDS])
def test_a_number_that_no_machine_number_holds_is_refused_by_name_and_value(kind, name, hint):
    assert len(FIELDS) > 60
    for value in (10**400, -(10**400), 10**5000):
        given = (value,) if typing.get_origin(hint) is tuple else value
        with pytest.raises(UserError, match=rf"^{name}=.*(is|are) needed|^{name}=.*(beyond|must|between)") as refused:
            kind(**CLASSES[kind] | {name: given})
        assert len(str(refused.value)) < 700 and "\n" not in str(refused.value)
    with pytest.raises(UserError, match=f"^{name}=.*{LARGEST + 1}"):
        kind(**CLASSES[kind] | {name: (LARGEST + 1,) if typing.get_origin(hint) is tuple else LARGEST + 1})


def test_draws_of_nulls_have_an_end():
    for name in ("null_draws", "permutation_draws"):
        with pytest.raises(UserError, match=f"{name} = 10001: at most 10,000 draws are taken"):
            CompareSettings(**{name: MOST_DRAWS + 1})
        CompareSettings(**{name: MOST_DRAWS})


def test_ranks_are_capped_at_what_a_matrix_has(tmp_path, jaxgeom):
    one, two = (write_tiny_model(tmp_path / str(seed), num_hidden_layers=1, seed=seed) for seed in (0, 1))
    names = ("subspace-k", "angle-k", "mask-rank", "hill-k")
    reports = []
    for size in (32, LARGEST):
        out = tmp_path / f"out{size}"
        options = [word for name in names for word in (f"--{name}", size)]
        said = jaxgeom("compare", one, two, "--out", out, "--include", "k_proj", *options)
        assert said.status == 0, said.err
        text = (out / "report.json").read_text().replace(f"energy_top_{size}", "energy_top")
        reports.append(json.loads(text)["matrices"])
    assert reports[0] == reports[1]
