"""The tools that are compared: their version, their environment, and the command of one load."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from pipeline_assets import __version__
from pipeline_assets.resources.embedded_postgres import Server, ensure_database

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Job:
    """The input of a tool: where the rows are, where they go, and of which day they are."""

    source: str
    target: str
    dagster: str
    """URL of the database for Dagster's history."""
    psql: Path
    start: datetime
    folder: Path
    """For the tool's own files; new for each measured run."""

    @property
    def end(self) -> datetime:
        """The end of the day."""
        return self.start + timedelta(days=1)

    def on(self, day: datetime) -> "Job":
        """The same job for another day."""
        return replace(self, start=day)

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        inherited = {name: value for name, value in os.environ.items() if name[:2] != "PG"}
        return {
            **inherited,
            **self._ours(),
            "SOURCE_URL": self.source,
            "TARGET_URL": self.target,
            "WINDOW_START": self.start.isoformat(),
            "WINDOW_END": self.end.isoformat(),
            "PSQL": str(self.psql),
            "HOME": str(self.folder),
            "DLT_DATA_DIR": str(self.folder),  # root's would be /var/dlt
        }

    def _ours(self) -> dict[str, str]:
        return {
            "PIPELINE_ENV": "dev",
            "PIPELINE_DATA_DIR": str(self.folder),
            "SOURCE_DATABASE_URL": self.source,
            "WAREHOUSE_DATABASE_URL": self.target,
            "DAGSTER_DATABASE_URL": self.dagster,
            "DAGSTER_HOME": str(PEERS.parent.parent),
        }


Command = Callable[[Job, Path], list[str]]
"""The command of a job; the second argument is the environment's folder."""


@dataclass(frozen=True)
class Tool:
    """A way to load a day."""

    key: str
    """Its name on the command line."""
    name: str
    version: str
    """The tool's own, or the server's if the tool is PostgreSQL alone."""
    command: Command
    packages: tuple[str, ...] = ()
    """The pinned packages of its environment; without any, the project's own is used."""
    prepare: str = ""
    """SQL that adapts the target table to the tool, before the clock starts."""
    cases: tuple[str, ...] = ("mixed600", "mixed60", "mixed6", "new", "first", "replay")
    warm_up: bool = True
    """Whether it loads an empty day before the clock starts; dlt's Parquet job fails on no rows."""
    judged: bool = True
    """Whether it loads anything that could be wrong."""


def dagster_storage(server: Server, database: str) -> str:
    """The URL of a database for Dagster's history, with the options of the embedded one."""
    return f"{ensure_database(server, database)}?options=-c%20synchronous_commit%3Doff"


def install(packages: tuple[str, ...], folder: Path) -> Path:
    """Make an environment of pinned packages with uv, unless it is up to date; returns its folder."""
    if not packages:
        return Path(sys.prefix)
    home = folder / packages[0].partition("[")[0].replace("==", "-")
    installed, wanted = home / "installed", "\n".join(packages)
    if not installed.exists() or installed.read_text() != wanted:
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if uv is None:
            raise SystemExit("uv is missing: run `make bench`, or install it")
        shutil.rmtree(home, ignore_errors=True)
        python = str(home / "bin" / "python")
        pip = ["pip", "install", "--quiet", "--compile-bytecode", "--python", python]
        for command in (
            ["venv", "--quiet", "--python", sys.executable, str(home)],
            [*pip, *packages],
        ):
            subprocess.run([uv, *command], check=True)
        installed.write_text(wanted)
    return home


def _psql(method: str) -> Command:
    def command(job: Job, home: Path) -> list[str]:
        del job, home
        return [str(PEERS / "psql.sh"), method]

    return command


def _ours(*arguments: str) -> Command:
    def command(job: Job, home: Path) -> list[str]:
        day = f"--day={job.start.isoformat()}"
        return [str(home / "bin" / "python"), "-m", "benchmarks.ours", day, *arguments]

    return command


def _peer(script: str, *arguments: str) -> Command:
    def command(job: Job, home: Path) -> list[str]:
        del job
        return [str(home / "bin" / "python"), str(PEERS / script), *arguments]

    return command


def _sling(job: Job, home: Path) -> list[str]:
    (binary,) = home.glob("lib/python*/site-packages/sling_*/bin/sling-*")
    rows = (
        f"SELECT * FROM shop.widened WHERE updated_at >= '{job.start.isoformat()}'"  # noqa: S608 - our own dates
        f" AND updated_at < '{job.end.isoformat()}'"
    )
    connections = ["--src-conn", f"{job.source}?sslmode=disable"]
    connections += ["--tgt-conn", f"{job.target}?sslmode=disable"]
    table = ["--tgt-object", "analytics.line_items", "--primary-key", "line_id"]
    return [str(binary), "run", *connections, "--src-stream", rows, *table, "--mode", "incremental"]


def _ingestr(job: Job, home: Path) -> list[str]:
    last = job.end - timedelta(microseconds=1)  # its interval includes the end
    return [
        *(str(home / "bin" / "ingestr"), "ingest", "--yes", "--progress", "log"),
        *("--source-uri", job.source, "--source-table", "shop.widened"),
        *("--dest-uri", job.target, "--dest-table", "analytics.line_items"),
        *("--incremental-strategy", "merge", "--primary-key", "line_id"),
        *("--incremental-key", "updated_at", "--interval-start", job.start.isoformat()),
        *("--interval-end", last.isoformat()),
    ]


SERVERS = "PostgreSQL"
ALL_NEW = ("new", "first")
MIXED = ("mixed600", "mixed60", "mixed6")
SQLALCHEMY = "sqlalchemy==2.0.46"  # 2.1 reads postgresql:// as psycopg 3
DLT = (
    "dlt[postgres,sql_database,parquet]==1.31.0",
    "connectorx==0.4.6",
    "adbc-driver-postgresql==1.13.0",
    "adbc-driver-manager==1.13.0",
    "pyarrow==26.0.1",
    SQLALCHEMY,
)
# dlt gives every row two columns of its own; tables that another tool has filled lack them.
DLT_COLUMNS = """ALTER TABLE analytics.line_items
    ADD COLUMN _dlt_load_id varchar NOT NULL DEFAULT '', ADD COLUMN _dlt_id varchar NOT NULL DEFAULT ''"""

TOOLS = (
    Tool("floor", "psql: COPY, sorted upsert", SERVERS, _psql("upsert")),
    Tool("copy", "psql: COPY alone", SERVERS, _psql("copy"), cases=ALL_NEW),
    Tool("ours", "pipeline_assets", __version__, _ours("assets")),
    Tool(
        "warm",
        "pipeline_assets, warm process",
        __version__,
        _ours("assets", "--warm"),
        cases=MIXED,
    ),
    Tool(
        "functions",
        "pipeline_assets, warm, without Dagster",
        __version__,
        _ours("functions", "--warm"),
    ),
    Tool(
        "dagster",
        "three empty Dagster assets, warm",
        version("dagster"),
        _ours("dagster", "--warm"),
        cases=MIXED,
        judged=False,
    ),
    Tool("ingestr", "ingestr", "0.15.9", _ingestr, ("ingestr==0.15.9",)),
    Tool("sling", "Sling", "1.4.11", _sling, ("sling-linux-amd64==1.4.11",)),
    Tool(
        "dlt-best",
        "dlt, best found",
        "1.31.0",
        _peer("dlt_merge.py", "best"),
        DLT,
        cases=MIXED,
        warm_up=False,
    ),
    Tool(
        "dlt",
        "dlt, default",
        "1.31.0",
        _peer("dlt_merge.py", "default"),
        DLT,
        prepare=DLT_COLUMNS,
        cases=MIXED,  # six million rows take it minutes
    ),
    Tool(
        "naive",
        "pandas read_sql, to_sql",
        "3.1.1",
        _peer("naive.py"),
        ("pandas==3.1.1", "psycopg2-binary==2.9.13", SQLALCHEMY),
        cases=("mixed600", "mixed60"),  # a million rows take it six minutes
    ),
)
