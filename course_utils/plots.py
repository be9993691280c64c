"""One house style for every figure of the course.

White ground; seven colours that stay apart under the three common colour-vision deficiencies, with markers and line styles as a
second cue; the same look for the same method in every lesson; direct labels instead of legends where they fit; alt text on every image.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course_utils.errors import CourseError

INK = "#1a1a1a"
GREY = "#8a8a8a"
PALETTE = {
    "blue": "#1f65ca",
    "orange": "#d35509",
    "green": "#036136",
    "pink": "#b0509b",
    "sand": "#af8f51",
    "sky": "#1d9ddc",
    "violet": "#5c2a87",
}

HOUSE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "figure.dpi": 100,
}


@dataclass(frozen=True)
class Look:
    """How one method is drawn, in every lesson: a colour, and a marker and a line style as second cue."""

    label: str
    color: str
    marker: str
    linestyle: str | tuple[int, tuple[int, ...]]

    def line(self, **more: Any) -> dict[str, Any]:
        """Keyword arguments for `Axes.plot`."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle, "label": self.label} | more


_DASH_DOT = (0, (6, 2, 1, 2))
_LOOKS = {
    "truth": ("the truth", INK, "", "-"),
    "reference": ("reference", GREY, "", ":"),
    "sft": ("SFT on the chosen", "sand", "s", "--"),
    "reward_model": ("reward model", "sky", "o", "-"),
    "rlhf": ("RLHF", "sky", "D", "--"),
    "best_of_n": ("best of n", "sky", "^", ":"),
    "bt": ("Bradley–Terry", "blue", "o", "-"),
    "dpo": ("DPO", "blue", "o", "-"),
    "cdpo": ("cDPO", "blue", "s", "--"),
    "robust_dpo": ("robust DPO", "blue", "v", ":"),
    "ipo": ("IPO", "blue", "D", _DASH_DOT),
    "flex_dpo": ("Flex-DPO", "blue", "P", ":"),
    "tr_dpo": ("TR-DPO", "sky", "P", _DASH_DOT),
    "simpo": ("SimPO", "sky", "X", "-"),
    "orpo": ("ORPO", "sky", "v", "--"),
    "slic": ("SLiC", "sky", "s", ":"),
    "exo_pref": ("EXO-pref", "violet", "^", "--"),
    "exo_rw": ("EXO-rw", "violet", "o", "-"),
    "dpo_rw": ("DPO-rw", "violet", "s", ":"),
    "brain": ("BRAIn", "violet", "D", _DASH_DOT),
    "pmle": ("PMLE", "pink", "o", "-"),
    "preference_distillation": ("preference distillation", "pink", "s", "--"),
    "reverse_kl": ("reverse KL", "pink", "^", ":"),
    "kto": ("KTO", "sand", "v", "-"),
    "bco": ("BCO", "sand", "D", ":"),
    "ddro": ("DDRO", "orange", "v", "--"),
    "rdro": ("RDRO", "green", "o", "-"),
    "rdro_pooled": ("RDRO, pooled mean", "green", "s", ":"),
    "bpo": ("BPO", "orange", "P", ":"),
    "gpm": ("GPM", "pink", "D", _DASH_DOT),
}
LOOKS = {
    name: Look(label, PALETTE.get(colour, colour), marker, style)
    for name, (label, colour, marker, style) in _LOOKS.items()
}


def look(name: str) -> Look:
    """The look of a method (or of "truth" and "reference")."""
    if name not in LOOKS:
        raise CourseError(
            "unknown-look",
            f"There is no look for {name!r}.",
            where="plots.look",
            remedy=f"use one of {', '.join(LOOKS)}, or add it to course_utils/plots.py so that every lesson draws it alike.",
        )
    return LOOKS[name]


def figure(columns: int = 1, rows: int = 1, *, width: float = 4.4, height: float = 3.2, **options: Any) -> tuple[Figure, Any]:
    """A figure in the house style with its axes (one, or an array of them). `width` and `height` are those of one panel, in inches."""
    plt.rcParams.update(HOUSE)
    drawn, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", **options
    )
    return drawn, axes


def label(axes: Axes, x: float, y: float, text: str, colour: str = INK, **options: Any) -> None:
    """A direct label beside a point, instead of a legend."""
    settings = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9, "fontweight": "bold"}
    axes.annotate(text, (x, y), color=colour, **(settings | options))


def interval_band(axes: Axes, x: Any, low: Any, high: Any, colour: str) -> None:
    """The interval of a curve as a band."""
    axes.fill_between(np.asarray(x, float), np.asarray(low, float), np.asarray(high, float), color=colour, alpha=0.18, linewidth=0)


def show(drawn: Figure, alt: str) -> None:
    """Display a figure with its alt text: the one way every lesson shows a figure.

    The alt text says what the picture shows and what to see in it, for a reader who cannot see it.
    """
    from IPython.display import display

    display(_Picture(drawn, alt))
    plt.close(drawn)


class _Picture:
    """A figure as PNG together with its alt text (as metadata of the image, and as its plain-text form)."""

    def __init__(self, drawn: Figure, alt: str) -> None:
        self.data, self.metadata = _bundle(drawn, alt)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata


def _bundle(drawn: Figure, alt: str) -> tuple[dict[str, str], dict[str, Any]]:
    alt = " ".join(alt.split())
    if len(alt) < 20:
        raise CourseError(
            "alt-text",
            f"The alt text {alt!r} is too short to stand for a picture.",
            where="plots.show",
            remedy="say what the figure shows and what one sees in it, in a sentence or two.",
        )
    png = io.BytesIO()
    drawn.savefig(png, format="png", dpi=100, metadata={"Software": None})
    text = base64.b64encode(png.getvalue()).decode()
    return {"image/png": text, "text/plain": f"Figure: {alt}"}, {"image/png": {"alt": alt}}


def slider(draw: Callable[..., Figure], *, alt: str, **controls: tuple[float, float, float]) -> None:
    """A picture with its alt text, and below it sliders that redraw the picture where the page is alive.

    `draw` returns a figure for given values; each control is `name=(low, high, start)`. On a page that cannot run code (or where
    ipywidgets is absent) the picture at the start values stands alone.
    """
    start = {name: value[2] for name, value in controls.items()}
    show(draw(**start), alt)
    try:
        import ipywidgets
    except ImportError:
        print("(Sliders need the package ipywidgets; the picture above shows the starting values.)")
        return
    from IPython.display import display

    handles = {
        name: ipywidgets.FloatSlider(min=low, max=high, value=value, step=(high - low) / 60, description=name, continuous_update=False)
        for name, (low, high, value) in controls.items()
    }

    def redraw(**values: float) -> None:
        show(draw(**values), f"The same picture, redrawn for {values}.")

    display(ipywidgets.VBox([*handles.values(), ipywidgets.interactive_output(redraw, handles)]))
