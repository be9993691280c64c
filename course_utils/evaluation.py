r"""Evaluation: how far a policy is from the truth, how often it wins, and what training did to it.

    train(policy, pairs, "dpo", evaluate=lambda policy, step: evaluate(policy, world, pairs=held_out))

In a finite world `evaluate` computes: its numbers are exact. In a world of texts it draws responses, and its numbers
are intervals. Shares and means of rows (pairs, samples) come as intervals in both; the rows are taken to be
independent.

KL to the truth is KL(truth || policy), which is infinite for a policy that cannot say what the truth says.

Ranking accuracy and its theory follow Chen et al. 2024, "Preference learning algorithms do not learn preference
rankings" (arXiv 2405.19534). Two things are called accuracy, and they are not the same:

- ranking accuracy: the policy finds the chosen response at least as likely as the rejected one;
- reward accuracy: training raised the chosen response more than the rejected one (log-ratios are compared).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.errors import CourseError
from course_utils.feedback import Pairs, generator_from, require_positive
from course_utils.policies import LanguageModelPolicy, TablePolicy
from course_utils.references import FrozenReference
from course_utils.statistics import Interval, mean_interval, wilson_interval
from course_utils.training.examples import SCORED_AT_ONCE, Layout, examples_for, sample_options
from course_utils.worlds.finite import FiniteWorld

Number = float | Interval
TEXTS_IN_A_BLOCK = 50


def evaluate(
    policy: Any,
    world: Any,
    *,
    reference: Any = None,
    opponent: Any = None,
    pairs: Pairs | None = None,
    truth: Any = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Number]:
    """What there is to know about a policy in a world.

    reference   where the drift and KL(policy || reference) are measured from; the world's own unless given
    opponent    whom the win rate is against; the world's reference unless given
    pairs       held-out comparisons, for accuracies and drift
    truth       a table [X, Y], or a function of the policy that returns KL(truth || policy); without it p+, the
                preferred distribution of the world
    samples     how many responses are drawn where numbers have to be estimated
    """
    reference = _reference_of(world, reference)
    if isinstance(world, FiniteWorld):
        found = _exactly(policy, world, reference, opponent, truth)
    else:
        found = _from_samples(policy, world, reference, opponent, truth, samples, seed)
    return found if pairs is None else found | on_pairs(policy, pairs, reference)


def _exactly(policy: Any, world: FiniteWorld, reference: Any, opponent: Any, truth: Any) -> dict[str, Number]:
    if callable(truth) and not hasattr(truth, "probabilities"):
        kl_to_truth = truth(policy)
    else:
        kl_to_truth = world.kl(world.preferred_distribution() if truth is None else truth, policy)
    found = {
        "kl_to_truth": kl_to_truth,
        "kl_to_reference": world.kl(policy, reference),
        "win_rate": world.win_rate(policy, opponent),
        "entropy": world.entropy(policy),
    }
    return found if world.reward is None else found | {"reward": world.expected_reward(policy)}


def _from_samples(
    policy: Any, world: Any, reference: Any, opponent: Any, truth: Any, samples: int, seed: int
) -> dict[str, Number]:
    from course_utils.sampling import generate

    require_positive(samples, "samples", "evaluate(policy, world, samples=...)")
    generator = generator_from(seed)
    prompts = world.sample_prompts(samples, generator)
    drawn = generate(policy.model, policy.tokenizer, prompts, seed=generator, **sample_options(policy))
    found: dict[str, Number] = {}
    estimate = getattr(world, "kl_to_preferred", None) if truth is None else truth
    if estimate is not None:
        found["kl_to_truth"] = estimate(policy)
    if reference is not None:
        found["kl_to_reference"] = _mean(drawn.policy_log_probs - _scores(reference, drawn.batch()))
    found["win_rate"] = win_rate_of_samples(world, prompts, drawn.texts, generator, opponent)
    try:
        found["reward"] = _mean(world.reward_of(prompts, drawn.texts))
    except CourseError as error:
        if not error.id.endswith("no-reward"):  # a cyclic judge has none
            raise
    found["entropy"] = _mean(-drawn.policy_log_probs)
    found["length"] = _mean(torch.tensor([len(ids) for ids in drawn.response_ids]))
    if samples >= 2 * TEXTS_IN_A_BLOCK:
        found["distinct_2"] = distinct_n(drawn.texts, 2)
    return found


# -------------------- winning


def win_rate(
    policy: Any, world: Any, opponent: Any = None, samples: int = 1000, seed: int = 0
) -> float | Interval:
    """How often the policy's response is preferred to the opponent's (the world's reference unless given).

    Exact in a finite world. Elsewhere the judge's probabilities are averaged over samples, not its verdicts, which
    would add noise of their own.
    """
    if isinstance(world, FiniteWorld):
        return world.win_rate(policy, opponent)
    generator = generator_from(seed)
    prompts = world.sample_prompts(samples, generator)
    return win_rate_of_samples(world, prompts, policy.sample(prompts, generator), generator, opponent)


def win_rate_of_samples(
    world: Any, prompts: Any, responses: Any, generator: torch.Generator, opponent: Any = None
) -> Interval:
    """The win rate of responses that are there already. A world that knows win rates against its reference is asked
    for them; otherwise one response of the opponent is drawn for each.
    """
    if opponent is None and hasattr(world, "win_rate_of_responses") and not isinstance(world, FiniteWorld):
        return _mean(world.win_rate_of_responses(prompts, responses))
    others = world.sample_responses(prompts, generator, opponent)
    return _mean(world.preference_probability(prompts, responses, others))


# -------------------- comparisons


def on_pairs(policy: Any, pairs: Pairs, reference: Any = None) -> dict[str, Interval]:
    """Accuracies on comparisons and, with a reference, how far the log-probabilities have drifted from its own."""
    chosen, rejected = pair_log_probs(policy, pairs)
    found = {"ranking_accuracy": ranking_accuracy(chosen, rejected)}
    if reference is None:
        return found
    ref_chosen, ref_rejected = pair_log_probs(reference, pairs)
    found["reward_accuracy"] = reward_accuracy(chosen, rejected, ref_chosen, ref_rejected)
    found["chosen_drift"] = _mean(chosen - ref_chosen)
    found["rejected_drift"] = _mean(rejected - ref_rejected)
    return found


@torch.no_grad()
def pair_log_probs(policy: Any, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """log pi(chosen | x) and log pi(rejected | x) of every pair, without a gradient."""
    model = policy.model if isinstance(policy, FrozenReference) else policy
    layout = Layout(pairs.prompt, {"chosen": pairs.chosen, "rejected": pairs.rejected})
    found = examples_for(model, layout).all_log_probs(model, None)
    return found["chosen"], found["rejected"]


def ranking_accuracy(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    len_chosen: Tensor | None = None,
    len_rejected: Tensor | None = None,
) -> Interval:
    """The share of pairs with pi(chosen) >= pi(rejected). With lengths, pi^(1/length) is compared."""
    if len_chosen is not None and len_rejected is not None:
        policy_chosen, policy_rejected = policy_chosen / len_chosen, policy_rejected / len_rejected
    return _share(policy_chosen >= policy_rejected)


def reward_accuracy(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> Interval:
    """The share of pairs whose chosen response has the larger log-ratio; a tie is not a success."""
    return _share(policy_chosen - ref_chosen > policy_rejected - ref_rejected)


def ranking_threshold(ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    r"""The loss at which a ranking turns: -log sigma(beta c), c = log pi_ref(rejected) - log pi_ref(chosen).

    A pair is ranked right by the policy exactly if its DPO loss is at most this (theorem 4.1). Where the reference
    ranks a pair wrong by 50 nats, DPO at beta = 0.1 must bring its loss below 0.007.
    """
    return F.softplus(-beta * (ref_rejected - ref_chosen))


def idealised_ranking_accuracy(
    ref_chosen: Tensor, ref_rejected: Tensor, preference: Tensor, beta: float, certain: float = 1e-3
) -> Interval:
    """The ranking accuracy of DPO trained to perfection (corollary 3.3), from the reference and the true preference.

    `preference` is P(chosen preferred to rejected) of each pair; the perfect policy has a log-ratio of
    logit(preference)/beta between the two. Votes that are unanimous are moved by `certain` from 0 and 1.
    """
    bounded = preference.double().clamp(certain, 1 - certain)
    return _share(ref_chosen - ref_rejected + torch.logit(bounded) / beta > 0)


# -------------------- texts


def entropy(policy: Any, world: Any, samples: int = 1000, seed: int = 0) -> float | Interval:
    """The entropy of a response in nats, averaged over prompts: exact for a table, an estimate for a language model."""
    if isinstance(world, FiniteWorld):
        return world.entropy(policy)
    from course_utils.sampling import generate

    generator = generator_from(seed)
    prompts = world.sample_prompts(samples, generator)
    drawn = generate(policy.model, policy.tokenizer, prompts, seed=generator, **sample_options(policy))
    return _mean(-drawn.policy_log_probs)


def distinct_n(texts: Sequence[str], n: int = 2, block: int = TEXTS_IN_A_BLOCK) -> Interval:
    """The share of distinct n-grams of words among all n-grams of a block of texts, averaged over blocks.

    The share falls with the number of texts, so only equal blocks can be compared; texts that do not fill a block
    are left out.
    """
    require_positive(n, "n", "distinct_n(texts, n)")
    shares = []
    for start in range(0, len(texts) - block + 1, block):
        words = [text.split() for text in texts[start : start + block]]
        grams = [tuple(line[i : i + n]) for line in words for i in range(len(line) - n + 1)]
        shares.append(len(set(grams)) / max(1, len(grams)))
    return mean_interval(shares)


# -------------------- parts


def _reference_of(world: Any, reference: Any) -> Any:
    """A policy to measure from; None if neither was given nor the world has one."""
    if reference is not None:
        return reference.model if isinstance(reference, FrozenReference) else reference
    if isinstance(world, FiniteWorld):
        return TablePolicy.from_probabilities(world.reference)
    if hasattr(world, "model") and hasattr(world, "tokenizer"):
        return LanguageModelPolicy(world.model, world.tokenizer)
    return None


def _scores(policy: Any, batch: Any) -> Tensor:
    from course_utils.reference_cache import reference_log_probs

    pieces = torch.arange(len(batch)).split(SCORED_AT_ONCE)
    return reference_log_probs(policy.model, (batch.select(rows) for rows in pieces))


def _mean(values: Tensor) -> Interval:
    return mean_interval(values.detach().double().cpu().numpy())


def _share(right: Tensor) -> Interval:
    return wilson_interval(int(right.sum()), right.numel())
