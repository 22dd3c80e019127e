"""What a person sees instead of a traceback."""

import psycopg
import pytest
import sqlalchemy.exc
import typer

from pipeline_assets.failures import PermanentError
from pipeline_assets.resources.embedded_postgres import EmbeddedPostgresError
from pipeline_assets.settings import SettingsError
from pipeline_assets.terminal import clear_errors

TEXT = "install pipeline-assets[vault], not [/this]"


@pytest.mark.parametrize(
    "error",
    [
        SettingsError(TEXT),
        PermanentError(TEXT),
        EmbeddedPostgresError(TEXT),
        psycopg.OperationalError(TEXT),
        psycopg.errors.UndefinedObject(TEXT),  # `migrate --load` of a role that isn't there
        sqlalchemy.exc.OperationalError("SELECT 1", {}, psycopg.OperationalError(TEXT)),
    ],
)
def test_what_has_to_be_mended_is_a_line_as_it_was_said(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as exit_, clear_errors():
        raise error
    assert exit_.value.exit_code == 2
    assert capsys.readouterr().out == TEXT + "\n"


def test_what_mlflow_says_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow.exceptions import RestException

    away = RestException({"error_code": "UNAUTHENTICATED", "message": TEXT})
    with pytest.raises(typer.Exit), clear_errors():
        raise away
    assert TEXT in capsys.readouterr().out.replace("\n", "")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError), clear_errors():
        raise RuntimeError("a bug")
