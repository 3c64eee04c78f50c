"""Text that comes from data, a model, a log or a person, made fit to be shown and never acted on; and commands, fit to be pasted.

Used for cards, model cards and reports. HTML is escaped by the templates' own autoescape; here is what it leaves alone:
characters that no reader sees and that change what is seen, and Markdown.
"""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import sys
from pathlib import Path

CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: "\u2421"}
"""What Unicode has to show a control character: ESC becomes ␛."""
UNSEEN = re.compile("[\x80-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff\ud800-\udfff\U000e0000-\U000e007f]")
"""C1 controls, overrides and isolates of the writing direction, line and paragraph separators, byte order marks, halves of
surrogate pairs, invisible tags. Joiners and direction marks stay: Persian, Thai, Hebrew and emoji need them."""
MARKDOWN = re.compile(r"[&<>|\\`*\[\]~$#]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown reads as more than itself; an underscore only at the edge of a word, so that names stay readable."""
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "\\": "&#92;", "`": "&#96;"}
"""For which a backslash would not do everywhere: in a table it does not keep a bar from ending the cell."""


def visible(text: str) -> str:
    """The text with every unseen character shown by its picture or number; newlines, tabs and all scripts as they are."""
    plain = text.replace("\r\n", "\n").translate(CONTROL_PICTURES)
    return UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", plain)


def markdown(text: str) -> str:
    """The text for one line of Markdown, a heading or a table's cell: shown as it is, with its white space as single blanks."""
    line = " ".join(visible(text).split())
    return MARKDOWN.sub(lambda found: ENTITIES.get(found[0], f"\\{found[0]}"), line)


def shorten(text: str, most: int) -> str:
    """At most `most` characters, and how many more there were."""
    return text if len(text) <= most else f"{text[:most]} … ({counted(len(text) - most, 'more character')})"


def both_ends(text: str, most: int) -> str:
    """About `most` characters, the middle left out: a chain of errors says what was done first, and why it failed last."""
    return text if len(text) <= most else f"{text[: most // 3]} … {text[-(most - most // 3) :]}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 sample`, `1,200 samples`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def command(*words: object) -> str:
    """`hyperpod-lora WORDS` for a shell: each word quoted where need be, the command by its path where the shell has another."""
    return shlex.join([_ours(), *map(str, words)])


@functools.cache
def _ours() -> str:
    """As a person calls it; a pod, which has no such file, prints what holds where the run was started."""
    name, beside = "hyperpod-lora", Path(sys.executable).with_name("hyperpod-lora")
    return str(beside) if beside.is_file() and shutil.which(name) != str(beside) else name


def move_away(path: Path) -> str:
    """The command that puts something damaged beside itself, under another name."""
    return shlex.join(["mv", str(path), f"{path}.damaged"])
