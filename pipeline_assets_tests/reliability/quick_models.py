"""The project's code location with models that are quick to train, and a job that has its snapshots."""

import dagster as dg

from pipeline_assets import definitions
from pipeline_assets_tests.reliability.jobs import TRAIN, be_quick

be_quick()
defs = dg.Definitions.merge(
    definitions.defs,
    dg.Definitions(
        jobs=[
            dg.define_asset_job(
                TRAIN, selection=dg.AssetSelection.assets("trained_model", "deployed_model")
            )
        ]
    ),
)
