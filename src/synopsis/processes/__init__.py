"""Neural processes, one family per file."""

from synopsis.processes.anchored import AnchoredCMANP, AnchoredState
from synopsis.processes.base import PROCESSES, Process, build, load, shipped
from synopsis.processes.baselines import LastValue, RunningMean
from synopsis.processes.cmanp import CMANP, CMANPState
from synopsis.processes.heads import Gaussian, GaussianMixture, PredictiveDistribution
from synopsis.processes.linear import BayesianLinear, LinearState
from synopsis.processes.scaling import Scale
from synopsis.processes.spectral import SpectralRegression, SpectralState
from synopsis.processes.standardized import Standardized, StandardizedState

__all__ = [
    "CMANP",
    "PROCESSES",
    "AnchoredCMANP",
    "AnchoredState",
    "BayesianLinear",
    "CMANPState",
    "Gaussian",
    "GaussianMixture",
    "LastValue",
    "LinearState",
    "PredictiveDistribution",
    "Process",
    "RunningMean",
    "Scale",
    "SpectralRegression",
    "SpectralState",
    "Standardized",
    "StandardizedState",
    "build",
    "load",
    "shipped",
]
