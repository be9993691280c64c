"""Encoding: the boundary between prompt and response, the end token, padding, and rows that are too long."""

from __future__ import annotations

import warnings

import pytest
import torch
from language_models import CHATML, byte_tokenizer

from course_utils.encoding import (
    EncodedBatch,
    EncodedPairs,
    batch_from_ids,
    encode,
    encode_pairs,
    encode_prompts,
)
from course_utils.errors import CourseError

PROMPTS = ["tell me about the soup", "ab", "the music:"]
RESPONSES = [" it was warm", "ab and kind", "yes"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def parts(batch: EncodedBatch, row: int) -> tuple[list[int], list[int]]:
    """The prompt's and the response's token ids of one row."""
    real, counted = batch.attention_mask[row], batch.response_mask[row]
    return batch.input_ids[row][real & ~counted].tolist(), batch.input_ids[row][counted].tolist()


def refusal(call, *arguments, **options) -> CourseError:
    with pytest.raises(CourseError) as error:
        call(*arguments, **options)
    return error.value


@pytest.mark.parametrize("padding", ["right", "left"])
def test_every_row_decodes_to_its_prompt_and_its_response_and_one_end(tokenizer, padding):
    batch = encode(tokenizer, PROMPTS, RESPONSES, padding=padding)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        before, after = parts(batch, row)
        assert tokenizer.decode(before) == prompt
        assert tokenizer.decode(after) == response + "<|im_end|>"
        assert after.count(tokenizer.eos_token_id) == 1


def test_no_token_straddles_the_boundary_so_a_prompt_has_one_encoding(tokenizer):
    joined = tokenizer("ab" + "ab")["input_ids"]
    assert joined[:1] != tokenizer("ab")["input_ids"]  # the tokenizer would merge across the boundary
    batch = encode(tokenizer, ["ab", "ab"], ["ab", " soup"])
    assert parts(batch, 0)[0] == parts(batch, 1)[0] == encode_prompts(tokenizer, ["ab"])[0]


def test_an_end_token_that_is_there_already_is_not_added_again(tokenizer):
    batch = encode(tokenizer, ["ab"] * 2, ["soup", "soup<|im_end|>"])
    assert torch.equal(batch.input_ids[0], batch.input_ids[1])
    open_ended = encode(tokenizer, ["ab"], ["soup"], append_eos=False)
    assert parts(open_ended, 0)[1] == parts(batch, 0)[1][:-1]


def test_left_and_right_padding_hold_the_same_rows_and_pad_the_named_side(tokenizer):
    right, left = (encode(tokenizer, PROMPTS, RESPONSES, padding=side) for side in ("right", "left"))
    for row in range(3):
        assert parts(right, row) == parts(left, row)
    assert right.attention_mask[:, 0].all() and left.attention_mask[:, -1].all()
    assert not right.attention_mask[2, -1] and not left.attention_mask[2, 0]
    assert torch.equal(right.response_lengths, left.response_lengths)


def test_a_tokenizer_that_closes_its_texts_does_not_close_the_prompt(tokenizer):
    from tokenizers.processors import TemplateProcessing

    closing = byte_tokenizer()
    ids = [(token, closing.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=ids
    )
    before, after = parts(encode(closing, ["soup"], ["warm"]), 0)
    assert tokenizer.decode(before) == "<|im_start|>soup"  # the begin token stays
    assert tokenizer.decode(after) == "warm<|im_end|>"


# --- chat templates -----------------------------------------------------------------------------------


def test_a_chat_template_gives_its_own_text_up_to_the_end_of_the_turn(tokenizer):
    conversation = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "soup?"}]
    batch = encode(tokenizer, ["soup?", conversation], ["warm", "warm"], chat_template=True)
    before, after = parts(batch, 0)
    assert tokenizer.decode(before) == "<|im_start|>user\nsoup?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(after) == "warm<|im_end|>"  # and not the newline that the template adds
    assert tokenizer.decode(parts(batch, 1)[0]).startswith("<|im_start|>system\nbe kind<|im_end|>\n")
    assert parts(batch, 1)[1] == after


def test_a_template_that_rewrites_the_prompt_is_refused():
    rewriting = byte_tokenizer("{% if not add_generation_prompt %}[seen] {% endif %}" + CHATML)
    assert refusal(encode, rewriting, ["soup?"], ["warm"], chat_template=True).id == "chat-template-boundary"


def test_a_template_with_another_end_token_asks_for_its_id(tokenizer):
    other = byte_tokenizer(CHATML.replace("<|im_end|>", "<|im_start|>!"))
    error = refusal(encode, other, ["soup?"], ["warm"], chat_template=True)
    assert error.id == "chat-template-end" and "eos_id" in str(error)
    without = byte_tokenizer("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}")
    assert tokenizer.decode(parts(encode(without, ["soup?"], ["warm"], chat_template=True), 0)[1]).endswith(
        "<|im_end|>"
    )


# --- rows that are too long ---------------------------------------------------------------------------


def test_a_row_that_is_too_long_is_refused_by_number(tokenizer):
    longest = encode(tokenizer, PROMPTS, RESPONSES).input_ids.shape[1]
    assert encode(tokenizer, PROMPTS, RESPONSES, max_length=longest).input_ids.shape[1] == longest
    error = refusal(encode, tokenizer, PROMPTS, RESPONSES, max_length=longest - 1)
    assert error.id == "over-length" and "row 0" in str(error)


def test_cutting_the_prompt_keeps_its_end_and_the_whole_response(tokenizer):
    whole = [parts(encode(tokenizer, PROMPTS, RESPONSES), row) for row in range(3)]
    room = sum(map(len, whole[0])) - 2
    with pytest.warns(UserWarning, match="1 of 3 prompts"):
        batch = encode(tokenizer, PROMPTS, RESPONSES, max_length=room, over_length="cut-prompt")
    assert parts(batch, 0) == (whole[0][0][2:], whole[0][1])
    assert [parts(batch, row) for row in (1, 2)] == whole[1:]


def test_cutting_the_response_takes_the_end_token_away_with_it(tokenizer):
    whole = [parts(encode(tokenizer, PROMPTS, RESPONSES), row) for row in range(3)]
    room = sum(map(len, whole[0])) - 1
    with pytest.warns(UserWarning, match="1 of 3 rows' responses"):
        batch = encode(tokenizer, PROMPTS, RESPONSES, max_length=room, over_length="cut-response")
    assert parts(batch, 0) == (whole[0][0], whole[0][1][:-1])
    assert tokenizer.eos_token_id not in parts(batch, 0)[1]


def test_a_cut_prompt_is_cut_alike_for_chosen_and_rejected(tokenizer):
    chosen, rejected = ["warm"], [" the service was kind and warm and kind"]
    lengths = [len(parts(encode(tokenizer, PROMPTS[:1], side), 0)[1]) for side in (chosen, rejected)]
    with pytest.warns(UserWarning):
        pairs = encode_pairs(
            tokenizer, PROMPTS[:1], chosen, rejected, max_length=max(lengths) + 1, over_length="cut-prompt"
        )
    assert (
        parts(pairs.chosen, 0)[0]
        == parts(pairs.rejected, 0)[0]
        == encode_prompts(tokenizer, PROMPTS[:1])[0][-1:]
    )
    assert [len(parts(side, 0)[1]) for side in (pairs.chosen, pairs.rejected)] == lengths


@pytest.mark.parametrize("cut", ["cut-prompt", "cut-response"])
def test_a_cut_that_would_leave_nothing_is_refused(tokenizer, cut):
    error = refusal(encode, tokenizer, PROMPTS[:1], RESPONSES[:1], max_length=2, over_length=cut)
    assert error.id == "over-length" and cut in str(error)


def test_rows_that_fit_are_cut_by_nobody_and_nothing_is_said(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = encode(tokenizer, PROMPTS, RESPONSES, max_length=200, over_length="cut-response")
    assert torch.equal(batch.input_ids, encode(tokenizer, PROMPTS, RESPONSES).input_ids)


# --- batches ------------------------------------------------------------------------------------------


def test_selected_rows_keep_their_content_and_lose_needless_padding():
    for padding in ("right", "left"):
        batch = batch_from_ids([[3], [4, 5], [6]], [[7], [8, 9, 10], [11]], padding=padding)
        some = batch.select([2, 0])
        assert some.input_ids.tolist() == [[6, 11], [3, 7]]
        assert some.response_mask.tolist() == [[False, True]] * 2
        assert torch.equal(some.input_ids, batch.select(torch.tensor([2, 0])).input_ids)
    pairs = EncodedPairs(batch, batch, share_prompt=True).select([1])
    assert pairs.share_prompt and pairs.chosen.input_ids.tolist() == [[4, 5, 8, 9, 10]]
    assert len(pairs.to("cpu")) == 1


def test_masks_of_zeros_and_ones_become_boolean():
    ids = torch.tensor([[3, 4, 0]])
    batch = EncodedBatch(ids, torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1, 0]]))
    assert batch.attention_mask.dtype == batch.response_mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("prompts", "responses", "id"),
    [
        (["ab"], [""], "empty-response"),
        ([""], ["ab"], "empty-prompt"),
        (["ab"], ["ab", "ab"], "batch-shape"),
        ([], [], "batch-shape"),
        (["ab"], "a", "batch-shape"),
        ([["ab"]], ["ab"], "not-text"),
        (["ab"], [None], "not-text"),
    ],
)
def test_what_cannot_be_scored_is_refused(tokenizer, prompts, responses, id):
    assert refusal(encode, tokenizer, prompts, responses).id == id


def test_an_empty_response_is_refused_although_an_end_token_would_follow(tokenizer):
    error = refusal(encode_pairs, tokenizer, ["ab"] * 2, ["soup"] * 2, ["warm", ""], chat_template=True)
    assert error.id == "empty-response" and "row 1" in str(error)


def test_a_tokenizer_without_an_end_is_refused_unless_told(tokenizer):
    endless = byte_tokenizer()
    endless.eos_token = None
    assert refusal(encode, endless, ["ab"], ["ab"]).id == "no-end-token"
    assert parts(encode(endless, ["ab"], ["ab"], eos_id=7), 0)[1][-1] == 7


def test_unknown_choices_are_refused(tokenizer):
    assert refusal(encode, tokenizer, ["ab"], ["ab"], padding="middle").id == "unknown-padding"
    assert refusal(encode, tokenizer, ["ab"], ["ab"], over_length="cut").id == "unknown-over-length"
    assert refusal(EncodedBatch, torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2)).id == "batch-shape"
    one, two = (batch_from_ids([[3]] * n, [[4]] * n) for n in (1, 2))
    assert refusal(EncodedPairs, one, two).id == "batch-shape"
