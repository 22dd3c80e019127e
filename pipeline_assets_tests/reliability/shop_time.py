"""A code location with a clock of the shop's own: a fixed moment, or days that pass in minutes.

It is the project's, except that the definitions take the shop's time for now, and that each schedule is
evaluated every real minute, for the last of its times that the shop's clock has passed in that minute.
Dagster keeps the real time: ticks, queue, time limits and heartbeats are unchanged.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import dagster as dg

from pipeline_assets.definitions import build_definitions, build_resources
from pipeline_assets.settings import Settings, load_settings

VARIABLE = "SHOP_TIME"
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class ShopTime:
    """The shop's clock: it runs from one moment to another, and stops there."""

    begins: str
    ends: str
    speed: int = 1
    started: float = 0
    """When the clock starts to run, in seconds since 1970."""

    def at(self, moment: datetime) -> datetime:
        """What the shop's clock says at a moment."""
        begins, ends = (datetime.fromisoformat(each) for each in (self.begins, self.ends))
        passed = moment - datetime.fromtimestamp(self.started, UTC)
        return min(max(begins, begins + passed * self.speed), ends)

    def now(self) -> datetime:
        return self.at(datetime.now(UTC))

    def environment(self) -> dict[str, str]:
        """Environment variables for the processes of a deployment."""
        return {VARIABLE: json.dumps(asdict(self))}

    def sql(self) -> str:
        """The shop's clock as an SQL expression, derived from PostgreSQL's own."""
        return (
            f"least('{self.begins}'::timestamptz + greatest('0', now() - to_timestamp({self.started}))"
            f" * {self.speed}, '{self.ends}')"
        )


def standing(moment: datetime) -> ShopTime:
    """A clock that has stopped at a moment."""
    return ShopTime(moment.isoformat(), moment.isoformat())


def build(time: ShopTime, settings: Settings) -> dg.Definitions:
    """The project's definitions in the shop's time."""
    found = build_definitions(settings, now=time.now)
    return dg.Definitions(
        assets=found.assets,
        asset_checks=found.asset_checks,
        jobs=found.jobs,
        sensors=found.sensors,
        schedules=[
            _each_minute(
                _target(each), found.resolve_schedule_def(each.name), found, time, settings
            )
            for each in found.schedules or []
        ],
        resources=found.resources,
        executor=found.executor,
    )


def _target(schedule: Any) -> dict[str, Any]:
    """What a schedule starts: a job that comes with it, or one by its name."""
    by_name = isinstance(schedule, dg.ScheduleDefinition) and not schedule.has_job
    return {"job_name": schedule.job_name} if by_name else {"job": schedule.job}


def _each_minute(
    target: dict[str, Any],
    schedule: dg.ScheduleDefinition,
    found: dg.Definitions,
    time: ShopTime,
    settings: Settings,
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=schedule.name,
        **target,
        cron_schedule="* * * * *",
        default_status=schedule.default_status,
    )
    def each_minute(
        context: dg.ScheduleEvaluationContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        from dagster._utils.schedules import reverse_cron_string_iterator

        minute = context.scheduled_execution_time
        passed, at = time.at(minute - MINUTE), time.at(minute)
        due = next(
            reverse_cron_string_iterator(
                at.timestamp(), str(schedule.cron_schedule), schedule.execution_timezone
            )
        )
        if due <= passed:
            yield dg.SkipReason(f"Not due between {passed} and {at} of the shop.")
            return
        with dg.build_schedule_context(
            instance=context.instance,
            scheduled_execution_time=due,
            resources=build_resources(settings),
            repository_def=found.get_repository_def(),
        ) as theirs:
            tick = schedule.evaluate_tick(theirs)
        yield from chain(
            tick.run_requests or [], [dg.SkipReason(tick.skip_message)] if tick.skip_message else []
        )

    return each_minute


if VARIABLE in os.environ:
    defs = build(ShopTime(**json.loads(os.environ[VARIABLE])), load_settings())
