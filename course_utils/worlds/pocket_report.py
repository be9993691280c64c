"""What a policy of the pocket world is like, in numbers and in words for a person to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from course_utils.statistics import Interval
from course_utils.worlds.pocket_features import PocketFeatures
from course_utils.worlds.pocket_phrases import TONES, split_words


@dataclass(frozen=True)
class PocketReport:
    """One policy, measured. `reward` is None where the judge has none.

    distinct_responses   distinct pairs of prompt and response divided by all of them; 1 when no text is said
                         twice
    distinct_bigrams     distinct pairs of neighbouring words divided by all such pairs; it falls when texts
                         become alike
    """

    win_rate: Interval
    kl_to_preferred: Interval
    kl_to_reference: Interval
    reward: Interval | None
    distinct_responses: float
    distinct_bigrams: float
    feature_means: dict[str, float]

    def __str__(self) -> str:
        reward = "none: this judge has no score" if self.reward is None else str(self.reward)
        means = "  ".join(f"{name} {value:.2f}" for name, value in self.feature_means.items())
        return "\n".join(
            [
                f"win rate against p_ref   {self.win_rate}",
                f"KL(p+ || policy)         {self.kl_to_preferred}",
                f"KL(policy || p_ref)      {self.kl_to_reference}",
                f"reward                   {reward}",
                f"distinct texts {self.distinct_responses:.3f}, distinct word pairs {self.distinct_bigrams:.4f}",
                f"means: {means}",
            ]
        )


def distinct_share(texts: Sequence[str], n: int) -> float:
    """Distinct-n: distinct rows of n neighbouring words, divided by all of them, over all texts together.

    It depends on how much text there is; compare samples of one size.
    """
    rows = [tuple(words[i : i + n]) for words in map(split_words, texts) for i in range(len(words) - n + 1)]
    return len(set(rows)) / max(1, len(rows))


def pretty(prompt: str, response: str, found: PocketFeatures, reward: float | None = None) -> str:
    """A prompt, a response and its features, as a person would note them."""
    notes = [
        {1: "right", 0: "no answer", -1: "wrong"}[found.correct] + (", hedged" if found.hedged else ""),
        TONES[found.tone],
        f"{found.details} detail{'' if found.details == 1 else 's'}",
    ]
    if found.sentiment:
        notes.append("bright" if found.sentiment > 0 else "gloomy")
    if found.flattery:
        notes.append(f"flattery {found.flattery}")
    if found.repeats:
        notes.append(f"repeats {found.repeats}")
    notes.append(f"{found.words} words")
    if not found.grammatical:
        notes.append("NOT GRAMMATICAL")
    if reward is not None:
        notes.append(f"reward {reward:+.2f}")
    return f"  guest  {prompt}\n  desk   {response}\n         [{' · '.join(notes)}]"
