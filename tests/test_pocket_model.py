"""The pocket models: tokenizer, training and the shipped checkpoints."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from course_utils.errors import CourseError

transformers = pytest.importorskip("transformers")

from course_utils.encoding import encode  # noqa: E402
from course_utils.logprobs import sequence_log_probs  # noqa: E402
from course_utils.worlds import pocket_checkpoints, pocket_model  # noqa: E402
from course_utils.worlds.pocket_checkpoints import default_folder, digest, load, load_reference_features  # noqa: E402
from course_utils.worlds.pocket_features import column, feature_table  # noqa: E402
from course_utils.worlds.pocket_language import BASE, RECIPES, entropy, sample_corpus  # noqa: E402
from course_utils.worlds.pocket_model import ARCHITECTURES, NAMES, TrainingSettings, new_model, sample_texts  # noqa: E402
from course_utils.worlds.pocket_phrases import PROMPTS, vocabulary  # noqa: E402
from course_utils.worlds.pocket_tokenizer import EOS_ID, UNK_ID, build_tokenizer, read_tokenizer  # noqa: E402

SKY, ANSWER = "what colour is the sky?", "good morning. you are kind and wise. the sky is blue."
CHECKPOINTS = [(name, architecture) for architecture in ARCHITECTURES for name in NAMES]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


# -------------------- the tokenizer


def test_every_sentence_of_the_language_comes_back_exactly(tokenizer):
    for recipe in RECIPES.values():
        texts = [text for row in sample_corpus(recipe, 300, seed=41) for text in row]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert tokenizer.batch_decode(ids) == texts
        assert not any(UNK_ID in row for row in ids)


def test_three_ways_to_write_a_conversation_give_the_same_tokens(tokenizer):
    user, assistant = {"role": "user", "content": SKY}, {"role": "assistant", "content": ANSWER}
    asked = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    both = tokenizer.apply_chat_template([user, assistant], tokenize=False)
    assert tokenizer(asked, add_special_tokens=False)["input_ids"] == tokenizer(SKY)["input_ids"]
    assert tokenizer(both, add_special_tokens=False)["input_ids"] == tokenizer(SKY, ANSWER)["input_ids"]
    plain, chat = (encode(tokenizer, [SKY], [ANSWER], chat_template=chat) for chat in (False, True))
    assert plain.input_ids.tolist() == chat.input_ids.tolist() == [tokenizer(SKY, ANSWER)["input_ids"]]
    assert plain.response_mask.tolist() == chat.response_mask.tolist()
    assert tokenizer(SKY, ANSWER)["input_ids"][-1] == EOS_ID


def test_one_token_per_word_and_a_word_from_outside_is_unknown(tokenizer):
    assert len(tokenizer) == len(vocabulary()) + 6
    assert len(tokenizer("the sky is blue.", add_special_tokens=False)["input_ids"]) == 5
    assert tokenizer("The Sky is mauve", add_special_tokens=False)["input_ids"][-1] == UNK_ID


# -------------------- models and training


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pocket_model_is_small_and_of_its_architecture(architecture):
    model = new_model(architecture)
    assert type(model).__name__.lower() == f"{architecture}forcausallm"
    assert 300_000 < sum(value.numel() for value in model.parameters()) < 1_000_000
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_log_probability_in_training_is_the_one_the_course_uses(tokenizer):
    rows, model = sample_corpus(BASE, 12, seed=42), new_model("qwen2", num_hidden_layers=1)
    with torch.no_grad():
        mine = pocket_model.response_log_probs(model, pocket_model.encode_corpus(tokenizer, rows))
        course = sequence_log_probs(model, encode(tokenizer, *map(list, zip(*rows, strict=True))))
    assert torch.allclose(mine, course, atol=1e-4)


def test_training_lowers_the_loss_and_repeats_exactly(tokenizer):
    settings = TrainingSettings("base", steps=12, learning_rate=5e-3, batch_size=16, warm_up=2)
    runs = []
    for _ in range(2):
        model = new_model("llama", num_hidden_layers=1)
        runs.append(pocket_model.train(model, tokenizer, settings))
    assert runs[0] == runs[1]
    # Sentences have 22 tokens on average, and the model starts by knowing nothing.
    assert sum(runs[0][:2]) / 2 == pytest.approx(22 * math.log(len(tokenizer)), rel=0.25)
    assert sum(runs[0][-4:]) < 0.9 * sum(runs[0][:4])


def test_every_sentence_is_in_exactly_one_batch(tokenizer):
    sentences = pocket_model.encode_corpus(tokenizer, sample_corpus(BASE, 100, seed=43))
    drawn = [id(one) for batch in pocket_model.batches(sentences, 8, seed=1) for one in batch]
    assert sorted(drawn) == sorted(map(id, sentences))


def test_unknown_names_are_refused():
    with pytest.raises(CourseError, match="pocket-unknown-name"):
        pocket_model.configuration("gpt")
    with pytest.raises(CourseError, match="pocket-unknown-name"):
        load("rlhf")


# -------------------- the shipped checkpoints


@pytest.mark.parametrize(("name", "architecture"), CHECKPOINTS)
def test_a_shipped_model_knows_its_language(name, architecture):
    model, tokenizer = load(name, architecture)
    found = pocket_model.cross_entropy(model, tokenizer, name, n=300)
    # The difference estimates KL(recipe || model), so it cannot be negative; and little may be missing.
    assert 0 < found["gap"] < 0.35
    assert found["entropy"] == pytest.approx(entropy(RECIPES[name]))
    features = feature_table(*sample_texts(model, tokenizer, per_prompt=20, seed=44))
    assert column(features, "grammatical").mean() > 0.965  # 480 samples; the card has the exact share


@pytest.mark.parametrize(("name", "architecture"), CHECKPOINTS)
def test_transformers_loads_the_same_model_from_the_folder(name, architecture):
    folder = default_folder() / f"{architecture}-{name}"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    mine, tokenizer = load(name, architecture)
    assert all(value.dtype == torch.float32 for value in theirs.parameters())
    for key, value in mine.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(default_folder() / "tokenizer")
    assert their_tokenizer(SKY, ANSWER)["input_ids"] == tokenizer(SKY, ANSWER)["input_ids"]
    user = [{"role": "user", "content": SKY}]
    written = [
        one.apply_chat_template(user, add_generation_prompt=True, tokenize=False)
        for one in (their_tokenizer, tokenizer)
    ]
    assert written[0] == written[1]


def test_the_stored_tokenizer_is_the_one_the_language_makes(tokenizer):
    stored = read_tokenizer(default_folder() / "tokenizer" / "tokenizer.json")
    assert json.loads(stored.backend_tokenizer.to_str()) == json.loads(tokenizer.backend_tokenizer.to_str())


def test_the_reference_features_are_those_of_the_shipped_model():
    for architecture in ARCHITECTURES:
        table = load_reference_features("sft", architecture)
        assert table.shape == (len(PROMPTS), pocket_checkpoints.REFERENCE_PER_PROMPT, 9)
        model, tokenizer = load("sft", architecture)
        fresh = feature_table(*sample_texts(model, tokenizer, per_prompt=25, seed=45))
        flat = table.flatten(0, 1)
        error = (flat.var(dim=0) / len(flat) + fresh.var(dim=0) / len(fresh)).sqrt()
        assert ((flat.mean(dim=0) - fresh.mean(dim=0)).abs() <= 4.5 * error + 1e-9).all()
    assert load_reference_features("base", "qwen2") is None


def test_every_shipped_file_has_its_sum_and_the_whole_is_small():
    folder = default_folder()
    sums = pocket_checkpoints.read_sums(folder)
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != pocket_checkpoints.SUMS]
    assert {file.relative_to(folder).as_posix(): digest(file) for file in files} == sums
    assert sum(file.stat().st_size for file in files) < 5_000_000


@pytest.fixture
def copied(tmp_path):
    """A copy of the shipped folder that may be damaged."""
    return shutil.copytree(default_folder(), tmp_path / "pocket")


def test_a_damaged_checkpoint_is_refused_and_a_missing_one_explained(copied):
    weights = copied / "qwen2-sft" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CourseError, match="pocket-checkpoint-damaged"):
        load("sft", "qwen2", copied)
    weights.unlink()
    with pytest.raises(CourseError, match="pocket-checkpoint-missing"):
        load("sft", "qwen2", copied)
    with pytest.raises(CourseError, match="pocket-checkpoint-missing"):
        load("sft", "llama", copied / "nowhere")
    load("sft", "llama", copied)


def test_the_reference_features_of_another_model_are_refused(copied):
    theirs, mine = (copied / f"{one}-sft" / pocket_checkpoints.REFERENCE for one in ARCHITECTURES)
    mine.write_bytes(theirs.read_bytes())
    sums = copied / pocket_checkpoints.SUMS
    lines = {**pocket_checkpoints.read_sums(copied), mine.relative_to(copied).as_posix(): digest(mine)}
    sums.write_text("".join(f"{value}  {name}\n" for name, value in lines.items()), encoding="utf-8")
    with pytest.raises(CourseError, match="other weights"):
        load_reference_features("sft", ARCHITECTURES[1], copied)


def test_a_checkpoint_written_and_read_again_is_the_same_model(tmp_path, tokenizer, monkeypatch):
    nothing = dict.fromkeys(("model", "recipe", "entropy", "gap", "gap_standard_error"), 0.0)
    rows = tuple(map(list, zip(*sample_corpus(BASE, 24, seed=1), strict=True)))
    monkeypatch.setattr(pocket_checkpoints, "cross_entropy", lambda *_: nothing)
    monkeypatch.setattr(pocket_checkpoints, "sample_texts", lambda *_: rows)
    model = new_model("qwen2", seed=7)
    unused = {"steps": 0, "batch_size": 0, "learning_rate": 0.0, "seed": 0}
    record = {"settings": unused, "seconds": 0, "last_loss": 0.0}
    pocket_checkpoints.save(tmp_path, "base", "qwen2", model, tokenizer, record)
    pocket_checkpoints.finish(tmp_path)
    again, _ = load("base", "qwen2", tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.equal(value, value.half().float())  # what is measured is what is on the disk
