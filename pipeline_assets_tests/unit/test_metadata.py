"""What the assets show in Dagster's UI."""

from base64 import b64decode
from xml.etree import ElementTree

from pipeline_assets.metadata import BARS_HIGH, daily_plot


def drawn(markdown: str) -> ElementTree.Element:
    """The picture in a Markdown image."""
    encoded = markdown.partition("base64,")[2].removesuffix(")")
    return ElementTree.fromstring(b64decode(encoded))  # noqa: S314 - our own picture


def test_the_plot_has_a_bar_for_each_count_above_nothing() -> None:
    counts = {
        "rows": {"2026-01-07": 200, "2026-01-08": 50, "2026-01-09": 0},
        "violations <&>": {"2026-01-07": 0, "2026-01-08": 1, "2026-01-09": 0},
    }
    picture = drawn(str(daily_plot(counts).value))
    svg = "{http://www.w3.org/2000/svg}"
    bars = [float(bar.attrib["height"]) for bar in picture.iter(f"{svg}rect")]
    assert bars == [BARS_HIGH, BARS_HIGH / 4, BARS_HIGH]
    texts = [text.text for text in picture.iter(f"{svg}text")]
    assert texts == [
        "rows: at most 200 a day",
        "violations <&>: at most 1 a day",
        "2026-01-07",
        "2026-01-09",
    ]


def test_the_plot_of_no_days_says_so() -> None:
    picture = drawn(str(daily_plot({"rows": {}, "violations": {}}).value))
    assert [text.text for text in picture.iter() if text.text] == ["rows: none", "violations: none"]
