from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.evaluate.scoring.numbers import final_number

NUMBERS = [
    ("so 3 + 4 = 7\n#### 7", "7"),
    ("#### 1,234.50 dollars, or 9 boxes", "1234.5"),
    ("#### 1\nno, wait\n#### 2", "2"),
    ("it is 12, then 30.", "30"),
    ("pages 10-20", "20"),
    ("pages 10–20", "20"),
    ("5 - 3 = 2", "2"),
    ("5 apples #### none", "5"),
    ("a half is .5", "0.5"),
    ("$-5", "-5"),
    ("-$5", "-5"),
    ("−5", "-5"),
    ("–7 °C", "-7"),
    ("(-3)", "-3"),
    ("x=-3", "-3"),
    ("+7", "7"),
    ("1.5e-3", "0.0015"),
    ("1.5E3", "1500"),
    ("1.5 × 10^3", "1500"),
    ("1.5×10³", "1500"),
    ("2 \\times 10^{-2}", "0.02"),
    ("6.02 x 10^23 molecules", "602000000000000000000000"),
    ("3/4", "3/4"),
    ("-1/2", "-1/2"),
    ("1 3/4", "7/4"),
    ("½", "1/2"),
    ("1½ cups", "3/2"),
    ("\\frac{3}{4}", "3/4"),
    ("-\\dfrac{1}{3}", "-1/3"),
    ("\\frac34", "3/4"),
    ("12/05/2024", "2024"),
    ("0,5", "0.5"),
    ("3,14", "3.14"),
    ("0,123", "0.123"),
    ("1,234", "1234"),
    ("1,00,000 rupees", "100000"),
    ("1.234,50 €", "1234.5"),
    ("€1.000,00", "1000"),
    ("1.234.567", "1234567"),
    ("1 234,5", "1234.5"),
    ("25 000 Kč", "25000"),
    ("1\u202f234", "1234"),
    ("12'500 CHF", "12500"),
    ("$1{,}234", "1234"),
    ("50 \\%", "50"),
    ("18 m2", "18"),
    ("5 m/s^2", "5"),
    ("12 km/h", "12"),
    ("5kg", "5"),
    ("CO2", "2"),
    ("\\boxed{42}, which took 3 steps", "42"),
    ("so \\boxed{\\frac{1}{2}} of 9", "1/2"),
    ("答案是5", "5"),
    ("٣٫٥", "3.5"),
    ("1,2,3", "3"),
    ("1e999999999", "1"),
    ("10^6", "1000000"),
    ("10^{-3} mol", "0.001"),
    ("10⁶", "1000000"),
    ("x = 2^{10}", "1024"),
    ("4² = 16", "16"),
    ("a side of 3²", "9"),
    ("0^-1 is no number, 5 is", "5"),
    ("1234567^2", "1234567"),
    ("6,02·10²³", "602000000000000000000000"),
    ("1.6e−19 C", "0.00000000000000000016"),
    ("1'234'567.5 CHF", "1234567.5"),
    ("₹12,34,567", "1234567"),
    ("\\boxed{-\\frac{7}{2}}", "-7/2"),
    ("\\boxed{1{,}000}", "1000"),
    ("\\boxed{\\text{42 apples}}", "42"),
    ("\\boxed{10^{6}}", "1000000"),
    ("50％", "50"),
    ("2 000,50 kr", "2000.5"),
    ("between 3–5", "5"),
    ("H2O boils at 100 °C", "100"),
    ("9.81 m/s²", "9.81"),
    ("**42**", "42"),
    ("USD 5", "5"),
    ("４２", "42"),
    ("no idea", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "number"), NUMBERS, ids=[text for text, _ in NUMBERS])
def test_the_number_that_a_text_ends_in(text: str, number: str | None) -> None:
    found = final_number(text)
    assert (found.value if found else None) == (None if number is None else Fraction(number))


@given(st.text(alphabet="0123456789 .,-−/%e^{}[]\\\\boxedfrac#$€×½²'"))
def test_nothing_that_looks_like_numbers_is_a_crash(text: str) -> None:
    found = final_number(text)
    assert found is None or found.equals(found)


def test_a_power_that_a_model_made_up_costs_no_time() -> None:
    assert final_number("9" * 5000 + "^999") == final_number("9" * 5000)
    assert final_number("999999^999") is not None


@given(st.integers(-(10**9), 10**9))
def test_numbers_are_read_however_thousands_are_parted(number: int) -> None:
    for text in (str(number), f"{number:,}", f"{number:,}".replace(",", "\u202f"), f"{number:,.2f}"):
        found = final_number(f"It is {text}.")
        assert found is not None
        assert found.value == number
