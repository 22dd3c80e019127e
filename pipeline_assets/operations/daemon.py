"""Problems of Dagster's own machinery: failing, late or stopped ticks, a silent daemon or UI, broken code.

A sensor can see only the ticks of the others. When the daemon is dead or the code doesn't load, no sensor
runs: a process of its own (`pipeline-assets watch`) sees that.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from pipeline_assets.operations.problems import Problem, alike, moment
from pipeline_assets.operations.runs import View, root_cause
from pipeline_assets.operations.status import HEARTBEAT
from pipeline_assets.resources.dagster_history import Automation, automation, last_sign, next_tick

if TYPE_CHECKING:
    from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick

FAILED = re.compile(
    r"Validation failed for code location (?P<name>.+?):\n\n(?P<error>.*)", re.DOTALL
)
"""What `dagster definitions validate` says of a location that doesn't load."""
CAUSED_BY = "The above exception was caused by the following exception:"
LONGEST_LOAD = timedelta(minutes=3)
"""Dagster itself waits this long for a code server to start."""


def _automation(view: View) -> Iterator[tuple[Automation, "InstigatorState"]]:
    """Our sensors and schedules, with what the daemon keeps of them."""
    ours = automation(view.repository)
    for state in view.instance.all_instigator_state():
        if state.instigator_name in ours:
            yield ours[state.instigator_name], state


def failing_ticks(view: View) -> list[Problem]:
    """Sensors and schedules whose last finished tick failed."""
    return [
        Problem(
            "tick_failing",
            f"{each.name}: {alike(root_cause(tick.error))}",
            datetime.fromtimestamp(tick.timestamp, UTC),
            facts={
                "What": each.name,
                "Cause": root_cause(tick.error),
                "Effect": "It requests nothing until its tick works again.",
                "Page": view.link(f"automation?search={each.name}"),
            },
        )
        for each, _, ticks in _running(view, 2)  # one may be under way
        for tick in [tick for tick in ticks if tick.is_completed][:1]
        if tick.is_failure
    ]


def _running(
    view: View, count: int
) -> Iterator[tuple[Automation, "InstigatorState", list["InstigatorTick"]]]:
    """Our sensors and schedules that are switched on, each with its `count` newest ticks."""
    from pipeline_assets.resources.dagster_instance import newest_ticks

    running = [found for found in _automation(view) if found[1].is_running]
    ticks = newest_ticks(view.instance, [state.selector_id for _, state in running], count)
    for each, state in running:
        yield each, state, ticks.get(state.selector_id, [])


def late_ticks(view: View, awake_since: datetime) -> list[Problem]:
    """Sensors and schedules whose tick should have come by now, and hasn't.

    While the daemon is down no ticks come, and once it is back they do: lateness counts from
    `awake_since`.
    """
    problems = []
    late = timedelta(minutes=view.settings.alert_late_minutes)
    for each, state, ticks in _running(view, 1):
        last = datetime.fromtimestamp(ticks[0].timestamp, UTC) if ticks else None
        due, patience = next_tick(each, last_sign(state, last) or awake_since, late)
        if view.now - max(due, awake_since) >= patience:
            problems.append(
                Problem(
                    "tick_late",
                    each.name,
                    due,
                    facts={
                        "What": each.name,
                        "Cause": (
                            f"Its tick of {moment(due)} hasn't come; the last was "
                            f"{moment(last) if last else 'never'}. The daemon, or the code location, "
                            "doesn't answer."
                        ),
                        "Page": view.link(f"automation?search={each.name}"),
                    },
                )
            )
    return problems


def switched_off(view: View) -> list[Problem]:
    """Sensors and schedules that somebody stopped, and maybe forgot, though the environment wants them on."""
    return [
        Problem(
            "switched_off",
            each.name,
            view.now,
            facts={
                "What": each.name,
                "Cause": "It was stopped in the UI; PIPELINE_AUTOMATION is running.",
                "Page": view.link(f"automation?search={each.name}"),
            },
        )
        for each, state in _automation(view)
        if each.default_status.value == "RUNNING" and not state.is_running
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


def silent_ui(url: str, now: datetime) -> list[Problem]:
    """A problem if nothing answers at the UI's address; a login page counts as an answer."""
    import requests

    try:
        answer = requests.get(f"{url.rstrip('/')}/server_info", timeout=10)
        cause = f"It answered {answer.status_code}." if answer.status_code >= 500 else ""
    except requests.RequestException as error:
        cause = f"{type(error).__name__} when it was asked."
    facts = {"What": url, "Cause": cause}
    return [Problem("ui_unreachable", "ui", now, facts=facts)] if cause else []


def broken_code(workspace: Path, now: datetime) -> list[Problem]:
    """Code locations of a `workspace.yaml` that don't load.

    Dagster's own command finds them, in a separate process: it imports modules afresh, as the next run
    would, and queries the code servers that the file names. This costs some 4 s of CPU.
    """
    command = ["dagster", "definitions", "validate", "--log-format", "json", "-w", str(workspace)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=workspace.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_LOAD.total_seconds(),
        )
    except subprocess.TimeoutExpired:
        return [_broken(workspace.name, f"It hasn't loaded after {LONGEST_LOAD}.", now)]
    if done.returncode == 0:
        return []
    found = [match for line in done.stdout.splitlines() if (match := FAILED.match(_said(line)))]
    if not found:  # the command itself failed, or the interpreter was killed
        lines = [_said(line) for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        cause = f"It ended with {done.returncode}: {' '.join(lines[-1:])}"
        return [_broken(workspace.name, cause, now)]
    return [_broken(match["name"], _cause(match["error"]), now) for match in found]


def _broken(name: str, cause: str, now: datetime) -> Problem:
    facts = {
        "What": name,
        "Cause": cause[:500],
        "Effect": "None of its schedules, sensors and runs start.",
    }
    return Problem("code_broken", name, now, facts=facts)


def _said(line: str) -> str:
    """The message of a line of JSON, Dagster's own or ours; any other line as it is."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError:
        return line
    return str(fields.get("message") or fields.get("event")) if isinstance(fields, dict) else line


def _cause(error: str) -> str:
    """The first and the last of an error's causes, without their stack traces."""
    links = [" ".join(part.partition("Stack Trace:")[0].split()) for part in error.split(CAUSED_BY)]
    return "; at its root ".join(dict.fromkeys([links[0], links[-1]]))
