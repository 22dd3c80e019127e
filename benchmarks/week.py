"""The model's weeks in a process of its own, as Dagster runs them: `python -m benchmarks.week JOB=WEEK ...`.

`benchmarks.models` measures this process, so that a run's figures include its imports. The environment
says where the warehouse and MLflow are.
"""

import sys
import tempfile

import dagster as dg

from pipeline_assets.definitions import build_definitions
from pipeline_assets.settings import load_settings

QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


def main(steps: list[str]) -> None:
    """Run each job over its week, one after another."""
    definitions = build_definitions(load_settings())
    with (
        tempfile.TemporaryDirectory() as folder,
        dg.DagsterInstance.local_temp(folder) as instance,
    ):
        for step in steps:
            job, _, week = step.partition("=")
            definitions.resolve_job_def(job).execute_in_process(
                instance=instance, partition_key=week, run_config=QUIET
            )


if __name__ == "__main__":
    main(sys.argv[1:])
