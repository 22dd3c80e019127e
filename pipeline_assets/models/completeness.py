"""Whether the warehouse has the days of orders that a week of the model rests on: all before its end.

A day is complete once it has passed its gate and is loaded. Which share of days may be incomplete is a
setting; what happens then is up to the assets.
"""

from bisect import bisect_left
from collections.abc import Sequence
from datetime import date, timedelta

import psycopg

from pipeline_assets.failures import NotYetError
from pipeline_assets.models.snapshots import WEEK
from pipeline_assets.quality.contract import Contract
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import ledger


class IncompleteDaysError(NotYetError):
    """Days that a week rests on are held, missing or not loaded in the warehouse."""


def days_before(end: date, settings: Settings) -> list[date]:
    """Every day of the warehouse before `end`."""
    first = settings.warehouse_start_date
    return [first + timedelta(days=number) for number in range((end - first).days)]


def incomplete_days(
    warehouse: psycopg.Connection, contract: Contract, days: Sequence[date]
) -> dict[str, str]:
    """Partition key of an incomplete day -> why: `missing`, `held by <rules>` or `not loaded`.

    Days that passed their gate and are loaded are left out.
    """
    ledger.ensure_schema(warehouse, contract)
    keys = [day.isoformat() for day in days]
    known = ledger.batches(warehouse, contract, keys)
    found: dict[str, str] = {}
    for key in keys:
        batch = known.get(key)
        if batch is None:
            found[key] = "missing"
        elif batch.verdict != "passed":
            found[key] = f"held by {', '.join(batch.broken_rules)}"
        elif batch.loaded_hash != batch.content_hash:
            found[key] = "not loaded"
    return found


def incomplete_weeks(
    warehouse: psycopg.Connection, contract: Contract, settings: Settings, mondays: Sequence[str]
) -> set[str]:
    """The weeks that `require_days` would refuse, as too many days before their end are incomplete."""
    first = settings.warehouse_start_date
    ends = {monday: date.fromisoformat(monday) + WEEK for monday in mondays}
    days = days_before(max(ends.values(), default=first), settings)
    incomplete = sorted(incomplete_days(warehouse, contract, days))
    return {
        monday
        for monday, end in ends.items()
        if (missing := bisect_left(incomplete, end.isoformat()))
        and missing / (end - first).days > settings.models_missing_days
    }


def require_days(incomplete: dict[str, str], days: int, allowed_share: float, what: str) -> None:
    """Accept incomplete days up to a share of all days.

    Raises:
        IncompleteDaysError: the share is larger; the message names the first such days and why.
    """
    share = len(incomplete) / days if days else 0.0
    if share > allowed_share:
        named = "; ".join(f"{day} {reason}" for day, reason in list(incomplete.items())[:10])
        more = f"; and {len(incomplete) - 10} more" if len(incomplete) > 10 else ""
        raise IncompleteDaysError(
            f"{what} rests on {days} days, of which {len(incomplete)} aren't in the warehouse as they "
            f"should be: {named}{more}. Load them, or allow a share by MODELS_MISSING_DAYS (now "
            f"{allowed_share:g})"
        )
