"""Sampling: the distribution it claims, exactly; the seed, and nothing but the seed; the end token."""

from __future__ import annotations

import itertools

import pytest
import torch
from language_models import byte_tokenizer, random_ids, tiny_model
from scipy import stats

from course_utils.encoding import batch_from_ids, encode
from course_utils.errors import CourseError
from course_utils.logprobs import sequence_log_probs
from course_utils.sampling import _draw, generate, sampling_log_probs

WORDS, END, LONGEST = 4, 3, 3
PROMPTS = [[0], [1, 0, 2], [2, 2]]  # three lengths: two of them need padding


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocabulary=WORDS, double=True, spread=6.0)


def all_responses() -> list[tuple[int, ...]]:
    """Every sequence the sampler can return: ended, or of full length."""
    words = [w for w in range(WORDS) if w != END]
    ended = [(*s, END) for n in range(LONGEST) for s in itertools.product(words, repeat=n)]
    return ended + list(itertools.product(words, repeat=LONGEST))


def exact_log_probs(model, prompt: list[int], temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    """The log-probability of every response, from full forward passes without a cache."""
    full = {(*r, *[0] * (LONGEST - len(r))): len(r) for r in all_responses()}
    ids = torch.tensor([[*prompt, *response] for response in full])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, len(prompt) - 1 : -1]
    table = sampling_log_probs(logits.flatten(0, 1), temperature, top_p).view(logits.shape)
    terms = table.gather(-1, ids[:, len(prompt) :, None]).squeeze(-1)
    counted = torch.arange(LONGEST) < torch.tensor(list(full.values()))[:, None]
    return terms.where(counted, torch.zeros(())).sum(-1)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.7, 1.0), (1.0, 0.8), (0.8, 0.7)]
)
def test_sampled_frequencies_are_the_exact_sequence_probabilities(model, temperature, top_p):
    n = 3000
    samples = generate(
        model, None, PROMPTS, samples_per_prompt=n, max_new_tokens=LONGEST, seed=7, eos_id=END,
        batch_size=4000, temperature=temperature, top_p=top_p,
    )  # fmt: skip
    place = {response: i for i, response in enumerate(all_responses())}
    for which, prompt in enumerate(PROMPTS):
        exact = exact_log_probs(model, prompt, temperature, top_p).exp()
        assert exact.sum().item() == pytest.approx(1, abs=1e-12)
        drawn = [
            tuple(r) for r, i in zip(samples.response_ids, samples.prompt_index, strict=True) if i == which
        ]
        counts = torch.bincount(torch.tensor([place[r] for r in drawn]), minlength=len(place))
        assert counts[exact == 0].sum() == 0
        # Cells that expect few are added up, as the test asks.
        rare = exact * n < 5
        observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([exact[~rare], exact[rare].sum()[None]]) * n
        filled = expected > 0
        assert filled.sum() > 3
        assert stats.chisquare(observed[filled], expected[filled]).pvalue > 1e-3


def test_returned_log_probs_are_those_of_the_model_and_of_the_sampler(model):
    plain = generate(model, None, PROMPTS, samples_per_prompt=50, max_new_tokens=LONGEST, seed=1, eos_id=END)
    scored = sequence_log_probs(model, plain.batch())
    assert torch.allclose(plain.policy_log_probs, scored, atol=1e-10, rtol=0)
    assert torch.equal(plain.log_probs, plain.policy_log_probs)
    sharp = generate(
        model, None, PROMPTS, samples_per_prompt=50, max_new_tokens=LONGEST, seed=1, eos_id=END,
        temperature=0.7, top_p=0.9,
    )  # fmt: skip
    assert torch.allclose(
        sharp.policy_log_probs, sequence_log_probs(model, sharp.batch()), atol=1e-10, rtol=0
    )
    place = {response: i for i, response in enumerate(all_responses())}
    tables = [exact_log_probs(model, prompt, 0.7, 0.9) for prompt in PROMPTS]
    exact = [
        tables[w][place[tuple(r)]]
        for w, r in zip(sharp.prompt_index.tolist(), sharp.response_ids, strict=True)
    ]
    assert torch.allclose(sharp.log_probs, torch.stack(exact), atol=1e-10, rtol=0)


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_float32_samples_score_as_they_were_drawn(architecture):
    model = tiny_model(architecture, vocabulary=50)
    samples = generate(
        model, None, random_ids(20, 1, 9, 0, 50), max_new_tokens=8, seed=0, eos_id=(3, 4, 5, 6)
    )
    assert not samples.finished.all() and samples.finished.any()
    assert torch.allclose(samples.log_probs, sequence_log_probs(model, samples.batch()), atol=2e-5, rtol=0)


# --- the law of one draw ------------------------------------------------------------------------------


def test_temperature_divides_the_logits():
    logits = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for temperature in (0.3, 1.0, 4.0):
        p = logits.exp() ** (1 / temperature)
        expected = (p / p.sum(-1, keepdim=True)).log()
        assert torch.allclose(sampling_log_probs(logits, temperature), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.5, 0.8, 0.97, 1.0])
def test_top_p_keeps_the_smallest_set_that_holds_enough(top_p):
    logits = 2 * torch.randn(40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = sampling_log_probs(logits, 1.0, top_p)
    for p, kept in zip(logits.softmax(-1), result, strict=True):
        # By brute force: of all sets that hold enough, the smallest, and of these the most probable.
        sets = [
            s
            for n in range(1, 8)
            for s in itertools.combinations(range(7), n)
            if p[list(s)].sum() >= top_p - 1e-9
        ]
        best = min(sets, key=lambda s: (len(s), -p[list(s)].sum()))
        assert set(kept.isfinite().nonzero().flatten().tolist()) == set(best)
        conditional = (p[list(best)] / p[list(best)].sum()).log()
        assert torch.allclose(kept[list(best)], conditional, atol=1e-12, rtol=0)


def test_top_p_at_an_exact_boundary_keeps_no_token_too_many_and_settles_ties_by_id():
    logits = torch.tensor([[0.3, 0.2, 0.5], [0.2, 0.5, 0.3]]).log()
    assert sampling_log_probs(logits, 1.0, 0.8).isfinite().tolist() == [
        [True, False, True],
        [False, True, True],
    ]
    ties = torch.zeros(1, 4)
    assert sampling_log_probs(ties, 1.0, 0.5).isfinite().tolist() == [[True, True, False, False]]


def test_a_token_of_probability_zero_is_not_drawn_even_at_the_edge_of_its_interval():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    token, log_probs = _draw(logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64), 1.0, 1.0)
    assert token.tolist() == [1, 3, 3]
    assert torch.allclose(log_probs, torch.full((2, 3), 0.5, dtype=torch.float64).log())


def test_temperature_zero_follows_the_most_probable_token(model):
    samples = generate(model, None, PROMPTS, max_new_tokens=6, seed=0, eos_id=(), temperature=0)
    for prompt, response in zip(PROMPTS, samples.response_ids, strict=True):
        ids = list(prompt)
        for token in response:
            with torch.no_grad():
                assert token == model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
            ids.append(token)
    assert torch.equal(samples.log_probs, torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(
        samples.policy_log_probs, sequence_log_probs(model, samples.batch()), atol=1e-10, rtol=0
    )


# --- the seed -----------------------------------------------------------------------------------------


def draw(model, **options):
    settings = {"samples_per_prompt": 40, "max_new_tokens": 5, "seed": 3, "eos_id": END, **options}
    return generate(model, None, PROMPTS, **settings).response_ids


def test_the_seed_alone_decides(model):
    torch.manual_seed(0)
    first = draw(model)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert draw(model) == first
    assert draw(model, seed=torch.Generator().manual_seed(3)) == first
    assert draw(model, seed=4) != first
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)  # the first draw took nothing from the global stream


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_decides_nothing(model, batch_size):
    few = {"samples_per_prompt": 6}
    assert draw(model, batch_size=batch_size, **few) == draw(model, **few)


def test_finished_rows_leave_the_batch(model):
    widths = []
    hook = model.register_forward_hook(lambda _, __, out: widths.append(out.logits.shape[0]))
    samples = generate(model, None, [[0]], samples_per_prompt=200, max_new_tokens=30, seed=0, eos_id=(END, 1))
    hook.remove()
    assert widths[0] == 1  # identical prompts are computed once
    assert widths[1] <= 200 and widths[-1] < 40 and widths[1:] == sorted(widths[1:], reverse=True)
    assert len(widths) == max(map(len, samples.response_ids))


# --- the end ------------------------------------------------------------------------------------------


def test_a_response_ends_at_its_first_end_token_or_at_full_length(model):
    samples = generate(model, None, PROMPTS, samples_per_prompt=60, max_new_tokens=4, seed=0, eos_id=(END, 1))
    assert samples.finished.any() and not samples.finished.all()
    for response, finished in zip(samples.response_ids, samples.finished.tolist(), strict=True):
        assert not set(response[:-1]) & {END, 1}
        assert (response[-1] in (END, 1)) == finished
        assert finished or len(response) == 4


def test_without_an_end_token_every_sample_has_full_length(model):
    samples = generate(model, None, PROMPTS, max_new_tokens=4, seed=0, eos_id=())
    assert [len(r) for r in samples.response_ids] == [4] * 3 and not samples.finished.any()


def test_text_prompts_give_texts_that_encode_to_what_was_sampled():
    tokenizer = byte_tokenizer()
    model = tiny_model(vocabulary=len(tokenizer), spread=8.0)
    prompts = ["tell me about the soup", "ab"]
    samples = generate(model, tokenizer, prompts, samples_per_prompt=3, max_new_tokens=5, seed=0)
    assert len(samples) == 6 and samples.prompt_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert samples.prompt_ids[3] == encode(tokenizer, ["ab"], ["x"]).input_ids[0, :-2].tolist()
    end = tokenizer.eos_token_id
    for text, ids in zip(samples.texts, samples.response_ids, strict=True):
        assert text == tokenizer.decode([i for i in ids if i > 2])
        assert ids.count(end) == (ids[-1] == end)


# --- the rest -----------------------------------------------------------------------------------------


def test_prompts_of_different_lengths_in_one_batch_sample_as_alone():
    model = tiny_model("llama", vocabulary=50, double=True)
    prompts = random_ids(6, 1, 12, 0, 50)
    together = generate(model, None, prompts, max_new_tokens=8, seed=0, eos_id=(), temperature=0).response_ids
    alone = [
        generate(model, None, [p], max_new_tokens=8, seed=0, eos_id=(), temperature=0).response_ids[0]
        for p in prompts
    ]
    assert together == alone


def test_sampling_leaves_the_modes_of_the_model_alone(model):
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    generate(model, None, PROMPTS, max_new_tokens=2, seed=0, eos_id=END)
    assert [module.training for module in model.modules()] == modes
    model.eval()


@pytest.mark.parametrize(
    ("options", "id"),
    [
        ({"samples_per_prompt": 0}, "bad-sampling-setting"),
        ({"max_new_tokens": 0}, "bad-sampling-setting"),
        ({"temperature": -1}, "bad-sampling-setting"),
        ({"temperature": float("nan")}, "bad-sampling-setting"),
        ({"top_p": 0}, "bad-sampling-setting"),
        ({"top_p": 1.1}, "bad-sampling-setting"),
        ({"batch_size": 0}, "bad-sampling-setting"),
        ({"max_new_tokens": 64}, "over-length"),
        ({"eos_id": None}, "no-end-token"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, options, id):
    with pytest.raises(CourseError) as error:
        generate(model, None, PROMPTS, **{"max_new_tokens": 2, "seed": 0, "eos_id": END, **options})
    assert error.value.id == id


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_prompts_without_tokens_are_refused(model, prompts):
    with pytest.raises(CourseError) as error:
        generate(model, None, prompts, max_new_tokens=2, seed=0, eos_id=END)
    assert error.value.id == "empty-prompt"


def test_samples_become_a_batch_as_they_are(model):
    samples = generate(model, None, PROMPTS, max_new_tokens=2, seed=0, eos_id=END)
    expected = batch_from_ids(PROMPTS, samples.response_ids)
    assert torch.equal(samples.batch().input_ids, expected.input_ids)
    assert torch.equal(samples.batch().response_mask, expected.response_mask)
