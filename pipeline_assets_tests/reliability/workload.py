"""Changes of the source between two attacks: seeded, of every kind, on each of the days."""

from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any

from pipeline_assets_tests.conftest import FIRST_DAY, Shop
from pipeline_assets_tests.load_steps import DAYS

BAD: list[dict[str, Any]] = [
    {"amount": 0},
    {"amount": Decimal("1.005")},
    {"amount": Decimal("NaN")},
    {"quantity": 0},
    {"quantity": None},
    {"currency": "XXX"},
    {"status": "lost"},
    {"customer_id": None},
    {"ordered_at": FIRST_DAY + timedelta(days=400)},
]
CHANGES = 12
"""Changes per day, besides one order that is always good and one that is always bad."""


def change(shop: Shop, random: Random, step: int, *, spoils: bool = True) -> None:
    """Insert, update, move to another day, spoil, repair, duplicate and delete orders.

    Without `spoils` all orders keep the contract, so that no day is held.
    """
    with shop.connection.transaction():
        for day in range(DAYS):
            second = step % 800 * 100
            # Its names are numbers, as some sites' keys are.
            shop.put(f"10{day}", day, second, amount=step + 1)
            if spoils:
                shop.put(f"11{day}", day, second, **random.choice(BAD))
            for _ in range(CHANGES):
                order = f"{random.randrange(60):02}"
                if random.random() < 0.15:
                    shop.remove(order)
                    continue
                shop.put(order, day, second + random.randrange(100), **_values(random, day, spoils))
                if spoils and random.random() < 0.05:
                    shop.connection.execute(
                        "INSERT INTO shop.transactions SELECT * FROM shop.transactions"
                        " WHERE order_id = %s",
                        [order],
                    )


def _values(random: Random, day: int, spoils: bool) -> dict[str, Any]:
    values = {
        "customer_id": random.randrange(5),
        "amount": Decimal(random.randrange(1, 10_000)) / 100,
        "quantity": random.randrange(1, 9),
        "currency": random.choice(["USD", "EUR", " gbp"]),
        "status": random.choice(["completed", "Pending", "refunded "]),
        "ordered_at": FIRST_DAY + timedelta(days=day - random.randrange(40)),
    }
    return values | random.choice(BAD) if spoils and random.random() < 0.15 else values
