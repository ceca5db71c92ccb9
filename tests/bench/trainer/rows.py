"""Instruction rows of mixed length that need no download: what Python's standard library says of its own functions and classes."""

from __future__ import annotations

import importlib
import inspect
import math
import random
from bisect import bisect

MODULES = (
    "argparse", "array", "ast", "asyncio", "base64", "bisect", "calendar", "collections", "configparser", "contextlib", "csv", "datetime",
    "decimal", "difflib", "email.message", "enum", "fractions", "functools", "gettext", "hashlib", "heapq", "html", "http.client",
    "imaplib", "inspect", "ipaddress", "itertools", "json", "locale", "logging", "mailbox", "math", "mimetypes", "operator", "os",
    "pathlib", "pickle", "platform", "plistlib", "pprint", "queue", "random", "re", "sched", "shelve", "shlex", "shutil", "smtplib",
    "socket", "sqlite3", "ssl", "statistics", "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "time",
    "timeit", "traceback", "types", "typing", "unittest", "urllib.parse", "urllib.request", "uuid", "weakref", "xml.dom.minidom",
    "zipfile",
)  # fmt: skip
SHORTEST, LONGEST = 8, 350  # words of an answer


def rows(count: int, longest: int = LONGEST, seed: int = 17) -> list[dict[str, str]]:
    """`count` different rows in an order of the seed's, whose answers' lengths are spread evenly over the powers of two."""
    said: dict[str, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for member in sorted(getattr(module, "__all__", vars(module))):
            value = getattr(module, member)
            text = inspect.getdoc(value) if callable(value) and not member.startswith("_") else None
            if text and text not in said and len(text.split()) <= longest:
                said[text] = f"What does {name}.{member} do in Python?"
    if count > len(said):
        raise ValueError(f"there are {len(said)} rows, not {count}")
    left = sorted(said, key=lambda text: (len(text.split()), text))
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        words = math.exp(chance.uniform(math.log(SHORTEST), math.log(longest)))
        answer = left.pop(min(bisect(left, words, key=lambda text: len(text.split())), len(left) - 1))
        found.append({"instruction": said[answer], "output": answer})
    return found
