"""A site whose orders have integer keys: a load appends those above the table's highest key."""

from dataclasses import dataclass
from typing import Any

import pytest

from pipeline_assets.settings import Settings
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.load_steps import DAYS, Pipeline, numbered
from pipeline_assets_tests.reliability import site
from pipeline_assets_tests.reliability.kills import Trap, start


class NumberedPipeline(Pipeline):
    """Loads the table with integer keys."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, numbered())


def load_all(settings: Settings) -> None:
    """Load every day, in the attacked child."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "Pipeline", NumberedPipeline)
        site.load_all(settings)


@dataclass
class NumberedSite(site.Site):
    """Each change brings a new order for each day too, with the next numbers."""

    def change(self) -> None:
        shop = Shop(self.settings.source_database_url.get_secret_value())  # type: ignore[union-attr]  # set
        shop.connection.execute(
            "ALTER TABLE shop.transactions ALTER order_id TYPE bigint USING order_id::bigint"
        )
        super().change()
        for day in range(DAYS):
            shop.put(str(1000 * self.step + day), day)
        shop.connection.close()

    def begin(self, trap: Trap | None = None) -> Any:
        return start(load_all, (self.settings,), trap)

    def recover(self, what: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(site, "Pipeline", NumberedPipeline)
            super().recover(what)
