"""Whether the digest's folder is whole, judged by the files as any reader opens them.

Nothing here calls the package. Each function returns what is wrong, one sentence per defect.
"""

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

ATOM = "{http://www.w3.org/2005/Atom}"
IN_FEED = 14
KINDS = ("json", "csv", "txt", "html")


def torn(folder: Path) -> list[str]:
    """What breaks the rules that hold at any moment: each file is whole, and of its own edition."""
    found = []
    for file in sorted(folder.glob("[!.]*")):
        try:
            if not is_whole(file):
                found.append(f"{file.name} isn't whole")
        except (ValueError, ElementTree.ParseError) as error:
            found.append(f"{file.name} can't be read: {error}")
    return found


def is_whole(file: Path) -> bool:
    """Whether a file of the folder is complete."""
    text = file.read_bytes().decode()
    match file.suffix:
        case ".json":
            return bool(json.loads(text)["date"] == file.stem)
        case ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
            return text.endswith("\r\n") and all(
                row["edition"] == file.stem and None not in row.values() for row in rows
            )
        case ".xml":
            return ElementTree.fromstring(text).tag == f"{ATOM}feed"  # noqa: S314  # our own file
        case ".html":
            return text.startswith("<!") and text.endswith("</html>\n")
        case _:
            return text.startswith("Morning digest, ") and text.endswith("\n")


def unfinished(folder: Path, editions: int) -> list[str]:
    """What isn't done: all files of each edition, and the links to it."""
    days = sorted(file.stem for file in folder.glob("*.json"))
    found = [] if len(days) == editions else [f"{len(days)} editions instead of {editions}"]
    names = {"index.html", "feed.xml", *(f"{day}.{kind}" for day in days for kind in KINDS)}
    if missing := names - {file.name for file in folder.iterdir()}:
        return [*found, *(f"{name} is missing" for name in sorted(missing))]
    index = (folder / "index.html").read_text()
    feed = ElementTree.fromstring((folder / "feed.xml").read_text())  # noqa: S314  # our own file
    for place, day in enumerate(days):
        if f'href="{day}.html"' not in index:
            found.append(f"the index lacks {day}")
        page = (folder / f"{day}.html").read_text()
        neighbours = {*days[max(place - 1, 0) : place], *days[place + 1 : place + 2]}
        linked = set(re.findall(r'href="(\d{4}-\d\d-\d\d)\.html"', page)) - {day}
        if linked != neighbours:
            found.append(f"{day} links to {linked}, and its neighbours are {neighbours}")
        with (folder / f"{day}.csv").open(newline="") as file:
            rows, stories = len(list(csv.DictReader(file))), stories_of(folder / f"{day}.json")
        if rows != stories:
            found.append(f"{day} has {stories} stories, its table {rows}")
    if len(feed.findall(f"{ATOM}entry")) != min(editions, IN_FEED):
        found.append(f"the feed hasn't the newest {IN_FEED} editions")
    return found


def stories_of(edition: Path) -> int:
    """How many stories an edition has."""
    return len(json.loads(edition.read_text())["stories"])
