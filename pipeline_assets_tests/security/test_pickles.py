"""A poisoned pickle in every place that data is read from: it never runs, as nothing there is unpickled."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_assets.failures import PermanentError
from pipeline_assets.models import registry
from pipeline_assets.resources import embedded_postgres
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings

pytestmark = pytest.mark.security
ROOT = Path(__file__).parents[2]
DAY = "2026-01-07"


class Poison:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


def test_the_poison_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Poison(tmp_path / "pwned")))  # noqa: S301  # that is the point
    assert (tmp_path / "pwned").exists()


# An audit hook reports each class and function that a pickle looks up; the jobs run as they always do.
DRIVER = """
import json, sys

def watch(event, arguments):
    if event == "pickle.find_class":
        print("UNPICKLED", *arguments, flush=True)

sys.addaudithook(watch)
import dagster as dg
from pipeline_assets.definitions import defs

outcomes = {}
with dg.DagsterInstance.get() as instance:
    for job, key in (("load_transactions", sys.argv[1]), ("publish_digest", "2026-11-02")):
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance, partition_key=key, raise_on_error=False,
            asset_selection=[dg.AssetKey(name) for name in sys.argv[2:]] or None
            if job == "load_transactions" else None,
        )
        outcomes[job] = result.success
    assets = [key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()]
print("OUTCOMES", json.dumps([outcomes, assets]))
"""


def run_jobs(
    environment: dict[str, str], *arguments: str
) -> tuple[str, dict[str, bool], list[str]]:
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith("OUTCOMES "))
    outcomes, assets = json.loads(line.removeprefix("OUTCOMES "))
    return ran.stdout, outcomes, assets


@pytest.mark.slow
def test_no_file_that_the_pipelines_read_is_unpickled(
    server: embedded_postgres.Server, settings: Settings, tmp_path: Path
) -> None:
    """All their files are written, then replaced by poison, as are those where Dagster would keep values."""
    data, home, pwned = tmp_path / "data", tmp_path / "home", tmp_path / "pwned"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    urls = settings.source_database_url, settings.warehouse_database_url
    assert urls[0]
    assert urls[1]
    with psycopg.connect(urls[0].get_secret_value()) as connection:
        connection.execute(
            "INSERT INTO shop.transactions VALUES ('a', 1, %s, 1, 'USD', 1, 'completed', %s)",
            [f"{DAY} 12:00+00", f"{DAY} 12:00+00"],
        )
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        "DAGSTER_HOME": str(home),
        "PIPELINE_DATA_DIR": str(data),
        "SOURCE_DATABASE_URL": urls[0].get_secret_value(),
        "WAREHOUSE_DATABASE_URL": urls[1].get_secret_value(),
        "DAGSTER_DATABASE_URL": embedded_postgres.ensure_database(
            server, f"dagster_{tmp_path.name}"
        ),
    }
    said, outcomes, assets = run_jobs(environment, DAY)
    assert outcomes == {"load_transactions": True, "publish_digest": True}
    assert "UNPICKLED" not in said

    poison = pickle.dumps(Poison(pwned))
    kept_values = [
        data / "artifacts" / "storage" / asset / key
        for asset in assets
        for key in ("", DAY, "2026-11-02")
    ]
    for path in kept_values:
        if path.name in (DAY, "2026-11-02"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(poison)
    files = [path for path in data.rglob("*") if path.is_file()]
    assert {"partitions", "digests", "news", "compute_logs"} <= {
        path.relative_to(data).parts[0] for path in files
    }, sorted({path.relative_to(data).parts[0] for path in files})
    for path in files:
        path.write_bytes(poison)

    # Each step that reads, without the step before it, which would rewrite the file.
    for first in (
        ["validated_transactions"],
        ["fct_transactions", "dim_customers", "daily_sales"],
        [],
    ):
        said, _, _ = run_jobs(environment, DAY, *first)
        assert "UNPICKLED" not in said
    assert not pwned.exists()


def test_a_parquet_file_of_a_python_type_is_no_program(tmp_path: Path) -> None:
    """PyArrow unpickled the parameters of such a column's type once (CVE-2023-47248)."""
    pwned = tmp_path / "pwned"
    files = PartitionFiles(str(tmp_path / "partitions"))
    poison = pickle.dumps(Poison(pwned))
    column = pa.field(
        "a",
        pa.int64(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": poison,
        },
    )
    schema = pa.schema([column], metadata={b"pandas": poison})
    path = Path(files.path("raw_transactions", DAY))
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}, schema=schema), path)

    (read,) = files.read("raw_transactions", DAY)

    assert read.num_rows == 1
    assert not pwned.exists()
    path.write_bytes(poison)
    with pytest.raises(
        PermanentError, match="is no Parquet file: materialize partition 2026-01-07"
    ):
        list(files.read("raw_transactions", DAY))
    assert not pwned.exists()


@pytest.mark.parametrize("asset", ["../raw", "a/b", "", ".hidden", "a\x00b"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, asset: str) -> None:
    files = PartitionFiles(str(tmp_path))
    for name, key in ((asset, DAY), ("raw_transactions", asset)):
        with pytest.raises(PermanentError, match="can't name a file"):
            files.path(name, key)


def test_a_model_that_is_a_pickle_or_holds_one_is_refused_unread(tmp_path: Path) -> None:
    """The registry's other checks of a model (its hash, files changed since) are tested with the gate."""
    import zipfile

    pwned = tmp_path / "pwned"
    file = tmp_path / registry.MODEL_FILE
    poison = pickle.dumps(Poison(pwned))
    file.write_bytes(poison)
    with pytest.raises(registry.RegistryError, match="is no skops model"):
        registry.check_types(file)
    nodes = {
        "__class__": "mkdir",
        "__module__": "os",
        "__loader__": "FunctionNode",
        "content": {"module_path": "os", "function": "mkdir"},
        "__id__": 1,
        "protocol": 2,
        "_skops_version": "0.16.0",
    }
    reduced = nodes | {
        "__loader__": "ReduceNode",
        "__class__": "mkdir",
        "reduce": {
            "args": {
                "__class__": "tuple",
                "__module__": "builtins",
                "__loader__": "TupleNode",
                "content": [],
                "__id__": 2,
            }
        },
    }
    for schema in (nodes, reduced):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("schema.json", json.dumps(schema))
            archive.writestr("1.pkl", poison)
        with pytest.raises(registry.RegistryError):
            registry.check_types(file)
    assert not pwned.exists()
