"""The tokens that end an assistant's turn in a chat template, whatever the model calls its end of text.

Used by `evaluate`, which stops at them, and by `merge`, which writes them into the merged model's generation_config, so that
whoever serves it stops there too. Takes a tokenizer; loads nothing.
"""

from __future__ import annotations

from typing import Any

ANSWER = "Answer 4817"
"""Appears in no template."""


def end_of_turn(tokenizer: Any, template: str | None = None) -> tuple[int, ...]:
    """The id of the token that the template writes behind an answer; none where it writes none or there is no template.

    `template` stands in for the tokenizer's own. Its text is rendered as transformers renders it, in a sandbox.
    """
    from jinja2 import TemplateError

    talk = [{"role": "user", "content": "Question 2659"}, {"role": "assistant", "content": ANSWER}]
    if not (template or tokenizer.chat_template):
        return ()
    try:
        text = str(tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False))
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
    ):  # a template may want other conversations
        return ()
    _, found, behind = text.rpartition(ANSWER)
    first = tokenizer(behind.lstrip(), add_special_tokens=False).input_ids[:1] if found else []
    return tuple(token for token in first if token in tokenizer.added_tokens_decoder)
