"""Cleaning: what is true of one article, whatever a feed says."""

import re
import time
from datetime import UTC, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline_assets.news.articles import (
    Article,
    canonical_url,
    clean,
    clean_summary,
    clean_title,
    deduplicate,
    plain_text,
)
from pipeline_assets_tests.unit.news.builders import NOON, WINDOW, article, item


class TestCanonicalUrl:
    @pytest.mark.parametrize(
        ("url", "canonical"),
        [
            ("https://a.example/x?utm_source=rss&utm_medium=feed", "https://a.example/x"),
            ("https://a.example/x?id=7&fbclid=abc&at_medium=RSS", "https://a.example/x?id=7"),
            ("https://a.example/x#comments", "https://a.example/x"),
            ("HTTPS://A.Example:443/X", "https://a.example/X"),
            ("http://a.example:8080/x", "http://a.example:8080/x"),
            ("https://a.example", "https://a.example/"),
            ("https://a.example/x/amp/", "https://a.example/x"),
            ("https://a.example/x.amp.html", "https://a.example/x.html"),
            ("https://amp.a.example/x?amp=1", "https://a.example/x"),
            ("https://www.google.com/amp/s/a.example/x.amp", "https://a.example/x"),
            ("https://a-example.cdn.ampproject.org/c/s/a.example/x", "https://a.example/x"),
            ("https://a.example/?12345", "https://a.example/?12345"),
            ("https://a.example/camp/lamp", "https://a.example/camp/lamp"),
            ("  https://a.example/x\n", "https://a.example/x"),
        ],
    )
    def test_one_address_an_article(self, url: str, canonical: str) -> None:
        assert canonical_url(url) == canonical

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)//.example",
            "data:text/html,<script>alert(1)</script>",
            "vbscript:x",
            "file:///etc/passwd",
            "//a.example/x",
            "/x",
            "https://",
            "https://localhost/x",
            "https://bbc.example@evil.example/x",
            "https://a.example/x y",
            'https://a.example/"onmouseover="alert(1)',
            "https://a.example/<script>",
            "https://[::1",
            "https://a.example:99999/",
            f"https://a.example/{'x' * 3000}",
            "java\nscript:alert(1)",
        ],
    )
    def test_what_is_no_plain_web_address_is_empty(self, url: str) -> None:
        assert canonical_url(url) == ""

    @given(
        st.from_regex(r"https?://(www\.|amp\.)*[a-z]{1,5}\.example(:\d{1,5})?", fullmatch=True),
        st.text(alphabet="abAMPamp/.?&=#%_-1", max_size=40),
    )
    @example("https://amp.amp.a.example", "/x/amp/amp?&&amp")
    def test_it_is_the_same_when_done_again(self, host: str, rest: str) -> None:
        once = canonical_url(f"{host}/{rest}")
        assert canonical_url(once) == once


class TestPlainText:
    @pytest.mark.parametrize(
        ("markup", "text"),
        [
            ("Fish &amp; chips", "Fish & chips"),
            ("Fish &amp;amp; chips", "Fish & chips"),
            ("It&#8217;s &quot;late&quot;&nbsp;now", 'It\u2019s "late" now'),
            ("<p>One.</p><p>Two.</p>", "One. Two."),
            ("a<br/>b<li>c", "a b c"),
            ("H<sub>2</sub>O", "H2O"),
            ("<script>alert(1)</script>Safe", "Safe"),
            ("&lt;script&gt;alert(1)&lt;/script&gt;Safe", "Safe"),
            ("<style>p{}</style><!-- no -->Yes", "Yes"),
            ('<img src=x onerror="alert(1)">Text', "Text"),
            ("  many \n\t spaces\u00a0here ", "many spaces here"),
            ("5 < 6 and 7 > 6", "5 < 6 and 7 > 6"),
            ("zero\u200bwidth, right\u202eto left\x00, bell\x07", "zerowidth, rightto left, bell"),
            ("e\u0301", "\u00e9"),
        ],
    )
    def test_markup_becomes_one_line_of_text(self, markup: str, text: str) -> None:
        assert plain_text(markup, 300) == text

    def test_it_is_cut_between_words(self) -> None:
        assert plain_text("one two three", 9) == "one two…"

    def test_a_megabyte_takes_no_longer_than_what_is_kept(self) -> None:
        for markup in ("<b>&amp;" * 125_000, "a" * 1_000_000, "&lt;" * 250_000, "<" * 1_000_000):
            began = time.process_time()
            assert len(plain_text(markup, 300)) <= 300
            assert time.process_time() - began < 1

    @given(
        st.text(alphabet=st.sampled_from("<>&;/!-='\" abps#1203ltgmcrin\u202e\x00"), max_size=80)
    )
    @example("<\u202ea>")  # what is removed last may hide a tag
    @example("<\u202ea>")  # what is removed last may hide a tag
    def test_no_element_survives(self, markup: str) -> None:
        text = plain_text(markup, 300)
        assert not re.search(r"<[a-z!/][^>]*>", text)
        assert "\x00" not in text
        assert "\u202e" not in text
        assert text == " ".join(text.split())

    @given(st.text(max_size=200), st.integers(2, 50))
    def test_it_is_never_longer_than_asked(self, markup: str, length: int) -> None:
        assert len(plain_text(markup, length)) <= length


class TestTitlesAndSummaries:
    @pytest.mark.parametrize(
        ("raw", "clean"),
        [
            ("Council meets - Sample Times", "Council meets"),
            ("Council meets | SAMPLE TIMES", "Council meets"),
            ("Council meets \u2013 Sample Times", "Council meets"),
            ("Sample Times - a history", "Sample Times - a history"),
            ("[Removed]", ""),
            ("", ""),
        ],
    )
    def test_titles(self, raw: str, clean: str) -> None:
        assert clean_title(raw, "Sample Times") == clean

    @pytest.mark.parametrize(
        ("raw", "clean"),
        [
            ("The council met\u2026 [+1234 chars]", "The council met\u2026"),
            ("The council met. <a href='x'>Continue reading...</a>", "The council met."),
            ("The council met. Read more", "The council met."),
            ('"We met." Continue reading about the council', '"We met."'),
            ("Read more...", ""),
            ("Read more at BBC News", ""),
            ("The council met [\u2026] Continue reading the rest", "The council met [\u2026]"),
            ("He said: \u2018We met.\u2019 Read more", "He said: \u2018We met.\u2019"),
            ("They voted on the budget Continue reading \u2192", "They voted on the budget"),
            ("Those in the U.S. read more books.", "Those in the U.S. read more books."),
            ("Children who read more do better.", "Children who read more do better."),
            ("Fires spread more widely than forecast.", "Fires spread more widely than forecast."),
            ("Read more books, say teachers.", "Read more books, say teachers."),
            ("It met. The post Council meets appeared first on Sample Times.", "It met."),
            ("council MEETS", ""),
            ("[Removed]", ""),
            (
                "Read more books, say teachers. They help.",
                "Read more books, say teachers. They help.",
            ),
        ],
    )
    def test_summaries(self, raw: str, clean: str) -> None:
        assert clean_summary(raw, "Council meets") == clean

    def test_full_texts_are_cut_to_a_teaser(self) -> None:
        assert len(clean_summary("word " * 5000, "")) <= 600


class TestClean:
    def only(self, **changes: object) -> Article:
        (found,) = clean([item(**changes)], WINDOW, "en").articles
        return found

    @pytest.mark.parametrize(
        ("offset", "inside"),
        [
            (timedelta(seconds=-1), False),
            (timedelta(0), True),
            (timedelta(hours=24, seconds=-1), True),
            (timedelta(hours=24), False),
        ],
    )
    def test_the_window_is_closed_at_its_start_and_open_at_its_end(
        self, offset: timedelta, inside: bool
    ) -> None:
        cleaned = clean([item(published_at=WINDOW.start + offset)], WINDOW, "en")
        assert (len(cleaned.articles), cleaned.outside) == ((1, 0) if inside else (0, 1))

    @pytest.mark.parametrize("published_at", [None, NOON + timedelta(days=400)])
    def test_without_a_possible_date_an_article_is_as_old_as_our_knowledge(
        self, published_at: object
    ) -> None:
        found = self.only(published_at=published_at)
        assert found.published_at == WINDOW.end.astimezone(UTC) - timedelta(seconds=1)
        assert found.dated_by == "first_seen"

    def test_but_not_in_a_window_long_past(self) -> None:
        late = WINDOW.end + timedelta(hours=25)
        cleaned = clean([item(published_at=None, fetched_at=late)], WINDOW, "en")
        assert (cleaned.articles, cleaned.outside) == ([], 1)

    def test_times_are_in_utc(self) -> None:
        found = self.only(published_at=WINDOW.start)
        assert found.published_at.tzinfo is UTC
        assert found.published_at.hour == 7

    @pytest.mark.parametrize(
        ("text", "declared", "language"),
        [
            ("Der Stadtrat hat am Abend neue Radwege für die Innenstadt beschlossen", "en", "de"),
            ("Le conseil municipal a voté le budget de l'année prochaine", "", "fr"),
            ("The council has approved the budget of the coming year", "de-de", "en"),
            ("Ja", "de-AT", "de"),
            ("Ja", "", "en"),
            ("Ja", "<x", "en"),
        ],
    )
    def test_the_language_is_that_of_the_text(
        self, text: str, declared: str, language: str
    ) -> None:
        assert self.only(title=text, summary="", language=declared).language == language

    @pytest.mark.parametrize(
        ("raw", "author"),
        [
            ("desk@paper.example (A. Name)", "A. Name"),
            ("By A. Name", "A. Name"),
            ("<a href='https://x.example'>A. Name</a>", "A. Name"),
            ("https://x.example/a-name", ""),
            ("", ""),
        ],
    )
    def test_authors_are_names(self, raw: str, author: str) -> None:
        assert self.only(author=raw).author == author

    def test_what_cannot_be_saved_is_left_for_the_contract_to_judge(self) -> None:
        found = self.only(title="[Removed]", url="javascript:alert(1)")
        assert (found.title, found.url) == ("", "")
        assert len(found.article_id) == 16

    @pytest.mark.parametrize(
        ("changes", "identity"),
        [
            ({}, "e543f8029aa41ffa"),
            ({"url": ""}, "d7b0044edc6d5eb8"),
            ({"url": "", "outlet": ""}, "1ef243e8bf908635"),
            ({"url": "", "outlet": "", "title": "//["}, "221e698e586d68c0"),
        ],
    )
    def test_an_article_is_named_by_its_address_or_else_by_its_text(
        self, changes: dict[str, str], identity: str
    ) -> None:
        (kept,) = clean([item(**changes)], WINDOW, "en").articles
        assert kept.article_id == identity


class TestDeduplicate:
    def test_addresses_that_differ_in_form_only_are_one_article(self) -> None:
        urls = [
            "http://www.a.example/x",
            "https://a.example/x/",
            "https://a.example/x?utm_source=y",
        ]
        items = [item(url=url, title=f"Title {n}", outlet=f"O{n}") for n, url in enumerate(urls)]
        cleaned = clean(items, WINDOW, "en")
        assert (len(cleaned.articles), cleaned.duplicates) == (1, 2)

    def test_the_same_title_of_another_outlet_is_another_article(self) -> None:
        one = article(1, title="Same words")
        other = article(2, title="Same words", outlet="Example Post")
        repeated = article(3, title="same words")
        assert deduplicate([repeated, other, one]) == [one, other]

    @given(
        st.lists(
            st.builds(
                article,
                st.integers(1, 5),
                title=st.sampled_from(["A", "B", ""]),
                outlet=st.sampled_from(["X", "Y"]),
                summary=st.sampled_from(["", "long"]),
            ),
            max_size=12,
        ),
        st.randoms(),
    )
    def test_order_does_not_matter_and_once_is_enough(
        self, articles: list[Article], random: object
    ) -> None:
        kept = deduplicate(articles)
        shuffled = list(articles)
        random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a Random
        assert deduplicate(shuffled) == kept
        assert deduplicate(kept) == kept
        assert len({a.article_id for a in kept}) == len(kept)
