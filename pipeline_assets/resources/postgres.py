"""The PostgreSQL databases of the project: where each one is and how to connect to it.

A role (source, warehouse, ...) has a URL from the settings, or else a database of that name in the
embedded server, which starts on first use. What is in the databases belongs elsewhere, but for the
sample shop, which the embedded source is filled with.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline_assets.settings import Settings

if TYPE_CHECKING:
    import psycopg

    from pipeline_assets.resources.embedded_postgres import Server

Role = Literal["source", "warehouse", "dagster", "mlflow"]


@dataclass(frozen=True)
class Database:
    """A PostgreSQL database by its role. Nothing connects or starts before it is used."""

    role: Role
    settings: Settings

    @property
    def is_embedded(self) -> bool:
        """Whether it is a database of the embedded server."""
        return getattr(self.settings, f"{self.role}_database_url", None) is None

    def url(self) -> str:
        """The database's URL, with its password: never log it.

        Starts the embedded server if the settings have no URL, and fills the source database with
        the sample shop when it is first used.
        """
        if not self.is_embedded:
            url: str = getattr(self.settings, f"{self.role}_database_url").get_secret_value()
            return url
        from pipeline_assets.resources import embedded_postgres

        server = embedded_postgres.connect_or_start(
            embedded_folder(self.settings), binaries=self.settings.pipeline_postgres_bin
        )
        return _embedded_database(server, self.role)

    def connect(self, **options: Any) -> "psycopg.Connection":
        """A psycopg connection in UTC; close it, or use it as a context manager."""
        import psycopg

        # Texts of times are compared between databases: their form must not depend on either.
        forms = {"TimeZone": "UTC", "DateStyle": "ISO", "client_min_messages": "warning"}
        # The server asks a silent client three times and ends its session: a host that is cut off keeps
        # its locks for half a minute instead of two hours.
        lost = {"idle": 15, "interval": 5, "count": 3}
        session = forms | {f"tcp_keepalives_{name}": value for name, value in lost.items()}
        return psycopg.connect(
            self.url(),
            options=" ".join(f"-c {name}={value}" for name, value in session.items()),
            **{f"keepalives_{name}": value for name, value in lost.items()},
            tcp_user_timeout=30_000,  # milliseconds; the other way round, for what was being sent
            application_name="pipeline_assets",
            **options,
        )


@cache
def _embedded_database(server: "Server", role: Role) -> str:
    """The URL of a database that is there; looked at once a process, each look is a login."""
    from pipeline_assets.resources import embedded_postgres, sample_shop

    url = embedded_postgres.ensure_database(server, role)
    if role == "source":
        sample_shop.ensure(url)
    return url


def embedded_folder(settings: Settings) -> Path:
    """Where the embedded server keeps its data."""
    return settings.pipeline_data_dir / "postgres"
