"""The experiment of the tests: everything that the quickstart does, on random weights, in a few steps."""

import os
from pathlib import Path

from jaxgeom.comparison import CompareSettings
from jaxgeom.data import ArithmeticTask
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Experiment, SyntheticData
from jaxgeom.training import OPDSettings, RLVRSettings, SFTSettings

models = Path(os.environ.get("TINY_MODELS", "."))
common = dict(
    steps=6, batch_size=16, optimizer=AdamWSettings(learning_rate=1e-3), save_every=2, max_new_tokens=8, eval_every=3
)

experiment = Experiment(
    name="tiny",
    base=models / "base",
    teacher=models / "teacher",
    data=SyntheticData(task=ArithmeticTask(terms=2, digits=2), demonstrations=200, prompts=100, heldout=32),
    anchor=SFTSettings(**common, max_length=48),
    opd=OPDSettings(**common, samples_per_prompt=4),
    rlvr=RLVRSettings(**common, samples_per_prompt=4, dynamic_filter=False),
    sft_continued=SFTSettings(**common, max_length=48),
    measure=CompareSettings(angle_k=4, mask_rank=4, subspace_k=4),
)
