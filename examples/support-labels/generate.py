"""Write `train.jsonl`: messages to a help desk, each with one of five labels, as {instruction, input, output} rows.

Deterministic: the same bytes every time, without a network; every message occurs once.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

SEED = 17
HERE = Path(__file__).resolve().parent
ROWS_PER_LABEL = 60
INSTRUCTION = "Label the message: billing, delivery, return, login or praise."
OPENINGS = ("Hello, ", "Hi there: ", "", "Good morning, ", "Sorry to bother you, ")
THINGS = ("order", "last purchase", "package", "subscription", "new lamp", "gift card")
SENTENCES = {
    "billing": (
        "I was charged twice for my {}.",
        "the invoice for my {} shows the wrong amount.",
        "why did the price of my {} go up?",
    ),
    "delivery": ("my {} has not arrived yet.", "the courier lost my {}.", "when will my {} get here?"),
    "return": ("I want to send back my {}.", "how do I return my {}?", "my {} is broken, I want my money back."),
    "login": (
        "I forgot my password and cannot see my {}.",
        "my account is locked, so I cannot open my {}.",
        "the login page fails before I reach my {}.",
    ),
    "praise": ("thank you, I love my {}!", "great service with my {}.", "the {} is perfect, well done."),
}


def generate() -> list[str]:
    """The data set's lines in random order."""
    random_ = random.Random(SEED)
    rows = []
    for label, sentences in SENTENCES.items():
        filled = [opening + sentence.format(thing) for opening, sentence, thing in product(OPENINGS, sentences, THINGS)]
        rows += [(message[0].upper() + message[1:], label) for message in random_.sample(filled, ROWS_PER_LABEL)]
    random_.shuffle(rows)
    return [json.dumps({"instruction": INSTRUCTION, "input": message, "output": label}) for message, label in rows]


if __name__ == "__main__":
    (HERE / "train.jsonl").write_text("\n".join(generate()) + "\n")
