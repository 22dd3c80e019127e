"""The databases of tests on one embedded server: made from templates, dropped after use."""

import psycopg
from psycopg import sql

from pipeline_assets.resources.embedded_postgres import Server


def without_sync(server: Server) -> None:
    """Have a server not wait for the disk: only a power cut loses anything by that, and no test has one."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")


def copy(server: Server, template: str, name: str) -> str:
    """Create a database as another is; its URL."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(hashtext('templates'))")
        # MLflow's pool keeps connections to the template, which then couldn't be copied.
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [template]
        )
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
    return server.url(name)


def drop(server: Server, *names: str) -> None:
    """Drop databases, whoever is connected."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for name in names:
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )
