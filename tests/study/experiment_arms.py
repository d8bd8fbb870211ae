"""An experiment of arms alone: OPD confined, from half of it on, to its own early subspace; from a start that SFT made.

The step that the confined arm starts from is none that `save_every` saves.
"""

import os
from pathlib import Path

from jaxgeom.comparison import CompareSettings
from jaxgeom.data import ArithmeticTask
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Arm, Experiment, SyntheticData
from jaxgeom.training import ConfineSettings, OPDSettings, SFTSettings

models = Path(os.environ.get("TINY_MODELS", "."))
common = dict(batch_size=8, optimizer=AdamWSettings(learning_rate=1e-3), max_new_tokens=6, save_every=2)
inside = ConfineSettings(confine="coordinates", basis_rank=2)

start = Arm("start", models / "base", SFTSettings(**common, steps=1, max_length=48), shared=True)
opd = Arm("opd", start, OPDSettings(**common, steps=2, samples_per_prompt=4), label="OPD", color="#123456")
early = opd.at(share=0.5)

experiment = Experiment(
    name="arms",
    teacher=models / "teacher",
    data=SyntheticData(task=ArithmeticTask(terms=3, digits=1), demonstrations=30, prompts=20, heldout=4),
    arms=(
        opd,
        Arm("inside", early, OPDSettings(**common, steps=2, samples_per_prompt=4, confine=inside), basis_from=early),
        start,
    ),
    measure=CompareSettings(suite="fast", mask_rank=2, subspace_k=2, include="q_proj"),
)
