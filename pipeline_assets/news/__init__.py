"""News: feeds, articles, stories and page. Only assets, checks and automation import Dagster."""
