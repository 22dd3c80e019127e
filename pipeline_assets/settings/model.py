"""Every setting of the project, typed and checked once, before anything starts.

A setting has one name: `warehouse_start_date` in `environments/<environment>.yaml` is
`WAREHOUSE_START_DATE` in the environment and in `.env`, a file of that name in the secrets folder, a key of
the secret in Vault. The environment wins over `.env`, that over files, files over Vault, Vault over the YAML
file, the YAML file over the defaults here. What belongs here is what differs between deployments; what
describes data belongs in its contract.
"""

import os
import re
from collections import ChainMap
from collections.abc import Iterable, Sequence
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableSettingError

from pipeline_assets import yaml_files
from pipeline_assets.models.settings import ModelsSettings
from pipeline_assets.news.settings import NewsSettings
from pipeline_assets.operations.retention_settings import RetentionSettings
from pipeline_assets.operations.settings import OperationsSettings
from pipeline_assets.settings.vault import VaultError, VaultSettings, forget, read_secret

ENVIRONMENTS = Path(__file__).parents[1] / "environments"
OURS = (
    "PIPELINE_",
    "NEWS_",
    "NEWSAPI_",
    "WAREHOUSE_",
    "MODELS_",
    "RETENTION_",
    "ALERT_",
    "HEARTBEAT_",
)
"""Prefixes of the project's environment variables."""
SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
LARGEST_NUMBER = 100_000
"""The most days, minutes or rows that a setting can state; that many days before today is still a date."""
DATABASE_URLS = ("source_database_url", "warehouse_database_url", "dagster_database_url")
REQUIRED = (*DATABASE_URLS, "mlflow_tracking_uri")
"""What must be set in production."""


class SettingsError(ValueError):
    """A setting is unknown, malformed or missing; the message has one line for each."""


def project_root() -> Path:
    """The folder that holds `dagster.yaml`: DAGSTER_HOME, or this checkout, or the working directory."""
    if home := os.environ.get("DAGSTER_HOME"):
        return Path(home).expanduser().resolve()
    checkout = Path(__file__).parents[2]
    return checkout if (checkout / "dagster.yaml").exists() else Path.cwd()


class Settings(
    NewsSettings, ModelsSettings, RetentionSettings, OperationsSettings, VaultSettings, BaseSettings
):
    """The settings of one deployment. Build it with `load_settings`, which words errors clearly.

    Unset database URLs mean the embedded PostgreSQL in the data folder; production refuses that.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        # No figure is below or above NaN: as a threshold of the gate it would hold nothing back.
        allow_inf_nan=False,
    )

    pipeline_env: Literal["dev", "staging", "production"] = "dev"
    pipeline_data_dir: Path = Field(default_factory=lambda: project_root() / ".data")
    pipeline_secrets_dir: Path = Path("/run/secrets")
    """A folder with one file per setting, as Compose and Kubernetes mount secrets; the default one needn't
    exist."""
    pipeline_timezone: str = "UTC"
    """Where a day begins: partitions are days of this time zone (an IANA name)."""
    pipeline_automation: Literal["running", "stopped"] = "stopped"
    """Whether schedules and sensors are on when a deployment first comes up."""
    pipeline_postgres_bin: Path | None = None
    """A folder with `initdb` and `postgres` for the embedded server, instead of the wheel's."""

    pipeline_files_url: str | None = None
    """Where the files between assets lie, an fsspec URL; default: `partitions` in the data folder."""

    source_database_url: SecretStr | None = None
    warehouse_database_url: SecretStr | None = None
    dagster_database_url: SecretStr | None = None
    mlflow_tracking_uri: SecretStr | None = None

    pipeline_executor: Literal["in_process", "celery"] = "in_process"
    """Where the steps of a run execute: in the run's own process, or in Celery's workers."""
    celery_broker_url: SecretStr | None = None
    celery_backend_url: SecretStr | None = None
    """Where workers leave their results; default: tables of Celery's own in Dagster's database."""

    warehouse_start_date: date = date(2026, 1, 7)
    """The first partition of the warehouse tables; the sample shop opened on this day."""
    warehouse_lateness_days: int = Field(default=3, ge=1)
    """How many of the newest days are compared with the source at every tick of the sensor; older
    ones are compared once a day."""

    @property
    def files_url(self) -> str:
        """Where the files between assets lie."""
        return self.pipeline_files_url or str(self.pipeline_data_dir / "partitions")

    @field_validator("pipeline_data_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        # Each of Dagster's processes resolves it, from a working directory of its own.
        folder = folder.expanduser()
        return folder if folder.is_absolute() else (project_root() / folder).resolve()

    @field_validator("pipeline_timezone")
    @classmethod
    def _known_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(
                f"{name!r} is not a time zone; use an IANA name such as Europe/Berlin"
            ) from None
        return name

    @field_validator(*DATABASE_URLS)
    @classmethod
    def _postgres_url(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if url is None:
            return None
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            parts = urlsplit(url.get_secret_value())
            stated = conninfo_to_dict(url.get_secret_value())
            # libpq takes several servers, to find the one that takes writes; Dagster's SQLAlchemy doesn't.
            if info.field_name == "dagster_database_url":
                _ = parts.port  # raises if it is no number
            known = all(
                0 < int(port or 5432) < 65_536 for port in str(stated.get("port", "")).split(",")
            )
            if known and parts.scheme in ("postgresql", "postgres") and stated.get("dbname"):
                return url
        except (ValueError, ProgrammingError):
            pass
        # The value, and what libpq says of it, stay out of the message: they may hold a password.
        raise ValueError(
            "is not a PostgreSQL URL; use postgresql://user:password@host:5432/database, with "
            "special characters of the password percent-encoded"
        ) from None

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _shared_store(cls, uri: SecretStr | None) -> SecretStr | None:
        schemes = ("http://", "https://", "postgresql://", "postgresql+psycopg2://")
        if uri is not None and not uri.get_secret_value().startswith(schemes):
            raise ValueError(f"must begin with {', '.join(schemes[:-1])}: a store that all share")
        return uri

    @field_validator("celery_broker_url", "celery_backend_url")
    @classmethod
    def _known_to_celery(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        own = ["amqp", "amqps"] if info.field_name == "celery_broker_url" else ["postgresql"]
        known = [*own, "redis", "rediss"]
        if url is not None and url.get_secret_value().partition("://")[0] not in known:
            raise ValueError(f"must begin with {', '.join(f'{scheme}://' for scheme in known)}")
        return url

    @model_validator(mode="after")
    def _workers_share(self) -> Self:
        if self.pipeline_executor == "in_process":
            return self
        # A store that another host can't see would silently be another, empty one there.
        shared = (*DATABASE_URLS, "mlflow_tracking_uri", "celery_broker_url", "pipeline_files_url")
        missing = [name.upper() for name in shared if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} must be set with PIPELINE_EXECUTOR=celery: workers on other "
                "hosts use the same databases, and the same files in a bucket (s3://...) or in a "
                "folder that all of them mount (file:///...)"
            )
        if not str(self.pipeline_files_url).partition("://")[1]:
            raise ValueError(
                "PIPELINE_FILES_URL is a folder of one host: with PIPELINE_EXECUTOR=celery it must be a "
                "bucket (s3://...), or file:///... to say that all workers mount the folder"
            )
        if self.mlflow_tracking_uri and not self.mlflow_tracking_uri.get_secret_value().startswith(
            "http"
        ):
            raise ValueError(
                "MLFLOW_TRACKING_URI must be an MLflow server, http(s)://..., with "
                "PIPELINE_EXECUTOR=celery: beside a database models lie on one host's disk"
            )
        return self

    @model_validator(mode="after")
    def _sane_numbers(self) -> Self:
        for name, value in self:
            if isinstance(value, int | float) and abs(value) > LARGEST_NUMBER:
                raise ValueError(f"{name.upper()} must be at most {LARGEST_NUMBER:,}")
        return self

    @model_validator(mode="after")
    def _no_embedded_production(self) -> Self:
        if self.pipeline_env == "production":
            missing = [name.upper() for name in REQUIRED if getattr(self, name) is None]
            if missing:
                raise ValueError(
                    f"{', '.join(missing)} must be set: production has no embedded default"
                )
            if self.news_provider == "sample":
                raise ValueError("NEWS_PROVIDER must be rss or newsapi: production has no sample")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Overrides, and the project's own sources."""
        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, *setting_sources(settings_cls).values()


def setting_sources(settings_cls: type[BaseSettings]) -> dict[str, PydanticBaseSettingsSource]:
    """The sources of settings by the names that people know them by, the strongest first."""
    environment = EnvSettingsSource(settings_cls)
    files = SecretsSettingsSource(settings_cls, _secrets_folder())
    yaml_file = InitSettingsSource(settings_cls, _read_yaml(_yaml_file()))
    return {
        "environment variable": environment,
        "secret file": files,
        "Vault": VaultSource(settings_cls, (environment, files, yaml_file)),
        "environment file": yaml_file,
    }


class VaultSource(InitSettingsSource):
    """What Vault's secret holds; `others`, the strongest first, say where Vault is."""

    def __init__(
        self, settings_cls: type[BaseSettings], others: Sequence[PydanticBaseSettingsSource]
    ) -> None:
        super().__init__(settings_cls, {})
        self.others = others

    def __call__(self) -> dict[str, Any]:
        """The settings that the secret holds, by field name; those of many values may be JSON text."""
        access = VaultSettings.model_validate(ChainMap(*(source() for source in self.others)))
        if access.vault_addr is None:
            return {}
        secret = read_secret(access)
        _refuse_near_misses(secret, "a key of Vault's secret")
        found = {name.lower(): value for name, value in secret.items()}
        for name, value in found.items():
            field = self.settings_cls.model_fields.get(name)
            if field and isinstance(value, str) and self.field_is_complex(field):
                try:
                    found[name] = self.decode_complex_value(name, field, value)
                except ValueError:
                    raise UnreadableSettingError(f"{name.upper()} of Vault is malformed") from None
        return found


def _yaml_file() -> Path:
    environment = os.environ.get("PIPELINE_ENV", "dev")
    known = sorted(path.stem for path in ENVIRONMENTS.glob("*.yaml"))
    if environment not in known:  # not whether the file exists: a name with ../ leads elsewhere
        raise SettingsError(
            f"PIPELINE_ENV={environment} is not an environment; use one of: {', '.join(known)}"
        )
    return ENVIRONMENTS / f"{environment}.yaml"


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        found = yaml_files.read(file)
    except yaml_files.YamlFileError as error:
        raise SettingsError(str(error)) from error
    if not isinstance(found, dict | None):
        raise SettingsError(f"{file.name}: holds no mapping of names to values")
    return found or {}


def _secrets_folder() -> Path | None:
    stated = os.environ.get("PIPELINE_SECRETS_DIR")
    folder = Path(stated or Settings.model_fields["pipeline_secrets_dir"].default)
    if folder.is_dir():
        return folder
    if stated:
        raise SettingsError(f"PIPELINE_SECRETS_DIR={stated} is not a folder")
    return None


def _near_miss(name: str) -> str | None:
    """The setting that an unknown name probably means, if one is nearly the same."""
    settings = {field.upper() for field in Settings.model_fields}
    if name.upper() in settings:
        return None
    return next(iter(get_close_matches(name.upper(), sorted(settings), n=1, cutoff=0.9)), None)


def _refuse_near_misses(names: Iterable[str], what: str) -> None:
    # Other unknown names are accepted: those that only newer code knows must be there before its deployment.
    for name in sorted(names):
        if meant := _near_miss(name):
            raise SettingsError(f"{name}, {what}, is not a setting; {meant} is")


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes made the variable: each pod gets some for each service of its namespace.

    For a service `pipeline-assets`, they are PIPELINE_ASSETS_SERVICE_HOST, PIPELINE_ASSETS_PORT and more.
    """
    return bool(SERVICE_LINK.search(name)) or (
        name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
    )


def _unknown_names() -> list[str]:
    known = set(Settings.model_fields)
    yaml_file = _yaml_file()
    in_yaml = _read_yaml(yaml_file)
    errors = [f"{yaml_file.name}: {name} is not a setting" for name in in_yaml if name not in known]
    settings = sorted(name.upper() for name in known)
    for name in sorted(os.environ):
        if name.lower() in known or _is_service_link(name, os.environ[name]):
            continue
        # Variables of other programs begin with SOURCE_ or DAGSTER_ too: there only a near miss is an error.
        if name.startswith(OURS) or (name.endswith("_URL") and _near_miss(name)):
            meant = get_close_matches(name, settings, n=1)
            errors.append(f"{name} is not a setting" + (f"; {meant[0]} is" if meant else ""))
    return errors


def add_dotenv() -> set[str]:
    """Add the variables of `.env` beside `dagster.yaml` that the environment lacks; returns their names.

    `dagster dev` does so too, so that child processes see the same.
    """
    found = dotenv_values(project_root() / ".env")
    lacking = {name: value for name, value in found.items() if value is not None}
    lacking = {name: value for name, value in lacking.items() if name not in os.environ}
    os.environ.update(lacking)
    return set(lacking)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; `overrides` (by field name) win over every source.

    Raises:
        SettingsError: one line for each setting that is unknown, malformed or missing, naming its
            variable. Values are left out, as they may be secrets. Also if Vault is set up and can't
            be read.
    """
    add_dotenv()
    if errors := _unknown_names():
        raise SettingsError("\n".join(errors))
    if folder := _secrets_folder():
        _refuse_near_misses((file.name for file in folder.iterdir()), f"a file in {folder}")
    try:
        return Settings(**overrides)
    except UnreadableSettingError as error:
        raise SettingsError(f"{error}: lists are written as JSON") from None
    except (VaultError, OSError) as error:
        raise SettingsError(str(error)) from error
    except ValidationError as error:
        lines = [
            " ".join([*(str(part).upper() for part in problem["loc"]), _message(problem["msg"])])
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError("\n".join(lines)) from None


def reload_settings() -> Settings:
    """Read the settings again, including Vault's secret, which is otherwise read once per process."""
    forget()
    return load_settings()


def _message(pydantic_message: str) -> str:
    return pydantic_message.removeprefix("Value error, ").replace("Input should be", "should be")
