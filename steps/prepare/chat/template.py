"""The chat template: a conversation as the model's own text, rendered by transformers itself.

Called by `tokens`. Where in the text the assistant speaks is found in `answers`. transformers (and torch with it) is imported
when a template is made.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steps.errors import ModelError
from steps.prepare.chat.conversations import Conversation, of_turns
from steps.prepare.chat.edges import Edges
from steps.prepare.chat.messages import Message, to_text

FALLBACK = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Assistant:\n' + message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""For a base model whose tokenizer has no chat template. It needs no token of its own beyond the end-of-text token."""
BOS_FALLBACK = "{{ bos_token }}" + FALLBACK
"""The same for a tokenizer that itself begins a text with a token."""

TODAY = datetime.datetime(2024, 7, 26)
"""What templates that print the date get: Llama 3's own default. Rows must not depend on the day they were made."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template that was not made for a conversation ends in, beside Jinja's own errors."""
REASONING = ("reasoning_content", "thinking", "reasoning", "thought", "think")
"""What data sets and templates call the thoughts before an answer."""

LONGEST_TOKEN = 64
"""Characters."""

Spans = tuple[tuple[int, int], ...]


class Refused(Exception):
    """The template cannot render this conversation (no system turns, say); the message is the template's own."""


@dataclass(frozen=True, slots=True)
class Templates:
    """What renders a model's conversations."""

    source: str
    """Jinja."""
    with_tools: str = ""
    """Another one, for conversations with tools, where the tokenizer has one."""
    arguments: Mapping[str, Any] | None = None
    """Given to it beside the conversation, as `enable_thinking: false`."""
    adds_bos: bool = False
    """Whether the tokenizer itself begins a text with its bos_token."""


class ChatTemplate:
    """Renders conversations, each with what follows it or with the beginning of an answer."""

    def __init__(self, templates: Templates, tokens: Mapping[str, str], added: Mapping[str, bool]) -> None:
        """`tokens`: bos_token and its like, for the template; `added`: the tokenizer's added tokens, and whether each is special.

        Raises:
            ModelError: the template is not valid Jinja.
        """
        self.source = templates.source
        self.tokens = tokens
        self.begin = tokens.get("bos_token", "") if templates.adds_bos else ""
        """What a bare text begins with."""
        self.edges = Edges()
        self._given = {**tokens, **(templates.arguments or {}), "strftime_now": TODAY.strftime}
        self._template, self._tooled = _compiled(self.source), _compiled(templates.with_tools or self.source)
        self._plain = self._template.new_context({**self._given, "tools": None, "documents": None})
        self._print = self._template.root_render_func
        self.marks_answers = _marks_answers(self.source)
        self._reasoning = [name for name in REASONING if name in self.source]
        self.added = re.compile("|".join(map(re.escape, sorted(filter(None, added), key=len, reverse=True))) or "(?!)")
        """Any of the tokenizer's added tokens."""
        special = {text for text, is_special in added.items() if is_special and text}
        self.usual_ends = self._usual_end()
        self.ends = tuple(sorted({*special, *self.usual_ends, tokens.get("eos_token") or "\0"}, key=len, reverse=True))
        """What may end a turn, as it is written, the longest first: not the end of a thought or of a call within it."""

    def _usual_end(self) -> list[str]:
        """The added token that ends a plain answer, if one does."""
        plain = of_turns(("user", "a"), ("assistant", "b"))
        try:
            text = self.text(plain, plain.messages, generate=False).rstrip()
        except Refused:
            return []
        return [found[0] for found in self.added.finditer(text) if found.end() == len(text)]

    def token_at(self, text: str, place: int) -> tuple[int, int]:
        """Start and end of the added token that `place` lies inside of; twice `place` if it is in none."""
        for found in self.added.finditer(text, max(0, place - LONGEST_TOKEN), place + LONGEST_TOKEN):
            if found.start() < place < found.end():
                return found.span()
        return place, place

    def text(self, conversation: Conversation, messages: Sequence[Message], *, generate: bool) -> str:
        """`messages` (all of the conversation's or some) as text; `generate`: and the beginning of the next answer.

        Raises:
            Refused: the template raised an error.
        """
        if conversation.tools or conversation.arguments:
            return self._call(conversation, messages, generate=generate)[0]
        return self._text(messages, generate)

    def marked(self, conversation: Conversation) -> tuple[str, Spans]:
        """The conversation as text and what the template's own `{% generation %}` blocks cover.

        Raises:
            Refused: the template raised an error.
        """
        return self._call(conversation, conversation.messages, generate=False)

    def variants(self, conversation: Conversation) -> Iterator[Conversation]:
        """The conversation as it is; then in the forms that other templates want calls in: arguments as text, content as null."""
        conversation = self._with_reasoning(conversation)
        yield conversation
        if any(message.get("tool_calls") for message in conversation.messages):
            for null, text in ((True, False), (False, True), (True, True)):
                changed = (_recalled(message, null=null, text=text) for message in conversation.messages)
                yield replace(conversation, messages=tuple(changed))

    def _with_reasoning(self, conversation: Conversation) -> Conversation:
        """Thoughts under the name that the template looks for."""
        if not any(not message.keys().isdisjoint(REASONING) for message in conversation.messages):
            return conversation
        renamed = []
        for message in conversation.messages:
            thoughts = reasoning_of(message)
            bare = {key: value for key, value in message.items() if key not in REASONING}
            renamed.append({**message, **dict.fromkeys(self._reasoning, thoughts)} if thoughts else bare)
        return replace(conversation, messages=tuple(renamed))

    def _text(self, messages: Sequence[Message], generate: bool) -> str:
        """As transformers renders it, by its compiled template, but for one context for all: to make one takes as long again."""
        from jinja2 import TemplateError

        context = self._plain
        context.vars.clear()
        context.exported_vars.clear()
        context.parent.update(messages=messages, add_generation_prompt=generate)
        try:
            return "".join(self._print(context))
        except (TemplateError, *TEMPLATE_FAULTS) as error:
            raise Refused(str(error)[:120] or type(error).__name__) from error

    def _call(self, conversation: Conversation, messages: Sequence[Message], *, generate: bool) -> tuple[str, Spans]:
        """Text and marked parts, by what is inside transformers' `render_jinja_template`: since 5.2x that one replaces every
        function that a template is given, our date among them, by its name."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import _render_with_assistant_indices

        try:
            text, spans = _render_with_assistant_indices(
                self._tooled if conversation.tools else self._template,
                messages,
                list(conversation.tools) or None,
                None,
                generate,
                **({**self._given, **conversation.arguments} if conversation.arguments else self._given),
            )
        except (TemplateError, *TEMPLATE_FAULTS) as error:
            raise Refused(str(error)[:120] or type(error).__name__) from error
        return text, tuple(tuple(span) for span in spans)


def reasoning_of(message: Message) -> str:
    """The thoughts that a message gives apart from its content; empty where there are none."""
    texts = (to_text(message[name]) for name in REASONING if message.get(name))
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def _recalled(message: Message, *, null: bool, text: bool) -> Message:
    """A message with calls in another of the forms in use."""
    if not message.get("tool_calls"):
        return message
    changed = dict(message)
    if null and not message["content"]:
        changed["content"] = None
    if text:
        changed["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _as_json(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return changed


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _compiled(source: str) -> Any:
    """A template as transformers compiles it: in a sandbox, with the functions that templates may use."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(source)
    except (TemplateError, RecursionError) as error:
        raise ModelError(f"the chat template is not valid Jinja: {error}") from error


def _marks_answers(source: str) -> bool:
    """Whether the template says itself where the assistant speaks: transformers' own test."""
    return re.search(r"\{\%-?\s*generation\s*-?\%\}", source) is not None


def read_templates(
    folder: Path, *, own: str, arguments: Mapping[str, Any], adds_bos: bool
) -> tuple[Templates, dict[str, str]]:
    """What renders conversations for the tokenizer in `folder`, and its special tokens.

    `own`: a template that is used in the tokenizer's place; without either, the fallback is. `adds_bos`: whether the tokenizer
    itself begins a text with its bos_token.

    Raises:
        ModelError: a file is not as transformers writes it.
    """
    config = read_json_file(folder / "tokenizer_config.json")
    special = {**read_json_file(folder / "special_tokens_map.json"), **config}
    try:
        tokens = {name: _content(special[name]) for name in SPECIAL_TOKENS if special.get(name)}
        found = _find_sources(folder, config)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the chat template or a special token in {folder} is not as transformers writes it; fetch the model again"
        ) from error
    if own:
        return Templates(own, arguments=arguments, adds_bos=adds_bos), tokens
    if found.get("default"):
        return Templates(found["default"], found.get("tool_use", ""), arguments, adds_bos), tokens
    if "eos_token" not in tokens:
        raise ModelError(
            f"the tokenizer in {folder} has neither a chat template nor an eos_token, so no answer could end: "
            "give a template whose turns end with a token (--chat-template FILE), or add an eos_token to tokenizer_config.json"
        )
    source = BOS_FALLBACK if adds_bos and "bos_token" in tokens else FALLBACK
    return Templates(source, arguments=arguments, adds_bos=adds_bos), tokens


def _find_sources(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates beside a tokenizer, by name."""
    own = folder / "chat_template.jinja"
    source = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several named ones
        source = {str(item["name"]): item["template"] for item in source}
    named = source if isinstance(source, dict) else {"default": source or ""}
    if not all(isinstance(text, str) for text in named.values()):
        raise TypeError("a template is a text")
    return named


def read_json_file(path: Path) -> dict[str, Any]:
    """The object in one of the tokenizer's files; empty where there is no file.

    Raises:
        ModelError: it is no JSON object.
    """
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
