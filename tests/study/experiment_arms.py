"""An experiment of arms: OPD confined from a quarter on to its own early subspace, with a control, from a given model.

The early arm has two seeds, its start one; a step that `save_every` does not save is started from.
"""

import os
from pathlib import Path

from jaxgeom.comparison import CompareSettings
from jaxgeom.data import ArithmeticTask
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Arm, At, Experiment, SyntheticData
from jaxgeom.training import ConfineSettings, OPDSettings, SFTSettings

models = Path(os.environ.get("TINY_MODELS", "."))
common = dict(batch_size=8, optimizer=AdamWSettings(learning_rate=1e-3), max_new_tokens=6, save_every=2)


def opd(**confine):
    return OPDSettings(**common, steps=4, samples_per_prompt=4, confine=ConfineSettings(**confine))


start = Arm("start", models / "base", SFTSettings(**common, steps=1, max_length=48), shared=True)
free = Arm("opd", start, opd(), label="OPD", color="#0072b2")
inside = opd(confine="coordinates", basis_rank=2)

experiment = Experiment(
    name="arms",
    teacher=models / "teacher",
    data=SyntheticData(task=ArithmeticTask(terms=3, digits=1), demonstrations=30, prompts=20, heldout=4),
    arms=(
        start,
        free,
        Arm("inside", free.at(share=0.25), inside, basis_from=free.at(share=0.25), label="OPD, in its subspace"),
        Arm("random", At("opd", step=1), opd(confine="gradients", basis="random", basis_rank=2), color="#aa3377"),
    ),
    measure=CompareSettings(suite="fast", angle_k=2, mask_rank=2, subspace_k=2),
    seeds=(0, 1),
)
