"""Write `schema.sql` and `questions.jsonl`: questions in English about a small shop, answered by SQLite.

Deterministic: the same bytes every time, without a network. Every question and every statement occurs once, so no test
row is a copy of a training row, whatever the split; each statement was executed and finds something.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

SEED = 17
HERE = Path(__file__).resolve().parent
TABLES = """\
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT, joined INTEGER);
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, category TEXT, price INTEGER, stock INTEGER);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, product_id INTEGER, quantity INTEGER,
  month TEXT, status TEXT);
"""
SYSTEM = (
    "Answer in SQLite. customers(id, name, city, joined) products(id, name, category, price, stock) "
    "orders(id, customer_id, product_id, quantity, month, status)"
)
CITIES = ("Oslo", "Lima", "Cairo", "Kyoto", "Porto", "Quito", "Turin", "Delhi")
YEARS = tuple(range(2016, 2026))
MONTHS = ("January", "February", "March", "April", "May", "June")
STATUSES = ("open", "paid", "shipped", "returned")
CUSTOMERS = (
    "Ada", "Ben", "Cleo", "Dan", "Elif", "Finn", "Gita", "Hugo", "Ines", "Jon", "Kira", "Leo", "Mona", "Nils", "Olga",
    "Paul", "Qian", "Rosa", "Sam", "Tara", "Umar", "Vera", "Will", "Xena", "Yuri", "Zoe", "Amir", "Bea", "Carl", "Dora",
)  # fmt: skip
PRODUCTS = {
    "kitchen": ("kettle", "pan", "toaster", "blender"),
    "garden": ("rake", "hose", "spade", "trowel"),
    "office": ("desk", "lamp", "stapler", "chair"),
    "sports": ("ball", "racket", "helmet", "tent"),
    "music": ("guitar", "drum", "flute", "violin"),
    "toys": ("puzzle", "kite", "robot", "doll"),
}
CATEGORIES = tuple(PRODUCTS)
ITEMS = tuple(item for items in PRODUCTS.values() for item in items)
TO_CUSTOMER = "JOIN customers ON customers.id = orders.customer_id"
TO_PRODUCT = "JOIN products ON products.id = orders.product_id"

Value = str | int


class Shape(NamedTuple):
    """A form of statement, the ways to ask for it, what fills its gaps, and how many rows are drawn of it."""

    rows: int
    sql: str
    asks: tuple[str, ...]
    values: tuple[Sequence[Value], ...]


SHAPES = (
    Shape(
        8,
        "SELECT name FROM customers WHERE city = '{0}'",
        ("Which customers live in {0}?", "List the customers in {0}.", "Who lives in {0}?"),
        (CITIES,),
    ),
    Shape(
        30,
        "SELECT name FROM customers WHERE city = '{0}' AND joined > {1}",
        (
            "Which customers from {0} joined after {1}?",
            "Who in {0} joined later than {1}?",
            "List customers in {0} who joined after {1}.",
        ),
        (CITIES, YEARS),
    ),
    Shape(
        22,
        "SELECT COUNT(*) FROM customers WHERE city = '{0}' AND joined < {1}",
        ("How many customers from {0} joined before {1}?", "Count the customers in {0} who joined before {1}."),
        (CITIES, YEARS),
    ),
    Shape(
        24,
        "SELECT city FROM customers WHERE name = '{0}'",
        ("Where does {0} live?", "Which city is {0} from?", "In which city does {0} live?"),
        (CUSTOMERS,),
    ),
    Shape(
        24,
        "SELECT price FROM products WHERE name = '{0}'",
        ("How much is the {0}?", "What does the {0} cost?", "What is the price of the {0}?"),
        (ITEMS,),
    ),
    Shape(
        24,
        "SELECT stock FROM products WHERE name = '{0}'",
        ("How many {0}s are in stock?", "What is the stock of the {0}?", "How much stock of the {0} is left?"),
        (ITEMS,),
    ),
    Shape(
        30,
        "SELECT name FROM products WHERE price < {0}",
        ("Which products cost less than {0}?", "What can I buy for under {0}?", "List the products cheaper than {0}."),
        (range(12, 200, 4),),
    ),
    Shape(
        36,
        "SELECT name FROM products WHERE category = '{0}' AND price > {1}",
        (
            "Which {0} products cost more than {1}?",
            "List {0} products above {1}.",
            "What {0} items are more expensive than {1}?",
        ),
        (CATEGORIES, range(5, 180, 7)),
    ),
    Shape(
        28,
        "SELECT COUNT(*) FROM products WHERE stock < {0}",
        ("How many products have fewer than {0} in stock?", "Count products with stock below {0}."),
        (range(4, 96, 2),),
    ),
    Shape(
        6,
        "SELECT AVG(price) FROM products WHERE category = '{0}'",
        ("What is the average price of {0} products?", "How much does a {0} product cost on average?"),
        (CATEGORIES,),
    ),
    Shape(
        6,
        "SELECT name FROM products WHERE category = '{0}' ORDER BY price DESC LIMIT 1",
        ("What is the most expensive {0} product?", "Which {0} product costs the most?"),
        (CATEGORIES,),
    ),
    Shape(
        22,
        "SELECT COUNT(*) FROM orders WHERE status = '{0}' AND month = '{1}'",
        ("How many {0} orders were there in {1}?", "Count the {0} orders of {1}."),
        (STATUSES, MONTHS),
    ),
    Shape(
        26,
        f"SELECT COUNT(*) FROM orders {TO_CUSTOMER} WHERE customers.name = '{{0}}'",
        ("How many orders did {0} place?", "Count the orders of {0}.", "How often did {0} order?"),
        (CUSTOMERS,),
    ),
    Shape(
        24,
        f"SELECT SUM(orders.quantity) FROM orders {TO_PRODUCT} WHERE products.name = '{{0}}'",
        ("How many {0}s were sold?", "What quantity of the {0} was ordered?", "How many of the {0} did we sell?"),
        (ITEMS,),
    ),
    Shape(
        24,
        f"SELECT DISTINCT customers.name FROM orders {TO_CUSTOMER} WHERE orders.status = '{{0}}' AND orders.month = '{{1}}'",
        ("Which customers had {0} orders in {1}?", "Who had {0} orders in {1}?"),
        (STATUSES, MONTHS),
    ),
    Shape(
        26,
        f"SELECT COUNT(*) FROM orders {TO_PRODUCT} WHERE products.category = '{{0}}' AND orders.month = '{{1}}'",
        ("How many {0} orders came in {1}?", "Count the orders of {0} products in {1}."),
        (CATEGORIES, MONTHS),
    ),
    Shape(
        40,
        f"SELECT SUM(products.price * orders.quantity) FROM orders {TO_PRODUCT} "
        f"WHERE products.category = '{{0}}' AND orders.status = '{{1}}'",
        ("What is the revenue of {1} {0} orders?", "How much money are the {1} {0} orders worth?"),
        (CATEGORIES, STATUSES),
    ),
)


def quote(row: tuple[Value, ...]) -> str:
    """A row as SQL literals."""
    return ", ".join(str(value) if isinstance(value, int) else f"'{value}'" for value in row)


def shop(random_: random.Random) -> str:
    """The script that makes and fills the three tables; prices differ within a category, so a maximum is one row."""
    prices = random_.sample(range(6, 200), len(ITEMS))
    people = [(i, name, random_.choice(CITIES), random_.choice(YEARS)) for i, name in enumerate(CUSTOMERS, 1)]
    goods = [(i, item, CATEGORIES[(i - 1) // 4], prices[i - 1], random_.randint(0, 99)) for i, item in enumerate(ITEMS, 1)]
    orders = [
        (
            i,
            random_.randint(1, len(people)),
            random_.randint(1, len(goods)),
            random_.randint(1, 9),
            random_.choice(MONTHS),
            random_.choice(STATUSES),
        )
        for i in range(1, 241)
    ]
    lines = [
        f"INSERT INTO {table} VALUES ({quote(row)});"
        for table, rows in (("customers", people), ("products", goods), ("orders", orders))
        for row in rows
    ]
    return TABLES + "\n".join(lines) + "\n"


def finds(database: sqlite3.Connection, sql: str) -> bool:
    """Whether the statement finds something other than nothing, NULL or 0."""
    return any(value not in (None, 0) for row in database.execute(sql) for value in row)


def rows_of(shape: Shape, database: sqlite3.Connection, random_: random.Random) -> Iterable[tuple[str, str]]:
    """Up to `shape.rows` pairs (question, statement); each set of values once, the ways to ask in turn."""
    sets = list(product(*shape.values))
    random_.shuffle(sets)
    found = [values for values in sets if finds(database, shape.sql.format(*values))]
    for values, ask in zip(found[: shape.rows], cycle(shape.asks), strict=False):
        yield ask.format(*values), shape.sql.format(*values)


def message_row(question: str, sql: str) -> str:
    """One line in the Messages format."""
    turns = (("system", SYSTEM), ("user", question), ("assistant", sql))
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def generate() -> tuple[str, list[str]]:
    """The shop's script, and the data set's lines in random order."""
    random_ = random.Random(SEED)
    script = shop(random_)
    database = sqlite3.connect(":memory:")
    database.executescript(script)
    pairs = [pair for shape in SHAPES for pair in rows_of(shape, database, random_)]
    random_.shuffle(pairs)
    return script, [message_row(question, sql) for question, sql in pairs]


def main() -> None:
    """Write both files beside this one."""
    script, lines = generate()
    (HERE / "schema.sql").write_text(script)
    (HERE / "questions.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} rows")


if __name__ == "__main__":
    main()
