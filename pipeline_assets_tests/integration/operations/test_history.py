"""What is read of Dagster's ticks and removed from them, on a real instance."""

import sys
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import serializable_error_info_from_exc_info

from pipeline_assets.resources.dagster_history import Instigator, Watched, instigators
from pipeline_assets.resources.dagster_instance import newest_ticks, remove_ticks

NOW = datetime.now(UTC).replace(microsecond=0)


def sensor_of(name: str) -> dg.SensorDefinition:
    """A sensor's definition, with Dagster's default interval of half a minute."""

    @dg.sensor(name=name)
    def found() -> None: ...

    return found


def sensor(
    instance: dg.DagsterInstance, name: str, status: InstigatorStatus = InstigatorStatus.RUNNING
) -> InstigatorState:
    """A sensor's state, as the daemon stores it."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    return instance.add_instigator_state(
        InstigatorState(
            RemoteInstigatorOrigin(repository, name),
            InstigatorType.SENSOR,
            status,
            SensorInstigatorData(),
        )
    )


def tick(
    instance: dg.DagsterInstance, state: InstigatorState, days: float, status: TickStatus
) -> None:
    """Store a tick so many days ago; the error of a failed one has a cause."""
    error = None
    if status == TickStatus.FAILURE:
        try:
            try:
                raise ConnectionError("no route to host\nmore of it")
            except ConnectionError as cause:
                raise dg.DagsterError("Error occurred during the evaluation") from cause
        except dg.DagsterError:
            error = serializable_error_info_from_exc_info(sys.exc_info())
    instance.create_tick(
        TickData(
            instigator_origin_id=state.instigator_origin_id,
            instigator_name=state.name,
            instigator_type=InstigatorType.SENSOR,
            status=status,
            timestamp=(NOW - timedelta(days=days)).timestamp(),
            selector_id=state.selector_id,
            error=error,
            run_ids=[],
        )
    )


def test_the_newest_ticks_are_those_that_dagster_finds(instance: dg.DagsterInstance) -> None:
    for number in range(3):
        state = sensor(instance, f"sensor_{number}")
        for hours in range(2 * number):
            tick(instance, state, hours / 24, TickStatus.SKIPPED)
    states = instance.all_instigator_state()
    found = newest_ticks(instance, [state.selector_id for state in states], 3)
    assert sorted(len(ticks) for ticks in found.values()) == [2, 3]
    for state in states:
        dagsters = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=3)
        assert found.get(state.selector_id, []) == dagsters


def test_ticks_are_counted_while_they_fail_and_only_of_what_is_on_and_known(
    instance: dg.DagsterInstance,
) -> None:
    failing = sensor(instance, "failing")
    for days, status in (
        (4, TickStatus.FAILURE),
        (3, TickStatus.SUCCESS),
        (2, TickStatus.FAILURE),
        (1, TickStatus.FAILURE),
        (0, TickStatus.STARTED),
    ):
        tick(instance, failing, days, status)
    sensor(instance, "never_ticked")
    sensor(instance, "off", InstigatorStatus.STOPPED)
    sensor(instance, "removed")
    names = ("failing", "never_ticked", "off")
    known = Watched((), (), {name: sensor_of(name) for name in names})
    late = timedelta(minutes=10)

    assert instigators(instance, known, late) == [
        Instigator(
            "failing",
            "sensor",
            NOW,
            NOW + timedelta(seconds=30) + late,
            2,
            "ConnectionError: no route to host",
        ),
        Instigator("never_ticked", "sensor", None, None, 0, None),
    ]


def test_old_ticks_go_but_the_newest(instance: dg.DagsterInstance) -> None:
    busy, idle = sensor(instance, "busy"), sensor(instance, "idle")
    for days in (1, 5, 100):
        tick(instance, busy, days, TickStatus.SUCCESS)
    for days in (200, 300):
        tick(instance, idle, days, TickStatus.SKIPPED)

    remove_ticks(instance, NOW - timedelta(days=90))

    left = {
        state.name: [
            round((NOW.timestamp() - found.timestamp) / 86400)
            for found in instance.get_ticks(state.instigator_origin_id, state.selector_id)
        ]
        for state in (busy, idle)
    }
    assert left == {"busy": [1, 5], "idle": [200]}
