"""Training inside an early subspace: OPD, RLVR and SFT go on at a fifth of their steps, free and confined.

    jaxgeom study experiments/confined.py --out runs/confined
    python experiments/confined_results.py runs/confined experiments/results/confined     # JSON, figure and page of it

The published claim (arXiv 2606.07082, section 4): gradients that are projected onto the rank-16 right subspace of the
update at about 20 % of training leave OPD's score intact and hurt SFT's. Each method runs 32 of 160 steps from the
quickstart's anchor and goes on from there for the other 128 in these ways:

- free;
- `gradients`: g ← g V Vᵀ before AdamW, the published form, which leaks through Adam and weight decay;
- `coordinates`: AdamW on the coordinates W V, which does not;
- `random`: `coordinates` in a random subspace of the same rank.

V are the 16 leading right directions of the run's own update at step 32. All four start with empty moments, and with
seed s from the early run of seed s. Confined runs leave embeddings and norms as they are.

The rate is 2.5e-6 where the quickstart has 5e-5: there everything is learned in 8 of 80 steps, here accuracy rises over
80 steps. At this size 16 directions are 6 to 13 % of a matrix's 128 to 256 columns, where the paper has 0.4 % (16 of
4,096); `coordinates` and `random` are therefore repeated with 4 and with 1, for OPD and SFT and one seed. In
`coordinates` AdamW moves K numbers a row by the rate each in place of all, so at the same rate the update is smaller by
√(K/columns).
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from jaxgeom.comparison import CompareSettings
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Arm, At, Experiment, load_experiment
from jaxgeom.training import ConfineSettings, OPDSettings, RLVRSettings, SFTSettings

STEPS, EARLY = 160, 32
RANK = 16

rate = AdamWSettings(
    learning_rate=2.5e-6, schedule="constant", b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1, clip_norm=1.0
)
common: dict[str, Any] = dict(batch_size=64, optimizer=rate, save_every=EARLY, eval_every=2 * EARLY, max_new_tokens=32)
METHODS: dict[str, tuple[str, SFTSettings | RLVRSettings | OPDSettings]] = {
    "opd": ("OPD", OPDSettings(steps=EARLY, **common, samples_per_prompt=8)),
    "rlvr": ("RLVR", RLVRSettings(steps=EARLY, **common, samples_per_prompt=8, dynamic_filter=True, refills=1)),
    "sft": ("SFT", SFTSettings(steps=EARLY, **common, max_length=64)),
}
WAYS: dict[str, dict[str, Any]] = {
    "free": {},
    "gradients": {"confine": "gradients"},
    "coordinates": {"confine": "coordinates"},
    "random": {"confine": "coordinates", "basis": "random"},
}
SMALLER, RANKS = ("coordinates", "random"), (4, 1)
"""What is repeated at lower rank, for OPD and SFT and one seed."""


def arm(method: str, way: str, rank: int = RANK, seeds: tuple[int, ...] | None = None) -> Arm:
    """A method's second part: from its early run on, in one of the ways."""
    label, settings = METHODS[method]
    told: dict[str, Any] = {} if way == "free" else {"basis_rank": rank}
    confine = ConfineSettings(**WAYS[way], **told)
    early = At(f"{method}_early")
    return Arm(
        f"{method}_{way}" + (f"_{rank}" if rank != RANK else ""),
        early,
        dataclasses.replace(settings, steps=STEPS - EARLY, confine=confine),
        seeds,
        basis_from=early if way in ("gradients", "coordinates") else None,
        data="demonstrations_continued" if method == "sft" else None,
        label=f"{label} {way}" + (f", K = {rank}" if rank != RANK else ""),
    )


quickstart = load_experiment(Path(__file__).with_name("quickstart.py"))
assert quickstart.anchor is not None
experiment = Experiment(
    name="confined",
    base=quickstart.base,
    teacher=quickstart.teacher,
    data=quickstart.data,
    anchor=dataclasses.replace(quickstart.anchor, save_every=250, eval_every=0),
    arms=(
        *(
            Arm(f"{name}_early", At("sft_anchor"), told, label=f"{label} early")
            for name, (label, told) in METHODS.items()
        ),
        *(arm(method, way) for method in METHODS for way in WAYS),
        *(arm(*one, rank, seeds=(0,)) for one in itertools.product(("opd", "sft"), SMALLER) for rank in RANKS),
    ),
    measure=CompareSettings(angle_k=16, mask_rank=8, mask_fraction=0.3, subspace_k=16),
    seeds=(0, 1, 2),
)
