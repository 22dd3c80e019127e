"""Helpers for tests of alerts: a real mail server, a tick of the sensor, runs that load a day."""

import email
import email.policy
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from aiosmtpd.controller import Controller

from pipeline_assets.definitions import build_definitions, build_resources
from pipeline_assets.settings import Settings

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class Mailbox:
    """The mails that a mail server accepted, as (subject, text)."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, str]] = []
        self.refuse = False

    async def handle_DATA(self, *about: Any) -> str:  # noqa: N802  # aiosmtpd's name
        """Accept a mail; aiosmtpd passes server, session and envelope."""
        _, _, envelope = about
        if self.refuse:
            return "451 Try again later"
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        body = mail.get_body(("plain",))
        assert body is not None
        self.mails.append((str(mail["subject"]), body.get_content()))
        return "250 OK"

    @property
    def subjects(self) -> list[str]:
        return [subject for subject, _ in self.mails]


@contextmanager
def mail_server() -> Iterator[tuple[Mailbox, str]]:
    """A mail server, and the Apprise address that mails to it."""
    mailbox = Mailbox()
    # The controller checks that the server answers, at the port that it was given: 0 won't do.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield mailbox, f"mailto://127.0.0.1:{port}?from=pipeline@example.com&to=team@example.com"
    finally:
        controller.stop()


def look(settings: Settings, instance: dg.DagsterInstance, now: datetime | None = None) -> str:
    """Tick the sensor `alerts` once, with new definitions as after a restart; return its message."""
    moment = now or datetime.now(UTC)
    repository = build_definitions(settings, now=lambda: moment).get_repository_def()
    tick = repository.get_sensor_def("alerts").evaluate_tick(
        dg.build_sensor_context(
            instance=instance, repository_def=repository, resources=build_resources(settings)
        )
    )
    assert not tick.run_requests
    return tick.skip_message or ""


def load(
    settings: Settings, instance: dg.DagsterInstance, day: str, **tags: str
) -> dg.ExecuteInProcessResult:
    """Load a day of the table; the run may fail."""
    return (
        build_definitions(settings)
        .resolve_job_def("load_transactions")
        .execute_in_process(
            instance=instance, partition_key=day, run_config=QUIET, raise_on_error=False, tags=tags
        )
    )


def after(moment: datetime | None = None, **span: float) -> datetime:
    """A moment, by default now, plus a span of time."""
    return (moment or datetime.now(UTC)) + timedelta(**span)
