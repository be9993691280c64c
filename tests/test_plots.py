"""The house style: colours told apart by everybody, one look a method, alt text on every figure."""

import itertools

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

from course_utils import plots
from course_utils.errors import CourseError

# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
RGB_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
EVERY = {**plots.PALETTE, "ink": plots.INK, "grey": plots.GREY}


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    xyz = RGB_TO_XYZ @ np.clip(light, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_any_two_colours_are_told_apart(vision):
    seen = {name: lab(np.asarray(VISION[vision]) @ linear(colour)) for name, colour in EVERY.items()}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 19, f"{one} and {other} look alike to {vision}"


def test_the_distance_does_see_colours_that_deuteranopes_confuse():
    matrix = np.asarray(VISION["deuteranopia"])
    assert np.linalg.norm(lab(linear("#c03030")) - lab(linear("#508020"))) > 50
    assert np.linalg.norm(lab(matrix @ linear("#c03030")) - lab(matrix @ linear("#6f6f20"))) < 19


@pytest.mark.parametrize("name", EVERY)
def test_every_colour_stands_out_from_the_white_ground(name):
    luminance = RGB_TO_XYZ[1] @ linear(EVERY[name])
    assert 1.05 / (luminance + 0.05) >= 3


def test_no_two_methods_look_the_same():
    looks = {name: (look.color, look.marker, str(look.linestyle)) for name, look in plots.LOOKS.items() if name != "bt"}
    assert len(set(looks.values())) == len(looks)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(CourseError, match="rdro"):
        plots.look("rdrop")


def test_a_figure_carries_its_alt_text():
    drawn, axes = plots.figure()
    axes.plot([0, 1], [0, 1], **plots.look("dpo").line())
    data, metadata = plots._Picture(drawn, "A line that rises from zero\n to one.")._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "A line that rises from zero to one."
    assert data["text/plain"] == "Figure: A line that rises from zero to one."
    assert data["image/png"].startswith("iVBOR")


def test_a_figure_without_alt_text_is_refused():
    drawn, _ = plots.figure()
    with pytest.raises(CourseError, match="alt text"):
        plots.show(drawn, "")
