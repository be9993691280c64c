"""Policies: normalised, differentiable, sampled from what they say; sharing where sharing is the point."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.policies import GaussianPolicy, LanguageModelPolicy, MLPPolicy, Policy, TablePolicy
from course_utils.references import FrozenReference, MovingReference

TABLE = [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]
GRID = torch.linspace(-4, 4, 41, dtype=torch.float64)
FINITE = {
    "table": lambda: TablePolicy.from_probabilities(TABLE),
    "network": lambda: MLPPolicy(2, 3, hidden=(8, 4), seed=3),
    "gaussian on a grid": lambda: GaussianPolicy(0.7, -0.2, grid=GRID),
}


@pytest.mark.parametrize("name", FINITE)
def test_finite_policies_are_normalised_float64_and_follow_the_protocol(name):
    policy = FINITE[name]()
    table = policy.probabilities()
    assert isinstance(policy, Policy)
    assert table.dtype == torch.float64
    assert torch.allclose(table.sum(-1), torch.ones(len(table), dtype=torch.float64), atol=1e-14)
    assert torch.allclose(policy.log_probabilities().exp(), table, atol=0)


@pytest.mark.parametrize("name", FINITE)
def test_log_prob_reads_the_table_for_single_responses_and_for_groups(name):
    policy = FINITE[name]()
    table = policy.log_probabilities()
    prompts = torch.zeros(4, dtype=torch.long) if len(table) == 1 else torch.tensor([0, 1, 1, 0])
    responses = torch.tensor([0, 2, 1, 1])
    assert torch.equal(policy.log_prob(prompts, responses), table[prompts, responses])
    if len(table) > 1:
        groups = torch.tensor([[0, 1], [2, 2], [1, 0], [0, 0]])
        assert torch.equal(policy.log_prob(prompts, groups), table[prompts.unsqueeze(1), groups])


@pytest.mark.parametrize("name", FINITE)
def test_samples_have_the_frequencies_of_the_table_and_repeat_with_the_seed(name):
    policy, n = FINITE[name](), 100_000
    table = policy.probabilities().detach()
    prompts = torch.arange(n) % len(table)
    sample = policy.sample(prompts, torch.Generator().manual_seed(0))
    again = policy.sample(prompts, torch.Generator().manual_seed(0))
    other = policy.sample(prompts, torch.Generator().manual_seed(1))
    assert torch.equal(sample, again) and not torch.equal(sample, other)
    for x, exact in enumerate(table):
        drawn = sample[prompts == x]
        frequency = torch.bincount(drawn, minlength=table.shape[1]) / len(drawn)
        assert bool(((frequency - exact).abs() < 4 * (exact * (1 - exact) / len(drawn)).sqrt() + 1e-9).all())


@pytest.mark.parametrize("name", FINITE)
def test_the_gradient_of_log_prob_is_its_central_difference(name):
    policy = FINITE[name]()
    prompts = torch.zeros(1, dtype=torch.long)

    def value() -> torch.Tensor:
        return policy.log_prob(prompts, torch.tensor([1])).sum()

    gradients = torch.autograd.grad(value(), list(policy.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
            flat, slopes = parameter.view(-1), gradient.reshape(-1)
            for i in range(len(flat)):
                flat[i] += 1e-6
                above = value()
                flat[i] -= 2e-6
                below = value()
                flat[i] += 1e-6
                assert math.isclose(slopes[i].item(), ((above - below) / 2e-6).item(), abs_tol=1e-8)


def moved_prompts(policy: torch.nn.Module) -> list[bool]:
    """Which prompts' rows change when one step raises one response of prompt 0."""
    before = policy.probabilities().detach()
    policy.log_prob(torch.tensor([0]), torch.tensor([1])).sum().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * parameter.grad)
    after = policy.probabilities().detach()
    assert after[0, 1] > before[0, 1]
    return ((after - before).abs().amax(-1) > 1e-6).tolist()


def test_training_one_prompt_moves_only_that_row_of_a_table_and_every_row_of_a_network():
    assert moved_prompts(FINITE["table"]()) == [True, False]
    assert moved_prompts(FINITE["network"]()) == [True, True]


def test_a_network_depends_on_its_seed_alone():
    state = torch.get_rng_state()
    first = MLPPolicy(2, 3, seed=5).probabilities()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, MLPPolicy(2, 3, seed=5).probabilities())
    assert not torch.allclose(first, MLPPolicy(2, 3, seed=6).probabilities())
    assert not torch.allclose(first[0], first[1], atol=1e-3)


def test_the_density_of_a_gaussian_integrates_to_one_and_has_its_mean_and_deviation():
    policy = GaussianPolicy(mean=1.5, log_sd=math.log(0.7))
    x = torch.linspace(-8, 11, 20001, dtype=torch.float64)
    density = policy.log_prob(None, x).exp().detach()
    width = (x[1] - x[0]).item()
    assert math.isclose(density.sum().item() * width, 1.0, abs_tol=1e-9)
    assert math.isclose((density * x).sum().item() * width, 1.5, abs_tol=1e-9)
    assert math.isclose((density * (x - 1.5) ** 2).sum().item() * width, 0.49, abs_tol=1e-9)
    # Another library's density at one point.
    other = torch.distributions.Normal(1.5, 0.7).log_prob(torch.tensor(0.3))
    assert math.isclose(policy.log_prob(None, torch.tensor(0.3)).item(), other.item(), abs_tol=1e-6)


def test_a_gaussian_on_a_grid_ignores_the_prompt():
    policy, prompts = FINITE["gaussian on a grid"](), torch.arange(1000) % 7
    sample = policy.sample(prompts, torch.Generator().manual_seed(0))
    assert torch.equal(sample, policy.sample(torch.zeros_like(prompts), torch.Generator().manual_seed(0)))
    assert torch.equal(policy.log_prob(prompts, sample), policy.log_probabilities()[0, sample])


def test_samples_of_a_continuous_gaussian_have_its_mean_and_deviation():
    n = 100_000
    sample = GaussianPolicy(1.5, math.log(0.7)).sample(torch.zeros(n), torch.Generator().manual_seed(0))
    assert abs(sample.mean().item() - 1.5) < 4 * 0.7 / math.sqrt(n)
    assert abs(sample.std().item() - 0.7) < 4 * 0.7 / math.sqrt(2 * n)


def test_a_gaussian_on_a_grid_is_its_density_normalised_over_the_points():
    policy = GaussianPolicy(0.7, -0.2, grid=GRID)
    density = torch.exp(-0.5 * ((GRID - 0.7) / math.exp(-0.2)) ** 2)
    assert torch.allclose(policy.probabilities()[0], density / density.sum(), atol=1e-14)
    assert copy.deepcopy(policy).grid is not None


# -------------------- a language model


LETTERS = "abcdefghij"


class LetterTokenizer:
    """One token per letter: enough of a tokenizer for the wrapper."""

    pad_token_id = 0
    eos_token_id = 1

    def __call__(self, texts, **_):
        return {"input_ids": [[2 + LETTERS.index(letter) for letter in text] for text in texts]}

    def batch_decode(self, rows, **_):
        return ["".join(LETTERS[token - 2] for token in row if token >= 2) for row in rows]


@pytest.fixture(scope="module")
def language_model() -> LanguageModelPolicy:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=2 + len(LETTERS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Qwen2ForCausalLM(config).double().eval()
    return LanguageModelPolicy(model, LetterTokenizer(), max_new_tokens=1)


def test_a_language_model_adds_up_the_log_probabilities_of_the_response_and_its_end(language_model):
    prompts, responses = ["abc", "d"], ["ef", "ghij"]
    found = language_model.log_prob(prompts, responses)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        before, after = LetterTokenizer()([prompt, response])["input_ids"]
        tokens = [*before, *after, LetterTokenizer.eos_token_id]
        steps = torch.log_softmax(language_model.model(torch.tensor([tokens])).logits[0], -1)
        by_hand = sum(steps[i - 1, tokens[i]].item() for i in range(len(before), len(tokens)))
        assert math.isclose(found[row].item(), by_hand, abs_tol=1e-9)
    found.sum().backward()
    assert language_model.model.lm_head.weight.grad.abs().max() > 0


def test_the_samples_of_a_language_model_have_the_probabilities_of_its_next_token(language_model):
    n = 4000
    sample = language_model.sample(["ab"] * n, torch.Generator().manual_seed(0))
    assert sample == language_model.sample(["ab"] * n, torch.Generator().manual_seed(0))
    exact = torch.softmax(language_model.model(torch.tensor([[2, 3]])).logits[0, -1], -1)
    for token, letter in enumerate(LETTERS, start=2):
        p = exact[token].item()
        assert abs(sample.count(letter) / n - p) < 4 * math.sqrt(p * (1 - p) / n) + 1e-9


def test_a_reference_of_a_language_model_is_a_copy_that_a_hard_update_renews(language_model):
    policy = copy.deepcopy(language_model)
    frozen, moving = FrozenReference(policy), MovingReference.hard(policy, every=1)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(2.0)
    before, after = language_model.log_prob(["a"], ["bc"]), policy.log_prob(["a"], ["bc"])
    assert not torch.allclose(before, after)
    assert moving.after_step(policy)
    assert torch.equal(frozen.log_prob(["a"], ["bc"]), before)
    assert torch.equal(moving.log_prob(["a"], ["bc"]), after)


# -------------------- refusals


BAD = {
    "a table with a zero": (lambda: TablePolicy.from_probabilities([1.0, 0.0]), "policy-not-a-distribution"),
    "a table that does not sum": (
        lambda: TablePolicy.from_probabilities([0.5, 0.6]),
        "policy-not-a-distribution",
    ),
    "infinite logits": (lambda: TablePolicy([0.0, math.inf]), "policy-shape"),
    "logits of three dimensions": (lambda: TablePolicy(torch.zeros(1, 2, 3)), "policy-shape"),
    "the table of a continuous gaussian": (lambda: GaussianPolicy().probabilities(), "policy-without-table"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_policies_are_refused_with_their_id(name):
    call, expected = BAD[name]
    with pytest.raises(CourseError) as caught:
        call()
    assert caught.value.id == expected
