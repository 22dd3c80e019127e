"""Alerts from the failure to the mailbox: real runs, a real instance, real mail and HTTP servers."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import pytest
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Response

from pipeline_assets.settings import Settings
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.integration.operations.watch import (
    Mailbox,
    after,
    load,
    look,
    mail_server,
)

DAY = ("2026-01-07", "2026-01-08", "2026-01-09")


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, str]]:
    with mail_server() as found:
        yield found


@pytest.fixture
def told(settings: Settings, mailbox: tuple[Mailbox, str]) -> Settings:
    """Settings with the mailbox as the only channel, of a shop that has just opened."""
    return with_channels(settings, mailbox[1])


def with_channels(settings: Settings, *urls: str, **others: object) -> Settings:
    today = datetime.now(UTC).date()
    return settings.model_copy(
        update={
            "alert_urls": tuple(map(SecretStr, urls)),
            "news_start_date": today,
            "warehouse_start_date": datetime(2026, 1, 7, tzinfo=UTC).date(),
            **others,
        }
    )


def subjects(mailbox: Mailbox, *, about: str = "") -> list[str]:
    return [
        subject for subject in mailbox.subjects if about in subject and "on_time" not in subject
    ]


def not_late(mailbox: Mailbox) -> list[str]:
    """The subjects without those about late data: most tests load old days only."""
    return [subject for subject in mailbox.subjects if "Data" not in subject]


def test_a_failed_run_is_told_once_with_its_root_cause_and_its_recovery(
    told: Settings, instance: dg.DagsterInstance, shop: Shop, mailbox: tuple[Mailbox, str]
) -> None:
    shop.put("a")
    shop.connection.execute("ALTER TABLE shop.transactions ADD COLUMN coupon text")
    failed = load(told, instance, DAY[0])
    assert not failed.success

    look(told, instance)
    look(told, instance)

    assert not_late(mailbox[0]) == [f"[dev] Run failed: load_transactions {DAY[0]}"]
    (text,) = (text for subject, text in mailbox[0].mails if "Run failed" in subject)
    assert "has gained coupon" in text
    assert "Dagster" not in text.partition("Cause:")[2].partition("\n")[0]
    assert "Partition: 2026-01-07" in text
    assert "raw_transactions" in text
    assert "Attempt: 1 of 5 of the step, run 1 of 3; is not retried" in text
    assert "Owner: data-engineering" in text
    assert failed.run_id in text

    shop.connection.execute("ALTER TABLE shop.transactions DROP COLUMN coupon")
    assert load(told, instance, DAY[0]).success
    look(told, instance)
    look(told, instance)

    assert not_late(mailbox[0])[1:] == [f"[dev] Runs again: load_transactions {DAY[0]}"]


def test_a_failure_survives_the_restart_of_whoever_looks(
    told: Settings, instance: dg.DagsterInstance, shop: Shop, mailbox: tuple[Mailbox, str]
) -> None:
    """No alert depends on an event that a process has to be up to see."""
    shop.connection.execute("DROP TABLE shop.transactions")
    load(told, instance, DAY[0])
    mailbox[0].refuse = True
    look(told, instance)  # not delivered: the mail server refused it
    mailbox[0].refuse = False

    look(told, instance, after(minutes=1))  # with new definitions, as after a restart

    assert not_late(mailbox[0]) == [f"[dev] Run failed: load_transactions {DAY[0]}"]


def test_a_burst_is_one_alert_and_a_number(
    told: Settings, instance: dg.DagsterInstance, shop: Shop, mailbox: tuple[Mailbox, str]
) -> None:
    shop.connection.execute("DROP TABLE shop.transactions")
    load(told, instance, DAY[0])
    look(told, instance)
    for day in DAY[1:]:
        load(told, instance, day)
    look(told, instance)
    assert len(not_late(mailbox[0])) == 1

    look(told, instance, after(minutes=61))

    (_, second) = not_late(mailbox[0])
    assert "Run failed: load_transactions" in second
    assert "2 more since" in second


def test_a_held_day_is_told_as_that_alone(
    told: Settings, instance: dg.DagsterInstance, shop: Shop, mailbox: tuple[Mailbox, str]
) -> None:
    """The failed run and the failed check that come with it aren't reported as well."""
    shop.put("bad", status="lost")
    assert not load(told, instance, DAY[0]).success

    look(told, instance)

    assert not_late(mailbox[0]) == [f"[dev] Day held back: transactions {DAY[0]}"]
    (text,) = (text for subject, text in mailbox[0].mails if "held" in subject)
    assert "status_known" in text
    assert "quarantine.transactions" in text

    shop.put("bad", status="completed")
    assert load(told, instance, DAY[0]).success
    look(told, instance)
    assert not_late(mailbox[0])[1:] == [f"[dev] Day no longer held: transactions {DAY[0]}"]


def test_a_failed_check_that_blocks_nothing_is_told(
    told: Settings, instance: dg.DagsterInstance, shop: Shop, mailbox: tuple[Mailbox, str]
) -> None:
    """Dagster fails no run for it, and so no run status sensor ever sees it."""
    report(instance, "raw_transactions", "complete", DAY[0], passed=False)
    look(told, instance)
    assert not_late(mailbox[0]) == [f"[dev] Check failed: complete of raw_transactions {DAY[0]}"]

    assert load(told, instance, DAY[1]).success
    look(told, instance)
    assert len(not_late(mailbox[0])) == 1, "a good day doesn't make up for a bad one"

    assert load(told, instance, DAY[0]).success
    look(told, instance)
    assert not_late(mailbox[0])[1:] == [
        f"[dev] Check passes again: complete of raw_transactions {DAY[0]}"
    ]


def report(instance: dg.DagsterInstance, asset: str, check: str, day: str, *, passed: bool) -> None:
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(asset),
            check_name=check,
            passed=passed,
            metadata={},
            partition=day,
            severity=dg.AssetCheckSeverity.WARN,
        )
    )


def test_a_failing_channel_is_retried_and_reported_by_the_others(
    settings: Settings,
    instance: dg.DagsterInstance,
    shop: Shop,
    mailbox: tuple[Mailbox, str],
    httpserver: HTTPServer,
) -> None:
    answers = [429, 500, 200, 200, 200]
    bodies: list[str] = []

    def hook(request: object) -> Response:
        status = answers.pop(0)
        if status == 200:
            bodies.append(request.get_json()["title"])  # type: ignore[attr-defined]  # werkzeug's request
        return Response(status=status)

    httpserver.expect_request("/hook").respond_with_handler(hook)
    url = f"json://user:s3cret@{httpserver.host}:{httpserver.port}/hook"
    both = with_channels(settings, mailbox[1], url)
    report(instance, "raw_transactions", "complete", DAY[0], passed=False)

    look(both, instance)
    assert len(not_late(mailbox[0])) == 1
    assert bodies == []

    look(both, instance, after(minutes=1))  # 500; the other channel reports the 429
    (failing,) = subjects(mailbox[0], about="Alerts not delivered")
    assert "json-" in failing
    assert all("s3cret" not in subject + text for subject, text in mailbox[0].mails)

    look(both, instance, after(minutes=5))
    look(both, instance, after(minutes=6))
    assert "[dev] Check failed: complete of raw_transactions 2026-01-07" in bodies
    assert subjects(mailbox[0], about="Alerts delivered again")


@pytest.mark.security
def test_secrets_stay_out_of_messages(
    settings: Settings, instance: dg.DagsterInstance, shop: Shop, mailbox: tuple[Mailbox, str]
) -> None:
    password = "hunter2secret"
    wrong = with_channels(
        settings,
        mailbox[1],
        source_database_url=SecretStr(f"postgresql://nobody:{password}@127.0.0.1:1/none"),
    )
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("raw_transactions"),
            check_name="complete",
            passed=False,
            metadata={},
            partition=DAY[0],
            description=f"could not reach postgresql://nobody:{password}@127.0.0.1/none ({password})",
        )
    )
    look(wrong, instance)
    text = "\n".join(subject + body for subject, body in mailbox[0].mails)
    assert "could not reach" in text
    assert password not in text


def test_a_warehouse_that_is_away_is_told_and_recovers_nothing(
    told: Settings, instance: dg.DagsterInstance, shop: Shop, mailbox: tuple[Mailbox, str]
) -> None:
    shop.put("bad", status="lost")
    load(told, instance, DAY[0])
    look(told, instance)
    away = told.model_copy(
        update={"warehouse_database_url": SecretStr("postgresql://u:p@127.0.0.1:1/none")}
    )

    look(away, instance)

    assert subjects(mailbox[0], about="can't look: held days")
    assert not subjects(mailbox[0], about="no longer held")
    look(told, instance)
    assert subjects(mailbox[0], about="can look again: held days")
    assert not subjects(mailbox[0], about="Check"), "a held day's rules aren't told beside it"


def test_data_that_is_late_is_told_though_nothing_failed(
    told: Settings, instance: dg.DagsterInstance, shop: Shop, mailbox: tuple[Mailbox, str]
) -> None:
    """No run, no event, no failure: Dagster has nothing to report.

    Its freshness policy is satisfied by the backfill of an old day.
    """
    due = datetime(2026, 1, 9, 2, tzinfo=UTC)  # 26 hours after the 8th began
    assert load(told, instance, DAY[0]).success
    look(told, instance, due.replace(hour=1))
    assert not subjects(mailbox[0], about="Data late")

    look(told, instance, due)
    assert subjects(mailbox[0], about="Data late") == [
        f"[dev] Data late: fct_transactions {DAY[1]}"
    ]
    assert load(told, instance, DAY[0]).success  # the backfill of an old day resolves nothing
    look(told, instance, due)
    assert not subjects(mailbox[0], about="Data there")

    assert load(told, instance, DAY[1]).success
    look(told, instance, due)
    assert subjects(mailbox[0], about="Data there")


def test_the_heartbeat_stops_when_nobody_can_be_told(
    settings: Settings,
    instance: dg.DagsterInstance,
    mailbox: tuple[Mailbox, str],
    httpserver: HTTPServer,
) -> None:
    httpserver.expect_request("/beat").respond_with_data("ok")
    heard = with_channels(
        settings, mailbox[1], heartbeat_url=SecretStr(httpserver.url_for("/beat"))
    )
    look(heard, instance)
    assert len(httpserver.log) == 1

    report(instance, "raw_transactions", "complete", DAY[0], passed=False)
    mailbox[0].refuse = True
    look(heard, instance)
    assert len(httpserver.log) == 1, "the outside monitor has to raise the alarm now"

    mailbox[0].refuse = False
    look(heard, instance, after(minutes=1))
    assert len(httpserver.log) == 2
