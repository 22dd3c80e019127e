"""The digest's files: the same bytes every time, safe in a spreadsheet and in a page."""

import csv
import io
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_assets.news.digest import (
    COLUMNS,
    Edition,
    editions_in,
    load,
    publish,
    to_csv,
    to_feed,
    to_page,
    to_text,
)
from pipeline_assets.news.stories import Quote, Story

NASTY = "<script>alert('x')</script> & \"quotes\" ' ]]> {{ 7*7 }} {% raw %}"


def story(number: int = 1, **changes: Any) -> Story:
    values: dict[str, Any] = {
        "story_id": f"{number:016x}",
        "section": "World",
        "headline": f"Headline {number}",
        "url": f"https://times.example/{number}",
        "outlet": "Sample Times",
        "published_at": datetime(2026, 11, 21, 12, number, tzinfo=UTC),
        "summary": (
            Quote(f"Sentence {number}.", "Sample Times"),
            Quote("Another.", "Example Post"),
        ),
        "also_at": (("Example Post", f"https://post.example/{number}"),),
        "keywords": ("river", "flood"),
        "is_update": False,
    }
    return Story(**{**values, **changes})


def edition(day: date = date(2026, 11, 22), **changes: Any) -> Edition:
    end = datetime(day.year, day.month, day.day, 7, tzinfo=UTC)
    values: dict[str, Any] = {
        "date": day,
        "starts_at": end - timedelta(days=1),
        "ends_at": end,
        "timezone": "Europe/Berlin",
        "provider": "rss",
        "language": "en",
        "stories": tuple(story(number) for number in range(1, 5)),
        "missing": (),
        "sources": 3,
        "articles": 9,
        "duplicates": 2,
        "muted": 0,
        "other_languages": 1,
        "repeated": 0,
    }
    return Edition(**{**values, **changes})


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


class TestCsv:
    def test_a_row_is_a_story(self) -> None:
        first, *rest = rows(to_csv(edition()))
        assert len(rest) == 3
        assert first == {
            "edition": "2026-11-22",
            "rank": "1",
            "section": "World",
            "story_id": "0000000000000001",
            "headline": "Headline 1",
            "outlet": "Sample Times",
            "url": "https://times.example/1",
            "published_at": "2026-11-21T12:01:00+00:00",
            "summary": "Sentence 1. Another.",
            "outlets": "2",
            "also_at": "https://post.example/1",
            "keywords": "river; flood",
            "is_update": "false",
            "provider": "rss",
        }

    def test_a_day_without_stories_still_has_its_header(self) -> None:
        assert to_csv(edition(stories=())) == ",".join(COLUMNS) + "\r\n"

    @pytest.mark.parametrize("sign", [*"=+-@\t\r\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
    def test_nothing_is_a_formula(self, sign: str) -> None:
        (row,) = rows(to_csv(edition(stories=(story(headline=f"{sign}cmd|'/C calc'!A0"),))))
        assert row["headline"] == f"'{sign}cmd|'/C calc'!A0"

    @given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
    def test_any_text_comes_back_but_for_the_guard(self, text: str) -> None:
        (row,) = rows(to_csv(edition(stories=(story(headline=text),))))
        assert row["headline"].removeprefix("'") == text.removeprefix("'")


class TestPage:
    def test_it_has_what_a_reader_needs(self) -> None:
        page = to_page(edition(), date(2026, 11, 20), date(2026, 11, 23))
        for part in (
            "Sunday, 22 November 2026",
            "4 stories from 2 outlets",
            '<a href="https://times.example/1" rel="noopener noreferrer nofollow">Headline 1</a>',
            "<q>Sentence 1.</q> <q>Another.</q> <cite>Example Post</cite>",
            '<a href="https://post.example/1"',
            "Sat 13:01",  # 12:01 in UTC
            'rel="prev" href="2026-11-20.html"',
            'rel="next" href="2026-11-23.html"',
            'href="index.html"',
            "1 min read",
            "Published from Sat 08:00 to Sun 08:00 (Europe/Berlin)",
        ):
            assert part in page, part
        assert "Sample edition" not in page
        assert "missing" not in page.partition("<main")[2]

    def test_the_first_and_the_last_edition_link_to_nothing_that_is_not_there(self) -> None:
        page = to_page(edition(), None, None)
        assert 'rel="prev"' not in page
        assert 'rel="next"' not in page

    def test_the_sample_says_so(self) -> None:
        sample = edition(provider="sample")
        assert "These articles are synthetic" in to_page(sample, None, None)
        assert "synthetic" in to_text(sample)
        assert "synthetic" in to_feed([sample], "")
        assert {row["provider"] for row in rows(to_csv(sample))} == {"sample"}

    def test_missing_sources_are_named_with_the_reason(self) -> None:
        page = to_page(edition(missing=(("BBC: World", "answered 503"),)), None, None)
        assert "1 source is missing</strong> of 3" in page
        assert "<b>BBC: World</b> answered 503." in page

    @pytest.mark.parametrize(
        ("stories", "repeated", "words"),
        [
            ((), 2, "there is nothing that yesterday&#39;s edition didn&#39;t have."),
            ((), 0, "there is nothing to tell."),  # all was muted, or in other languages
            ((story(),), 0, "only 1 story to tell."),
        ],
    )
    def test_a_quiet_day_says_so(
        self, stories: tuple[Story, ...], repeated: int, words: str
    ) -> None:
        assert words in to_page(edition(stories=stories, repeated=repeated), None, None)

    def test_an_update_is_marked(self) -> None:
        assert ">Update<" in to_page(edition(stories=(story(is_update=True),)), None, None)
        assert ">Update<" not in to_page(edition(), None, None)

    def test_what_strangers_wrote_stays_text(self) -> None:
        nasty = story(
            headline=NASTY,
            section=NASTY,
            outlet=NASTY,
            summary=(Quote(NASTY, NASTY),),
            also_at=((NASTY, "https://x.example/?a=1&b=2"),),
            keywords=(NASTY,),
        )
        one = edition(stories=(nasty, nasty), missing=((NASTY, NASTY),))
        page = to_page(one, None, None)
        assert "<script" not in page
        assert "49" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
        assert page.count("&lt;script&gt;") >= 8
        assert to_feed([one], "").count("<script") == 0

    def test_the_policy_allows_nothing_but_the_style(self) -> None:
        page = to_page(edition(), None, None)
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
        assert policy
        assert policy[1].replace("&#39;", "'").startswith("default-src 'none'; base-uri 'none'")
        assert not re.search(r"<(script|img|link rel=.stylesheet|iframe|form)|url\(|@import", page)
        assert not re.search(r"\son\w+=|\sstyle=", page)


class TestText:
    def test_it_has_every_story_with_its_address(self) -> None:
        text = to_text(edition())
        for number in range(1, 5):
            assert f"{number}. Headline {number}" in text
            assert f"   https://times.example/{number}\n" in text
        assert "Also at Example Post" in text
        long_lines = [line for line in text.splitlines() if len(line) > 72]
        assert all(line.strip().startswith("https://") for line in long_lines)


class TestFeed:
    ATOM = "{http://www.w3.org/2005/Atom}"

    def test_it_is_atom_with_an_entry_for_each_edition(self) -> None:
        days = [date(2026, 11, 22), date(2026, 11, 21)]
        feed = ET.fromstring(to_feed([edition(day) for day in days], "https://news.example/d"))  # noqa: S314 - our own
        entries = feed.findall(f"{self.ATOM}entry")
        assert [entry.findtext(f"{self.ATOM}id") for entry in entries] == [
            f"tag:pipeline-assets,2026:digest/{day}" for day in days
        ]
        link = entries[0].find(f"{self.ATOM}link")
        assert link is not None
        assert link.get("href") == "https://news.example/d/2026-11-22.html"
        assert entries[0].findtext(f"{self.ATOM}updated") == "2026-11-22T07:00:00Z"

    def test_a_feed_reader_can_read_it(self) -> None:
        import feedparser

        feed = feedparser.parse(to_feed([edition(), edition(date(2026, 11, 21), stories=())], ""))
        assert (feed.version, feed.bozo, len(feed.entries)) == ("atom10", False, 2)


def published(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


DAYS = [date(2026, 11, day) for day in (18, 20, 21, 22)]


class TestPublish:
    def test_it_saves_the_edition_and_gives_its_page(self, tmp_path: Path) -> None:
        page = publish(edition(), tmp_path)
        assert page == tmp_path / "2026-11-22.html"
        assert {*published(tmp_path)} == {
            *(f"2026-11-22.{kind}" for kind in ("csv", "html", "json", "txt")),
            "index.html",
            "feed.xml",
        }
        assert load(tmp_path, date(2026, 11, 22)) == edition()

    @settings(deadline=None, max_examples=20)
    @given(order=st.permutations(DAYS), again=st.lists(st.sampled_from(DAYS), max_size=3))
    def test_any_order_and_any_repetition_give_the_same_bytes(
        self, tmp_path_factory: pytest.TempPathFactory, order: list[date], again: list[date]
    ) -> None:
        straight, other = (tmp_path_factory.mktemp("digests") for _ in range(2))
        for day in DAYS:
            publish(edition(day), straight)
        for day in [*order, *again]:
            publish(edition(day), other)
        assert published(other) == published(straight)

    def test_editions_are_linked_over_the_gaps(self, tmp_path: Path) -> None:
        for day in DAYS:
            publish(edition(day), tmp_path)
        page = (tmp_path / "2026-11-20.html").read_text()
        assert 'rel="prev" href="2026-11-18.html"' in page
        assert 'rel="next" href="2026-11-21.html"' in page
        index = (tmp_path / "index.html").read_text()
        assert re.findall(r'href="(2026-.*?)\.html"', index) == [str(d) for d in reversed(DAYS)]
        assert editions_in(tmp_path) == DAYS

    def test_an_edition_made_again_replaces_the_old_one(self, tmp_path: Path) -> None:
        publish(edition(), tmp_path)
        publish(replace(edition(), stories=(story(9),)), tmp_path)
        assert "Headline 1" not in "".join(
            content.decode() for content in published(tmp_path).values()
        )

    @pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
    def test_a_failed_write_leaves_the_old_file_and_no_rest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
    ) -> None:
        publish(edition(), tmp_path)
        before = published(tmp_path)

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(failing, fail)
        with pytest.raises(OSError, match="No space left"):
            publish(edition(sources=99), tmp_path)
        assert published(tmp_path) == before
