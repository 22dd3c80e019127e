"""From a data contract to DDL, row validation and a verdict. Knows nothing of Dagster."""
