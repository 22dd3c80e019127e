"""Delivery of alerts through Apprise."""

import pytest

from pipeline_assets.operations.alerts import DeliveryError, Message
from pipeline_assets.operations.delivery import send


@pytest.mark.security
def test_what_a_plugin_raises_is_a_failed_delivery_that_shows_no_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A password that isn't ASCII: smtplib's error ended the look, and no later channel got anything."""

    def raises(*_: object, **__: object) -> bool:
        raise UnicodeEncodeError("ascii", "pässword", 1, 2, "ordinal not in range(128)")

    monkeypatch.setattr("apprise.plugins.custom_json.NotifyJSON.send", raises)
    message = Message(title="a title", text="a text", level="failure", waiting=[])
    with pytest.raises(DeliveryError, match=r"^Apprise fails with UnicodeEncodeError$"):
        send({"json-1": "json://user:p%C3%A4ssword@localhost/k3y"}, "json-1", message, [])
