"""The built-in data set: free-text orders, each answered with one JSON object. Made, not stored; always the same.

Called by `sources`. People and cities of the held-out rows appear in no training row, so a good score is not memory.
"""

# ruff: noqa: SIM905 - lists of words read better as text

from __future__ import annotations

import json
import random
from collections.abc import Iterator

VERSION = 1
"""Part of the source's fingerprint: change it with anything below."""
TRAIN_ROWS, VALIDATION_ROWS = 1200, 120
QUESTION = "Turn this order into one JSON object with the keys customer, city, item and quantity.\n\n{order}"

TRAIN_NAMES = (
    "Alice Baker, Bruno Costa, Carla Diaz, Dmitri Orlov, Elena Rossi, Farid Khan, Grace Lee, Hugo Martin, Ingrid Berg, "
    "Jamal Carter, Kenji Sato, Laura Klein, Marco Bianchi, Nadia Haddad, Oscar Lund, Priya Nair, Quentin Moreau, Rosa Silva, "
    "Stefan Novak, Tara Singh, Umar Aziz, Vera Popova, Walter Schmidt, Ximena Reyes, Yusuf Demir, Zoe Walker"
).split(", ")
TRAIN_CITIES = (
    "Austin, Bergen, Chicago, Dublin, Essen, Florence, Geneva, Hamburg, Istanbul, Jakarta, Krakow, Lisbon, Madrid, Nairobi, "
    "Osaka, Porto, Quito, Rotterdam, Seville, Toronto"
).split(", ")
VALIDATION_NAMES = (
    "Anton Weber, Bianca Ferrari, Callum Fraser, Deepa Rao, Emil Hansen, Fiona Murphy, Goran Petrov, Hana Suzuki, "
    "Ivan Kovac, Julia Santos, Karim Saleh, Lena Fischer"
).split(", ")
VALIDATION_CITIES = "Athens, Boston, Cardiff, Denver, Edinburgh, Freiburg, Glasgow, Helsinki".split(", ")
ITEMS = (
    "desk lamp, office chair, notebook, water bottle, backpack, keyboard, coffee mug, phone case, wall clock, umbrella, "
    "travel pillow, garden hose, picture frame, table fan, cutting board, bicycle bell"
).split(", ")
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
TEMPLATES = (
    "Hi, this is {customer} from {city}. Please send me {count} {items}.",
    "{customer} in {city} wants {count} {items}.",
    "Could you ship {count} {items} to {city}? The name is {customer}.",
    "I would like to order {count} {items}. Deliver to {customer}, {city}.",
    "Order for {customer}: {count} {items}, to be delivered in {city}.",
    "Hello! We need {count} {items} at our {city} office. Regards, {customer}",
    "{count} {items} for {customer}, please. Address: {city}.",
    "My name is {customer} and I live in {city}. I need {count} {items} by Friday.",
    "Send {customer} {count} {items}. It goes to {city}, as always.",
    "Good morning, {customer} here. Put me down for {count} {items}; I am in {city} this month.",
)


def generate_orders() -> Iterator[dict[str, str]]:
    """All rows, in a fixed mixed order: prompt, completion, and `split`, the side that the row belongs to."""
    rng = random.Random(20251125)
    sides = ["train"] * TRAIN_ROWS + ["validation"] * VALIDATION_ROWS
    rng.shuffle(sides)
    return (_order(rng, side) for side in sides)


def _order(rng: random.Random, side: str) -> dict[str, str]:
    training = side == "train"
    quantity = rng.randint(1, len(NUMBERS))
    item = rng.choice(ITEMS)
    order = {
        "customer": rng.choice(TRAIN_NAMES if training else VALIDATION_NAMES),
        "city": rng.choice(TRAIN_CITIES if training else VALIDATION_CITIES),
        "item": item,
        "quantity": quantity,
    }
    text = rng.choice(TEMPLATES).format(
        customer=order["customer"],
        city=order["city"],
        items=item if quantity == 1 else item + "s",
        count=str(quantity) if rng.random() < 0.5 else NUMBERS[quantity - 1],
    )
    question = QUESTION.format(order=text[0].upper() + text[1:])
    return {"prompt": question, "completion": json.dumps(order), "split": side}
