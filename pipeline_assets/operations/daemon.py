"""What is wrong with Dagster's own machinery: ticks that fail or don't come, and a machine that stands.

`ticks_*` are what a sensor can see of the others. When the daemon is dead or the code doesn't load, no
sensor runs: `outside` sees that, from a process of its own (`pipeline-assets watch`).
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline_assets.operations.problems import Problem, alike, moment
from pipeline_assets.operations.runs import View, root_cause
from pipeline_assets.operations.status import HEARTBEAT

if TYPE_CHECKING:
    from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick

Automation = dg.SensorDefinition | dg.ScheduleDefinition
RELAXED = 5
"""A sensor's tick is late after so many intervals, when that is longer than ALERT_LATE_MINUTES."""

LOCATIONS = """query { workspaceOrError { __typename
  ... on PythonError { message causes { message } }
  ... on Workspace { locationEntries { name locationOrLoadError { __typename
    ... on PythonError { message causes { message } } } } } } }"""


def _automation(view: View) -> Iterator[tuple[Automation, "InstigatorState"]]:
    """Our sensors and schedules, with what the daemon keeps of them."""
    both: list[Automation] = [*view.repository.sensor_defs, *view.repository.schedule_defs]
    ours = {each.name: each for each in both}
    for state in view.instance.all_instigator_state():
        if state.instigator_name in ours:
            yield ours[state.instigator_name], state


def failing_ticks(view: View) -> list[Problem]:
    """Sensors and schedules whose last finished tick failed."""
    return [
        Problem(
            "tick_failing",
            f"{automation.name}: {alike(root_cause(tick.error))}",
            datetime.fromtimestamp(tick.timestamp, UTC),
            facts={
                "What": automation.name,
                "Cause": root_cause(tick.error),
                "Effect": "It requests nothing until its tick works again.",
                "Page": view.link(f"automation?search={automation.name}"),
            },
        )
        for automation, state in _automation(view)
        if state.is_running
        for tick in _finished(view, state)
        if tick.is_failure
    ]


def _finished(view: View, state: "InstigatorState") -> list["InstigatorTick"]:
    """The last tick that ended; one may be under way."""
    ticks = view.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=2)
    return [tick for tick in ticks if tick.is_completed][:1]


def late_ticks(view: View, awake_since: datetime) -> list[Problem]:
    """Sensors and schedules whose tick should have come by now, and hasn't.

    While nobody looked, because the daemon was down, ticks are missing too, and come when it is back:
    lateness counts from `awake_since`.
    """
    problems = []
    for automation, state in _automation(view):
        if not state.is_running:
            continue
        expected, patience = _expected(view, automation, state)
        ticks = view.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        last = datetime.fromtimestamp(ticks[0].timestamp, UTC) if ticks else None
        came = last is not None and expected is not None and last >= expected
        waited = max(filter(None, [expected, awake_since]))
        if expected and not came and view.now - waited >= patience:
            problems.append(
                Problem(
                    "tick_late",
                    automation.name,
                    expected,
                    facts={
                        "What": automation.name,
                        "Cause": (
                            f"Its tick of {moment(expected)} hasn't come; the last was "
                            f"{moment(last) if last else 'never'}. The daemon, or the code location, "
                            "doesn't answer."
                        ),
                        "Page": view.link(f"automation?search={automation.name}"),
                    },
                )
            )
    return problems


def _expected(
    view: View, automation: Automation, state: "InstigatorState"
) -> tuple[datetime | None, timedelta]:
    """When the last tick should have come, and for how long to be patient with it."""
    from dagster._utils.schedules import reverse_cron_string_iterator

    patience = timedelta(minutes=view.settings.alert_late_minutes)
    if isinstance(automation, dg.SensorDefinition):
        interval = timedelta(seconds=automation.minimum_interval_seconds or 30)
        patience = max(interval * RELAXED, patience)
        return view.now - patience, patience
    data: Any = state.instigator_data
    crons = [automation.cron_schedule]
    if not isinstance(automation.cron_schedule, str):
        crons = list(automation.cron_schedule)
    expected = max(
        next(
            reverse_cron_string_iterator(view.now.timestamp(), cron, automation.execution_timezone)
        )
        for cron in crons
        if isinstance(cron, str)
    ).astimezone(UTC)
    on_since = getattr(data, "start_timestamp", None)
    if on_since and datetime.fromtimestamp(on_since, UTC) > expected:
        return None, patience
    return expected, patience


def switched_off(view: View) -> list[Problem]:
    """What the environment wants running and somebody has stopped, and maybe forgotten."""
    return [
        Problem(
            "switched_off",
            automation.name,
            view.now,
            facts={
                "What": automation.name,
                "Cause": "It was stopped in the UI; PIPELINE_AUTOMATION is running.",
                "Page": view.link(f"automation?search={automation.name}"),
            },
        )
        for automation, state in _automation(view)
        if automation.default_status.value == "RUNNING" and not state.is_running
    ]


def silent_daemons(instance: dg.DagsterInstance, now: datetime) -> list[Problem]:
    """The daemon's threads that gave no sign of life lately, as one problem."""
    statuses = instance.get_daemon_statuses()
    alive = (now - HEARTBEAT).timestamp()
    silent = {
        name: status.last_heartbeat
        for name, status in statuses.items()
        if status.required
        and not (
            status.healthy and status.last_heartbeat and status.last_heartbeat.timestamp > alive
        )
    }
    if not silent:
        return []
    beats = [beat.timestamp for beat in silent.values() if beat]
    errors = [error for beat in silent.values() if beat for error in beat.errors or []]
    last = datetime.fromtimestamp(min(beats), UTC) if beats else None
    return [
        Problem(
            "daemon_silent",
            "daemon",
            last or now,
            facts={
                "What": ", ".join(sorted(name.lower() for name in silent)),
                "Cause": root_cause(errors[0])
                if errors
                else f"No sign of life since {moment(last) if last else 'it was set up'}.",
                "Effect": "Nothing is scheduled, started or alerted from inside.",
            },
        )
    ]


def broken_code(ui_url: str, now: datetime) -> list[Problem]:
    """Code locations that don't load, as the webserver at `ui_url` sees them; or that it is away."""
    import json

    import requests

    try:
        answer = requests.post(
            f"{ui_url.rstrip('/')}/graphql", json={"query": LOCATIONS}, timeout=10
        )
        answer.raise_for_status()
        workspace = answer.json()["data"]["workspaceOrError"]
    except (requests.RequestException, json.JSONDecodeError, KeyError, TypeError) as error:
        cause = f"{type(error).__name__} when its code locations were asked for"
        return [Problem("ui_unreachable", "ui", now, facts={"What": ui_url, "Cause": cause})]
    if "locationEntries" not in workspace:
        broken = {"workspace": workspace}
    else:
        broken = {
            entry["name"]: entry["locationOrLoadError"]
            for entry in workspace["locationEntries"]
            if (entry["locationOrLoadError"] or {}).get("__typename") == "PythonError"
        }
    return [
        Problem(
            "code_broken",
            name,
            now,
            facts={
                "What": name,
                "Cause": _root_message(error),
                "Effect": "None of its schedules, sensors and runs start.",
                "Page": f"{ui_url.rstrip('/')}/locations",
            },
        )
        for name, error in broken.items()
    ]


def _root_message(error: dict[str, Any]) -> str:
    """The last of an error's causes, as GraphQL gives them."""
    causes = [error, *(error.get("causes") or [])]
    return " ".join(str(causes[-1]["message"]).split())[:500]
