"""The systems that the pipelines talk to: PostgreSQL, files, HTTP."""
