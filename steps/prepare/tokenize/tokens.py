"""Conversations → token ids and loss mask, with the base model's own tokenizer and chat template.

Called by `collect`. The ids are those of the whole conversation's text, exactly as transformers would give them
(`apply_chat_template`: no special token is added to what the template writes). Loss is on every answer that is learned, its
end-of-turn token included.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import ModelError
from steps.prepare.chat import answers
from steps.prepare.chat.answers import Rendered
from steps.prepare.chat.conversations import Conversation
from steps.prepare.chat.template import ChatTemplate, read_json_file, read_templates
from steps.prepare.chat.written import Marks
from steps.prepare.tokenize.words import ID_BYTES, find_words

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

logger = logging.getLogger(__name__)

CHECKED_TEXTS = 128
"""Texts of the first chunk on which word by word is compared with the tokenizer, which takes ten times as long for each."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One conversation in tokens."""

    ids: bytes
    """int32."""
    mask: bytes
    """uint8; 1 where there is a loss."""


class ChatTokenizer:
    """Renders and encodes conversations for one base model."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.template = template
        self._marks = Marks.of(template)
        self._tokenizer = tokenizer
        self._words = find_words(tokenizer)
        self._is_checked = False

    @classmethod
    def load(cls, folder: Path, *, template: str = "", arguments: Mapping[str, Any] | None = None) -> ChatTokenizer:
        """The tokenizer in a model folder; `template` (Jinja) is used in its own one's place, `arguments` are given to it.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        tokenizer = _load_tokenizer(folder)
        added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
        found, tokens = read_templates(
            folder, own=template, arguments=arguments or {}, adds_bos=_adds_bos(tokenizer, folder)
        )
        return cls(tokenizer, ChatTemplate(found, tokens, added))

    def plain(self, conversation: Conversation) -> tuple[Conversation, tuple[str, ...]]:
        """The conversation without the end that its answers bring along, and what to say of such marks.

        Raises:
            written.WrittenOut: a message holds turns in the template's own marks.
        """
        return self._marks.taken_off(conversation)

    def render(self, conversation: Conversation) -> Rendered:
        """The conversation's text, and where in it the answers are.

        Raises:
            template.Refused: the template cannot render it.
        """
        return answers.render(self.template, conversation)

    def prompt(self, conversation: Conversation) -> str:
        """What the model is asked to continue, as generation gives it: all before the last answer that is learned.

        Raises:
            template.Refused: the template cannot render it.
        """
        return answers.prompt(self.template, conversation)

    def reference(self, conversation: Conversation, rendered: Rendered) -> str:
        """What a perfect model would say to that."""
        return answers.reference(conversation, rendered, self.template.ends)

    def encode(self, texts: Sequence[Rendered]) -> list[Tokens]:
        """Ids and mask of each text, in order. Many texts per call are quicker than few."""
        if self._words and not self._is_checked and texts:
            self._check_words(texts)
        results = [self._encode_words(rendered) for rendered in texts]
        rest = [index for index, tokens in enumerate(results) if tokens is None]
        if not rest:  # an empty call, too, starts the library's threads, and processes forked later would warn of them
            return [tokens for tokens in results if tokens is not None]
        encodings = self._tokenizer.encode_batch([texts[index].text for index in rest], add_special_tokens=False)
        for index, encoding in zip(rest, encodings, strict=True):
            cuts = [cut for span in texts[index].targets for cut in span]
            results[index] = _tokens(
                array("i", encoding.ids).tobytes(), [_token_at(encoding, cut, len(texts[index].text)) for cut in cuts]
            )
        return [tokens for tokens in results if tokens is not None]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a prompt, as generation needs them."""
        encoded = self._words.encode(text, []) if self._words and self._words.takes(text) else None
        return (
            array("i", encoded[0]).tolist() if encoded else self._tokenizer.encode(text, add_special_tokens=False).ids
        )

    def _check_words(self, texts: Sequence[Rendered]) -> None:
        """Word by word must give what the tokenizer gives, in the first chunk; else the tokenizer does all the work."""
        self._is_checked = True
        texts = texts[:: -(-len(texts) // CHECKED_TEXTS)]
        ours = [self._encode_words(rendered) for rendered in texts]
        taken = [index for index, tokens in enumerate(ours) if tokens is not None]
        encodings = self._tokenizer.encode_batch([texts[index].text for index in taken], add_special_tokens=False)
        if any(
            tokens is not None and tokens.ids != array("i", encoding.ids).tobytes()
            for tokens, encoding in zip((ours[index] for index in taken), encodings, strict=True)
        ):
            logger.warning("the tokenizer does not split text as its pattern says: it tokenises every text itself")
            self._words = None

    def _encode_words(self, rendered: Rendered) -> Tokens | None:
        if self._words is None or not self._words.takes(rendered.text):
            return None
        encoded = self._words.encode(rendered.text, [cut for span in rendered.targets for cut in span])
        return _tokens(*encoded) if encoded else None


def _tokens(ids: bytes, places: list[int]) -> Tokens:
    """`places`: first token and first token after it, of each answer in turn."""
    mask, at = b"", 0
    for start, end in zip(places[::2], places[1::2], strict=True):
        mask += bytes(start - at) + b"\1" * (end - start)
        at = end
    return Tokens(ids, mask + bytes(len(ids) // ID_BYTES - at))


def _token_at(encoding: Encoding, cut: int, length: int) -> int:
    """The token that holds the character at `cut`, or the next that a token holds; the token count at the end."""
    for character in range(cut, length):
        token = encoding.char_to_token(character)
        if token is not None:
            return int(token)
    return len(encoding)


def _load_tokenizer(folder: Path) -> Tokenizer:
    """From tokenizer.json alone where that is all that transformers would use, else through transformers."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        return _load_through_transformers(folder)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for a file that it cannot read
        raise ModelError(f"{file} is no tokenizer ({error}); fetch the model again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if _is_changed_by_config(tokenizer, folder / "tokenizer_config.json"):
        return _load_through_transformers(folder)
    return tokenizer


def _is_changed_by_config(tokenizer: Tokenizer, file: Path) -> bool:
    """Whether transformers would change the tokenizer by its tokenizer_config.json: tokens added there, prefix space."""
    config = read_json_file(file)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    added = {str(token["content"]) for token in config.get("added_tokens_decoder", {}).values()}
    return not added <= known or config.get("add_prefix_space") is not None or bool(config.get("split_special_tokens"))


def _adds_bos(tokenizer: Tokenizer, folder: Path) -> bool:
    """Whether the tokenizer's own convention begins a text with its bos_token."""
    config = read_json_file(folder / "tokenizer_config.json")
    bos = config.get("bos_token") or read_json_file(folder / "special_tokens_map.json").get("bos_token")
    content = bos.get("content") if isinstance(bos, dict) else bos
    first = tokenizer.encode("a").tokens[:1]
    return bool(content) and (first == [content] or (config.get("add_bos_token") is True))


def _load_through_transformers(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # without the right files it ends in anything, AttributeError included
        raise ModelError(
            f"{folder} has no tokenizer that can be used (no tokenizer.json, and: {str(error)[:200]}); "
            "copy the tokenizer's files of this model there"
        ) from error
    if not loaded.is_fast:
        raise ModelError(f"{folder}: expected a fast tokenizer (tokenizer.json), found {type(loaded).__name__}")
    found: Tokenizer = loaded.backend_tokenizer
    return found
