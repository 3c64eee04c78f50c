"""One answer from a merged model, or from an adapter on its base: what `hyperpod-lora generate` prints.

Called by the command line. Greedy, one prompt, the text given out as it comes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps.errors import ModelError
from steps.evaluate.generate import context_length, end_tokens, generate_batch
from steps.evaluate.measure import load_model, load_tokenizer
from steps.protocol.tokenizer_files import CONFIG, template_arguments

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Assistant:\n' + message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""For a tokenizer without a chat template: the one that `prepare` trains such models with (a test compares them)."""


def answer(
    model_dir: Path,
    prompt: str,
    *,
    base: Path | None,
    system: str,
    max_new_tokens: int,
    stream: Callable[[str], None],
) -> str:
    """Answer `prompt`; `stream` gets each piece of the text. `base` is needed where `model_dir` is an adapter.

    Raises:
        ModelError: `model_dir` is neither a model nor an adapter, or the adapter's base is not at hand.
    """
    model, tokenizer = _load(model_dir, base)
    turns = [{"role": "system", "content": system}] if system else []
    text = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": prompt}],
        chat_template=None if tokenizer.chat_template else PLAIN_TEMPLATE,
        add_generation_prompt=True,
        tokenize=False,
        **template_arguments(model_dir),
    )
    tokens = tokenizer(text, add_special_tokens=False).input_ids  # the template has written them already
    if len(tokens) >= context_length(model):
        raise ModelError(f"the prompt has {len(tokens)} tokens and the model reads {context_length(model)}: shorten it")
    writer = _Writer(tokenizer, stream)
    generate_batch(
        model,
        [tokens],
        ends=end_tokens(model, tokenizer),
        max_new_tokens=max_new_tokens,
        on_token=lambda _, token: writer.write(token),
    )
    return writer.close()


class _Writer:
    """Gives out text as soon as its bytes are complete: a character can be spread over several tokens."""

    def __init__(self, tokenizer: Any, stream: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._stream = stream
        self._tokens: list[int] = []
        self._shown = ""

    def write(self, token: int) -> None:
        self._tokens.append(token)
        text = self._text()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._show(text)

    def close(self) -> str:
        self._show(self._text())
        return self._shown

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown):
            self._stream(text[len(self._shown) :])
            self._shown = text


def _load(folder: Path, base: Path | None) -> tuple[Any, Any]:
    if (folder / "adapter_config.json").is_file():
        return _load_adapter(folder, _base_of(folder, base))
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(_neither(folder))
    return load_model(folder, precision="auto")


def _load_adapter(folder: Path, base: Path) -> tuple[Any, Any]:
    from peft import PeftModel
    from safetensors import SafetensorError

    model, tokenizer = load_model(base, precision="auto")
    if (folder / CONFIG).is_file():  # with the template that it was trained with
        tokenizer = load_tokenizer(folder)
    try:
        return PeftModel.from_pretrained(model, str(folder)).eval(), tokenizer
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        SafetensorError,
    ) as error:  # all that peft lets through
        raise ModelError(
            f"cannot put the adapter in {folder} on the base in {base} ({error}): it is damaged, or that is not "
            "its own base model"
        ) from error


def _base_of(folder: Path, base: Path | None) -> Path:
    """The folder of the adapter's base model: the one given, else the one that the adapter names."""
    try:
        named = str(json.loads((folder / "adapter_config.json").read_bytes()).get("base_model_name_or_path") or "")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{folder / 'adapter_config.json'} is damaged: it is no JSON object") from error
    found = base or Path(named)
    if not (found / "config.json").is_file():
        said = f"--base {base}" if base else f"its own base_model_name_or_path, {named!r},"
        raise ModelError(
            f"{folder} is an adapter, and {said} is no model folder here: give the base with --base FOLDER"
        )
    return found


def _neither(folder: Path) -> str:
    inside = sorted(path.parent for name in ("config.json", "adapter_config.json") for path in folder.glob(f"*/{name}"))
    hint = f"; did you mean {' or '.join(map(str, inside[:3]))}?" if inside else ""
    return (
        f"{folder} is neither a model (config.json and safetensors) nor an adapter (adapter_config.json){hint}"
        " Give the merged model's folder, or an adapter's with --base"
    )
