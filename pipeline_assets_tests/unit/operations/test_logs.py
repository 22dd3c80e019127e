"""What a log line looks like and what it never says."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from pipeline_assets.operations.logs import (
    JsonFormatter,
    MaskingFormatter,
    mask,
    secret_values,
)
from pipeline_assets.settings import Settings, rotation


def line_of(formatter: logging.Formatter, message: str, *arguments: object) -> str:
    """What a logger with this formatter writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("a.library")
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    logger.warning(message, *arguments)
    return stream.getvalue()


def test_a_line_without_a_run_has_the_same_keys() -> None:
    line = json.loads(line_of(JsonFormatter("staging"), "slow: %s", "3 s"))
    assert line | {"time": ""} == {
        "time": "",
        "level": "WARNING",
        "logger": "a.library",
        "environment": "staging",
        "run_id": None,
        "job": None,
        "step": None,
        "asset": None,
        "partition": None,
        "event": None,
        "message": "slow: 3 s",
    }


@pytest.mark.security
def test_every_secret_of_the_settings_is_masked_with_its_password_in_every_form() -> None:
    settings = Settings(
        newsapi_key=SecretStr("k3y-of-news"),
        source_database_url=SecretStr("postgresql://me:p%40ss%22word@db:5432/shop"),
    )
    formatter = MaskingFormatter(JsonFormatter("production"), secret_values(settings))
    line = line_of(
        formatter,
        'k3y-of-news postgresql://me:p%40ss%22word@db:5432/shop p%40ss%22word p@ss"word '
        "redis://:hidden@cache/0 https://u:p:q@host/x https://example.com/a:b@c",
    )
    for secret in ("k3y-of-news", "ss%22", 'ss"', 'ss\\"', "hidden", "p:q"):
        assert secret not in line
    assert "https://example.com/a:b@c" in line  # no password, just an address
    json.loads(line)


@pytest.mark.security
def test_a_secret_that_replaced_another_is_masked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "_replaced", {})
    settings = Settings(newsapi_key=SecretStr("k3y-of-news"))
    formatter = MaskingFormatter(JsonFormatter("production"), secret_values(settings))
    rotation.replace(settings, "newsapi_key", SecretStr("n3w-key"))
    assert "n3w-key" not in line_of(formatter, "k3y-of-news was replaced by n3w-key")
    assert {"k3y-of-news", "n3w-key"} <= secret_values(settings)


def test_secrets_are_found_in_lists_and_nested_models() -> None:
    class Channel(BaseModel):
        url: SecretStr

    class Nested(BaseModel):
        channels: tuple[Channel, ...]
        tokens: dict[str, list[SecretStr]]

    nested = Nested(
        channels=(Channel(url=SecretStr("slack://abcd")),),
        tokens={"x": [SecretStr("t0ken"), SecretStr("no")]},
    )
    assert secret_values(nested) == {"slack://abcd", "t0ken"}  # two letters would mask all text


PASSWORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="/?#@ ", exclude_categories=["Z", "C"]),
    min_size=1,
).filter(lambda text: not text.isspace() and "*" not in text)


@given(password=PASSWORDS)
def test_no_password_of_a_url_is_left(password: str) -> None:
    masked = mask(f"to postgresql://some_one:{password}@host/db now", [])
    assert masked == "to postgresql://some_one:***@host/db now"
