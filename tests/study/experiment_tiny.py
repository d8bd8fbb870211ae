"""The experiment of the tests: everything that the quickstart does, on small models, in a few steps.

The anchor learns to box a number, so that some answers of RLVR are right and it has something to learn from.
"""

import os
from pathlib import Path

from jaxgeom.comparison import CompareSettings
from jaxgeom.data import ArithmeticTask
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Experiment, SyntheticData
from jaxgeom.training import OPDSettings, RLVRSettings, SFTSettings

models = Path(os.environ.get("TINY_MODELS", "."))
common = dict(
    steps=6, batch_size=16, optimizer=AdamWSettings(learning_rate=1e-3), save_every=2, max_new_tokens=12, eval_every=3
)

experiment = Experiment(
    name="tiny",
    base=models / "base",
    teacher=models / "teacher",
    data=SyntheticData(task=ArithmeticTask(terms=3, digits=1), uneven=True, demonstrations=100, prompts=50, heldout=16),
    anchor=SFTSettings(
        **common | dict(steps=60, save_every=20, eval_every=0, optimizer=AdamWSettings(learning_rate=1e-2)),
        max_length=48,
    ),
    opd=OPDSettings(**common, samples_per_prompt=4),
    rlvr=RLVRSettings(**common, samples_per_prompt=4, dynamic_filter=False),
    sft_continued=SFTSettings(**common, max_length=48),
    measure=CompareSettings(angle_k=4, mask_rank=4, subspace_k=4),
)
