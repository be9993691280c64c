"""Policies: a table, a tiny network, one Gaussian, and a language model, behind one small protocol.

A policy says how likely a response is, `log_prob(prompts, responses)`, and draws one, `sample(prompts,
generator)`. Policies of a finite world also give the whole table, `log_probabilities()` and
`probabilities()`, [X, Y]. All but the language model are float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError
from course_utils.preferences import sample_rows


@runtime_checkable
class Policy(Protocol):
    """What every policy can do.

    Prompts and responses are LongTensors in a finite world and lists of strings for a language model; the
    responses of a continuous Gaussian are real numbers.
    """

    def log_prob(self, prompts: Any, responses: Any) -> Tensor: ...

    def sample(self, prompts: Any, generator: torch.Generator) -> Any: ...


class _FinitePolicy(nn.Module):
    """What policies with a table share: everything follows from `log_probabilities()`."""

    def log_probabilities(self) -> Tensor:
        raise NotImplementedError

    def probabilities(self) -> Tensor:
        """The table pi(y|x), [X, Y]."""
        return self.log_probabilities().exp()

    def log_prob(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """log pi(response | prompt) for each row; responses may be [N] or [N, K]."""
        table = self.log_probabilities()
        return table[prompts.reshape(-1, *[1] * (responses.dim() - 1)), responses]

    @torch.no_grad()
    def sample(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """One response to each prompt."""
        return sample_rows(self.probabilities()[prompts], generator)


class TablePolicy(_FinitePolicy):
    """One logit per prompt and response: it can represent every policy, and moving one row moves no other."""

    def __init__(self, logits: Tensor | Sequence[Any]) -> None:
        super().__init__()
        logits = torch.as_tensor(logits, dtype=torch.float64).detach().clone()
        if logits.dim() == 1:
            logits = logits.unsqueeze(0)
        if logits.dim() != 2 or not bool(torch.isfinite(logits).all()):
            raise CourseError(
                "policy-shape",
                f"the logits have shape {list(logits.shape)}, or are not finite.",
                where="TablePolicy(logits)",
                remedy="give finite logits [X, Y] (or [Y] for one prompt).",
            )
        self.logits = nn.Parameter(logits)

    @classmethod
    def from_probabilities(cls, probabilities: Tensor | Sequence[Any]) -> Self:
        """The table with these probabilities, which must be positive."""
        table = torch.as_tensor(probabilities, dtype=torch.float64)
        if bool((table <= 0).any()) or (table.sum(dim=-1) - 1).abs().max().item() > 1e-6:
            raise CourseError(
                "policy-not-a-distribution",
                f"rows must be positive and sum to one (smallest entry {table.min().item():.3g}).",
                where="TablePolicy.from_probabilities(probabilities)",
                remedy="a logit cannot express a probability of zero; TablePolicy(logits) takes logits.",
            )
        return cls(table.log())

    def log_probabilities(self) -> Tensor:
        """log pi(y|x), [X, Y]."""
        return torch.log_softmax(self.logits, dim=-1)


class MLPPolicy(_FinitePolicy):
    """A one-hot prompt through shared hidden layers to one logit per response.

    The weights are shared, so training on one prompt or one response moves others: the point of comparing it
    with a table.
    """

    def __init__(self, prompts: int, responses: int, hidden: Sequence[int] = (16,), seed: int = 0) -> None:
        super().__init__()
        self.prompts = prompts
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        sizes = [prompts, *hidden, responses]
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            # A one-hot input has one active unit, so its weights need no shrinking by their number.
            scale = 1.0 if i == 0 else 1.0 / math.sqrt(inputs)
            # skip_init: the usual initialisation would draw from the global generator.
            linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
            with torch.no_grad():
                linear.weight.copy_(
                    scale * torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
                )
                linear.bias.zero_()
            layers += [linear, nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    def log_probabilities(self) -> Tensor:
        """log pi(y|x), [X, Y]."""
        one_hot = torch.eye(self.prompts, dtype=torch.float64)
        return torch.log_softmax(self.layers(one_hot), dim=-1)


class GaussianPolicy(_FinitePolicy):
    """One Gaussian: it has one mode, whatever the target.

    Its two parameters are `mean` and `log_sd`; the prompt is ignored. Without a grid, responses are real
    numbers and `log_prob` is the log density. With a grid of points it is a policy of a finite world with one
    prompt: probabilities proportional to the density at the points, and responses are indices of points.
    """

    def __init__(self, mean: float = 0.0, log_sd: float = 0.0, grid: Tensor | None = None) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(float(mean), dtype=torch.float64))
        self.log_sd = nn.Parameter(torch.tensor(float(log_sd), dtype=torch.float64))
        points = None if grid is None else torch.as_tensor(grid, dtype=torch.float64).detach().clone()
        self.register_buffer("grid", points)

    def log_density(self, x: Tensor) -> Tensor:
        """log N(x; mean, sd^2)."""
        z = (x - self.mean) * torch.exp(-self.log_sd)
        return -0.5 * z**2 - self.log_sd - 0.5 * math.log(2 * math.pi)

    def log_probabilities(self) -> Tensor:
        """log pi of the grid points, [1, Y]."""
        if self.grid is None:
            raise CourseError(
                "policy-without-table",
                "a continuous Gaussian has no table of probabilities.",
                where="GaussianPolicy.log_probabilities()",
                remedy="make it with a grid: GaussianPolicy(mean, log_sd, grid=torch.linspace(-6, 6, 121)).",
            )
        return torch.log_softmax(self.log_density(self.grid), dim=-1).unsqueeze(0)

    def log_prob(self, prompts: Tensor | None, responses: Tensor) -> Tensor:
        """The log density of real responses, or the log probability of grid indices."""
        if self.grid is None:
            return self.log_density(responses)
        return self.log_probabilities()[0, responses]

    @torch.no_grad()
    def sample(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """One response to each prompt: a real number, or an index of the grid."""
        if self.grid is not None:
            return super().sample(torch.zeros(len(prompts), dtype=torch.long), generator)
        noise = torch.randn(len(prompts), generator=generator, dtype=torch.float64)
        return self.mean + torch.exp(self.log_sd) * noise


class LanguageModelPolicy(nn.Module):
    """A causal language model and its tokenizer: prompts and responses are lists of strings.

    A thin wrapper: `encoding` says which tokens count, `logprobs` adds them up, `sampling` draws. A response
    that sampling cut at `max_new_tokens` has no end token, but as a text it is scored with one; to score
    exactly the tokens that were drawn, use `sampling.generate` and its batch.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, max_new_tokens: int = 64, chat_template: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.chat_template = chat_template

    def log_prob(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        """log pi(response | prompt) for each row: the sum over the response's tokens and its end token."""
        from course_utils.encoding import encode
        from course_utils.logprobs import sequence_log_probs

        batch = encode(self.tokenizer, prompts, responses, chat_template=self.chat_template)
        return sequence_log_probs(self.model, batch.to(next(self.model.parameters()).device))

    def sample(self, prompts: Sequence[Any], generator: torch.Generator) -> list[str]:
        """One response to each prompt, at temperature 1."""
        from course_utils.sampling import generate

        drawn = generate(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.max_new_tokens,
            seed=generator,
            chat_template=self.chat_template,
        )
        return drawn.texts
