"""The pocket world: a small language model, a judge that reads its texts, and the truth about both.

    world = pocket.load_world(judge="bradley_terry")
    pairs = preferences.draw_pairs(world, 1000, seed=0)      texts, compared by the judge
    policy = world.new_policy()                              a copy of the reference, to be trained
    print(world.report(policy))                              KL to the truth, win rate, reward, diversity
    world.show(world.draw(policy, per_prompt=1, seed=0), 5)

The reference p_ref is the model `sft`. A judge sees features of the text (`pocket_features`), so preferences,
rewards and win rates are known, and the preferred distribution p+ is known up to a Monte-Carlo error that
comes with an interval (`pocket_truth`).

Wherever a method takes a `policy`, a LanguageModelPolicy or the bare transformers model will do. Prompts
count equally.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.statistics import Interval
from course_utils.worlds import pocket_truth
from course_utils.worlds.pocket_checkpoints import load, load_reference_features
from course_utils.worlds.pocket_features import (
    FEATURE_NAMES,
    PocketFeatures,
    column,
    feature_table,
    features,
    find_prompt,
)
from course_utils.worlds.pocket_judges import Judge, RewardJudge, judge_named, weighted
from course_utils.worlds.pocket_model import MAX_NEW_TOKENS, draw_samples
from course_utils.worlds.pocket_phrases import PROMPTS
from course_utils.worlds.pocket_report import PocketReport, distinct_share, pretty

__all__ = [
    "FEATURE_NAMES",
    "MAX_NEW_TOKENS",
    "PROMPTS",
    "PocketFeatures",
    "PocketReport",
    "PocketSample",
    "PocketWorld",
    "RewardJudge",
    "distinct_share",
    "feature_table",
    "features",
    "load",
    "load_world",
    "weighted",
]


@dataclass(frozen=True, eq=False)
class PocketSample:
    """Responses drawn from a policy, prompt by prompt, as many to each: texts, features [N, 9], and the tokens drawn.

    The tokens say more than the text: a response that was cut at MAX_NEW_TOKENS has no end token.
    """

    prompts: list[str]
    responses: list[str]
    features: Tensor
    tokens: Any  # sampling.Samples

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def prompt_index(self) -> Tensor:
        """The number of each row's prompt in PROMPTS."""
        return _prompt_index(self.prompts)

    def feature(self, name: str) -> Tensor:
        """One feature of all rows."""
        return column(self.features, name)


@dataclass(eq=False)
class PocketWorld:
    """A reference model, its tokenizer, and a judge. Follows the protocol `preferences.World`."""

    model: Any
    tokenizer: Any
    judge: Judge
    reference_features: Tensor | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    # -------------------- the protocol of preferences.World

    @property
    def prompts(self) -> list[str]:
        """The texts of all prompts."""
        return [prompt.text for prompt in PROMPTS]

    def sample_prompts(self, n: int, generator: torch.Generator) -> list[str]:
        """n prompts, drawn with equal weight."""
        return [PROMPTS[i].text for i in torch.randint(len(PROMPTS), (n,), generator=generator).tolist()]

    def sample_responses(
        self,
        prompts: Sequence[str],
        generator: torch.Generator,
        proposal: Any = None,
        temperature: float = 1.0,
    ) -> list[str]:
        """One response to each prompt, from the reference or from another policy.

        A response without a word is drawn again (one in ten thousand is, from the reference): nothing can be learnt
        from it, and encoding refuses it. Samples for measurements (`draw`) are left as they are.
        """
        from course_utils.sampling import generate

        model = self._model(proposal)
        texts, missing = [""] * len(prompts), list(range(len(prompts)))
        for _ in range(20):
            drawn = generate(
                model,
                self.tokenizer,
                [prompts[row] for row in missing],
                max_new_tokens=MAX_NEW_TOKENS,
                temperature=temperature,
                seed=generator,
                batch_size=1024,
            )
            for row, text in zip(missing, drawn.texts, strict=True):
                texts[row] = text
            missing = [row for row in missing if not texts[row].strip()]
            if not missing:
                return texts
        raise CourseError(
            "pocket-empty-responses",
            f"{len(missing)} of {len(prompts)} responses are still empty after 20 draws.",
            where="sample_responses",
            remedy="the policy has learnt to say nothing: train less, or with a larger beta, and look at its samples.",
        )

    def preference_probability(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> Tensor:
        """P(first preferred to second) for each row, exactly."""
        return self.judge.preference_probability(
            feature_table(prompts, first), feature_table(prompts, second)
        )

    def reward_of(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """The judge's reward of each response, exactly; a cyclic judge and a crowd have none."""
        return self.judge.reward_of(feature_table(prompts, responses))

    # -------------------- policies and samples

    def new_policy(self) -> Any:
        """A copy of the reference model as a LanguageModelPolicy, to be trained."""
        from course_utils.policies import LanguageModelPolicy

        model = copy.deepcopy(self.model)
        model.requires_grad_(True)
        return LanguageModelPolicy(model, self.tokenizer, max_new_tokens=MAX_NEW_TOKENS)

    def draw(self, policy: Any = None, per_prompt: int = 50, seed: int = 0) -> PocketSample:
        """The same number of responses to every prompt, from a policy or from the reference."""
        drawn = draw_samples(self._model(policy), self.tokenizer, per_prompt, seed)
        prompts = [PROMPTS[i].text for i in drawn.prompt_index.tolist()]
        return PocketSample(prompts, drawn.texts, feature_table(prompts, drawn.texts), drawn)

    def log_prob(self, policy: Any, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """log pi(response | prompt) of texts, the end token included, without gradients; None is the reference."""
        from course_utils.encoding import encode

        return self._score(policy, encode(self.tokenizer, prompts, responses))

    # -------------------- the truth

    def reference_table(self) -> Tensor:
        """Features [prompts, M, 9] of a large sample from the reference, from which win rates follow."""
        if self.reference_features is None:
            sample = self.draw(per_prompt=256, seed=20_000)
            self.reference_features = sample.features.reshape(len(PROMPTS), -1, len(FEATURE_NAMES))
        return self.reference_features

    def win_rate_of_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """W of each response: the probability that it is preferred to a response of the reference."""
        table = feature_table(prompts, responses)
        return pocket_truth.win_rates(
            self.judge.preference_probability, table, _prompt_index(prompts), self.reference_table()
        )

    def win_rate(self, policy: Any, per_prompt: int = 50, seed: int = 0) -> Interval:
        """How often the policy's responses are preferred to the reference's."""
        return self._win_rate(self.draw(policy, per_prompt, seed))

    def kl_to_preferred(
        self, policy: Any = None, per_prompt: int = 100, seed: int = 0, use_ratio: bool = False
    ) -> Interval:
        """KL(p+ || policy). Without a policy: KL(p+ || p_ref), what there is to learn.

        The same seed uses the same reference responses for every policy, so two policies can be compared
        closely.
        """
        sample, ref_log_prob = self._reference_draw(per_prompt, seed)
        log_prob = ref_log_prob if policy is None else self._score(policy, sample.tokens.batch())
        return pocket_truth.kl_to_preferred(
            self.judge.preference_probability,
            log_prob,
            ref_log_prob,
            sample.features,
            sample.prompt_index,
            self.reference_table(),
            use_ratio=use_ratio,
        )

    def kl_to_reference(self, policy: Any, per_prompt: int = 50, seed: int = 0) -> Interval:
        """KL(policy || p_ref): how far the policy has moved, in nats per response."""
        return self._kl_to_reference(policy, self.draw(policy, per_prompt, seed))

    def mean_reward(self, policy: Any, per_prompt: int = 50, seed: int = 0) -> Interval:
        """The judge's mean reward of the policy's responses."""
        return self._mean_reward(self.draw(policy, per_prompt, seed))

    def report(self, policy: Any, per_prompt: int = 50, seed: int = 0) -> PocketReport:
        """Everything at once, from one draw of the policy and one of the reference."""
        sample = self.draw(policy, per_prompt, seed)
        reward = self._mean_reward(sample) if isinstance(self.judge, RewardJudge) else None
        return PocketReport(
            win_rate=self._win_rate(sample),
            kl_to_preferred=self.kl_to_preferred(policy, per_prompt, seed),
            kl_to_reference=self._kl_to_reference(policy, sample),
            reward=reward,
            distinct_responses=len(set(zip(sample.prompts, sample.responses, strict=True))) / len(sample),
            distinct_bigrams=distinct_share(sample.responses, 2),
            feature_means=dict(zip(FEATURE_NAMES, sample.features.mean(dim=0).tolist(), strict=True)),
        )

    # -------------------- other worlds from this one

    def with_judge(self, judge: str | Judge) -> PocketWorld:
        """The same reference before another judge. Samples of the reference are shared."""
        return replace(self, judge=judge_named(judge))

    def with_reference(self, policy: Any) -> PocketWorld:
        """The same judge with a copy of this policy as the reference: the next round of alignment."""
        model = copy.deepcopy(_model_of(policy)).eval()
        model.requires_grad_(False)
        return PocketWorld(model, self.tokenizer, self.judge)

    # -------------------- reading

    def show(
        self, sample: PocketSample | Sequence[tuple[str, str]], n: int = 6, seed: int | None = None
    ) -> None:
        """Print n responses with what the judge reads in them; `sample` may also be rows (prompt, response).

        Rows are spread evenly over the sample, or drawn with `seed`.
        """
        rows = sample
        if isinstance(sample, PocketSample):
            rows = list(zip(sample.prompts, sample.responses, strict=True))
        picks = torch.linspace(0, len(rows) - 1, min(n, len(rows))).round().long()
        if seed is not None:
            picks = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]
        score: Callable[..., Tensor] | None = self.reward_of if isinstance(self.judge, RewardJudge) else None
        for prompt, response in (rows[i] for i in picks.tolist()):
            reward = None if score is None else score([prompt], [response]).item()
            print(pretty(prompt, response, features(prompt, response), reward), end="\n\n")

    # -------------------- parts

    def _model(self, policy: Any) -> Any:
        return self.model if policy is None else _model_of(policy)

    @torch.no_grad()
    def _score(self, policy: Any, batch: Any, batch_size: int = 256) -> Tensor:
        from course_utils.causal_lm import scoring_mode
        from course_utils.logprobs import sequence_log_probs

        model = self._model(policy)
        values = torch.empty(len(batch), dtype=torch.float64)
        with scoring_mode(model):
            # Similar lengths together: less padding.
            for rows in batch.attention_mask.sum(dim=1).argsort().split(batch_size):
                values[rows] = sequence_log_probs(model, batch.select(rows)).double()
        return values

    def _win_rate(self, sample: PocketSample) -> Interval:
        judged = self.judge.preference_probability
        return pocket_truth.mean_win_rate(
            judged, sample.features, sample.prompt_index, self.reference_table()
        )

    def _mean_reward(self, sample: PocketSample) -> Interval:
        return pocket_truth.mean_over_prompts(self.judge.reward_of(sample.features), sample.prompt_index)

    def _kl_to_reference(self, policy: Any, sample: PocketSample) -> Interval:
        batch = sample.tokens.batch()
        return pocket_truth.kl_to_reference(
            self._score(policy, batch), self._score(None, batch), sample.prompt_index
        )

    def _reference_draw(self, per_prompt: int, seed: int) -> tuple[PocketSample, Tensor]:
        """Responses of the reference with their log-probabilities, drawn once and kept."""
        key = (per_prompt, seed)
        if key not in self._kept:
            # Not the seed of the table: the two samples must be independent.
            sample = self.draw(per_prompt=per_prompt, seed=70_000 + seed)
            self._kept[key] = sample, self._score(None, sample.tokens.batch())
        return self._kept[key]


def load_world(
    judge: str | Judge = "bradley_terry",
    name: str = "sft",
    architecture: str = "qwen2",
    folder: Path | None = None,
) -> PocketWorld:
    """The pocket world with a shipped model as its reference.

    judge         one of pocket_judges.JUDGES by name, or a judge of your own
    name          "sft" (the usual reference) or "base"
    architecture  "qwen2" or "llama"
    """
    chosen = judge_named(judge)
    model, tokenizer = load(name, architecture, folder)
    model.requires_grad_(False)
    return PocketWorld(model, tokenizer, chosen, load_reference_features(name, architecture, folder))


def _model_of(policy: Any) -> Any:
    """The transformers model inside a LanguageModelPolicy or a frozen reference, or the model itself."""
    model = policy
    while not hasattr(model, "get_output_embeddings"):
        if not hasattr(model, "model"):
            raise CourseError(
                "pocket-not-a-language-model",
                f"a {type(policy).__name__} is not a language model.",
                where="a policy of the pocket world",
                remedy="give a LanguageModelPolicy (world.new_policy()) or a transformers causal language model.",
            )
        model = model.model
    return model


def _prompt_index(prompts: Sequence[str]) -> Tensor:
    numbers = {prompt: PROMPTS.index(find_prompt(prompt)) for prompt in set(prompts)}
    return torch.tensor([numbers[prompt] for prompt in prompts])
