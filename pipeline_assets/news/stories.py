"""From articles to the stories of an edition: grouped, ranked, chosen, summarised.

Belongs here: whatever compares articles. How a story looks is up to `digest`. No state is kept between
editions: what readers know already is derived anew from yesterday's articles, so that editions can be
made in any order, and repeatedly, with the same result.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from pipeline_assets.news.articles import Article
from pipeline_assets.news.settings import GENERAL, NewsSettings

# Cosine similarity of TF-IDF vectors from which on two articles count as one story. On the tuning
# half of the labelled articles precision is 1.00 from 0.40 on, and recall 0.98 up to 0.42 (0.96
# among 1,500 others); at 0.36 precision is 0.94 there, at 0.50 recall 0.87.
SAME_STORY = 0.41
# No word weighs more than one found in a 33rd of the articles. Without this bound names outweigh
# all else on a busy day, and two stories of one town become one: precision 0.94.
RAREST = 4.5
# From this similarity on, texts differ in a few words only: the later one tells a reader nothing new.
SAME_TEXT = 0.85
KEYWORDS = 4


@dataclass(frozen=True)
class Quote:
    """A sentence of a publisher's teaser, word for word, with its outlet."""

    text: str
    outlet: str


@dataclass(frozen=True)
class Story:
    """One story of an edition; headline, url and outlet are those of its lead article.

    `also_at` has one article of each other outlet, as (outlet, address). `is_update` means that
    yesterday's articles covered it and today's say more. `published_at` is None where the publisher
    doesn't say.
    """

    story_id: str
    section: str
    headline: str
    url: str
    outlet: str
    published_at: datetime | None
    summary: tuple[Quote, ...]
    also_at: tuple[tuple[str, str], ...]
    keywords: tuple[str, ...]
    is_update: bool


@dataclass(frozen=True)
class Selection:
    """The stories of an edition in their order, and what became of the rest of its articles."""

    stories: tuple[Story, ...]
    articles: int
    muted: int
    other_languages: int
    repeated: int
    """Stories left out because yesterday's articles told all of them."""


def select(
    today: Iterable[Article], yesterday: Iterable[Article], settings: NewsSettings
) -> Selection:
    """The stories of the day: most outlets first, then the newest; those with a keep word before all.

    The order in which the articles come makes no difference.
    """
    mute, keep = _words(settings.news_mute), _words(settings.news_keep)
    offered = sorted(today, key=lambda a: (a.published_at, a.article_id))
    in_language = [a for a in offered if a.language == settings.news_language]
    fresh = [a for a in in_language if not (mute and mute.search(_text(a)))]
    known = sorted(
        (a for a in yesterday if a.language == settings.news_language),
        key=lambda a: (a.published_at, a.article_id),
    )
    groups, repeated = _groups(fresh, known)
    ranked = sorted(
        groups,
        key=lambda group: (
            not (keep and any(keep.search(_text(a)) for a in group.articles)),
            -len({a.outlet for a in group.articles}),
            -max(a.published_at for a in group.articles).timestamp(),
            group.articles[0].article_id,
        ),
    )
    return Selection(
        stories=tuple(_choose(ranked, settings)),
        articles=len(offered),
        muted=len(in_language) - len(fresh),
        other_languages=len(offered) - len(in_language),
        repeated=repeated,
    )


@dataclass(frozen=True)
class _Group:
    """The day's articles about one story, with their vectors, the earliest first."""

    articles: list[Article]
    vectors: Any
    is_update: bool
    vectoriser: Any


def _groups(fresh: Sequence[Article], known: Sequence[Article]) -> tuple[list[_Group], int]:
    """Today's stories, and the number of those left out because yesterday told all of it."""
    if not fresh:
        return [], 0
    together = [*fresh, *known]
    vectoriser, vectors = _vectorise([_text(article) for article in together])
    groups = []
    repeated = 0
    for members in _stars(_similar(vectors, SAME_STORY)):
        of_today = [index for index in members if index < len(fresh)]
        before = [index for index in members if index >= len(fresh)]
        told = (
            (vectors[of_today] @ vectors[before].T).max(axis=1).toarray().ravel()
            if before
            else None
        )
        urls = {together[index].article_id for index in before}
        new = [
            index
            for position, index in enumerate(of_today)
            if together[index].article_id not in urls
            and (told is None or told[position] < SAME_TEXT)
        ]
        if new:
            articles = [together[index] for index in new]
            groups.append(_Group(articles, vectors[new], bool(before), vectoriser))
        elif of_today:
            repeated += 1
    return groups, repeated


def _text(article: Article) -> str:
    """What is compared: the headline counts double."""
    return f"{article.title}\n{article.title}\n{article.summary}"


def _vectorise(texts: Sequence[str]) -> tuple[Any, Any]:
    """A vectoriser fitted on the texts, and the texts' vectors."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline

    counter, weights = CountVectorizer(analyzer=_terms), TfidfTransformer(sublinear_tf=True)
    counts = counter.fit_transform(texts)
    weights.fit(counts)
    weights.idf_ = weights.idf_.clip(max=RAREST)
    return make_pipeline(counter, weights), weights.transform(counts)


def _terms(text: str) -> list[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = _WORD.findall(text.lower())
    # A text of stop words only becomes one term: the vectoriser raises if no text has any.
    return [_stem(word) for word in words if word not in ENGLISH_STOP_WORDS] or [text]


_WORD = re.compile(r"[^\W_]{2,}(?:[.,]\d+)*|\d")
_ENDINGS = ("ing", "ed", "es", "er", "ly", "s")


@lru_cache(100_000)
def _stem(word: str) -> str:
    """`raises`, `raised` and `raising` are one word here."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def _similar(vectors: Any, threshold: float) -> list[list[int]]:
    """For each row, the rows at least so similar; in blocks, as the full matrix would fill the memory."""
    neighbours: list[list[int]] = []
    transposed = vectors.T.tocsc()
    for start in range(0, vectors.shape[0], 500):
        block = (vectors[start : start + 500] @ transposed).tocsr()
        # Rounded: the last bits depend on the processor, and an edition must not.
        block.data = (block.data.round(6) >= threshold).astype("int8")
        block.eliminate_zeros()
        neighbours += [
            sorted(
                int(column) for column in block.indices[block.indptr[row] : block.indptr[row + 1]]
            )
            for row in range(block.shape[0])
        ]
    return neighbours


def _stars(neighbours: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Group each article with those similar to it, beginning with the one that has the most.

    Every member is similar to the centre itself. Following links from one article to the next would
    join stories that have nothing in common.
    """
    free = set(range(len(neighbours)))
    for centre in sorted(free, key=lambda index: (-len(neighbours[index]), index)):
        if centre in free:
            members = sorted({centre, *neighbours[centre]} & free)
            free.difference_update(members)
            yield members


def _choose(ranked: Iterable[_Group], settings: NewsSettings) -> Iterator[Story]:
    """The first stories up to the maximum, no more than the cap of them led by the same outlet."""
    opened: Counter[str] = Counter()
    for group in ranked:
        if opened.total() == settings.news_max_stories:
            return
        leads = [a for a in group.articles if opened[a.outlet] < settings.news_cap_per_source]
        if leads:
            lead = next((a for a in leads if a.summary), leads[0])
            opened[lead.outlet] += 1
            yield _story(group, lead)


def _story(group: _Group, lead: Article) -> Story:
    also: dict[str, str] = {}
    for article in group.articles:
        if article.outlet != lead.outlet:
            also.setdefault(article.outlet, article.url)
    sections = Counter(a.section for a in group.articles if a.section != GENERAL)
    return Story(
        story_id=group.articles[0].article_id,
        section=sections.most_common(1)[0][0] if sections else GENERAL,
        headline=lead.title,
        url=lead.url,
        outlet=lead.outlet,
        published_at=lead.published_at if lead.dated_by == "publisher" else None,
        summary=_summary(group, lead),
        also_at=tuple(also.items()),
        keywords=_keywords(group),
        is_update=group.is_update,
    )


def _summary(group: _Group, lead: Article) -> tuple[Quote, ...]:
    """Two sentences that cover most of what the teasers say together, the lead's own first.

    The first is the opening of a teaser, so that it can stand alone; the second adds to it.
    """
    ordered = [lead, *(a for a in group.articles if a is not lead)]
    sentences = [
        (position, Quote(sentence, article.outlet))
        for article in ordered
        for position, sentence in enumerate(_sentences(article.summary, article.language))
    ]
    if not sentences:
        return ()
    vectors = group.vectoriser.transform([quote.text for _, quote in sentences])
    headline = group.vectoriser.transform([lead.title])
    middle = group.vectors.sum(axis=0)
    central = (vectors @ middle.T).A1
    like_headline = (vectors @ headline.T).toarray().ravel()
    first = next((index for index, (position, _) in enumerate(sentences) if position == 0), 0)
    like_first = (vectors @ vectors[first].T).toarray().ravel()
    others = [
        index
        for index in range(len(sentences))
        if index != first and like_first[index] < 0.5 and like_headline[index] < 0.8
    ]
    second = max(others, key=lambda index: (round(central[index], 6), -index), default=None)
    return tuple(sentences[index][1] for index in (first, second) if index is not None)


def _sentences(text: str, language: str) -> list[str]:
    from sentencex import segment

    return [part.strip() for part in segment(language, text) if len(part.strip()) >= 20]


def _keywords(group: _Group) -> tuple[str, ...]:
    """The words that set the story apart, as its articles write them."""
    written: dict[str, Counter[str]] = {}
    for article in group.articles:
        for word in _WORD.findall(f"{article.summary}\n{article.title}"):
            written.setdefault(_stem(word.lower()), Counter())[word] += 1
    weights = group.vectors.sum(axis=0).A1
    names = group.vectoriser[0].get_feature_names_out()
    best = sorted(weights.nonzero()[0], key=lambda index: (-round(weights[index], 6), names[index]))
    terms = [
        names[index] for index in best if names[index] in written and not names[index][0].isdigit()
    ]
    return tuple(written[term].most_common(1)[0][0] for term in terms[:KEYWORDS])


def _words(phrases: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern for any of the phrases as whole words, in any case."""
    escaped = "|".join(re.escape(phrase.strip()) for phrase in phrases if phrase.strip())
    return re.compile(rf"(?<!\w)(?:{escaped})(?!\w)", re.IGNORECASE) if escaped else None
