"""The PostgreSQL databases of the project: where each one is and how to connect to it.

A role (source, warehouse, ...) has a URL from the settings, or else a database of that name in the
embedded server, which starts on first use. A password that is changed while the process lives is read
again when a connection is refused. What is in the databases belongs elsewhere, but for the sample shop,
which the embedded source is filled with.
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
    30_000  # ms that what was sent may stay unconfirmed, while nobody asks: 15 minutes by default
)
ENDS_LOST_SESSIONS = {f"tcp_{name}": str(value) for name, value in _SILENCE.items()}
ENDS_LOST_SESSIONS["tcp_user_timeout"] = str(_UNHEARD)
"""Session settings: of a host that is cut off, the server drops sessions and locks after half a minute."""
FINDS_LOST_SERVERS: dict[str, Any] = {
    **_SILENCE,
    "tcp_user_timeout": _UNHEARD,
    # Seconds for each host of a URL. A lost SYN is sent again after 1 s and after 3 s. A scrape of Prometheus
    # is given up after 10 s; a tick, which may connect to two databases of two hosts, after 60 s.
    "connect_timeout": 5,
}
"""The other way round: parameters by which a client gives a server up that it doesn't hear from."""


def finding_lost_servers(url: str) -> str:
    """The URL as a connection string with FINDS_LOST_SERVERS; what it says of these itself stays."""
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
        """What `connect` makes of the URL; if it fails and the login was changed, of the new one.

        Asked only then, Vault needn't answer for a run to go on. The database stays the same: a process
        that was started on one doesn't go on on another.
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
        """The URL that the settings have by now, if it leads to the same database."""
        name = f"{self.role}_database_url"
        before, now = getattr(self.settings, name), read_again(name, error)
        if now is None or _place(now.get_secret_value()) != _place(before.get_secret_value()):
            return None
        replace(self.settings, name, now)
        return str(now.get_secret_value())

    def connect(self, **options: Any) -> "psycopg.Connection":
        """A psycopg connection in UTC; close it, or use it as a context manager."""
        import psycopg

        # Texts of times are compared between databases: their form must not depend on either.
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
        """Have an SQLAlchemy engine's later connections (psycopg2) log in as the settings say by then.

        `on_login` is told each URL that is tried.
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
    """All that a URL says but who logs in."""
    from psycopg.conninfo import conninfo_to_dict

    return {
        name: value
        for name, value in conninfo_to_dict(url).items()
        if name not in ("user", "password")
    }


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
