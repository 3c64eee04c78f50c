"""Real chat templates and kinds of conversation, and what transformers itself makes of each pair: for test_template_matrix."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.prepare.chat.conversations import Conversation, to_conversation
from steps.prepare.chat.forms import find_layout
from steps.prepare.chat.messages import Skip
from steps.prepare.chat.template import TODAY

FOLDER = Path(__file__).parents[1] / "templates"
SPECIAL = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_turn>|</?think>|</?tool_call>|\[/?[A-Z]{4,}(?:_[A-Z]+)?\]"
)
"""What a template writes as one token; [INST] and its like too."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a tokenizer says of its template."""

    template: str | None
    """File in tests/prepare/templates; None: the tokenizer has none."""
    bos: str
    eos: str
    end: str
    """What ends an answer."""
    turn_end: str = ""
    """What ends an earlier one, and the last one before that, where it is something else."""


MODELS = {
    "llama-3.1": Model("llama-3.1", "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"),
    "qwen3": Model("qwen3", "", "<|im_end|>", "<|im_end|>"),
    "qwen3, answers marked": Model("qwen3-generation", "", "<|im_end|>", "<|im_end|>"),
    "qwen2.5": Model("qwen2.5", "", "<|im_end|>", "<|im_end|>"),
    "gemma-3": Model("gemma-3", "<bos>", "<eos>", "<end_of_turn>"),
    "mistral-nemo": Model("mistral-nemo", "<s>", "</s>", "</s>"),
    "phi-4": Model("phi-4", "<|endoftext|>", "<|im_end|>", "<|im_end|>"),
    "phi-3": Model("phi-3", "<s>", "<|endoftext|>", "<|endoftext|>", "<|end|>"),
    "deepseek-r1-distill": Model(
        "deepseek-r1-distill", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    ),
    "smollm2": Model("smollm2", "<|im_start|>", "<|im_end|>", "<|im_end|>"),
    "smollm3": Model("smollm3", "", "<|im_end|>", "<|im_end|>"),
    "granite-3.3": Model("granite-3.3", "<|end_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),
    "no end (Falcon's way)": Model("no-end", "", "<|endoftext|>", "<|endoftext|>"),
    "none at all": Model(None, "<s>", "</s>", "</s>"),
}

U, A, S = "user", "assistant", "system"
CALL = {"id": "call12345", "type": "function", "function": {"name": "look_up", "arguments": '{"town": "Bergen"}'}}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Weather", "parameters": {"type": "object"}}}


def said(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


KINDS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": said((U, "Hi?"), (A, "Hello there."))},
    "several turns": {
        "messages": said((U, "One"), (A, "first"), (U, "Two"), (A, "second\n\nline"), (U, "3"), (A, "first"))
    },
    "a system turn": {"messages": said((S, "Be brief."), (U, "Hi?"), (A, "Hello."))},
    "tool calls": {
        "messages": [
            *said((U, "Weather?")),
            {"role": A, "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "rain", "tool_call_id": "call12345"},
            *said((A, "It rains.")),
        ],
        "tools": [TOOL],
    },
    "text beside a call": {
        "messages": [*said((U, "Weather?")), {"role": A, "content": "Let me see.", "tool_calls": [CALL]}],
        "tools": [TOOL],
    },
    "reasoning": {
        "messages": [
            *said((U, "1+1?")),
            {"role": A, "reasoning_content": "one and one", "content": "2"},
            *said((U, "2+2?")),
            {"role": A, "reasoning_content": "two and two", "content": "4"},
        ]
    },
    "reasoning in the content": {"messages": said((U, "1+1?"), (A, "<think>one and one</think>2"))},
    "the answer is in the header": {"messages": said((U, "model"), (A, "assistant"), (U, "<"), (A, "<b>user"))},
    "a weight of 0": {
        "messages": [*said((U, "a")), {"role": A, "content": "bad", "weight": 0}, *said((U, "b"), (A, "good"))]
    },
}


def conversation_of(kind: str) -> Conversation:
    """The row of that kind as `prepare` reads it."""
    found = to_conversation(KINDS[kind], find_layout(KINDS[kind]))
    assert not isinstance(found, Skip), found
    return found


def write_tokenizer(folder: Path, model: Model) -> Path:
    """A byte-level tokenizer that knows the template's tokens; it begins a text with its own bos, as Llama's do."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    source = (FOLDER / f"{model.template}.jinja").read_text(encoding="utf-8") if model.template else ""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = sorted({*SPECIAL.findall(source), model.bos, model.eos, model.end} - {""})
    for text in special:  # the tokens of thoughts and calls are no special ones in Qwen's and DeepSeek's tokenizers
        is_special = not ("think" in text or "tool" in text)
        add = tokenizer.add_special_tokens if is_special else tokenizer.add_tokens
        add([AddedToken(text, special=is_special, normalized=False)])
    if model.bos:
        at = tokenizer.token_to_id(model.bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{model.bos} $A", pair=f"{model.bos} $A $B", special_tokens=[(model.bos, at)]
        )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": model.eos,
        "clean_up_tokenization_spaces": False,
    }
    config |= {"bos_token": model.bos} if model.bos else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if source:
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    return folder


class Reference:
    """transformers on the same folder."""

    def __init__(self, folder: Path, template: str) -> None:
        from transformers import AutoTokenizer
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.template = template
        self.compiled = _compile_jinja_template(template)
        self.compiled.globals["strftime_now"] = TODAY.strftime  # transformers 5 takes no function among the arguments

    def text(self, conversation: Conversation, messages: Any, **options: Any) -> str:
        tools = list(conversation.tools) or None
        if any(
            message["content"] is None for message in messages
        ):  # transformers 5 drops what is null: templates miss it
            values = {**self.tokenizer.special_tokens_map, "tools": tools, "documents": None, **options}
            return str(self.compiled.render(messages=list(messages), **values))
        found: str = self.tokenizer.apply_chat_template(
            list(messages), tools=tools, chat_template=self.template, tokenize=False, **options
        )
        return found

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return found

    def masked(self, conversation: Conversation) -> list[str]:
        """What the template's own marks cover, decoded."""
        found = self.tokenizer.apply_chat_template(
            list(conversation.messages),
            tools=list(conversation.tools) or None,
            chat_template=self.template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return decoded(self.tokenizer, found["input_ids"], found["assistant_masks"])

    def answers(self, conversation: Conversation) -> list[str | None]:
        """Each learned answer by what transformers renders without and with it; None where one is no beginning of the other."""
        found: list[str | None] = []
        for index in conversation.learned:
            before = self.text(conversation, conversation.messages[:index], add_generation_prompt=True)
            after = self.text(conversation, conversation.messages[: index + 1])
            whole = self.text(conversation, conversation.messages)
            answer = after[len(before) :].rstrip()
            found.append(answer if after.startswith(before) and whole.startswith(before + answer) else None)
        return found


def decoded(tokenizer: Any, ids: Any, mask: Any) -> list[str]:
    """The text of each run of ones in the mask."""
    runs: list[list[int]] = []
    before = 0
    for token, is_on in zip(ids, mask, strict=True):
        if is_on and not before:
            runs.append([])
        if is_on:
            runs[-1].append(int(token))
        before = is_on
    return [tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False) for run in runs]
