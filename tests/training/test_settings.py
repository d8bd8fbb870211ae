"""Settings are checked when they are made, and the message names field and value."""

import pytest

from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training import MeshSettings, OPDSettings, RLVRSettings, SFTSettings

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
        (OPDSettings, {"alpha": 1.5}, "alpha=1.5"),
        (OPDSettings, {"keep_tokens": 0.0}, "keep_tokens=0.0"),
    ],
)
def test_a_bad_value_is_named(kind, change, words):
    kind(**GOOD)
    with pytest.raises(UserError, match=words):
        kind(**(GOOD | change))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (1, -2, 1)])
def test_impossible_meshes_are_refused(sizes):
    with pytest.raises(UserError, match="mesh"):
        MeshSettings(*sizes)
