"""YAML files that people write, contracts and settings: read at a bounded cost, whatever is in them.

Doesn't belong here: what a file means, and which keys it may have; its reader says so.
"""

from pathlib import Path

import yaml

# The C loader is ten times faster than the Python one, and as safe.
LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LONGEST_FILE = 200_000
"""Characters of a file; the longest contract here has 5,000."""
DEEPEST = 50
"""Most levels of nested lists and mappings. At 100,000 the loader's C stack overflows: the process dies."""


class YamlFileError(ValueError):
    """A file can't be read, or is no YAML that is supported; the message names the file and the place."""


def read(file: Path) -> object:
    """A file's content. Raises `YamlFileError`."""
    try:
        return _parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise YamlFileError(f"{file}: cannot be read: {error.strerror}") from error
    except YamlFileError as error:
        raise YamlFileError(f"{file.name}: {error}") from None
    # ValueError: not UTF-8, a date that doesn't exist, a number of 5,000 digits.
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())  # PyYAML takes several lines
        raise YamlFileError(f"{file.name}: is not YAML: {said}") from error


def _parse(text: str) -> object:
    """Parse a file's text, once it is certain that the content won't be larger than the text.

    Nine lines of aliases to aliases are a billion values, so the parser's events are checked one by one
    before anything is built from them (all five contracts: 1 ms).
    """
    if len(text) > LONGEST_FILE:
        raise YamlFileError(f"has {len(text):,} characters; {LONGEST_FILE:,} are the most")
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        place = f"line {event.start_mark.line + 1}" if event.start_mark else "the file"
        if isinstance(event, yaml.AliasEvent):
            raise YamlFileError(
                f"{place}: the alias *{event.anchor} is not supported; write it out"
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise YamlFileError(f"{place}: more than {DEEPEST} lists and mappings in each other")
    return yaml.load(text, Loader=LOADER)  # noqa: S506 - a safe loader, in C
