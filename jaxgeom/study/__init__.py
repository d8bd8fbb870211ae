"""Experiments: the stages in order, resumable; methods compared where they are comparable; statistics over seeds."""

from .arms import Arm as Arm
from .arms import At as At
from .data import DataFiles as DataFiles
from .data import SyntheticData as SyntheticData
from .experiment import Experiment as Experiment
from .experiment import load_experiment as load_experiment
from .matched import Measured as Measured
from .matched import along as along
from .matched import at_end as at_end
from .matched import at_relative_norm as at_relative_norm
from .matched import at_step as at_step
from .matched import early as early
from .runner import run_study as run_study
from .seeds import mean_interval as mean_interval
from .seeds import mean_rows as mean_rows
from .seeds import over_seeds as over_seeds
