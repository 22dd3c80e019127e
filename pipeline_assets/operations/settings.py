"""What a deployment can choose about operations: who is alerted, and what counts as late, slow or long.

Each field's name in capitals is its environment variable; the project's one `Settings` inherits them.
How late data may be isn't a setting: each table's contract says it.
"""

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    field_validator,
)


class OperationsSettings(BaseModel):
    """Where alerts go, and the limits beyond which they are raised."""

    model_config = ConfigDict(frozen=True)

    alert_urls: tuple[SecretStr, ...] = ()
    """Apprise addresses, as JSON in the environment: `["slack://...", "mailtos://..."]`. Each gets
    every alert."""
    alert_repeat_minutes: int = Field(default=60, ge=1)
    """What recurs while its alert is open is counted, and reported again after this time at the earliest."""
    alert_late_minutes: int = Field(default=10, ge=1)
    """A run that has not started, or a tick that has not come, is late after this time."""
    alert_queue_length: int = Field(default=100, ge=1)
    """More waiting runs than this are too many."""
    alert_slow_factor: float = Field(default=3, gt=1)
    """A run is slow when it takes this many times the median of its job's last successful runs."""
    heartbeat_url: SecretStr | None = None
    """A dead-man's switch: requested after each look unless a message waits that no channel took, so that an
    outside monitor raises the alarm when nothing here can."""
    pipeline_ui_url: HttpUrl | None = None
    """Where people reach Dagster's UI, for the links in alerts."""

    @field_validator("alert_urls")
    @classmethod
    def _addresses(cls, urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        # The value stays out of the message: nearly all of an address is its key.
        for number, url in enumerate(urls, start=1):
            scheme, colon, rest = url.get_secret_value().partition("://")
            if not (scheme.isalnum() and colon and rest):
                raise ValueError(
                    f"entry {number} is not an Apprise address, such as mailtos://user:password@host"
                )
        if len({url.get_secret_value() for url in urls}) < len(urls):
            raise ValueError("names an address twice")
        return urls

    @field_validator("heartbeat_url")
    @classmethod
    def _web_address(cls, url: SecretStr | None) -> SecretStr | None:
        try:
            if url:
                HttpUrl(url.get_secret_value())
        except ValidationError:
            # The value stays out of the message, as above.
            raise ValueError("is not an http:// or https:// address") from None
        return url
