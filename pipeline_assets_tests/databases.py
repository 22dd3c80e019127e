"""The databases of tests on one embedded server: made from templates, dropped after use."""

import psycopg
from psycopg import sql

from pipeline_assets.resources.embedded_postgres import Server


def without_sync(server: Server) -> None:
    """Turn off a server's fsync: only a power cut would lose anything by that, and no test has one."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")


def copy(server: Server, template: str, name: str) -> str:
    """Create a database as a copy of another; returns its URL."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(hashtext('templates'))")
        # MLflow's pool keeps connections to the template, and a database in use can't be copied.
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
    """Drop databases, even those that sessions are connected to."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for name in names:
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )
