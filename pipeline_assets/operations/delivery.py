"""Delivery of alerts: through Apprise to people, and as a heartbeat to an outside monitor.

No error shows an address: nearly all of an address is its key.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from io import StringIO

from pydantic import SecretStr

from pipeline_assets.operations.alerts import DeliveryError, Message
from pipeline_assets.operations.logs import mask


def channels(urls: Iterable[SecretStr]) -> dict[str, str]:
    """Name -> address. A name identifies a channel without revealing its key: `slack-3f9a41`."""
    found = {}
    for url in urls:
        address = url.get_secret_value()
        scheme = address.partition("://")[0].lower()
        found[f"{scheme}-{hashlib.sha256(address.encode()).hexdigest()[:6]}"] = address
    return found


def send(addresses: Mapping[str, str], name: str, message: Message, secrets: Iterable[str]) -> None:
    """Deliver a message to one channel.

    Raises:
        DeliveryError: the channel didn't take it; with Apprise's reason, masked.
    """
    import apprise

    service = apprise.Apprise.instantiate(addresses[name], suppress_exceptions=True)
    if service is None:
        raise DeliveryError("ALERT_URLS has an address for it that Apprise doesn't understand")
    said = StringIO()
    # Apprise types everything but this.
    capture = apprise.LogCapture(level=logging.WARNING, fmt="%(message)s")  # type: ignore[no-untyped-call]  # all but this has types
    with capture as captured:
        try:
            done = service.notify(
                body=message.text,
                title=message.title,
                notify_type=apprise.NotifyType(message.level),
                body_format=apprise.NotifyFormat.TEXT,
            )
        except Exception as error:  # Apprise passes on what its plugins raise
            raise DeliveryError(f"Apprise fails with {type(error).__name__}") from None
        said.write(captured.getvalue())
    if not done:
        reason = " ".join(said.getvalue().split()) or "gave no reason"
        raise DeliveryError(
            mask(reason, sorted([*secrets, addresses[name]], key=len, reverse=True))
        )


def beat(url: SecretStr) -> None:
    """Tell the outside monitor that a look took place.

    Raises:
        DeliveryError: it didn't answer, or not with success.
    """
    from pipeline_assets.resources.http import USER_AGENT, FetchError, HttpClient, Limits

    try:
        answer = HttpClient(USER_AGENT, Limits(total=5, attempts=2)).get(url.get_secret_value())
    except FetchError as error:
        raise DeliveryError(f"HEARTBEAT_URL {error}") from None
    if answer.status >= 300:
        raise DeliveryError(f"HEARTBEAT_URL answered {answer.status}")
