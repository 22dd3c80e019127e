"""News, a warehouse load and a model as partitioned, checked Dagster assets."""
