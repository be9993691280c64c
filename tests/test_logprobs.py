"""Log-probabilities: the numbers of the naive way, its gradients, and not its memory."""

from __future__ import annotations

import pytest
import torch
from language_models import VOCABULARY, gradients, naive_log_probs, random_batch, random_ids, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_utils import logprobs
from course_utils.encoding import EncodedBatch, EncodedPairs, batch_from_ids
from course_utils.errors import CourseError
from course_utils.logprobs import ChunkedLogProbs, pair_log_probs, sequence_log_probs, token_log_probs

ARCHITECTURES = ["qwen2", "llama"]
SIDES = ["right", "left"]


def random_pairs(
    padding: str = "right", share_prompt: bool = False, rows: int = 4, seed: int = 3
) -> EncodedPairs:
    prompts = random_ids(rows, 1, 6, seed)
    sides = [
        batch_from_ids(prompts, random_ids(rows, 1, 5, seed + i), padding=padding, pad_id=i) for i in (1, 2)
    ]
    return EncodedPairs(*sides, share_prompt=share_prompt)


def relative(ours: dict, theirs: dict) -> float:
    """The largest difference between two sets of gradients, in units of the largest gradient."""
    scale = max(g.abs().max() for g in theirs.values())
    return float(max((ours[name] - theirs[name]).abs().max() for name in theirs) / scale)


# --- the right numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", SIDES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_log_probs_and_gradients_are_those_of_the_full_softmax(architecture, padding):
    model, batch = tiny_model(architecture), random_batch(padding=padding)
    ours, theirs = sequence_log_probs(model, batch, chunk=1), naive_log_probs(model, batch)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs.sum(-1), atol=1e-5, rtol=0)
    weights = torch.linspace(-1, 1, len(batch))
    theirs = gradients(model, theirs.sum(-1) @ weights)
    assert relative(gradients(model, ours @ weights), theirs) < 1e-5


@pytest.mark.parametrize("padding", SIDES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float64_log_probs_and_gradients_agree_to_1e_10(architecture, padding):
    model, batch = tiny_model(architecture, double=True), random_batch(padding=padding)
    ours, theirs = sequence_log_probs(model, batch, chunk=1), naive_log_probs(model, batch)
    assert torch.allclose(ours, theirs.sum(-1), atol=1e-10, rtol=0)
    weights = torch.linspace(-1, 1, len(batch), dtype=torch.float64)
    theirs = gradients(model, theirs.sum(-1) @ weights)
    assert relative(gradients(model, ours @ weights), theirs) < 1e-10


@pytest.mark.parametrize("padding", SIDES)
def test_the_terms_are_laid_out_like_the_batch_and_add_up(padding):
    model, batch = tiny_model(double=True), random_batch(padding=padding)
    # One column of padding on each side, so that nothing is where it would be by chance.
    wide = EncodedBatch(*(torch.nn.functional.pad(t, (1, 2)) for t in vars(batch).values()))
    terms = sequence_log_probs(model, wide, per_token=True)
    assert torch.allclose(terms[:, 1:-2], naive_log_probs(model, batch), atol=1e-10, rtol=0)
    assert torch.equal(terms != 0, wide.response_mask)
    assert torch.allclose(terms.sum(-1), sequence_log_probs(model, batch), atol=1e-10, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", SIDES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_pairs_that_share_a_prompt_score_as_two_rows_would(architecture, padding, attention):
    model = tiny_model(architecture, attention=attention)
    plain = pair_log_probs(model, random_pairs(padding))
    shared = pair_log_probs(model, random_pairs(padding, share_prompt=True), chunk=1)
    for one, other in zip(plain, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", SIDES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float64_pairs_that_share_a_prompt_are_exact_and_so_are_their_gradients(architecture, padding):
    model, pairs = tiny_model(architecture, double=True), random_pairs(padding, share_prompt=True)
    naive = [naive_log_probs(model, side).sum(-1) for side in (pairs.chosen, pairs.rejected)]
    shared = pair_log_probs(model, pairs)
    for one, other in zip(naive, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-10, rtol=0)
    # Different weights for the two, or a swapped gradient would not show.
    weights = torch.linspace(-1, 2, len(pairs), dtype=torch.float64)
    theirs = gradients(model, naive[0] @ weights + 0.3 * naive[1].sum())
    assert relative(gradients(model, shared[0] @ weights + 0.3 * shared[1].sum()), theirs) < 1e-10


def test_the_two_responses_of_a_shared_row_do_not_see_each_other():
    model, pairs = tiny_model(double=True), random_pairs(share_prompt=True)
    chosen, rejected = pair_log_probs(model, pairs)
    swapped = pair_log_probs(model, EncodedPairs(pairs.rejected, pairs.chosen, share_prompt=True))
    assert torch.allclose(torch.stack([rejected, chosen]), torch.stack(swapped), atol=1e-10, rtol=0)


def test_plain_pairs_are_the_two_sides_scored_alone():
    model, pairs = tiny_model(double=True), random_pairs()
    chosen, rejected = pair_log_probs(model, pairs)
    assert torch.allclose(chosen, sequence_log_probs(model, pairs.chosen), atol=1e-10, rtol=0)
    assert torch.allclose(rejected, sequence_log_probs(model, pairs.rejected), atol=1e-10, rtol=0)


# --- invariances --------------------------------------------------------------------------------------


def test_padding_changes_no_bit_of_the_result():
    model, batch = tiny_model(), random_batch()
    expected = sequence_log_probs(model, batch)
    assert torch.equal(sequence_log_probs(model, random_batch(padding="left")), expected)
    for fill in (0, 7):
        ids = torch.nn.functional.pad(batch.input_ids, (3, 4), value=fill)
        masks = (torch.nn.functional.pad(m, (3, 4)) for m in (batch.attention_mask, batch.response_mask))
        assert torch.equal(sequence_log_probs(model, EncodedBatch(ids, *masks)), expected)


@pytest.mark.parametrize("chunk", [1, 5 * 600, 5 * 1099, 10**6])
def test_the_chunk_changes_neither_values_nor_gradients(chunk):
    model, batch = tiny_model(double=True), random_batch()
    expected = sequence_log_probs(model, batch)
    values = sequence_log_probs(model, batch, chunk=chunk)
    assert torch.allclose(values, expected, atol=1e-11, rtol=0)
    theirs = gradients(model, expected.sum())
    assert relative(gradients(model, values.sum()), theirs) < 1e-11


def test_the_order_of_the_rows_only_orders_the_result():
    model, batch = tiny_model(double=True), random_batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    expected = sequence_log_probs(model, batch)[order]
    assert torch.allclose(sequence_log_probs(model, batch.select(order)), expected, atol=1e-11, rtol=0)


def test_the_probabilities_of_all_continuations_of_two_tokens_add_up_to_one():
    model = tiny_model(vocabulary=12, double=True)
    responses = [[i, j] for i in range(12) for j in range(12)]
    values = sequence_log_probs(model, batch_from_ids([[3, 4]] * len(responses), responses))
    assert values.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert values.exp().max() > 3 / len(responses)  # far from uniform, or this would be easy


def test_gradient_checkpointing_gives_the_same_gradients():
    model, batch = tiny_model(double=True).train(), random_batch()
    expected = gradients(model, sequence_log_probs(model, batch).sum())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert relative(gradients(model, sequence_log_probs(model, batch).sum()), expected) < 1e-12


# --- the head -----------------------------------------------------------------------------------------


def test_the_function_passes_a_check_by_finite_differences(monkeypatch):
    monkeypatch.setattr(logprobs, "THINNEST", 3)
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 4), (11, 4), (11,))
    )
    targets = torch.tensor([0, 2, 3, 10, 3])
    expected = torch.log_softmax(hidden @ weight.T + bias, -1)[torch.arange(5), targets]
    values = token_log_probs(hidden, weight, targets, bias, chunk=1)
    assert torch.allclose(values, expected, atol=1e-14, rtol=0)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_log_probs(h, w, targets, b, chunk=1), (hidden, weight, bias), atol=1e-8
    )


def test_logits_of_a_thousand_do_not_overflow():
    hidden, weight = torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[1.0], [-1.0], [0.0]])
    values = token_log_probs(hidden, weight, torch.tensor([0, 0]))
    assert values.tolist() == [0.0, -2000.0]


def test_a_head_with_a_bias_is_scored_with_its_bias():
    model, batch = tiny_model("llama", double=True), random_batch()
    model.lm_head = nn.Linear(16, VOCABULARY, bias=True).double()
    nn.init.normal_(model.lm_head.bias)
    ours, theirs = sequence_log_probs(model, batch), naive_log_probs(model, batch).sum(-1)
    assert torch.allclose(ours, theirs, atol=1e-10, rtol=0)
    assert relative(gradients(model, ours.sum()), gradients(model, theirs.sum())) < 1e-10


def test_a_frozen_head_gets_no_gradient_and_passes_the_right_one_on():
    model, batch = tiny_model("llama", double=True), random_batch()
    model.lm_head.requires_grad_(False)
    ours, theirs = sequence_log_probs(model, batch).sum(), naive_log_probs(model, batch).sum()
    found = gradients(model, ours)
    assert "lm_head.weight" not in found
    assert relative(found, gradients(model, theirs)) < 1e-10


def test_bfloat16_autocast_scores_as_the_naive_way_does_under_autocast():
    model, batch = tiny_model(), random_batch()
    with torch.autocast("cpu", torch.bfloat16):
        ours = sequence_log_probs(model, batch, chunk=1)
        theirs = naive_log_probs(model, batch).sum(-1)
    assert ours.dtype == torch.float32
    exact = sequence_log_probs(model, batch)
    error = (theirs - exact).abs().max()
    assert error > 1e-4  # otherwise autocast was not on
    assert (ours - theirs).abs().max() < error
    found = gradients(model, ours.sum())
    assert relative(found, gradients(model, exact.sum())) < 0.05


def test_bfloat16_weights_give_float32_log_probs_and_bfloat16_gradients():
    model, batch = tiny_model().bfloat16(), random_batch()
    ours = sequence_log_probs(model, batch, chunk=1)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, naive_log_probs(model.float(), batch).sum(-1), atol=1, rtol=0.02)
    model.bfloat16()
    assert all(
        g.dtype == torch.bfloat16 for g in gradients(model, sequence_log_probs(model, batch).sum()).values()
    )


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_a_model_that_changes_its_logits_after_the_head_is_refused(family):
    import transformers

    names = {"gemma2": "Gemma2", "granite": "Granite", "cohere": "Cohere"}
    change = {
        "gemma2": {"final_logit_softcapping": 0.5},
        "granite": {"logits_scaling": 8.0},
        "cohere": {"logit_scale": 0.0625},
    }
    options = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 16,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    config = getattr(transformers, f"{names[family]}Config")(**options, **change[family])
    torch.manual_seed(0)
    model = getattr(transformers, f"{names[family]}ForCausalLM")(config)
    with pytest.raises(CourseError) as error:
        sequence_log_probs(model, random_batch(vocabulary=40))
    assert error.value.id == "logits-changed-after-head"


def test_a_head_that_is_more_than_a_linear_layer_is_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = tiny_model("llama")
    model.lm_head = Doubled(16, VOCABULARY, bias=False)
    with pytest.raises(CourseError) as error:
        sequence_log_probs(model, random_batch())
    assert error.value.id == "unsupported-head"


def test_a_model_inside_a_wrapper_is_called_through_the_wrapper():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **inputs):
            self.calls += 1
            return self.module(**inputs)

    model, pairs = tiny_model(), random_pairs(share_prompt=True)
    wrapper = Wrapper(model)
    for one, other in zip(pair_log_probs(wrapper, pairs), pair_log_probs(model, pairs), strict=True):
        assert torch.equal(one, other)
    assert wrapper.calls == 1


def test_scoring_leaves_no_hook_behind_even_after_an_error():
    model = tiny_model()
    with pytest.raises(IndexError):
        sequence_log_probs(model, batch_from_ids([[VOCABULARY + 5]], [[1, 2]]))
    sequence_log_probs(model, random_batch())
    assert not model.lm_head._forward_hooks and not model.lm_head._forward_pre_hooks


# --- memory -------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("share_prompt", [False, True])
def test_no_tensor_of_positions_times_vocabulary_exists_forward_or_backward(share_prompt):
    vocabulary, rows, length = 8192, 8, 24
    model = tiny_model(vocabulary=vocabulary)
    ids = random_ids(3 * rows, length, length, 0, vocabulary)
    sides = [batch_from_ids(ids[:rows], ids[k * rows : (k + 1) * rows]) for k in (1, 2)]
    pairs = EncodedPairs(*sides, share_prompt=share_prompt)
    positions = 2 * rows * length
    with Largest() as lean:
        chosen, rejected = pair_log_probs(model, pairs, chunk=1)
        (chosen - rejected).sum().backward()
    with Largest() as naive:
        naive_log_probs(model, pairs.chosen).sum().backward()
    assert (
        naive.largest >= rows * 2 * length * vocabulary
    )  # the recorder sees such a tensor when there is one
    assert lean.largest <= max(positions * logprobs.THINNEST, vocabulary * 16)
    assert lean.largest * 8 <= positions * vocabulary


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_vocabulary():
    kept = []
    for vocabulary in (600, 6000):
        hidden = torch.randn(50, 8, requires_grad=True)
        weight = torch.randn(vocabulary, 8, requires_grad=True)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t
        ):
            token_log_probs(hidden, weight, torch.zeros(50, dtype=torch.long))
        kept.append(sum(sizes) - weight.numel())
    assert kept[0] == kept[1] == hidden.numel() + 50 + 50  # hidden states, targets and normalisers


def test_without_gradients_nothing_is_kept():
    values = ChunkedLogProbs.apply(
        torch.randn(3, 4), torch.randn(9, 4), torch.tensor([0, 1, 2]), None, 8, torch.float32
    )
    assert values.grad_fn is None


# --- refusals -----------------------------------------------------------------------------------------


def refusal(call, *arguments, **options) -> CourseError:
    with pytest.raises(CourseError) as error:
        call(*arguments, **options)
    return error.value


def test_a_row_without_a_response_is_refused_by_number():
    batch = random_batch()
    mask = batch.response_mask.clone()
    mask[2] = False
    error = refusal(
        sequence_log_probs, tiny_model(), EncodedBatch(batch.input_ids, batch.attention_mask, mask)
    )
    assert error.id == "empty-response" and "row 2" in str(error)


def test_a_response_that_nothing_predicts_is_refused():
    batch = random_batch()
    whole = EncodedBatch(batch.input_ids, batch.attention_mask, batch.attention_mask)
    assert refusal(sequence_log_probs, tiny_model(), whole).id == "empty-prompt"


def test_a_chunk_of_nothing_is_refused():
    assert refusal(sequence_log_probs, tiny_model(), random_batch(), chunk=0).id == "bad-chunk"


def test_pairs_with_two_prompts_cannot_share_one():
    batches = [batch_from_ids([[3, 4], prompt], [[5], [6]]) for prompt in ([7, 8], [7, 9])]
    error = refusal(pair_log_probs, tiny_model(), EncodedPairs(*batches, share_prompt=True))
    assert error.id == "prompt-not-shared" and "row 1" in str(error)
    shorter = [batch_from_ids([prompt], [[5, 6]]) for prompt in ([7, 8], [7])]
    assert (
        refusal(pair_log_probs, tiny_model(), EncodedPairs(*shorter, share_prompt=True)).id
        == "prompt-not-shared"
    )


@pytest.mark.parametrize("counted", [[2, 4], [1, 3, 4]])
def test_a_shared_row_whose_response_has_a_gap_is_refused(counted):
    side = batch_from_ids([[3, 4]], [[5, 6, 7]])
    mask = torch.zeros_like(side.response_mask)
    mask[0, counted] = True
    gap = EncodedBatch(side.input_ids, side.attention_mask, mask)
    for pair in ((gap, side), (side, gap)):
        error = refusal(pair_log_probs, tiny_model(), EncodedPairs(*pair, share_prompt=True))
        assert error.id == "prompt-not-shared"


def test_a_shared_prompt_is_refused_where_its_mask_would_be_ignored():
    pairs = random_pairs(share_prompt=True)
    sliding = tiny_model(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert refusal(pair_log_probs, sliding, pairs).id == "shared-prompt-attention"
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    assert refusal(pair_log_probs, model, pairs).id == "shared-prompt-attention"
    # The plain way leaves the window to the model.
    plain = pair_log_probs(sliding, random_pairs())[0]
    assert torch.allclose(plain, naive_log_probs(sliding, pairs.chosen).sum(-1), atol=1e-5, rtol=0)
