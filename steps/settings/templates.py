"""The chat template that a run asks for: a file's text, and arguments for it.

Called by `resolve`. The text goes into the plan, since steps may run where the file is not. Whether it can render a conversation
is `prepare`'s to say, which has the tokenizer and the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, Problem
from steps.settings.catalog import DatasetPreset, ModelPreset, find_path
from steps.settings.options import AUTO, Options

RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "conversations", "chat_template", "continue_final_message"}
    | {"return_assistant_tokens_mask", "strftime_now", "bos_token", "eos_token"}
)
"""Given to every template already."""


def chosen_template(options: Options, model: ModelPreset, dataset: DatasetPreset) -> str:
    """The text of the file that an option or a preset names; empty: the tokenizer's own template.

    Raises:
        ConfigError: no such file, no text in it, no UTF-8, or no Jinja.
    """
    given = dataset.chat_template or model.chat_template if options.chat_template == AUTO else options.chat_template
    if not given:
        return ""
    path = find_path(given)
    if path is None or not path.is_file():
        raise _problem("chat-template", f"no such file: {given!r}, looked for in {Path.cwd()}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _problem("chat-template", f"{path} cannot be read as text: {error}") from error
    if not text.strip():
        raise _problem("chat-template", f"{path} is empty: expected a Jinja template")
    _check_syntax(text, path)
    return text


def _check_syntax(text: str, path: Path) -> None:
    """Compile it as transformers will, with the one tag that transformers adds; nothing is run."""
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}`, which marks what the assistant says."""

        tags = {"generation"}  # noqa: RUF012  # an attribute of jinja's

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        ImmutableSandboxedEnvironment(extensions=[Generation, loopcontrols]).compile(text)
    except (TemplateError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise _problem("chat-template", f"{path}{line} is not valid Jinja: {error}") from error


def chosen_arguments(options: Options, model: ModelPreset, dataset: DatasetPreset) -> dict[str, Any]:
    """Arguments for the template: the option's over the data preset's over the model preset's, name by name.

    Raises:
        ConfigError: no JSON object, or a name that every template gets anyway.
    """
    given: Any = {}
    if options.chat_template_kwargs != AUTO:
        try:
            given = json.loads(options.chat_template_kwargs)
        except (ValueError, RecursionError) as error:
            raise _problem("chat-template-kwargs", f"is not valid JSON: {error}; {_EXAMPLE}") from error
    if not isinstance(given, dict):
        raise _problem(
            "chat-template-kwargs", f"expected a JSON object, got {options.chat_template_kwargs!r}; {_EXAMPLE}"
        )
    arguments = {**model.chat_template_kwargs, **dataset.chat_template_kwargs, **given}
    taken = sorted(RESERVED & arguments.keys())
    if taken:
        raise _problem("chat-template-kwargs", f"{', '.join(taken)}: every template gets that anyway; leave it out")
    return arguments


_EXAMPLE = """an example: '{"enable_thinking": false}'"""


def _problem(option: str, message: str) -> ConfigError:
    return ConfigError([Problem(f"--{option}", message)])
