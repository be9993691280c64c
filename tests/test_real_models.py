"""Loading real models: tiny ones of the same classes from folders, what goes wrong in the reader's words, a judge's scores."""

from __future__ import annotations

import os

import pytest
import torch
from language_models import byte_tokenizer, tiny_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from course_utils import real_models
from course_utils.errors import CourseError

transformers = pytest.importorskip("transformers")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer():
    found = byte_tokenizer()
    found.chat_template = TEMPLATE
    return found


def judge_folder(folder, tokenizer, kind="Qwen3", labels=1):
    small = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 32, "num_labels": labels, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**small)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_a_policy_from_a_folder_says_what_the_saved_model_says(tmp_path, tokenizer, architecture):
    model = tiny_model(architecture, vocabulary=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = real_models.load_policy(tmp_path, device="cpu", max_new_tokens=8)
    again = real_models.LanguageModelPolicy(model, tokenizer, chat_template=True)
    asked, said = ["hello", [{"role": "user", "content": "how?"}]], ["hi", "so"]
    assert policy.chat_template
    assert torch.allclose(policy.log_prob(asked, said), again.log_prob(asked, said))
    drawn = policy.sample(asked, torch.Generator().manual_seed(0))
    assert len(drawn) == 2 and all(isinstance(text, str) for text in drawn)


@pytest.mark.parametrize("kind", ["Qwen3", "Qwen2", "Llama"])
def test_a_judges_scores_do_not_depend_on_batch_or_padding(tmp_path, tokenizer, kind):
    model = judge_folder(tmp_path, tokenizer, kind)
    judge = real_models.load_judge(tmp_path, device="cpu")
    prompts = ["a", "what is it?", [{"role": "user", "content": "x"}], "bb"]
    responses = ["yes", "a much longer answer than that", "n", "maybe so"]
    together = judge.score(prompts, responses, batch_size=4)
    apart = judge.score(prompts, responses, batch_size=1)
    assert together.dtype == torch.float64 and torch.allclose(together, apart, atol=1e-5)
    text = f"<user>{prompts[1]}<assistant>{responses[1]}{tokenizer.eos_token}"
    alone = model(input_ids=torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits
    assert float(together[1]) == pytest.approx(float(alone), abs=1e-5)


def test_a_judge_compares_by_the_difference_of_its_scores(tmp_path, tokenizer):
    judge_folder(tmp_path, tokenizer)
    judge = real_models.load_judge(tmp_path, device="cpu")
    one, two = ["yes", "no"], ["never", "no"]
    won = judge.win_probability(["a", "b"], one, two)
    assert torch.allclose(
        won + judge.win_probability(["a", "b"], two, one), torch.ones(2, dtype=torch.float64)
    )
    assert float(won[1]) == pytest.approx(0.5, abs=1e-6)


def test_a_judge_without_a_chat_template_reads_prompt_response_and_end(tmp_path):
    plain = byte_tokenizer()
    plain.chat_template = None
    model = judge_folder(tmp_path, plain)
    found = real_models.load_judge(tmp_path, device="cpu").score(["ab"], ["cd"])
    ids = [*plain("abcd", add_special_tokens=False)["input_ids"], plain.eos_token_id]
    assert float(found) == pytest.approx(float(model(input_ids=torch.tensor([ids])).logits), abs=1e-5)


def test_a_classifier_with_several_outputs_is_no_judge(tmp_path, tokenizer):
    judge_folder(tmp_path, tokenizer, labels=3)
    with pytest.raises(CourseError, match="3 outputs"):
        real_models.load_judge(tmp_path, device="cpu")


def test_a_text_that_is_too_long_for_the_judge_is_refused_not_cut(tmp_path, tokenizer):
    judge_folder(tmp_path, tokenizer)
    judge = real_models.load_judge(tmp_path, device="cpu", max_length=20)
    with pytest.raises(CourseError, match="more than 20 tokens"):
        judge.score(["a"], ["b" * 50])


def test_an_empty_folder_and_an_unknown_name_are_explained(tmp_path):
    with pytest.raises(CourseError, match=r"no config\.json") as caught:
        real_models.load_policy(tmp_path)
    assert caught.value.id == "model-not-here"


def test_without_a_network_the_error_says_what_to_do(monkeypatch):
    def refuses(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuses)
    with pytest.raises(CourseError, match="copy the model's folder here") as caught:
        real_models.load_policy("Qwen/Qwen2.5-0.5B-Instruct")
    assert caught.value.id == "model-not-here"


def test_a_gated_model_names_the_page_to_open(monkeypatch):
    def refuses(*_, **__):
        raise OSError("You are trying to access a gated repo.")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuses)
    with pytest.raises(CourseError, match=r"meta-llama/Llama-3\.2-1B-Instruct, accept") as caught:
        real_models.load_policy("meta-llama/Llama-3.2-1B-Instruct")
    assert caught.value.id == "model-gated"


def test_weights_in_a_format_that_can_run_code_are_not_read(tmp_path, tokenizer):
    model = tiny_model("qwen2", vocabulary=len(tokenizer))
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CourseError) as caught:
        real_models.load_policy(tmp_path, device="cpu")
    assert caught.value.id in ("model-unsafe-file", "model-not-here")


def test_a_tokenizer_in_its_own_subfolder_is_the_one_that_is_used(tmp_path, tokenizer):
    model = tiny_model("qwen2", vocabulary=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    policy = real_models.load_policy(tmp_path, device="cpu")
    text = "the soup was warm, and: how?"
    assert policy.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert policy.chat_template and policy.tokenizer.eos_token_id == tokenizer.eos_token_id


def test_loading_leaves_no_bar_behind_and_the_setting_as_it_was(tmp_path, tokenizer, capfd):
    from transformers.utils import logging

    tiny_model("llama", vocabulary=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    logging.enable_progress_bar()
    real_models.load_policy(tmp_path, device="cpu")
    assert "Loading" not in capfd.readouterr().err and logging.is_progress_bar_enabled()
