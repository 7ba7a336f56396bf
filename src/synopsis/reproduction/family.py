"""The neural processes that the literature compares, at their published sizes, in the order of their years."""

from synopsis.processes.base import PROCESSES
from synopsis.processes.joint import JointProcess
from synopsis.training.evaluation import HasJointDensity

TITLES = {
    "CNP": "CNP",
    "CANP": "CANP",
    "NP": "NP",
    "ANP": "ANP",
    "BNP": "BNP",
    "BANP": "BANP",
    "TNPD": "TNP-D",
    "TNPA": "TNP-A",
    "TNPND": "TNP-ND",
    "EQTNP": "EQTNP",
    "LBANP": "LBANP",
    "LBANPND": "LBANP-ND",
    "CMANP": "CMANP",
    "CMANPAND": "CMANP-AND",
}
# Not of the literature: ours, with an anchor in Bayesian regressions.
OURS = {
    "SpectralRegression": "the anchor alone",
    "AnchoredCMANP": "anchored CMANP",
    "AnchoredCMANPAND": "anchored CMANP-AND",
}
EVERY_TITLE = {**TITLES, **OURS}


def is_joint(name: str) -> bool:
    """Whether a process knows how probable its targets are together, more than each by itself.

    Example:
        >>> is_joint("TNPA"), is_joint("TNPD")
        (True, False)
    """
    return issubclass(PROCESSES[name], JointProcess | HasJointDensity)


def streams(name: str) -> bool:
    """Whether what a process keeps has a size that does not grow with what it has seen."""
    return PROCESSES[name].bounded
