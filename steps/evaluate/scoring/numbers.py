r"""The number that a text ends in, however people and models write it. Pure.

Called by `scores`. Reads 1,234.50 and 1.234,50, 1.5e-3, 1.5 × 10^3 and 10^6, 3/4 and 1 ½ and \frac{3}{4}, −5 and -$5, 50 %,
\boxed{}.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

MINUS = "-−–﹣－"
CURRENCY = "$€£¥₹₽₩₺₫₦฿"
THIN = "'’\u00a0\u2007\u2009\u202f"
"""Between groups of three digits they can mean nothing else."""
HALVES = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺−–", "0123456789-+--")
LONGEST_BASE = 6
"""Digits, of a power: a model can write as many as it likes."""
PLAIN = {
    "{,}": ",", "\\,": "", "\\!": "", "\\;": "", "\\%": "%", "\\$": "$",
    "\\times": "×", "\\cdot": "×", "·": "×", "٫": ".", "٬": ",",
}  # fmt: skip
"""LaTeX and Arabic signs as the others write them."""

_DIGITS = (
    r"\d{1,3}(?: \d{3})+(?!\d)(?:[.,]\d+)?"  # 1 234 567,8
    rf"|\d+(?:[.,{THIN}]\d+)*|\.\d+"
)
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]}}])[{MINUS}+])? [{CURRENCY}]? (?:(?<=[{CURRENCY}])(?P<inner>[{MINUS}+]))?
    (?: \\[dt]?frac\s*(?:\{{\s*(?P<up>\d+)\s*\}}\s*\{{\s*(?P<down>\d+)\s*\}}|(?P<u>\d)(?P<d>\d))
      | (?:(?P<whole>\d+)\s?)?(?P<half>[{HALVES}])
      | (?:(?P<count>\d+)\ )?(?<![\d/.,])(?P<over>\d+)[/⁄](?P<under>\d+)(?![\d/])
      | (?<![A-Za-z_^\d])(?<!\^\{{)(?P<digits>{_DIGITS.replace(" ", "[ ]")})
        (?:[eE](?P<e>[-+−]?\d{{1,3}})(?![\d\w])
          |\s?[×x*]\s?10\s?(?:\^\s?\{{?\s?(?P<power>[-+−–]?\d{{1,3}})(?!\d)\s?\}}?|(?P<raised>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,3}}))
          |\^\s?\{{?\s?(?P<to>[-+−–]?\d{{1,3}})(?!\d)\s?\}}?|(?P<up_to>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,3}}))?
    )
    (?P<percent>\s?%)?
    """,
    re.VERBOSE,
)
_INSIDE_A_WORD = re.compile(r"\d+")
"""The 2 of CO2: only where there is no other."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was written."""

    value: Fraction
    is_percent: bool = False

    def equals(self, other: Number) -> bool:
        """Equal in value; 50 % is 50 as well as 0.5, unless both are in percent."""
        if self.value == other.value:
            return True
        if self.is_percent == other.is_percent:
            return False
        share, plain = (self, other) if self.is_percent else (other, self)
        return share.value / 100 == plain.value


def final_number(text: str) -> Number | None:
    r"""The first number after the last `####`, else the last one in the last `\boxed{}`, else the last one in the text."""
    for written, plain in PLAIN.items():
        text = text.replace(written, plain)
    marked = text.rsplit("####", 1)
    if len(marked) == 2 and (found := _numbers(marked[1])):
        return found[0]
    for part in (_boxed(text), text):
        if found := _numbers(part):
            return found[-1]
    inside = _INSIDE_A_WORD.findall(text)
    return Number(Fraction(Decimal(inside[-1]))) if inside else None


def _numbers(text: str) -> list[Number]:
    return [number for match in _NUMBER.finditer(text) if (number := _read(match))]


def _read(match: re.Match[str]) -> Number | None:
    parts = match.groupdict()
    value = _value(parts)
    if value is None:
        return None
    sign = -1 if (parts["sign"] or parts["inner"] or "+") in MINUS else 1
    return Number(sign * value, is_percent=bool(parts["percent"]))


def _value(parts: dict[str, str | None]) -> Fraction | None:
    up, down = parts["up"] or parts["u"] or parts["over"], parts["down"] or parts["d"] or parts["under"]
    if up and down:
        under = _whole(down)
        return _whole(parts["count"]) + _whole(up) / under if under else None
    if parts["half"]:
        half = Fraction(unicodedata.numeric(parts["half"])).limit_denominator(10)
        return _whole(parts["whole"]) + half
    digits = _plain(str(parts["digits"]))
    if to := (parts["to"] or parts["up_to"]):
        return _power(digits, int(to.translate(SUPERSCRIPTS)))
    exponent = (parts["e"] or parts["power"] or parts["raised"] or "0").translate(SUPERSCRIPTS)
    return Fraction(Decimal(digits)) * Fraction(10) ** int(exponent)


def _power(digits: str, exponent: int) -> Fraction | None:
    """10^6 and 2^10, with a base that a person would write."""
    base = Fraction(Decimal(digits))
    if len(digits) > LONGEST_BASE:
        return base
    return base**exponent if base or exponent > 0 else None


def _whole(digits: str | None) -> Fraction:
    return Fraction(Decimal(digits)) if digits else Fraction(0)


def _plain(digits: str) -> str:
    """Digits and at most one point. A single comma is a decimal one unless three digits follow it, as in 1,234."""
    digits = re.sub(rf"[ {THIN}]", "", digits)
    if "," in digits and "." in digits:
        decimal = max(",.", key=digits.rfind)
        whole, _, rest = digits.rpartition(decimal)
        return f"{re.sub('[.,]', '', whole)}.{rest}"
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{2,3})*,\d{3}|[1-9]\d{0,2}(\.\d{3}){2,}", digits):
        return re.sub("[.,]", "", digits)
    if len(re.findall("[.,]", digits)) > 1:  # a list, a version: what it ends in
        return re.split("[.,]", digits)[-1]
    return digits.replace(",", ".")


def _boxed(text: str) -> str:
    r"""What the last `\boxed{}` holds; empty where there is none."""
    _, mark, rest = text.rpartition("\\boxed{")
    depth = 1 if mark else 0
    for place, sign in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if mark and depth == 0:
            return rest[:place]
    return rest if mark else ""
