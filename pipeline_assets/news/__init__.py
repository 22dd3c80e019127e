"""The news digest: feeds, articles, stories and the page. Only assets, checks and automation know Dagster."""
