"""Log-densities along the flow, the divergence that they need, and what they are good for."""

from pathline.likelihood.density import LogProb, SampleLogProb, log_prob, sample_with_log_prob
from pathline.likelihood.trace import MOST_EXACT, divergence
from pathline.likelihood.weights import Importance, importance

__all__ = [
    "MOST_EXACT",
    "Importance",
    "LogProb",
    "SampleLogProb",
    "divergence",
    "importance",
    "log_prob",
    "sample_with_log_prob",
]
