"""Neural processes, one family per file."""

from synopsis.processes.anchored import AnchoredCMANP, AnchoredState
from synopsis.processes.anchored_and import AnchoredCMANPAND
from synopsis.processes.base import PROCESSES, Process, build, load, shipped
from synopsis.processes.baselines import LastValue, RunningMean
from synopsis.processes.bootstrap import BANP, BNP
from synopsis.processes.cholesky_gaussian import CholeskyGaussian
from synopsis.processes.cmanp import CMANP, CMANPState
from synopsis.processes.cmanp_and import CMANPAND
from synopsis.processes.conditional import CANP, CNP, CNPState
from synopsis.processes.context import ContextState
from synopsis.processes.eqtnp import EQTNP
from synopsis.processes.heads import Gaussian, GaussianMixture, PredictiveDistribution
from synopsis.processes.joint import JointProcess
from synopsis.processes.joint_gaussians import JointGaussian, LowRankGaussian
from synopsis.processes.latent import ANP, NP, Ensemble, NPState
from synopsis.processes.lbanp import LBANP, LBANPND
from synopsis.processes.linear import BayesianLinear, LinearState
from synopsis.processes.scaling import Scale
from synopsis.processes.spectral import SpectralRegression, SpectralState
from synopsis.processes.standardized import Standardized, StandardizedState
from synopsis.processes.tnp import TNPD, TNPND
from synopsis.processes.tnp_autoregressive import TNPA

__all__ = [
    "ANP",
    "BANP",
    "BNP",
    "CANP",
    "CMANP",
    "CMANPAND",
    "CNP",
    "EQTNP",
    "LBANP",
    "LBANPND",
    "NP",
    "PROCESSES",
    "TNPA",
    "TNPD",
    "TNPND",
    "AnchoredCMANP",
    "AnchoredCMANPAND",
    "AnchoredState",
    "BayesianLinear",
    "CMANPState",
    "CNPState",
    "CholeskyGaussian",
    "ContextState",
    "Ensemble",
    "Gaussian",
    "GaussianMixture",
    "JointGaussian",
    "JointProcess",
    "LastValue",
    "LinearState",
    "LowRankGaussian",
    "NPState",
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
