"""News, a warehouse load and a model as partitioned, checked Dagster assets."""

__version__ = "0.1.0"
