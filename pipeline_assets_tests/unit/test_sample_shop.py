"""The sample shop's orders: real, all of them, the same everywhere."""

from collections import Counter
from datetime import UTC, datetime

from pipeline_assets.resources.sample_shop import orders


def test_the_orders_are_the_published_data_moved_by_whole_weeks() -> None:
    found = list(orders())
    # Fader & Hardie's CDNOW master file: 69,659 purchases of 23,570 customers; the defects are its own.
    assert len(found) == 69_659
    assert len({order[1] for order in found}) == 23_570
    assert sum(order[3] == 0 for order in found) == 80
    assert len({order[0] for order in found}) == len(found)
    moments = [order[2] for order in found]
    assert min(moments).date() == datetime(2026, 1, 7, tzinfo=UTC).date()
    assert {moment.hour for moment in moments} == set(range(8, 22))
    assert found[0][:4] == ("00001-20260107-1", 1, moments[0], found[0][3])
    assert str(found[0][3]) == "11.77"
    doubles = Counter((order[1], order[2].date(), order[3], order[5]) for order in found)
    assert sum(count - 1 for count in doubles.values()) == 255


def test_an_order_is_the_same_every_time() -> None:
    assert list(orders())[:100] == list(orders())[:100]
