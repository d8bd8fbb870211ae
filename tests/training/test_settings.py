"""Settings are checked when they are made, and the message names field and value."""

import math

import jax
import pytest

from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training import MeshSettings, OPDSettings, RLVRSettings, RunInputs, SFTSettings, train
from jaxgeom.training.geometry_settings import GeometrySettings

GOOD = dict(steps=2, batch_size=16, optimizer=AdamWSettings(learning_rate=1e-3))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (SFTSettings, {"steps": 0}, "steps=0"),
        (SFTSettings, {"batch_size": -1}, "batch_size=-1"),
        (SFTSettings, {"micro_batches": 5}, "micro_batches=5"),
        (SFTSettings, {"seed": -1}, "seed=-1"),
        (SFTSettings, {"max_length": 0}, "max_length=0"),
        (RLVRSettings, {"samples_per_prompt": 1}, "samples_per_prompt=1"),
        (RLVRSettings, {"samples_per_prompt": 7}, "samples_per_prompt=7"),
        (RLVRSettings, {"temperature": 0.0}, "temperature=0.0"),
        (RLVRSettings, {"temperature": float("inf")}, "temperature=inf"),
        (OPDSettings, {"temperature": 1e39}, "temperature=1e"),
        (SFTSettings, {"eval_temperature": 1e-320}, "eval_temperature=1e-320"),
        (RLVRSettings, {"kl_coefficient": float("inf")}, "kl_coefficient=inf"),
        (SFTSettings, {"steps": 2**30 + 1}, "steps=1073741825: must be between 1 and 1073741824"),
        (SFTSettings, {"batch_size": 10**9}, "batch_size=1000000000"),
        (OPDSettings, {"alpha": 1.5}, "alpha=1.5"),
        (OPDSettings, {"keep_tokens": 0.0}, "keep_tokens=0.0"),
    ],
)
def test_a_bad_value_is_named(kind, change, words):
    kind(**GOOD)
    with pytest.raises(UserError, match=words):
        kind(**(GOOD | change))


@pytest.mark.parametrize(
    "change",
    [
        *({"eps": eps} for eps in (0.0, 1e-50, -1e-8, math.nan, math.inf)),
        *({name: 0.99999999} for name in ("b1", "b2")),
        *({name: 1e39} for name in ("learning_rate", "weight_decay", "eps")),
        {"clip_norm": 1e-60},
    ],
)
def test_what_the_optimizer_cannot_count_with_is_refused(change):
    """In float32 these are 0, 1 or infinite: an entry without a gradient would become 0/0."""
    good = {"learning_rate": 1e-3, "eps": 2.0**-126, "b2": 0.9999999, "clip_norm": math.inf}
    AdamWSettings(**good)
    with pytest.raises(UserError, match=f"{next(iter(change))}="):
        AdamWSettings(**(good | change))


@pytest.mark.parametrize(
    ("kind", "change", "read"),
    [
        (SFTSettings, {"eval_temperature": 0.5}, {"eval_samples": 4}),
        (RLVRSettings, {"refills": 5, "dynamic_filter": False}, {"dynamic_filter": True}),
        (OPDSettings, {"normalize_by_std": False}, {"alpha": 0.5}),
        (OPDSettings, {"clip_low": 0.1, "rollouts": "teacher"}, {"rollouts": "student"}),
        (OPDSettings, {"clip_high": 0.5, "support": "full"}, {"alpha": 0.5}),
        (OPDSettings, {"clip_high": 0.5, "divergence": "forward", "rollouts": "teacher"}, None),
        (OPDSettings, {"advantage_constant": 0.1}, {"advantage": "constant"}),
    ],
)
def test_what_nothing_reads_is_refused(kind, change, read):
    with pytest.raises(UserError, match=f"^{next(iter(change))}=.*nothing reads it with"):
        kind(**(GOOD | change))
    if read is not None:
        kind(**(GOOD | change | read))


def test_what_no_part_of_a_setting_reads_is_refused():
    for kind, change, read in (
        (AdamWSettings, {"learning_rate_end": 1e-5}, {"schedule": "cosine"}),
        (GeometrySettings, {"geometry_rank": 4}, {"geometry_every": 1, "geometry_step": 1}),
        (GeometrySettings, {"geometry_reference": "host"}, {"geometry_every": 1}),
        (GeometrySettings, {"geometry_step": 2}, {"geometry_every": 1}),
    ):
        common = {"learning_rate": 1e-3} if kind is AdamWSettings else {}
        with pytest.raises(UserError, match=f"^{next(iter(change))}=.*nothing reads it with"):
            kind(**common, **change)
        kind(**common, **change, **read)
    with pytest.raises(UserError, match="geometry_every=3: nothing is measured in steps=2"):
        SFTSettings(**GOOD, geometry=GeometrySettings(geometry_every=3))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (1, -2, 1)])
def test_impossible_meshes_are_refused(sizes):
    with pytest.raises(UserError, match="mesh"):
        MeshSettings(*sizes)


def test_64_bits_are_refused(tmp_path):
    """Draws of JAX would be others, and the sampler's buffers are of 32."""
    settings = SFTSettings(steps=1, save_every=1, batch_size=1, optimizer=AdamWSettings(learning_rate=1.0))
    with jax.enable_x64(True), pytest.raises(UserError, match="JAX_ENABLE_X64"):
        train(settings, RunInputs(model=tmp_path, data=tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
