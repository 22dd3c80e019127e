"""The PostgreSQL databases of the project: where each one is and how to connect to it.

A role (source, warehouse, ...) has a URL from the settings, or else a database of that name in the
embedded server, which starts on first use. A password that is changed while the process lives is read
again when a connection is refused. The databases' contents belong elsewhere, except for the sample shop,
which fills the embedded source.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pipeline_assets.settings import Settings
from pipeline_assets.settings.rotation import current, read_again, replace

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Engine

    from pipeline_assets.resources.embedded_postgres import Server

Role = Literal["source", "warehouse", "dagster", "mlflow"]
Opened = TypeVar("Opened")
_SILENCE = {
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}  # seconds; times
_UNHEARD = (
    30_000  # ms that sent data may stay unacknowledged, without keepalives; 15 minutes by default
)
ENDS_LOST_SESSIONS = {f"tcp_{name}": str(value) for name, value in _SILENCE.items()}
ENDS_LOST_SESSIONS["tcp_user_timeout"] = str(_UNHEARD)
"""Session settings: the server drops the sessions and locks of a cut-off host after half a minute."""
FINDS_LOST_SERVERS: dict[str, Any] = {
    **_SILENCE,
    "tcp_user_timeout": _UNHEARD,
    # Seconds for each host of a URL. A lost SYN is sent again after 1 s and after 3 s. Prometheus gives up a
    # scrape after 10 s, Dagster a tick, which may connect to two databases of two hosts each, after 60 s.
    "connect_timeout": 5,
}
"""The reverse: parameters by which a client gives up on a server that it no longer hears from."""


def finding_lost_servers(url: str) -> str:
    """The URL as a connection string with FINDS_LOST_SERVERS; parameters that it sets itself are kept."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    return make_conninfo(**{**FINDS_LOST_SERVERS, **conninfo_to_dict(url)})


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
            url: str = current(self.settings, f"{self.role}_database_url").get_secret_value()
            return url
        from pipeline_assets.resources import embedded_postgres
        from pipeline_assets.resources.local_files import make_private

        make_private(self.settings.pipeline_data_dir)
        server = embedded_postgres.connect_or_start(
            embedded_folder(self.settings), binaries=self.settings.pipeline_postgres_bin
        )
        return _embedded_database(server, self.role)

    def open(self, connect: Callable[[str], Opened]) -> Opened:
        """Call `connect` with the URL; if that fails and the login was changed, with the new URL.

        Vault is asked only then, so that a run can go on while Vault is down. A new URL must lead to the
        same database: a process never moves from one database to another.
        """
        tried = self.url()
        try:
            return connect(tried)
        except Exception as error:
            newest = None if self.is_embedded else self._read_again(error)
            if newest is None or newest == tried:
                raise
        return connect(newest)

    def _read_again(self, error: Exception) -> str | None:
        """The URL as the settings now have it, if it leads to the same database."""
        name = f"{self.role}_database_url"
        before, now = getattr(self.settings, name), read_again(name, error)
        if now is None or _place(now.get_secret_value()) != _place(before.get_secret_value()):
            return None
        replace(self.settings, name, now)
        return str(now.get_secret_value())

    def connect(self, **options: Any) -> "psycopg.Connection":
        """A psycopg connection in UTC; close it, or use it as a context manager."""
        import psycopg

        # Times are compared as text between databases: their format must not depend on either one.
        session = {"TimeZone": "UTC", "DateStyle": "ISO", "client_min_messages": "warning"}
        return self.open(
            lambda url: psycopg.connect(
                finding_lost_servers(url),
                options=_as_options(session | ENDS_LOST_SESSIONS),
                application_name="pipeline_assets",
                **options,
            )
        )

    def follow(self, engine: "Engine", on_login: Callable[[str], None] | None = None) -> None:
        """Make an SQLAlchemy engine's new connections (psycopg2) use the settings' current login.

        `on_login` is called with each URL that is tried.
        """
        from psycopg.conninfo import conninfo_to_dict
        from sqlalchemy import event

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, _: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
            stated, ours = parameters.get("options", ""), _as_options(ENDS_LOST_SESSIONS)
            if ours not in stated:  # SQLAlchemy passes the same dict each time
                parameters["options"] = f"{stated} {ours}".strip()
            parameters.update({**FINDS_LOST_SERVERS, **parameters})

            def log_in(url: str) -> Any:
                login = conninfo_to_dict(url)
                for name in ("user", "password"):
                    parameters[name] = login.get(name)
                if on_login:
                    on_login(url)
                return dialect.connect(*arguments, **parameters)

            return self.open(log_in)


def _as_options(session: dict[str, str]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in session.items())


def _place(url: str) -> dict[str, Any]:
    """The parts of a URL other than user and password."""
    from psycopg.conninfo import conninfo_to_dict

    return {
        name: value
        for name, value in conninfo_to_dict(url).items()
        if name not in ("user", "password")
    }


@cache
def _embedded_database(server: "Server", role: Role) -> str:
    """Ensure that a database exists; return its URL. Cached, because each check is a login."""
    from pipeline_assets.resources import embedded_postgres, sample_shop

    url = embedded_postgres.ensure_database(server, role)
    if role == "source":
        sample_shop.ensure(url)
    return url


def embedded_folder(settings: Settings) -> Path:
    """Where the embedded server keeps its data."""
    return settings.pipeline_data_dir / "postgres"
