"""Classical estimators of a density ratio p(x)/q(x), from samples of p (numerator) and of q (denominator).

One family: a convex function f of the ratio makes a loss whose minimiser over all functions is the ratio,

    BR_f(r) = E_q[ f'(r) r - f(r) ] - E_p[ f'(r) ],

and the estimators differ in f, in the model of r, and in how they are solved.

    ulsif      f = (r - 1)**2 / 2                  r = theta . phi        closed form, exact leave-one-out
    rulsif     the same, for the relative ratio: the mixture alpha p + (1 - alpha) q in the place of q
    kliep      f = r log r - r                     r = theta . phi >= 0   convex, cross-validated likelihood
    logistic   f = r log r - (1 + r) log(1 + r)    log r = theta . phi    convex, a classifier of p against q
    bregman    any f, either model, any alpha                             Newton, with derivatives by autograd

phi are Gaussian kernels at numerator points, or `features` of yours. The convention of the whole course is
r_alpha = p / (alpha p + (1 - alpha) q): alpha = 0 is the plain ratio, and r_alpha is never above 1/alpha.

Papers: KLIEP, Sugiyama et al. 2008; uLSIF, Kanamori, Hido and Sugiyama 2009; RuLSIF, Yamada et al. 2011; the
family, Sugiyama, Suzuki and Kanamori 2012.

How this differs from the papers
- Leave-one-out leaves out one point, of p or of q, and predicts that point. uLSIF's paper leaves out a pair, one
  of each, so that its score depends on how the points are paired and skips some of the larger sample.
- RuLSIF is selected by the same exact leave-one-out, where its paper cross-validates in folds.
- KLIEP minimises E_q[r] - E_p[log r] over theta >= 0. Its minimiser has E_q[r] = 1 on the sample (scale r to see
  why), which the paper imposes as a constraint.
- Centres are drawn from the sorted sample, so that the order of the rows does not matter.
"""

from course_utils.density_ratios.divergences import (
    gaussian_kl,
    gaussian_pearson,
    gaussian_ratio,
    kl_divergence,
    pearson_divergence,
    relative_ratio,
)
from course_utils.density_ratios.estimators import (
    bregman,
    kliep,
    logistic,
    rulsif,
    ulsif,
)
from course_utils.density_ratios.family import GENERATORS, bregman_loss, power
from course_utils.density_ratios.models import RatioEstimate, RatioSettings, draw_centres, median_distance
from course_utils.density_ratios.selection import Selection, select

__all__ = [
    "GENERATORS",
    "RatioEstimate",
    "RatioSettings",
    "Selection",
    "bregman",
    "bregman_loss",
    "draw_centres",
    "gaussian_kl",
    "gaussian_pearson",
    "gaussian_ratio",
    "kl_divergence",
    "kliep",
    "logistic",
    "median_distance",
    "pearson_divergence",
    "power",
    "relative_ratio",
    "rulsif",
    "select",
    "ulsif",
]
