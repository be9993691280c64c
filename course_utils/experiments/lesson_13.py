"""The experiments of lesson 13, computed by `bench`: which settings, which cells, how much memory. And how to read them.

Seeds are the outermost of a size, so that a computation that was interrupted is balanced over the methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError
from course_utils.experiments import Experiment
from course_utils.experiments.bench import (
    JUDGES,
    METHODS,
    MIDDLE,
    RATES,
    SEEDS,
    SIZES,
    bench_run,
    candidates,
    memory_run,
    same_rate_run,
    tuning_run,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from course_utils.statistics import Interval

Runs = Sequence[dict[str, Any]]

# Before the other sizes: the control, the best known method and the course's own. All methods would take three hours more.
FEWER = ["sft", "dpo", "rdro"]


EXPERIMENTS = (
    Experiment(
        "13_tuning",
        tuning_run,
        grid=[
            {"method": method, "judge": judge, **setting}
            for judge in JUDGES
            for method in METHODS
            for setting in candidates(method)
        ],
        about="Four settings of each method, learning rate times its own knob, on validation data: what the bench chooses from.",
    ),
    Experiment(
        "13_bench",
        bench_run,
        grid=[
            {"method": method, "judge": judge, "pairs": MIDDLE, "seed": seed}
            for seed in SEEDS
            for judge in JUDGES
            for method in ("reference", *METHODS)
        ],
        about="Every method before two judges, five seeds, settings chosen by likelihood and by wins: the table.",
    ),
    Experiment(
        "13_same_rate",
        same_rate_run,
        grid=[
            {"method": method, "judge": judge, "seed": seed, "learning_rate": rate}
            for rate in reversed(RATES)
            for seed in SEEDS
            for judge in JUDGES
            for method in ("sft", "rdro")
        ],
        about="SFT and RDRO, which have no knob, at the learning rates that methods with a knob may choose.",
    ),
    Experiment(
        "13_memory",
        memory_run,
        grid=[{"method": method} for method in ("reference", *METHODS)],
        about="The peak memory of a short training run of every method, each in a process of its own.",
    ),
    Experiment(
        "13_sizes",
        bench_run,
        grid=[
            {"method": method, "judge": judge, "pairs": pairs, "seed": seed}
            for pairs in SIZES
            if pairs != MIDDLE
            for seed in SEEDS
            for judge in JUDGES
            for method in FEWER
        ],
        about="The bench with fewer and with more comparisons, and the settings that likelihood chose at the middle size.",
    ),
)


# -------------------- reading the results


def column(runs: Runs, method: str, judge: str, rule: str, name: str, pairs: int = MIDDLE) -> np.ndarray:
    """One number of a method for each seed, in the order of the seeds; NaN for a run that failed."""
    import numpy as np

    mine = [
        run
        for run in runs
        if (run["method"], run["judge"], run.get("pairs", MIDDLE)) == (method, judge, pairs)
    ]
    found = [run.get(rule, run) for run in sorted(mine, key=lambda run: run["seed"])]
    return np.array([math.nan if each["failed"] else each[name] for each in found], dtype=float)


def at_rate(runs: Runs, same_rate: Runs, rate: float) -> list[dict[str, Any]]:
    """The bench with SFT and RDRO at this learning rate. Pooled RDRO is class-wise RDRO here: the classes are equal."""
    own = [run for run in same_rate if run["learning_rate"] == rate]
    own += [run | {"method": "rdro_pooled"} for run in own if run["method"] == "rdro"]
    return [run for run in runs if run["method"] not in {each["method"] for each in own}] + own


def difference(
    runs: Runs, a: str, b: str, judge: str, rule: str, name: str, confidence: float = 0.95
) -> Interval:
    """a - b of one number, seed by seed: the mean with paired bootstrap limits. Failed runs are left out, in pairs."""
    import numpy as np

    from course_utils.statistics import paired_bootstrap

    first, second = (column(runs, method, judge, rule, name) for method in (a, b))
    both = np.isfinite(first) & np.isfinite(second)
    return paired_bootstrap(first[both], second[both], confidence).difference


def p_value(differences: Any) -> float:
    """Student's two-sided p-value of paired differences, by inverting the quantile; not below one in 10,000."""
    import numpy as np

    from course_utils.statistics import t_quantile

    values = np.asarray(differences, dtype=float)
    values = values[np.isfinite(values)]
    spread = values.std(ddof=1) / math.sqrt(len(values))
    if spread == 0:
        return 1.0 if values.mean() == 0 else 1e-4
    t, low, high = abs(values.mean()) / spread, 0.5, 1 - 5e-5
    if t >= t_quantile(high, len(values) - 1):
        return 1e-4
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if middle == 0.5 or t_quantile(middle, len(values) - 1) < t else (low, middle)
        )
    return 2 * (1 - low)


def against(runs: Runs, control: str, judge: str, rule: str, name: str) -> list[dict[str, Any]]:
    """Every method against a control: mean, paired bootstrap limits, Holm's p-value over the family, and a verdict.

    The verdict is "higher" or "lower" where Holm's p-value is below 0.05, and "tie" elsewhere.
    """
    import numpy as np

    from course_utils.statistics import holm

    rows = []
    for method in METHODS:
        if method != control:
            gap = column(runs, method, judge, rule, name) - column(runs, control, judge, rule, name)
            if np.isfinite(gap).sum() >= 2:
                limits = difference(runs, method, control, judge, rule, name)
                rows.append({"method": method, "difference": limits, "p": p_value(gap)})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["holm"] = float(adjusted)
        side = "higher" if row["difference"].estimate > 0 else "lower"
        row["verdict"] = side if adjusted < 0.05 else "tie"
    return rows


def size_runs() -> Runs:
    """The stored runs of the other sizes; none if they are not stored here."""
    from course_utils.experiments import results

    try:
        return results("13_sizes")
    except CourseError as error:
        if error.id != "results-missing":
            raise
        return []


# -------------------- what each method aims at


def aim(world: Any, method: str, knob: float | None) -> float | None:
    """KL(p+ || the method's own target), exactly but for the sample of the reference; None where there is no closed form.

    A target is p_ref exp(s) / Z with s = r/beta (DPO and its relatives, where the judge has a reward), W/tau (IPO),
    log(W/(1 - W))/beta (BCO), log 2W (SFT, DDRO, RDRO: p+ itself). W is the win rate against the reference.
    """
    import torch

    w, reward = _wins_and_reward(world)
    scale = knob or 1.0
    if method in ("sft", "ddro", "rdro", "rdro_pooled"):
        tilt = torch.log(2 * w)
    elif method == "ipo":
        tilt = w / scale
    elif method == "bco":
        tilt = torch.logit(w) / scale
    elif method in ("dpo", "bpo", "exo_rw", "reverse_kl") and reward is not None:
        tilt = reward / scale
    else:
        return None
    log_z = torch.logsumexp(tilt, dim=1) - math.log(tilt.shape[1])
    return float(((2 * w * (torch.log(2 * w) - tilt)).mean(dim=1) + log_z).mean())


def _wins_and_reward(world: Any) -> tuple[Tensor, Tensor | None]:
    """W and the judge's reward (None if it has none) of a large sample of the reference, [prompts, responses]."""
    import torch

    table = world.reference_table()
    w = torch.stack(
        [
            world.judge.preference_probability(each.unsqueeze(1), each.unsqueeze(0)).double().mean(dim=1)
            for each in table
        ]
    )
    try:
        return w, world.judge.reward_of(table).double()
    except CourseError:
        return w, None
