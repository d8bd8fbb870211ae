"""Sampling from a model with a KV cache."""

from jaxgeom.rollout.sample import Rollout as Rollout
from jaxgeom.rollout.sample import SamplingSettings as SamplingSettings
from jaxgeom.rollout.sample import sample as sample
