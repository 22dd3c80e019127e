"""Whether the model registry is consistent, judged by plain SQL on MLflow's tables and the models' bytes.

Nothing here calls the package or MLflow. Each function returns what is wrong, one sentence per defect.
"""

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg

READY = 2
"""MLflow's number for a logged model that is complete."""

VERSIONS = """
SELECT v.version, r.status, m.status, m.artifact_location, hash.value, fingerprint.value
FROM model_versions AS v LEFT JOIN runs AS r ON r.run_uuid = v.run_id AND r.lifecycle_stage = 'active'
LEFT JOIN logged_models AS m ON v.source = 'models:/' || m.model_id
LEFT JOIN model_version_tags AS hash
    ON (hash.name, hash.version, hash.key) = (v.name, v.version, 'artifact_hash')
LEFT JOIN model_version_tags AS fingerprint
    ON (fingerprint.name, fingerprint.version, fingerprint.key) = (v.name, v.version, 'fingerprint')
WHERE v.name = %s ORDER BY v.version"""

VERDICTS = """
SELECT DISTINCT ON (model_version) model_version, verdict, artifact_hash FROM pipeline.gate_verdicts
WHERE model_name = %s ORDER BY model_version, verdict_id DESC"""

MOVES = """
SELECT champion_before, champion_after, previous_after, finished_at IS NOT NULL
FROM pipeline.champion_deployments WHERE model_name = %s ORDER BY deployment_id"""


def torn(mlflow: psycopg.Connection, warehouse: psycopg.Connection, name: str) -> list[str]:
    """What breaks the rules that hold at any moment: whole versions, and nothing unjudged in production."""
    found, aliases = [], aliases_of(mlflow, name)
    hashes = {}
    for version, run, model, location, artifact_hash, _ in mlflow.execute(VERSIONS, [name]):
        hashes[version] = artifact_hash
        if run is None:
            found.append(f"version {version} has no MLflow run")
        if model != READY or files_hash(location) != artifact_hash:
            found.append(f"version {version}: its files aren't those that were registered")
    found += [f"{alias} points to nothing" for alias, to in aliases if to not in hashes]
    if not has_records(warehouse):
        return found + [
            f"{alias} without any verdict" for alias, _ in aliases if alias == "champion"
        ]
    verdicts = verdicts_of(warehouse, name)
    for alias, to in aliases:
        if alias != "challenger" and verdicts.get(to) != ("passed", hashes.get(to)):
            found.append(f"{alias}, version {to}, never passed the gate as it is")
    moves = warehouse.execute(MOVES, [name]).fetchall()
    if any(not finished for *_, finished in moves[:-1]):
        found.append("a move was begun before the one before it was finished")
    possible = {moves[-1][1], *([] if moves[-1][3] else [moves[-1][0]])} if moves else {None}
    if dict(aliases).get("champion") not in possible:
        found.append(f"the champion is none of {possible}, which the audit says")
    return found


def unfinished(
    mlflow: psycopg.Connection, warehouse: psycopg.Connection, name: str, trained: int
) -> list[str]:
    """What isn't done: a version per training, each judged, and the newest that passed in production."""
    versions = mlflow.execute(VERSIONS, [name]).fetchall()
    found = [
        f"version {v}: its MLflow run is {run}" for v, run, *_ in versions if run != "FINISHED"
    ]
    if len(versions) != trained or len({row[-1] for row in versions}) != trained:
        found.append(f"{len(versions)} versions of {trained} trainings")
    running = mlflow.execute("SELECT run_uuid FROM runs WHERE status = 'RUNNING'").fetchall()
    found += [f"MLflow run {run} goes on for ever" for (run,) in running]
    verdicts = verdicts_of(warehouse, name)
    found += [f"version {v} was never judged" for v, *_ in versions if v not in verdicts]
    passed = [version for version, (verdict, _) in verdicts.items() if verdict == "passed"]
    moves = warehouse.execute(MOVES, [name]).fetchall()
    found += [
        f"the move to version {after} isn't finished" for _, after, _, ended in moves if not ended
    ]
    expected = {
        "champion": max(passed, default=None),
        "previous_champion": moves[-1][2] if moves else None,
        "challenger": versions[-1][0] if versions else None,
    }
    aliases = aliases_of(mlflow, name)
    if sorted(aliases) != sorted((alias, to) for alias, to in expected.items() if to):
        found.append(f"the aliases are {aliases} instead of {expected}")
    if [after for _, after, *_ in moves] != passed:
        found.append(f"versions {passed} passed the gate, and {moves} is what was deployed")
    return found


def aliases_of(mlflow: psycopg.Connection, name: str) -> list[tuple[str, int]]:
    """Every alias of a model with its version; an alias occurs once at most."""
    return mlflow.execute(
        "SELECT alias, version FROM registered_model_aliases WHERE name = %s", [name]
    ).fetchall()


def verdicts_of(warehouse: psycopg.Connection, name: str) -> dict[int, tuple[str, str]]:
    """Version -> the newest verdict, and the hash of what was judged."""
    rows = warehouse.execute(VERDICTS, [name]).fetchall()
    return {version: (verdict, artifact_hash) for version, verdict, artifact_hash in rows}


def has_records(warehouse: psycopg.Connection) -> bool:
    """Whether the tables for verdicts and deployments exist yet."""
    found = warehouse.execute("SELECT to_regclass('pipeline.champion_deployments')").fetchone()
    return found != (None,)


def files_hash(location: str | None) -> str | None:
    """SHA-256 over the names, sizes and bytes of a model's files, in the order of their names."""
    if location is None:
        return None
    folder = Path(unquote(urlsplit(location).path))
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
