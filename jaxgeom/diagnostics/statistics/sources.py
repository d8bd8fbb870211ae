"""The papers that statistics and nulls come from, by the key that entries, pages and the bibliography name them by."""

from typing import NamedTuple


class Source(NamedTuple):
    """A paper.

    Attributes:
      key: its arXiv number, or a surname and year where it has none.
      short: what figures and sentences call it.
      title: its full title.
    """

    key: str
    short: str
    title: str

    @property
    def link(self) -> str:
        """Its address on arXiv; empty for papers that are not there."""
        return f"https://arxiv.org/abs/{self.key}" if self.key[:4].isdigit() else ""

    @property
    def cited(self) -> str:
        """How a sentence cites it: `The Path Not Taken (2511.08567)`."""
        return f"{self.short} ({self.key})" if self.link else self.short


SOURCES: dict[str, Source] = {
    source.key: source
    for source in (
        Source("2606.07082", "Geometry of OPD", "On the Geometry of On-Policy Distillation"),
        Source("2511.08567", "The Path Not Taken", "The Path Not Taken: RLVR Provably Learns Off the Principals"),
        Source(
            "2606.13657",
            "Dense Supervision, Sparse Updates",
            "Dense Supervision, Sparse Updates: On the Sparsity and Geometry of On-Policy Distillation",
        ),
        Source(
            "2605.11739",
            "Learning to Foresee",
            "Learning to Foresee: Unveiling the Unlocking Efficiency of On-Policy Distillation",
        ),
        Source(
            "2505.11711",
            "RL Finetunes Small Subnetworks",
            "Reinforcement Learning Finetunes Small Subnetworks in Large Language Models",
        ),
        Source(
            "2506.00772",
            "LIFT",
            "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused "
            "Supervised Fine-Tuning",
        ),
        Source("2509.04259", "RL's Razor", "RL's Razor: Why Online Reinforcement Learning Forgets Less"),
        Source("hill1975", "Hill 1975", "A Simple General Approach to Inference About the Tail of a Distribution"),
        Source("roy2007", "Roy and Vetterli 2007", "The Effective Rank: A Measure of Effective Dimensionality"),
        Source(
            "rudelson2007",
            "Rudelson and Vershynin 2007",
            "Sampling from Large Matrices: An Approach through Geometric Functional Analysis",
        ),
        Source(
            "bjorck1973",
            "Björck and Golub 1973",
            "Numerical Methods for Computing Angles Between Linear Subspaces",
        ),
        Source(
            "marchenko1967",
            "Marchenko and Pastur 1967",
            "Distribution of Eigenvalues for Some Sets of Random Matrices",
        ),
        Source(
            "johnstone2001",
            "Johnstone 2001",
            "On the Distribution of the Largest Eigenvalue in Principal Components Analysis",
        ),
        Source("hoeffding1951", "Hoeffding 1951", "A Combinatorial Central Limit Theorem"),
        Source("schulman2020", "Schulman 2020", "Approximating KL Divergence"),
    )
}
"""Every paper by its key."""
