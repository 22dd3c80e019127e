"""The asset graph as plain data, and how two of them differ, as Markdown for a pull request.

Run as a program, it prints the graph of whichever `pipeline_assets` its interpreter finds, which may be an
older version: so it must import nothing of the project but the definitions.
"""

import json
import sys
from typing import Any

Graph = dict[str, dict[str, dict[str, Any]]]
"""Kind of thing ("assets", "jobs", ...) -> name -> what is known of it."""


def read_graph() -> Graph:
    """The graph of the definitions that `pipeline_assets` has."""
    from pipeline_assets.definitions import defs

    repository = defs.get_repository_def()
    graph = repository.asset_graph
    assets = {}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        partitions = node.partitions_def
        assets[key.to_user_string()] = {
            "group": node.group_name,
            "upstream": sorted(parent.to_user_string() for parent in node.parent_keys),
            "checks": sorted(check.name for check in node.check_keys),
            "partitions": str(partitions) if partitions else None,
            "code version": node.code_version,
            "owners": sorted(node.owners),
        }
    jobs = {
        job.name: {
            "assets": sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys)
        }
        for job in repository.get_all_jobs()
        if not job.name.startswith("__")
    }
    schedules = {
        schedule.name: {"cron": str(schedule.cron_schedule), "job": schedule.job_name}
        for schedule in repository.schedule_defs
    }
    sensors = {
        sensor.name: {"seconds": sensor.minimum_interval_seconds}
        for sensor in repository.sensor_defs
    }
    return {"assets": assets, "jobs": jobs, "schedules": schedules, "sensors": sensors}


def difference(before: Graph, after: Graph) -> str:
    """What was added, removed and changed, as Markdown."""
    rows = []
    for kind in after:
        old, new = before.get(kind, {}), after[kind]
        for name in sorted(old.keys() | new.keys()):
            if name not in new:
                rows.append((f"removed {kind[:-1]}", name, ""))
            elif name not in old:
                rows.append((f"new {kind[:-1]}", name, _described(new[name])))
            elif changes := _changes(old[name], new[name]):
                rows.append((f"changed {kind[:-1]}", name, changes))
    heading = "### Asset graph\n\n"
    if not rows:
        return f"{heading}Nothing changes.\n"
    lines = [f"| {what} | `{name}` | {details} |" for what, name, details in rows]
    return "\n".join([f"{heading}| | | |", "| --- | --- | --- |", *lines, ""])


def _described(facts: dict[str, Any]) -> str:
    return "; ".join(f"{name} {_text(value)}" for name, value in facts.items() if value)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    told = []
    for name, value in new.items():
        before = old.get(name)
        if before == value:
            continue
        if isinstance(value, list) and isinstance(before, list):
            gone, added = sorted(set(before) - set(value)), sorted(set(value) - set(before))
            parts = [
                f"without {_text(gone)}" if gone else "",
                f"and {_text(added)}" if added else "",
            ]
            told.append(f"{name} {' '.join(part for part in parts if part)}")
        else:
            told.append(f"{name} {_text(before)} → {_text(value)}")
    return "; ".join(told)


def _text(value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    # A | would end the table's cell.
    return ", ".join(f"`{part}`" for part in parts).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(read_graph()) + "\n")
