"""Examples: feedback laid out for one objective, and a model's log-probabilities of it.

An objective says what one example is; `lay_out` picks the columns. A response has a slot: "chosen" and "rejected" of
a comparison, "1" and "2" of a pair that was scored and not judged, "" where there is one response (or a group of
them) for each prompt. Two classes answer the same questions about the rows of a batch: `PlainExamples` asks the
model's own `log_prob(prompts, responses)`; `EncodedExamples` tokenises texts once, before training begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.feedback import Column, Groups, Pairs, SoftPairs, Unpaired, take_rows

SCORED_AT_ONCE = 64  # rows of text for which a reference that stays is asked at a time
TOGETHER_ON_A_CPU = 32  # rows of text in one forward pass; a third faster than 128 rows of all lengths

# What an objective of each kind can be given; the first is its own, the others are converted.
ACCEPTED: dict[str, tuple[type, ...]] = {
    "paired": (Pairs,),
    "reference-free pair": (Pairs,),
    "reward pair": (Pairs,),
    "chosen only": (Pairs, Unpaired),
    "scored pair": (SoftPairs, Groups),
    "unpaired": (Unpaired, Pairs),
    "group": (Groups,),
}


@dataclass(frozen=True, eq=False)
class OnPolicy:
    """Prompts for an objective that asks the policy itself for responses, and the reward of these.

    `reward(prompts, responses)` gives one number for each row: a world's `reward_of`, or a reward model.
    """

    prompt: Column
    reward: Callable[[Any, Any], Tensor]

    def __len__(self) -> int:
        return len(self.prompt)

    def columns(self) -> dict[str, Column]:
        """The columns that are data."""
        return {"prompt": self.prompt}


@dataclass(frozen=True, eq=False)
class Layout:
    """Prompts, responses by slot ([N], or [N, K] for groups), and the columns that do not depend on a model."""

    prompt: Column
    responses: dict[str, Column]
    constants: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt)


def lay_out(feedback: Any, objective: Any) -> Layout:
    """The columns of this feedback that the objective is made for."""
    kind = objective.feedback
    if kind not in ACCEPTED or not isinstance(feedback, ACCEPTED[kind]):
        wanted = (
            "OnPolicy" if kind == "on-policy" else " or ".join(t.__name__ for t in ACCEPTED.get(kind, ()))
        )
        raise CourseError(
            "feedback-of-another-kind",
            f"{objective.name} learns from {kind!r} feedback, and a {type(feedback).__name__} was given.",
            where="train(policy, feedback, objective)",
            remedy=f"give it {wanted}; worlds draw them with draw_pairs, draw_unpaired, draw_groups, draw_soft_pairs.",
        )
    if kind in ("paired", "reference-free pair", "reward pair"):
        return Layout(feedback.prompt, {"chosen": feedback.chosen, "rejected": feedback.rejected})
    if kind == "chosen only":
        if isinstance(feedback, Unpaired):
            feedback = feedback.take(feedback.preferred.nonzero().flatten())
            return Layout(feedback.prompt, {"chosen": feedback.response})
        return Layout(feedback.prompt, {"chosen": feedback.chosen})
    if kind == "scored pair":
        return _scored_pairs(feedback)
    if kind == "unpaired":
        feedback = feedback.unpaired() if isinstance(feedback, Pairs) else feedback
        return Layout(feedback.prompt, {"": feedback.response}, {"preferred": feedback.preferred})
    return Layout(feedback.prompt, {"": feedback.responses}, {"reward": feedback.reward})


def _scored_pairs(feedback: SoftPairs | Groups) -> Layout:
    if isinstance(feedback, SoftPairs):
        # Only the difference of the two rewards matters: the log-odds of the judge's probability.
        difference = torch.logit(feedback.probability)
        constants = {"reward_1": difference, "reward_2": torch.zeros_like(difference)}
        return Layout(feedback.prompt, {"1": feedback.first, "2": feedback.second}, constants)
    if feedback.reward.shape[1] != 2:
        raise CourseError(
            "feedback-of-another-kind",
            f"a scored pair has two responses, and these groups have {feedback.reward.shape[1]}.",
            where="train(policy, feedback, objective)",
            remedy="draw groups of size 2.",
        )
    responses = feedback.responses
    if isinstance(responses, Tensor):
        first, second = responses[:, 0], responses[:, 1]
    else:
        first, second = [row[0] for row in responses], [row[1] for row in responses]
    constants = {"reward_1": feedback.reward[:, 0], "reward_2": feedback.reward[:, 1]}
    return Layout(feedback.prompt, {"1": first, "2": second}, constants)


class Examples(Protocol):
    """What the loop asks of examples. `rows` are row numbers; None means all rows. Answers come by slot."""

    layout: Layout

    def log_probs(self, model: Any, rows: Tensor | None) -> dict[str, Tensor]: ...

    def all_log_probs(self, model: Any, cache_dir: Any) -> dict[str, Tensor]: ...

    def rewards(self, model: Any, rows: Tensor | None) -> dict[str, Tensor]: ...

    def lengths(self, rows: Tensor | None) -> dict[str, Tensor]: ...

    def mismatched(self, rows: Tensor | None) -> Examples: ...


class PlainExamples:
    """Prompts and responses as the model's own `log_prob` (or `reward`) takes them."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def log_probs(self, model: Any, rows: Tensor | None) -> dict[str, Tensor]:
        return self._ask(model.log_prob, rows)

    @torch.no_grad()
    def all_log_probs(self, model: Any, cache_dir: Any = None) -> dict[str, Tensor]:
        return self.log_probs(model, None)

    def rewards(self, model: Any, rows: Tensor | None) -> dict[str, Tensor]:
        return self._ask(model.reward, rows)

    def lengths(self, rows: Tensor | None) -> dict[str, Tensor]:
        # A response of a finite world is one token.
        count = len(self.layout) if rows is None else len(rows)
        return {slot: torch.ones(count, dtype=torch.float64) for slot in self.layout.responses}

    def mismatched(self, rows: Tensor | None) -> PlainExamples:
        """The same prompts, each with the response of the next row."""
        responses = _taken(self.layout.responses[""], rows)
        turned = responses.roll(-1, 0) if isinstance(responses, Tensor) else responses[1:] + responses[:1]
        return PlainExamples(Layout(_taken(self.layout.prompt, rows), {"": turned}))

    def _ask(self, ask: Callable[..., Tensor], rows: Tensor | None) -> dict[str, Tensor]:
        prompts = _taken(self.layout.prompt, rows)
        answers = {}
        for slot, column in self.layout.responses.items():
            responses = _taken(column, rows)
            if isinstance(responses, list) and isinstance(responses[0], list):
                flat = [text for group in responses for text in group]
                each = [prompt for prompt, group in zip(prompts, responses, strict=True) for _ in group]
                answers[slot] = ask(each, flat).reshape(len(responses), -1)
            else:
                answers[slot] = ask(prompts, responses)
        return answers


class EncodedExamples:
    """Texts, tokenised once. A group of K responses is K rows of the encoded batch."""

    def __init__(self, layout: Layout, encoded: Any, group: int | None = None) -> None:
        self.layout, self._encoded, self._group = layout, encoded, group
        self._slots = tuple(layout.responses)

    @classmethod
    def from_texts(cls, layout: Layout, policy: Any, share_prompt: bool = False) -> EncodedExamples:
        """Tokenise with the policy's tokenizer, and its chat template if it uses one."""
        from course_utils.encoding import encode, encode_pairs

        options = {"chat_template": getattr(policy, "chat_template", False)}
        columns = list(layout.responses.values())
        if len(columns) == 2:
            encoded = encode_pairs(
                policy.tokenizer, layout.prompt, *columns, share_prompt=share_prompt, **options
            )
            return cls(layout, encoded)
        prompts, responses, group = layout.prompt, columns[0], None
        if isinstance(responses[0], list):
            group = len(responses[0])
            prompts = [prompt for prompt in prompts for _ in range(group)]
            responses = [text for row in responses for text in row]
        return cls(layout, encode(policy.tokenizer, prompts, responses, **options), group)

    def log_probs(self, model: Any, rows: Tensor | None) -> dict[str, Tensor]:
        from course_utils.logprobs import pair_log_probs
        from course_utils.shared_prompt import stack

        batch = self._batch(rows, model)
        if len(self._slots) == 1:
            return {self._slots[0]: self._grouped(_by_length(model.model, batch))}
        if batch.share_prompt:
            return dict(zip(self._slots, pair_log_probs(model.model, batch), strict=True))
        both = _by_length(model.model, stack(batch.chosen, batch.rejected))
        return dict(zip(self._slots, both.split(len(batch)), strict=True))

    def all_log_probs(self, model: Any, cache_dir: Any = None) -> dict[str, Tensor]:
        from course_utils.reference_cache import reference_log_probs

        pieces = torch.arange(len(self._encoded)).split(SCORED_AT_ONCE)
        batches = (self._encoded.select(rows) for rows in pieces)
        found = reference_log_probs(model.model, batches, cache_dir=cache_dir)
        if len(self._slots) == 2:
            return dict(zip(self._slots, found, strict=True))
        return {self._slots[0]: self._grouped(found)}

    def rewards(self, model: Any, rows: Tensor | None) -> dict[str, Tensor]:
        from course_utils.shared_prompt import stack

        batch = self._batch(rows, model)
        both = model.score(stack(batch.chosen, batch.rejected))
        return {"chosen": both[: len(batch)], "rejected": both[len(batch) :]}

    def lengths(self, rows: Tensor | None) -> dict[str, Tensor]:
        batch = self._encoded if rows is None else self._encoded.select(self._members(rows))
        if len(self._slots) == 2:
            sides = (batch.chosen.response_lengths, batch.rejected.response_lengths)
            return dict(zip(self._slots, sides, strict=True))
        return {self._slots[0]: self._grouped(batch.response_lengths)}

    def mismatched(self, rows: Tensor | None) -> EncodedExamples:
        """The same prompts, each with the response of the next row."""
        from course_utils.encoding import batch_from_ids

        batch = self._encoded if rows is None else self._encoded.select(rows)
        prompts, responses = [], []
        for ids, real, counted in zip(
            batch.input_ids, batch.attention_mask, batch.response_mask, strict=True
        ):
            prompts.append(ids[real & ~counted].tolist())
            responses.append(ids[counted].tolist())
        encoded = batch_from_ids(prompts, responses[1:] + responses[:1])
        return EncodedExamples(Layout(prompts, {"": responses}), encoded)

    def _batch(self, rows: Tensor | None, model: Any) -> Any:
        batch = self._encoded if rows is None else self._encoded.select(self._members(rows))
        return batch.to(next(model.parameters()).device)

    def _members(self, rows: Tensor) -> Tensor:
        if self._group is None:
            return rows
        return (rows[:, None] * self._group + torch.arange(self._group)).flatten()

    def _grouped(self, values: Tensor) -> Tensor:
        return values if self._group is None else values.reshape(-1, self._group)


def _by_length(model: Any, batch: Any) -> Tensor:
    """log pi(y | x) of every row. On a CPU, rows of similar length are scored together: less padding, less time."""
    from course_utils.logprobs import sequence_log_probs

    if len(batch) <= TOGETHER_ON_A_CPU or batch.input_ids.device.type != "cpu":
        return sequence_log_probs(model, batch)
    order = batch.attention_mask.sum(dim=1).argsort(stable=True)
    pieces = [sequence_log_probs(model, batch.select(some)) for some in order.split(TOGETHER_ON_A_CPU)]
    return torch.cat(pieces)[order.argsort()]


def examples_for(policy: Any, layout: Layout, share_prompt: bool = False) -> Examples:
    """Encoded examples for a model with a tokenizer, plain ones for every other policy."""
    if hasattr(policy, "tokenizer") and hasattr(policy, "model"):
        return EncodedExamples.from_texts(layout, policy, share_prompt)
    return PlainExamples(layout)


@torch.no_grad()
def sampled_examples(
    policy: Any, feedback: OnPolicy, rows: Tensor | None, generator: torch.Generator
) -> Examples:
    """One response of the policy to each prompt of a batch, with its reward."""
    prompts = _taken(feedback.prompt, rows)
    if not hasattr(policy, "tokenizer"):
        responses = policy.sample(prompts, generator)
        reward = feedback.reward(prompts, responses)
        return PlainExamples(Layout(prompts, {"": responses}, {"reward": reward}))
    from course_utils.sampling import generate

    drawn = generate(policy.model, policy.tokenizer, prompts, seed=generator, **sample_options(policy))
    reward = feedback.reward(prompts, drawn.texts)
    # Scored as the tokens that were drawn: a response that was cut has no end token.
    return EncodedExamples(Layout(prompts, {"": drawn.texts}, {"reward": reward}), drawn.batch())


def sample_options(policy: Any) -> dict[str, Any]:
    """How a language model policy samples: the options of `sampling.generate`."""
    options = getattr(policy, "sample_options", None)
    if options is None:
        options = {
            "max_new_tokens": policy.max_new_tokens,
            "chat_template": getattr(policy, "chat_template", False),
        }
    return dict(options)


def _taken(column: Column, rows: Tensor | None) -> Column:
    return column if rows is None else take_rows(column, rows)
