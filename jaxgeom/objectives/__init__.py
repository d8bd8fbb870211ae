"""Log-probabilities in, advantages and losses out. Imports jax and nothing of jaxgeom."""

from .advantages import constant_advantages as constant_advantages
from .advantages import grpo_advantages as grpo_advantages
from .advantages import informative_groups as informative_groups
from .advantages import matched_mix_weights as matched_mix_weights
from .advantages import mix_advantages as mix_advantages
from .advantages import opd_advantages as opd_advantages
from .advantages import soft_overlong_penalty as soft_overlong_penalty
from .advantages import sparsify_tokens as sparsify_tokens
from .divergence_on_support import Distilled as Distilled
from .divergence_on_support import distillation as distillation
from .divergence_on_support import distillation_loss as distillation_loss
from .divergences import forward_kl as forward_kl
from .divergences import generalized_jsd as generalized_jsd
from .divergences import reverse_kl as reverse_kl
from .divergences import teacher_top_k_kl as teacher_top_k_kl
from .log_probs import token_log_probs as token_log_probs
from .losses import k3_kl as k3_kl
from .losses import loss_denominator as loss_denominator
from .losses import policy_gradient_loss as policy_gradient_loss
from .losses import sft_loss as sft_loss
from .metrics import token_means as token_means
from .metrics import token_sums as token_sums
