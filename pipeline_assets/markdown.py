"""Text that others wrote, as part of the Markdown that Dagster's and MLflow's pages show."""

_MARKUP = str.maketrans(
    {character: f"\\{character}" for character in "\\|*_`[]#"}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "}
)


def escape(value: object) -> str:
    """The value on one line, with nothing in it that Markdown or HTML would take for markup."""
    return str(value).translate(_MARKUP)
