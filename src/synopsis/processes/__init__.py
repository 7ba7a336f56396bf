"""Neural processes, one family per file."""

from synopsis.processes.anchored import AnchoredCMANP, AnchoredState
from synopsis.processes.base import PROCESSES, Process, build, load, shipped
from synopsis.processes.cmanp import CMANP
from synopsis.processes.heads import Gaussian, GaussianMixture, PredictiveDistribution
from synopsis.processes.linear import BayesianLinear, LinearState

__all__ = [
    "CMANP",
    "PROCESSES",
    "AnchoredCMANP",
    "AnchoredState",
    "BayesianLinear",
    "Gaussian",
    "GaussianMixture",
    "LinearState",
    "PredictiveDistribution",
    "Process",
    "build",
    "load",
    "shipped",
]
