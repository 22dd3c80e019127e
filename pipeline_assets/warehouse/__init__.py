"""The incremental warehouse load. Only assets, checks and automation know Dagster."""
