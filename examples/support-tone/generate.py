"""Write `train.jsonl`: messages to a help desk with a friendly and a curt reply each, as {prompt, chosen, rejected} rows.

Deterministic: the same bytes every time, without a network; each matter occurs once, so that no two rows are nearly the same.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

SEED = 17
HERE = Path(__file__).resolve().parent
OPENINGS = ("Hello, ", "Hi there: ", "", "Good morning, ", "Sorry to bother you, ")
THINGS = (
    "order", "last purchase", "package", "subscription", "new lamp", "gift card", "invoice", "desk", "bicycle", "umbrella", "winter coat",
    "coffee machine", "headphones case", "phone", "laptop stand", "backpack", "tent", "garden hose", "bookshelf", "toy train", "kettle",
    "running watch", "keyboard", "camera", "mattress", "rug", "drill", "guitar", "pair of boots", "picture frame",
)  # fmt: skip
PROBLEMS = {
    "I was charged twice for my {}.": "we will return the second charge for your {} today",
    "my {} has not arrived yet.": "we will find out where your {} is and write to you today",
    "how do I send back my {}?": "you find a label for your {} under Orders, and the way back is free",
    "I forgot my password and cannot see my {}.": "use Forgot password, and your {} will be there again",
    "my {} is broken.": "a new {} is on its way to you, and you can keep the old one",
    "where can I see what my {} cost?": "the price of your {} stands under Account, beside the day you bought it",
    "may I still change the colour of my {}?": "write the colour you like best, and your {} will have it",
    "can somebody else receive my {}?": "name a neighbour under Delivery, and they can take your {} for you",
}
FRIENDLY = ("Thank you for writing to us! I am sorry for the trouble: {}.", "I am sorry about that, and thank you for telling us: {}.")
CURT = ("Read the manual.", "Not our problem.", "You should have known that.", "We are busy.", "Ask somebody else.")


def generate() -> list[str]:
    """The data set's lines in random order."""
    random_ = random.Random(SEED)
    every = list(product(THINGS, PROBLEMS))
    return [_line(random_, *choice) for choice in random_.sample(every, len(every))]


def _line(random_: random.Random, thing: str, problem: str) -> str:
    opening = random_.choice(OPENINGS)
    answer = random_.choice(FRIENDLY).format(PROBLEMS[problem].format(thing))
    message = opening + problem.format(thing)
    row = {"prompt": message[0].upper() + message[1:], "chosen": answer, "rejected": random_.choice(CURT)}
    return json.dumps(row)


def main() -> None:
    """Write the file beside this one."""
    (HERE / "train.jsonl").write_text("".join(f"{line}\n" for line in generate()))


if __name__ == "__main__":
    main()
