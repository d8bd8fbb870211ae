"""jaxgeom: train language models by SFT, RLVR and on-policy distillation, and measure what each did to the weights."""

__version__ = "0.1.0"
