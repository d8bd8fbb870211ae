"""An experiment of arms alone: SFT confined, from half of it on, to its own early subspace; from a start of its own.

The step that the confined arm starts from is none that `save_every` saves. All of it is SFT, which compiles soonest.
"""

import os
from pathlib import Path

from jaxgeom.comparison import CompareSettings
from jaxgeom.data import ArithmeticTask
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Arm, Experiment, SyntheticData
from jaxgeom.training import ConfineSettings, SFTSettings

models = Path(os.environ.get("TINY_MODELS", "."))
common = dict(batch_size=8, optimizer=AdamWSettings(learning_rate=1e-3), max_new_tokens=4, max_length=48, save_every=2)
inside = ConfineSettings(confine="coordinates", basis_rank=2)

start = Arm("start", models / "base", SFTSettings(**common, steps=1), shared=True)
longer = Arm("longer", start, SFTSettings(**common, steps=2), label="SFT longer", color="#123456")
early = longer.at(share=0.5)

experiment = Experiment(
    name="arms",
    data=SyntheticData(task=ArithmeticTask(terms=3, digits=1), demonstrations=30, prompts=20, heldout=4),
    arms=(longer, Arm("inside", early, SFTSettings(**common, steps=2, confine=inside), basis_from=early), start),
    measure=CompareSettings(suite="fast", mask_rank=2, subspace_k=2, include="q_proj"),
)
