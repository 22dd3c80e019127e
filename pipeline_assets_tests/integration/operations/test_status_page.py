"""The status page as an asset: what it says of a real deployment."""

import dagster as dg
from pydantic import SecretStr

from pipeline_assets.settings import Settings
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.integration.operations.test_retention import DAYS, run


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    (page,) = result.asset_materializations_for_node("status_report")
    return {name: value.value for name, value in page.metadata.items()}


def test_the_page_says_what_is_wrong_and_what_to_do(
    settings: Settings, instance: dg.DagsterInstance, shop: Shop
) -> None:
    shop.put("bad", status="lost")
    assert not run(settings, instance, "load_transactions", DAYS[0]).success

    result = run(settings, instance, "report_status")

    assert result.success
    assert all(found.passed for found in result.get_asset_check_evaluations())
    found = metadata(result)
    assert found["partitions_held"] == 1
    report = str(found["report"])
    assert report.startswith("## ✗ ")
    assert f"transactions: {DAYS[0]} held back by the contract" in report
    assert "`pipeline-assets quarantine show transactions`" in report
    assert f"load\\_transactions for {DAYS[0]} failed" in report


def test_a_part_that_cannot_be_read_is_said_and_hides_nothing_else(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    gone = settings.model_copy(
        update={"warehouse_database_url": SecretStr("postgresql://me:hidden@127.0.0.1:1/none")}
    )
    result = run(gone, instance, "report_status")
    assert result.success
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    found = metadata(result)
    assert found["problems"] == 1
    assert "The warehouse database does not answer" in str(found["report"])
    assert "Runs: " in str(found["details"])
    assert "hidden" not in str(found)
