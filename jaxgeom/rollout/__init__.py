"""Sampling from a model with a KV cache."""

from jaxgeom.rollout.sampling import Rollout as Rollout
from jaxgeom.rollout.sampling import SamplingSettings as SamplingSettings
from jaxgeom.rollout.sampling import sample as sample
from jaxgeom.rollout.sampling import sampler_programs as sampler_programs
from jaxgeom.rollout.sampling import side_by_side as side_by_side
