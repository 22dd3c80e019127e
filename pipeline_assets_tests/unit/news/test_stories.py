"""Stories: told apart, ranked, chosen and summed up."""

from collections import Counter
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
import yaml

from pipeline_assets.news import rss, sample
from pipeline_assets.news.articles import Article
from pipeline_assets.news.items import Item, Run, Window
from pipeline_assets.news.settings import NewsSettings
from pipeline_assets.news.stories import Selection, Story, select
from pipeline_assets.resources.http import HttpClient
from pipeline_assets_tests.unit.news.builders import NOON, WINDOW, article

# More than `news_max_stories` allows: all stories are wanted here.
ALL = NewsSettings().model_copy(update={"news_max_stories": 10_000, "news_cap_per_source": 10_000})


def chosen(*today: Article, yesterday: tuple[Article, ...] = (), **settings: object) -> Selection:
    return select(today, yesterday, ALL.model_copy(update=settings))


def flood(number: int, **changes: object) -> Article:
    """An article about one and the same flood."""
    return article(
        number,
        **{
            "title": "River Aldwyn floods villages near Eastvale",
            "summary": "The River Aldwyn broke its banks near Eastvale, and villages had to leave.",
            **changes,
        },
    )


def different(number: int, **changes: object) -> Article:
    """An article that shares no word with those of other numbers."""
    words = [f"w{number}x{letter}" for letter in "abcdef"]
    return article(number, **{"title": " ".join(words), "summary": "", **changes})


def sample_articles(count: int) -> list[Article]:
    """Other articles, from as many days of the sample as needed, each from an outlet of its own."""
    items: list[Item] = []
    window = WINDOW
    while len(items) < count:
        run = Run(window, NewsSettings(), HttpClient("test"), window.end)
        for source in sample.sources(run):
            for answer in sample.fetch(source, run, []):
                items += rss.parse(source, answer)
        window = Window(window.start - timedelta(days=1), window.start)
    return [
        article(10_000 + number, title=one.title, summary=one.summary, outlet=f"Other {number}")
        for number, one in enumerate(items[:count])
    ]


class TestTellingApart:
    """How well stories are told apart, on articles written for this; the other half set the threshold."""

    def measured(self, half: int, others: int) -> tuple[float, float]:
        """Precision and recall over all pairs of a half's articles, mixed with `others` from the sample."""
        file = Path(__file__).with_name("labelled_articles.yaml")
        topics = yaml.safe_load(file.read_text(encoding="utf-8"))[half::2]
        events = [event for topic in topics for event in topic["events"]]
        event_of: dict[str, int] = {}
        articles = []
        for number, text in enumerate(text for event in events for text in event):
            title, _, summary = text.partition(" | ")
            event = next(index for index, texts in enumerate(events) if text in texts)
            one = article(number, title=title, summary=summary, outlet=f"Outlet {number}")
            event_of[one.url] = event
            articles.append(one)
        articles += sample_articles(others)
        Random(7).shuffle(articles)
        stories = chosen(*articles).stories
        found = {
            pair
            for story in stories
            for pair in combinations(
                sorted({story.url, *(url for _, url in story.also_at)} & set(event_of)), 2
            )
        }
        true = {
            pair
            for pair in combinations(sorted(event_of), 2)
            if len({event_of[u] for u in pair}) == 1
        }
        assert len(true) > 60, "enough pairs to mean something"
        return len(found & true) / len(found), len(found & true) / len(true)

    @pytest.mark.parametrize("others", [0, 1500])
    def test_precision_and_recall_on_the_reporting_half(
        self, others: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        precision, recall = self.measured(half=1, others=others)
        with capsys.disabled():
            print(f"\namong {others:,}: precision {precision:.3f}, recall {recall:.3f}")  # noqa: T201 - the figure is asked for
        assert precision >= 0.95
        assert recall >= 0.85

    def test_nothing_in_common_is_no_story(self) -> None:
        assert len(chosen(*(different(n) for n in range(20))).stories) == 20

    def test_identical_texts_are_one_story_however_many(self) -> None:
        copies = [flood(n, outlet=f"Outlet {n}") for n in range(300)]
        (story,) = chosen(*copies).stories
        assert len(story.also_at) == 299

    @pytest.mark.parametrize("title", ["The", "!!!", "\u4e2d\u6587", "1"])
    def test_a_title_without_words_does_not_fail(self, title: str) -> None:
        assert len(chosen(article(1, title=title, summary="")).stories) == 1

    def test_no_articles_no_stories(self) -> None:
        assert chosen() == Selection((), 0, 0, 0, 0)


class TestRanking:
    def test_more_outlets_first_then_the_newest(self) -> None:
        old, new = different(1), different(2, published_at=NOON + timedelta(hours=3))
        carried = [flood(3, outlet="A"), flood(4, outlet="B")]
        twice_by_one = [
            different(7, outlet="C", published_at=NOON - timedelta(hours=3)),
            different(
                8, outlet="C", title=different(7).title, published_at=NOON - timedelta(hours=2)
            ),
        ]
        stories = chosen(old, new, *carried, *twice_by_one).stories
        assert [story.url[-1] for story in stories] == ["3", "2", "1", "7"]

    def test_a_keep_word_comes_first_and_a_mute_word_not_at_all(self) -> None:
        articles = [
            flood(1, outlet="A"),
            flood(2, outlet="B"),
            different(3, title="Chess club wins"),
            different(4, title="Celebrity gossip of the day"),
            different(5, title="Gossiping is older than writing"),
        ]
        selection = chosen(*articles, news_keep=("CHESS club",), news_mute=("gossip",))
        assert [story.url[-1] for story in selection.stories] == ["3", "1", "5"]
        assert selection.muted == 1

    def test_no_outlet_opens_more_stories_than_its_cap(self) -> None:
        own = [different(n, outlet="Loud") for n in range(10)]
        shared = [flood(20, outlet="Loud"), flood(21, outlet="Quiet")]
        stories = chosen(*own, *shared, news_cap_per_source=3).stories
        assert Counter(story.outlet for story in stories) == {"Loud": 3}
        stories = chosen(*own, *shared, news_cap_per_source=1).stories
        assert [story.outlet for story in stories] == ["Loud"]

    def test_a_shared_story_opens_with_an_outlet_below_its_cap(self) -> None:
        top = [flood(1, outlet="Loud"), flood(2, outlet="Quiet")]
        other = [
            different(3, outlet="Loud", published_at=NOON),
            different(4, title=different(3).title, outlet="Quiet"),
        ]
        stories = chosen(*top, *other, news_cap_per_source=1).stories
        assert {story.outlet for story in stories} == {"Loud", "Quiet"}
        assert len(stories) == 2

    def test_the_digest_is_short(self) -> None:
        articles = [different(n, outlet=f"O{n}") for n in range(50)]
        assert len(chosen(*articles, news_max_stories=7).stories) == 7

    def test_other_languages_are_counted_and_left_out(self) -> None:
        selection = chosen(different(1), different(2, language="de"))
        assert (len(selection.stories), selection.other_languages) == (1, 1)

    def test_the_order_of_the_articles_does_not_matter(self) -> None:
        articles = [flood(n, outlet=f"O{n % 3}") for n in range(6)] + [
            different(n, outlet=f"O{n % 4}") for n in range(10, 30)
        ]
        first = chosen(*articles)
        for seed in range(5):
            Random(seed).shuffle(articles)
            assert chosen(*articles) == first


class TestYesterday:
    before = (flood(1, published_at=NOON - timedelta(days=1)),)

    def test_the_same_article_is_not_repeated(self) -> None:
        selection = chosen(self.before[0], different(5), yesterday=self.before)
        assert [story.url[-1] for story in selection.stories] == ["5"]
        assert selection.repeated == 1

    def test_nor_are_the_same_words_at_another_outlet(self) -> None:
        assert chosen(flood(2, outlet="Late Copy"), yesterday=self.before).stories == ()

    def test_more_on_it_is_an_update_that_opens_with_what_is_new(self) -> None:
        copy = flood(2, outlet="Late Copy")
        news = flood(
            3,
            title="River Aldwyn falls, villagers return to Eastvale",
            summary="The flood on the River Aldwyn is over, and the bank is being repaired.",
        )
        others = [different(number) for number in range(10, 40)]
        stories = chosen(copy, news, *others, yesterday=self.before).stories
        (story,) = [story for story in stories if story.is_update]
        assert (story.url, story.also_at) == (news.url, ())

    def test_what_is_new_is_no_update(self) -> None:
        (story,) = chosen(different(5), yesterday=self.before).stories
        assert not story.is_update


class TestStory:
    def story(self, *articles: Article) -> Story:
        (story,) = chosen(*articles).stories
        return story

    def test_it_opens_with_the_first_article_that_has_a_teaser(self) -> None:
        story = self.story(
            flood(1, summary="", outlet="A"), flood(2, outlet="B"), flood(3, outlet="B")
        )
        assert (story.outlet, story.url[-1]) == ("B", "2")
        assert [outlet for outlet, _ in story.also_at] == ["A"]
        assert story.story_id == f"{1:016x}", "named after its first article, whichever opens it"

    def test_the_summary_is_two_sentences_word_for_word_with_their_outlets(self) -> None:
        first = (
            "The River Aldwyn broke its banks near Eastvale. Villages were evacuated by U.S. "
            "engineers in boats. The weather stays bad."
        )
        other = "Eastvale's school became a shelter for evacuated families of the flooded villages."
        articles = [flood(1, summary=first, outlet="A"), flood(2, summary=other, outlet="B")]
        quotes = self.story(*articles).summary

        assert quotes[0].text == "The River Aldwyn broke its banks near Eastvale."
        assert len(quotes) == 2
        by_outlet = {a.outlet: a.summary for a in articles}
        assert all(quote.text in by_outlet[quote.outlet] for quote in quotes)

    def test_the_second_sentence_does_not_say_the_first_again(self) -> None:
        again = "Villages were evacuated as the River Aldwyn broke its banks near Eastvale."
        story = self.story(flood(1, outlet="A"), flood(2, summary=again, outlet="B"))
        assert len(story.summary) == 1

    def test_without_teasers_there_is_no_summary(self) -> None:
        assert self.story(flood(1, summary="")).summary == ()

    def test_the_section_is_the_one_that_most_articles_have(self) -> None:
        story = self.story(
            flood(1, section="Top stories", outlet="A"),
            flood(2, section="Top stories", outlet="B"),
            flood(3, section="Weather", outlet="C"),
        )
        assert story.section == "Weather", "any heading says more than the general one"

    def test_keywords_are_words_of_the_articles_as_they_write_them(self) -> None:
        story = self.story(flood(1))
        assert len(story.keywords) == 4
        assert {"Aldwyn", "River", "Eastvale"} & set(story.keywords)

    def test_a_time_that_is_only_our_own_is_not_shown(self) -> None:
        assert self.story(flood(1, dated_by="first_seen")).published_at is None
