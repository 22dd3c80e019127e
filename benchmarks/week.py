"""The model's weeks in a process of its own, as Dagster runs them: `python -m benchmarks.week JOB=WEEK ...`.

`benchmarks.models` starts it under the clock: what a run takes has the imports in it. Where warehouse and
MLflow are comes by the environment.
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
