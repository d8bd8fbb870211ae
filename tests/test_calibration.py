"""Over draws from its own null, every z has mean 0, deviation about 1, and |z| > 3 in at most one draw of a hundred."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats

_PATH = pathlib.Path(__file__).parents[1] / "experiments" / "calibration.py"
_SPEC = importlib.util.spec_from_file_location("calibration", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
calibration = importlib.util.module_from_spec(_SPEC)
sys.modules["calibration"] = calibration
_SPEC.loader.exec_module(calibration)

DRAWS = 60
DISTANT = 5
"""A share of 1 % gives more such draws among 60 once in 20 000 times; a z of twice its size gives 8."""


@pytest.mark.parametrize("storage", calibration.STORAGE)
@pytest.mark.parametrize(
    ("draw", "sigma", "shape"),
    [
        (calibration.isotropic, 0.0, (24, 16)),
        (calibration.isotropic, 0.0, (64, 48)),
        (calibration.profile, 0.0, (64, 48)),
        (calibration.profile, 1.0, (24, 16)),
        (calibration.profile, 2.0, (64, 48)),
        (calibration.permuted, 1.0, (64, 48)),
        (calibration.between, 0.0, (64, 48)),
        (calibration.laid_at_random, 0.0, (24, 16)),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_every_z_is_one(draw, sigma, shape, storage):
    assert stats.binom.sf(DISTANT - 1, DRAWS, 0.01) < 1e-3
    for key, z in calibration.scores(draw, shape, storage, sigma, DRAWS, seed=1).items():
        z = z[np.isfinite(z)]
        if z.size < 20:  # too few changes for a z in this family of draws
            continue
        assert np.count_nonzero(np.abs(z) > 3) < DISTANT, key
        # Corrections of second order leave a few tenths; the deviation of masks of whole rows is an upper bound.
        assert abs(z.mean()) < 0.35 + 4 / np.sqrt(z.size), key
        assert 0.4 < z.std() < 1.4, key
