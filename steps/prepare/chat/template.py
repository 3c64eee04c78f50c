"""The chat template: a conversation as the model's own text, and where in it the assistant speaks.

Called by `tokens`. It renders the tokenizer's Jinja template in the same sandbox, with the same filters and globals, that
transformers' `apply_chat_template` uses, without importing transformers (seconds, and torch with it); a test holds both
against each other.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steps.errors import ModelError
from steps.prepare.chat.conversations import Conversation
from steps.prepare.chat.frames import Frame, find_frame, only_prints

FALLBACK = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Assistant:\n' + message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""For a base model whose tokenizer has no chat template. It needs no token of its own beyond the end-of-text token."""

TODAY = datetime.datetime(2024, 7, 26)
"""What templates that print the date get: Llama 3's own default. Rows must not depend on the day they were made."""

MOST_FRAMES = 512
"""Kept at a time: one or two for each number of turns."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Refused(Exception):
    """The template cannot render this conversation (no system turns, say); the message is the template's own."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text."""

    text: str
    targets: tuple[tuple[int, int], ...]
    """(start, end) in `text` of each answer, its end-of-turn token included."""

    @property
    def prompt(self) -> str:
        """What comes before the last answer: what the model is asked to continue."""
        return self.text[: self.targets[-1][0]]


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str, tokens: dict[str, str], added: Sequence[str]) -> None:
        """`tokens`: bos_token and its like, for the template; `added`: the tokenizer's added tokens, as they are written.

        Raises:
            ModelError: the template is not valid Jinja.
        """
        from jinja2 import TemplateError

        self.source = source
        self._tokens = tokens
        longest_first = sorted(filter(None, added), key=len, reverse=True)
        # An answer ends with the first added token after its content; one that never matches stands in for none.
        self._end = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._refusal = TemplateError
        try:
            environment = _environment()
            self._template = environment.from_string(source)
            self._has_frames = only_prints(environment.parse(source))
        except TemplateError as error:
            raise ModelError(f"the tokenizer's chat template is not valid Jinja: {error}") from error
        self._frames: dict[tuple[bool, tuple[str, ...]], Frame | None] = {}

    def render(self, conversation: Conversation) -> Rendered:
        """The whole conversation, and the place of each answer.

        An answer begins where the conversation before it, rendered as a prompt for generation, ends.

        Raises:
            Refused: the template raised an error, or a beginning of the conversation is not a beginning of its text.
        """
        text = self._text(conversation, generate=False)
        targets = []
        for index, turn in enumerate(conversation):
            if turn.role != "assistant":
                continue
            prompt = self._text(conversation[:index], generate=True)
            if not text.startswith(prompt):
                raise Refused("the prompt of an answer is not the beginning of the conversation's text")
            targets.append((len(prompt), self._answer_end(text, len(prompt), turn.content)))
        return Rendered(text, tuple(targets))

    def _answer_end(self, text: str, start: int, content: str) -> int:
        content = content.strip()  # many templates trim
        found = text.find(content, start)
        if found < 0:
            raise Refused("an answer does not appear in the conversation's text")
        match = self._end.search(text, found + len(content))
        return match.end() if match else len(text)

    def _text(self, conversation: Conversation, *, generate: bool) -> str:
        """By its frame, if there is one for these roles, else by Jinja."""
        contents = [turn.content for turn in conversation]
        frame = self._frame(tuple(turn.role for turn in conversation), generate)
        if frame and all(content and not content.isspace() for content in contents):
            return frame.fill(contents)
        return self._run([turn.to_dict() for turn in conversation], generate=generate)

    def _frame(self, roles: tuple[str, ...], generate: bool) -> Frame | None:
        key = generate, roles
        if key not in self._frames:
            if len(self._frames) >= MOST_FRAMES:
                self._frames.clear()
            self._frames[key] = self._find_frame(roles, generate) if self._has_frames else None
        return self._frames[key]

    def _find_frame(self, roles: tuple[str, ...], generate: bool) -> Frame | None:
        try:
            return find_frame(partial(self._run, generate=generate), roles)
        except Refused:  # it may be these roles, or a stand-in: Jinja will tell for each conversation
            return None

    def _run(self, messages: list[dict[str, str]], *, generate: bool) -> str:
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=generate, **self._tokens))
        except (self._refusal, TypeError, ValueError) as error:
            raise Refused(str(error)[:120]) from error


def read_template(folder: Path, added: Sequence[str]) -> ChatTemplate:
    """The template beside a tokenizer, or the fallback where there is none.

    Raises:
        ModelError: it is not valid.
    """
    config = _read(folder / "tokenizer_config.json")
    special = {**_read(folder / "special_tokens_map.json"), **config}
    own = folder / "chat_template.jinja"
    try:
        tokens = {name: _content(special[name]) for name in SPECIAL_TOKENS if special.get(name)}
        source = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
        if isinstance(source, list):  # several named ones
            source = {item["name"]: item["template"] for item in source}.get("default")
        if source and not isinstance(source, str):
            raise TypeError("a template is a text")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the chat template or a special token in {folder} is not as transformers writes it; fetch the model again"
        ) from error
    if not source:
        source, tokens = FALLBACK, {"eos_token": "", **tokens}
    return ChatTemplate(source, tokens, added)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); fetch the model again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object; fetch the model again")
    return found


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates (transformers/utils/chat_template_utils.py)."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks answers for others; here it only has to parse."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=TODAY.strftime)
    return environment
