"""What is fitted, theta . phi(x) over Gaussian kernels or given features, and the samples it is fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.statistics import seeds


@dataclass(frozen=True)
class RatioSettings:
    """Everything that was chosen, by you or by selection, before theta was computed."""

    method: str
    alpha: float = 0.0
    link: str = "linear"
    coefficients: str = "keep"
    regularisation: float = 0.0
    width: float | None = None


@dataclass(frozen=True)
class Basis:
    """phi(x): Gaussian kernels exp(-|x - c|**2 / (2 width**2)) at centres c, or the features of the caller.

    A model of the log-ratio gets a constant as its last column, which is never regularised.
    """

    dimensions: int
    centres: Tensor | None = None
    width: float | None = None
    features: Callable[[Tensor], Tensor] | None = None
    constant: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.features is not None:
            columns = torch.as_tensor(self.features(x), dtype=torch.float64)
            columns = columns.reshape(len(x), -1) if columns.numel() == len(x) else columns
            if columns.ndim != 2 or len(columns) != len(x) or not torch.isfinite(columns).all():
                what = f"features gave shape {tuple(columns.shape)} for {len(x)} points, or values not finite"
                remedy = "return a finite tensor of shape [points, features]"
                raise CourseError("density-ratio-features", what, where="features", remedy=remedy)
        else:
            # differences, not |x|**2 - 2 x.c + |c|**2, which loses its digits far from the origin
            distance = torch.cdist(x, self.centres, compute_mode="donot_use_mm_for_euclid_dist")
            columns = torch.exp(-((distance / self.width) ** 2) / 2)
        if self.constant:
            columns = torch.cat([columns, columns.new_ones(len(x), 1)], dim=1)
        return columns

    def penalty(self, regularisation: float, columns: int) -> Tensor:
        found = torch.full((columns,), float(regularisation), dtype=torch.float64)
        if self.constant:
            found[-1] = 0
        return found


@dataclass(frozen=True)
class RatioEstimate:
    """A fitted ratio. `score` is the held-out loss, smaller is better, where one was computed."""

    settings: RatioSettings
    theta: Tensor = field(repr=False)
    basis: Basis = field(repr=False)
    score: float | None = None

    def ratio(self, x: Any) -> Tensor:
        """The estimate of p / (alpha p + (1 - alpha) q) at the points x."""
        score = self._theta_phi(x)
        return score.exp() if self.settings.link == "exponential" else score

    def log_ratio(self, x: Any) -> Tensor:
        score = self._theta_phi(x)
        return score if self.settings.link == "exponential" else score.log()

    def _theta_phi(self, x: Any) -> Tensor:
        points = sample(x, "x", "RatioEstimate.ratio", least=0)
        if points.shape[1] != self.basis.dimensions:
            what = f"x has {points.shape[1]} columns, the estimate was fitted to {self.basis.dimensions}"
            remedy = "pass points of shape [points, columns], or [points] for one column"
            raise CourseError("density-ratio-shape", what, where="RatioEstimate.ratio", remedy=remedy)
        return self.basis(points) @ self.theta

    def __str__(self) -> str:
        chosen = self.settings
        width = "" if chosen.width is None else f", width {chosen.width:.3g}"
        score = "" if self.score is None else f", held-out loss {self.score:.4g}"
        alpha = f" (alpha = {chosen.alpha:g})" if chosen.alpha else ""
        return f"{chosen.method}{alpha}: regularisation {chosen.regularisation:.3g}{width}{score}"


def sample(values: Any, name: str, where: str, least: int = 2) -> Tensor:
    """Points as float64 [points, columns], refused when there are too few or any is not finite."""
    points = values.detach() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
    points = torch.as_tensor(points).to(device="cpu", dtype=torch.float64)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] == 0:
        what = f"{name} has shape {tuple(points.shape)}, expected [points, columns] or [points]"
        raise CourseError("density-ratio-shape", what, where=where, remedy="one row for each point")
    if len(points) < least:
        what = f"{name} has {len(points)} points, at least {least} are needed"
        raise CourseError("density-ratio-too-few", what, where=where, remedy="draw a larger sample")
    if bad := int((~torch.isfinite(points)).any(dim=1).sum()):
        what = f"{name} has {bad} of {len(points)} points that are NaN or infinite"
        raise CourseError("density-ratio-not-finite", what, where=where, remedy="find where they come from")
    return points


def two_samples(numerator: Any, denominator: Any, where: str) -> tuple[Tensor, Tensor]:
    p, q = sample(numerator, "numerator", where), sample(denominator, "denominator", where)
    if p.shape[1] != q.shape[1]:
        what = f"numerator has {p.shape[1]} columns but denominator has {q.shape[1]}"
        raise CourseError("density-ratio-shape", what, where=where, remedy="both samples live in one space")
    return p, q


def draw_centres(numerator: Any, count: int = 100, seed: int = 0) -> Tensor:
    """Kernel centres: `count` points of the numerator sample, or all if there are fewer.

    The sample is sorted before the draw, so the order of its rows does not matter.
    """
    points = sample(numerator, "numerator", "draw_centres", least=1)
    if count < 1:
        remedy = "100 is usual"
        what = f"count must be at least 1, got {count!r}"
        raise CourseError("density-ratio-option", what, where="draw_centres", remedy=remedy)
    points = points[torch.from_numpy(np.lexsort(points.numpy().T[::-1]))]
    if len(points) <= count:
        return points
    return points[shuffled(len(points), seed)[:count].sort().values]


def shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seeds(seed, 1)[0]))


def median_distance(numerator: Any, denominator: Any, most: int = 500) -> float:
    """Median distance between two different points of the pooled samples: the usual first guess for a width.

    At most `most` points of each sample are used, evenly spaced in its sorted order.
    """
    both = []
    for points in two_samples(numerator, denominator, "median_distance"):
        points = points[torch.from_numpy(np.lexsort(points.numpy().T[::-1]))]
        both.append(points[torch.linspace(0, len(points) - 1, min(most, len(points))).round().long()])
    distance = float(torch.pdist(torch.cat(both)).median())
    if not (distance > 0 and math.isfinite(distance)):
        what = f"the median distance between the points is {distance:g}"
        remedy = "most points are equal: pass a width, or features for discrete outcomes"
        raise CourseError("density-ratio-width", what, where="median_distance", remedy=remedy)
    return distance
