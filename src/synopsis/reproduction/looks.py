"""How models look in pictures: the same colour and mark for a model in every one of them. Needs matplotlib."""

from dataclasses import dataclass

from matplotlib.axes import Axes

DOTS_PER_INCH = 150
GRID = "#dddddd"
EXACT = "#444444"

# After Okabe and Ito (2008) and Tol (2021); a family shares a colour, and its members differ by mark and line.
_COLOURS = {
    "CNP": "#E69F00",
    "NP": "#56B4E9",
    "BNP": "#AA7744",
    "TNP": "#009E73",
    "EQTNP": "#999933",
    "LBANP": "#CC79A7",
    "CMANP": "#0072B2",
    "anchored": "#D55E00",
}
_LOOKS = {
    "CNP": ("CNP", "o", "-"),
    "CANP": ("CNP", "s", "--"),
    "NP": ("NP", "o", "-"),
    "ANP": ("NP", "s", "--"),
    "BNP": ("BNP", "o", "-"),
    "BANP": ("BNP", "s", "--"),
    "TNPD": ("TNP", "^", "-"),
    "TNPA": ("TNP", "v", ":"),
    "TNPND": ("TNP", "D", "--"),
    "EQTNP": ("EQTNP", "P", "-"),
    "LBANP": ("LBANP", "o", "-"),
    "LBANPND": ("LBANP", "D", "--"),
    "CMANP": ("CMANP", "o", "-"),
    "CMANPAND": ("CMANP", "D", "--"),
    "AnchoredCMANP": ("anchored", "o", "-"),
    "AnchoredCMANPAND": ("anchored", "D", "--"),
}


@dataclass(frozen=True)
class Look:
    """Colour, mark and line of a model."""

    color: str
    marker: str
    linestyle: str


def look(name: str) -> Look:
    """The look of a model; that of a variant such as ``"CMANP-32"`` differs from its model's by mark and line.

    Example:
        >>> look("CNP").color
        '#E69F00'
    """
    model, _, variant = name.partition("-")
    family, marker, line = _LOOKS[model]
    if variant:
        return Look(_COLOURS[family], "*" if line == "-" else "X", "-.")
    return Look(_COLOURS[family], marker, line)


def tidy(axes: Axes) -> None:
    """A faint grid, and no frame above and to the right."""
    axes.grid(which="major", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
