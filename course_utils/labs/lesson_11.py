"""The checks of lesson 11: RDRO's loss, weights that mend a pooled mean, and a test of the premise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from course_utils.labs.exercises import Case, Exercise, Mistake

# 11.1


def rdro_loss(log_ratio: Tensor, preferred: Tensor, alpha: float) -> Tensor:
    """RDRO's loss of each response."""
    of_preferred = softplus(-log_ratio) + alpha * softplus(log_ratio)
    return torch.where(preferred, of_preferred, (1 - alpha) * softplus(log_ratio))


def _rdro_as_one_term_less(log_ratio: Tensor, preferred: Tensor, alpha: float) -> Tensor:
    sign = preferred.to(log_ratio)
    return (1 + (2 * sign - 1) * alpha) * softplus(log_ratio) - sign * log_ratio


def _rdro_by_loop(log_ratio: Tensor, preferred: Tensor, alpha: float) -> Tensor:
    losses = []
    for l, liked in zip(log_ratio, preferred.tolist(), strict=True):
        rising = torch.logaddexp(torch.zeros_like(l), l)
        losses.append((1 + alpha) * rising - l if liked else (1 - alpha) * rising)
    return torch.stack(losses)


def _loss(log_ratio: Tensor, preferred: Tensor, on_preferred: Tensor, on_rejected: Tensor) -> Tensor:
    return torch.where(preferred, on_preferred, on_rejected)


def _ddro(log_ratio: Tensor, preferred: Tensor, alpha: float) -> Tensor:
    g = ((-log_ratio).exp() - alpha) / (1 - alpha)
    return torch.where(preferred, torch.log1p(g), torch.log1p(1 / g))


def _naive(log_ratio: Tensor, preferred: Tensor, alpha: float) -> Tensor:
    rising = torch.log(1 + log_ratio.exp())
    return torch.where(preferred, (1 + alpha) * rising - log_ratio, (1 - alpha) * rising)


def _loss_cases() -> Iterator[Case]:
    for seed, alpha in ((1, 0.5), (2, 0.39), (3, 0.8)):
        generator = torch.Generator().manual_seed(seed)
        log_ratio = 2 * torch.randn(8, generator=generator, dtype=torch.float64)
        preferred = torch.arange(8) % 3 == 0
        yield Case((log_ratio, preferred, alpha), f"eight responses, alpha = {alpha}")
    far = torch.tensor([900.0, -900.0, 900.0, -900.0], dtype=torch.float64)
    yield Case((far, torch.tensor([True, True, False, False]), 0.39), "log-ratios of 900 and -900")


# 11.2


def premise_z(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> float:
    """How many standard errors E_ref[h] lies from alpha E+[h] + (1 - alpha) E-[h]."""
    gap = of_ref.mean() - alpha * of_preferred.mean() - (1 - alpha) * of_rejected.mean()
    return float(gap / _error(of_ref, of_preferred, of_rejected, alpha))


def _error(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> Tensor:
    variance = of_ref.var() / len(of_ref) + alpha**2 * of_preferred.var() / len(of_preferred)
    return (variance + (1 - alpha) ** 2 * of_rejected.var() / len(of_rejected)).sqrt()


def _gap(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> Tensor:
    return of_ref.mean() - alpha * of_preferred.mean() - (1 - alpha) * of_rejected.mean()


def _z_by_standard_errors(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> float:
    parts = ((of_ref, 1.0), (of_preferred, alpha), (of_rejected, 1 - alpha))
    errors = torch.stack([weight * values.std() / len(values) ** 0.5 for values, weight in parts])
    return float(_gap(of_ref, of_preferred, of_rejected, alpha) / torch.linalg.vector_norm(errors))


def _spread(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> Tensor:
    parts = ((of_ref, 1.0), (of_preferred, alpha), (of_rejected, 1 - alpha))
    return sum(weight**2 * values.var() for values, weight in parts).sqrt()


def _weights_not_squared(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> Tensor:
    parts = ((of_ref, 1.0), (of_preferred, alpha), (of_rejected, 1 - alpha))
    return sum(weight * values.var() / len(values) for values, weight in parts).sqrt()


def _errors_added(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> Tensor:
    parts = ((of_ref, 1.0), (of_preferred, alpha), (of_rejected, 1 - alpha))
    return sum(weight * values.std() / len(values) ** 0.5 for values, weight in parts)


def _z_with_plain_variances(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> float:
    parts = ((of_ref, 1.0), (of_preferred, alpha), (of_rejected, 1 - alpha))
    variance = sum(weight**2 * values.var(correction=0) / len(values) for values, weight in parts)
    return float(_gap(of_ref, of_preferred, of_rejected, alpha) / variance.sqrt())


def _premise_cases() -> Iterator[Case]:
    for seed, alpha, sizes in ((1, 0.5, (40, 30, 50)), (2, 0.39, (100, 39, 61)), (3, 0.2, (20, 60, 30))):
        generator = torch.Generator().manual_seed(seed)
        parts = [
            spread * torch.randn(size, generator=generator, dtype=torch.float64) - 20 + shift
            for size, spread, shift in zip(sizes, (3.0, 1.0, 5.0), (0.0, 2.0, -3.0), strict=True)
        ]
        yield Case((*parts, alpha), f"{', '.join(map(str, sizes))} values, alpha = {alpha}")


# 11.3


def mending_weights(preferred: Tensor) -> Tensor:
    """Weights that turn one plain mean into the sum of two class means."""
    share = preferred.double().mean()
    # the argument is of bool, so an answer in float32 is as right as one in float64: the check asks for no more
    return torch.where(preferred, 1 / share, 1 / (1 - share)).float()


def _weights_by_counts(preferred: Tensor) -> Tensor:
    n, liked = len(preferred), int(preferred.sum())
    weights = torch.full((n,), n / (n - liked), dtype=torch.float64)
    weights[preferred] = n / liked
    return weights


def _weights_in_float32(preferred: Tensor) -> Tensor:
    share = preferred.float().mean()
    return preferred.float() / share + (~preferred).float() / (1 - share)


def _by_share(preferred: Tensor, recipe: str) -> Tensor:
    share = preferred.double().mean()
    value = {
        "swapped": (1 / (1 - share), 1 / share),
        "half": (0.5 / share, 0.5 / (1 - share)),
        "shares": (share, 1 - share),
        "other share": (1 - share, share),
        "kto": ((1 - share) / share, torch.ones(())),
        "counts": (1 / preferred.sum(), 1 / (~preferred).sum()),
    }[recipe]
    return torch.where(preferred, value[0].double(), value[1].double())


def _batches() -> Iterator[Case]:
    for n, liked in ((8, 2), (10, 7), (100, 39)):
        yield Case((torch.arange(n) < liked,), f"{liked} of {n} are preferred")


EXERCISES = (
    Exercise(
        id="11.1",
        title="The loss",
        truth=rdro_loss,
        cases=_loss_cases,
        explain="No clipping, no stabiliser, no beta: the ratio it fits is bounded by itself.",
        also_right=(_rdro_as_one_term_less, _rdro_by_loop),
        mistakes=(
            Mistake(
                "the plain classifier",
                "This is logistic regression of preferred against rejected: its ratio is p+/p-. The mixture in the "
                "denominator adds alpha softplus(l) on the preferred and leaves 1 - alpha of it on the rejected.",
                lambda log_ratio, preferred, alpha: _loss(
                    log_ratio, preferred, softplus(-log_ratio), softplus(log_ratio)
                ),
            ),
            Mistake(
                "preferred responses are not in the denominator",
                "The preferred responses are part of the mixture too: they also carry alpha softplus(l).",
                lambda log_ratio, preferred, alpha: _loss(
                    log_ratio, preferred, softplus(-log_ratio), (1 - alpha) * softplus(log_ratio)
                ),
            ),
            Mistake(
                "alpha and 1 - alpha exchanged",
                "The alpha is the share of p+ in the mixture: it goes with the preferred responses, 1 - alpha with the "
                "rejected ones.",
                lambda log_ratio, preferred, alpha: rdro_loss(log_ratio, preferred, 1 - alpha),
            ),
            Mistake(
                "numerator forgotten",
                "The numerator's term softplus(-l) on the preferred is missing: nothing pushes them up.",
                lambda log_ratio, preferred, alpha: _loss(
                    log_ratio, preferred, alpha * softplus(log_ratio), (1 - alpha) * softplus(log_ratio)
                ),
            ),
            Mistake(
                "DDRO",
                "This is DDRO: it fits p-/p+ through a subtraction. Here the ratio is the policy's own, e^l.",
                _ddro,
            ),
            Mistake(
                "overflow",
                "For a log-ratio of 900 exp overflows: use softplus, which stays in the log domain.",
                _naive,
            ),
            Mistake(
                "the sign of l",
                "The sign of the log-ratio is turned: this pushes preferred responses down.",
                lambda log_ratio, preferred, alpha: rdro_loss(-log_ratio, preferred, alpha),
            ),
            Mistake(
                "already averaged",
                "This is one number. Return one loss for each response; how to average is the next question.",
                lambda log_ratio, preferred, alpha: rdro_loss(log_ratio, preferred, alpha).mean(),
            ),
        ),
    ),
    Exercise(
        id="11.2",
        title="Test the premise",
        truth=premise_z,
        cases=_premise_cases,
        explain="A large |z| refutes the premise; a small one only says that this statistic did not notice.",
        also_right=(_z_by_standard_errors,),
        mistakes=(
            Mistake(
                "the gap itself",
                "This is the gap, in nats: divide it by its standard error.",
                lambda r, p, m, alpha: float(_gap(r, p, m, alpha)),
            ),
            Mistake(
                "spread instead of standard error",
                "This divides by the spread of single values: the variance of a mean is divided by the number of values.",
                lambda r, p, m, alpha: float(_gap(r, p, m, alpha) / _spread(r, p, m, alpha)),
            ),
            Mistake(
                "variance of the sample",
                "These variances divide by n. The samples are finite: divide by n - 1, as `x.var()` does by itself.",
                _z_with_plain_variances,
            ),
            Mistake(
                "weights not squared",
                "The weights alpha and 1 - alpha multiply means, so their squares multiply the variances.",
                lambda r, p, m, alpha: float(_gap(r, p, m, alpha) / _weights_not_squared(r, p, m, alpha)),
            ),
            Mistake(
                "alpha and 1 - alpha exchanged",
                "Here alpha weighs the rejected values; it belongs to the preferred ones.",
                lambda r, p, m, alpha: premise_z(r, p, m, 1 - alpha),
            ),
            Mistake(
                "standard errors added",
                "Standard errors of independent samples add as squares: add variances, then take the root.",
                lambda r, p, m, alpha: float(_gap(r, p, m, alpha) / _errors_added(r, p, m, alpha)),
            ),
            Mistake(
                "the reference's own error forgotten",
                "The reference's mean comes from a sample too: its variance belongs to the sum.",
                lambda r, p, m, alpha: float(
                    _gap(r, p, m, alpha)
                    / (alpha**2 * p.var() / len(p) + (1 - alpha) ** 2 * m.var() / len(m)).sqrt()
                ),
            ),
            Mistake(
                "sign",
                "The sign is turned: reference minus mixture.",
                lambda r, p, m, alpha: -premise_z(r, p, m, alpha),
            ),
        ),
    ),
    Exercise(
        id="11.3",
        title="Mend a trainer that takes one mean",
        truth=mending_weights,
        cases=_batches,
        explain="In a trainer without such weights, rdro_pooled has them built in (for alpha = the preferred share).",
        also_right=(_weights_by_counts, _weights_in_float32),
        mistakes=(
            Mistake(
                "classes exchanged",
                "The weights of the two classes have changed places: the rarer class needs the larger weight.",
                lambda preferred: _by_share(preferred, "swapped"),
            ),
            Mistake(
                "half the loss",
                "This has the right minimiser and is half the loss: the two class means are added, not averaged.",
                lambda preferred: _by_share(preferred, "half"),
            ),
            Mistake(
                "share instead of its inverse",
                "This multiplies by the share, which the plain mean has done already; divide by it.",
                lambda preferred: _by_share(preferred, "shares"),
            ),
            Mistake(
                "the other class's share",
                "This multiplies each class by the share of the other. It balances the classes, and makes the whole loss "
                "smaller by share times one minus share, batch by batch: divide by the share of its own class.",
                lambda preferred: _by_share(preferred, "other share"),
            ),
            Mistake(
                "only one class weighted",
                "This is KTO's recipe: balance the classes by weighing one. The ratio of the weights is right; their size is "
                "not, so the sum of the two means comes out scaled.",
                lambda preferred: _by_share(preferred, "kto"),
            ),
            Mistake(
                "divided twice",
                "These are one over the counts, for a sum. The plain mean divides by the size of the batch as well: "
                "divide by the share instead.",
                lambda preferred: _by_share(preferred, "counts"),
            ),
        ),
    ),
)
