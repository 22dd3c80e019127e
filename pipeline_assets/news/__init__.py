"""The news digest: feeds, articles, stories, page. Assets, checks and automation alone know Dagster."""
