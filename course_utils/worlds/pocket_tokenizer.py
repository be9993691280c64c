"""The tokenizer of the pocket language: one token per word or punctuation mark, 194 in all.

Decoding gives back the text exactly, "the sky is blue." and not "the sky is blue .", for every sentence of
the language.

Three ways to write a prompt give the same tokens, <bos> <user> prompt <assistant>: the chat template,
`tokenizer(prompt)`, and `tokenizer(prompt, response)`, which goes on with the response and <eos>. To encode a
response by itself, ask for `add_special_tokens=False`; without it a response would be taken for a prompt.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from course_utils.worlds.pocket_phrases import vocabulary

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>")
PAD, BOS, EOS, UNK, USER, ASSISTANT = SPECIAL_TOKENS
PAD_ID, BOS_ID, EOS_ID, UNK_ID, USER_ID, ASSISTANT_ID = range(len(SPECIAL_TOKENS))

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}<assistant> {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('the pocket models know the roles user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def token_ids() -> dict[str, int]:
    """Every token with its number: the special tokens first, then the words in alphabetical order."""
    return {token: number for number, token in enumerate((*SPECIAL_TOKENS, *vocabulary()))}


def build_tokenizer() -> Any:
    """The tokenizer as a transformers PreTrainedTokenizerFast, made from the language's own word list."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel(token_ids(), unk_token=UNK))
    core.normalizer = normalizers.Lowercase()
    # Words and single marks are split apart; WordPiece decoding puts a mark back behind its word.
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\w']+|[^\w\s]"), behavior="removed", invert=True)
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} {USER} $A {ASSISTANT}",
        pair=f"{BOS} {USER} $A {ASSISTANT} $B {EOS}",
        special_tokens=[(BOS, BOS_ID), (EOS, EOS_ID), (USER, USER_ID), (ASSISTANT, ASSISTANT_ID)],
    )
    return _wrap(tokenizer_object=core)


def read_tokenizer(file: Path) -> Any:
    """The same tokenizer from a stored tokenizer.json."""
    return _wrap(tokenizer_file=str(file))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write tokenizer.json and a tokenizer_config.json that transformers 4 and 5 both read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **_SETTINGS}
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


_SETTINGS: dict[str, Any] = {
    "pad_token": PAD,
    "bos_token": BOS,
    "eos_token": EOS,
    "unk_token": UNK,
    "additional_special_tokens": [USER, ASSISTANT],
    "chat_template": CHAT_TEMPLATE,
    "padding_side": "left",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 128,
}


def _wrap(**source: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(**source, **_SETTINGS)
