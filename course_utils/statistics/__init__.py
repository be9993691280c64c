"""Seeds, intervals, slopes and paired tests: how sure we are of a number we measured.

Every figure and every row of the claims ledger passes through here. It needs numpy alone; a torch tensor is
accepted wherever an array is. There is no global random state: what draws at random takes a `seed`.

    seeds                                               independent seeds for the repeats of an experiment
    mean_interval, wilson_interval, bootstrap_interval  one sample
    paired_bootstrap, paired_permutation_test, holm     who is better, and is it chance
    log_log_slope                                       the exponent of a power law
    calibration_curve, expected_calibration_error       said against happened
    t_quantile, normal_quantile                         what the intervals are made of

How this differs from the usual recipes
- Student's t quantile is computed here, from the closed form for whole degrees of freedom.
- `method="expanded"` is the expanded percentile interval of Hesterberg ("What teachers should know about the
  bootstrap", The American Statistician 69, 2015): percentile limits, read further out so that they are as
  wide as Student's. For few values the others are too short: for the mean of five normal values, nominal 95 %
  limits held the truth in 83 % (percentile), 83 % (BCa), 91 % (expanded) and 94 % (t) of 1500 simulations. So
  "expanded" is the default wherever a handful of seeds is compared.
"""

from course_utils.statistics.calibration import (
    CalibrationBin,
    CalibrationCurve,
    calibration_curve,
    expected_calibration_error,
)
from course_utils.statistics.intervals import (
    Interval,
    bootstrap_interval,
    mean_interval,
    seeds,
    wilson_interval,
)
from course_utils.statistics.paired import (
    PairedComparison,
    PermutationTest,
    holm,
    paired_bootstrap,
    paired_permutation_test,
)
from course_utils.statistics.quantiles import normal_quantile, t_quantile
from course_utils.statistics.slopes import LogLogSlope, log_log_slope

__all__ = [
    "CalibrationBin",
    "CalibrationCurve",
    "Interval",
    "LogLogSlope",
    "PairedComparison",
    "PermutationTest",
    "bootstrap_interval",
    "calibration_curve",
    "expected_calibration_error",
    "holm",
    "log_log_slope",
    "mean_interval",
    "normal_quantile",
    "paired_bootstrap",
    "paired_permutation_test",
    "seeds",
    "t_quantile",
    "wilson_interval",
]
