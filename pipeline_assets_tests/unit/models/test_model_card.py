"""The model card: all that a reader asks for, and no markup from outside."""

from dataclasses import replace
from datetime import date

import pytest

from pipeline_assets.models import snapshots
from pipeline_assets.models.gate import Finding, judge
from pipeline_assets.models.model_card import ModelCard, render
from pipeline_assets.models.rules import RULES, SMOKE
from pipeline_assets.models.settings import GateThresholds
from pipeline_assets.models.snapshots import FEATURES
from pipeline_assets_tests.unit.models.builders import evaluation, snapshot, training

HOLDOUT = snapshots.describe(snapshot(date(2026, 5, 25)))


@pytest.fixture
def card() -> ModelCard:
    trained = snapshots.describe(training())
    return ModelCard(
        name="dev.purchase_propensity",
        candidate="logistic_regression",
        week=date(2026, 6, 15),
        training=trained,
        holdout=HOLDOUT,
        evaluation=evaluation(),
        baseline=evaluation(average_precision=0.3),
        slices={"repeat buyers": evaluation(auc=0.7)},
        validation={"logistic_regression": {"log_loss": 0.2111, "auc": 0.8}},
        findings=[
            Finding(SMOKE, True),
            *judge(
                GateThresholds(),
                evaluation(calibration=1.3),
                evaluation(),
                None,
                training_cutoffs=trained.cutoffs,
                holdout_cutoff=HOLDOUT.cutoffs[0],
            ),
        ],
        code_version="8dcacf3",
    )


def test_it_says_what_a_reader_asks_for(card: ModelCard) -> None:
    text = render(card)
    for wanted in (
        "# dev.purchase\\_propensity, week of 2026-06-15",
        "| cutoffs | 2026-02-02 to 2026-04-27 (4) | 2026-05-25 |",
        card.training.content_hash,
        HOLDOUT.content_hash,
        "| Average precision | 0.3400 (0.3350 to 0.3450) | 0.3000 (0.2950 to 0.3050) |",
        "repeat buyers (10,000)",
        "| logistic\\_regression | 0.8000 | 0.2111 |",
        "| calibrated | As many customers bought as were predicted, within bounds. | warning | The model",
        "Not for decisions about a person",
        "## Limits",
        "8dcacf3",
    ):
        assert wanted in text
    for feature, what in FEATURES.items():
        assert f"| {feature.replace('_', chr(92) + '_')} | {what} |" in text
    for rule, sentence in RULES.items():
        assert f"| {rule.replace('_', chr(92) + '_')} | {sentence} |" in text


def test_every_table_has_as_many_cells_in_each_line(card: ModelCard) -> None:
    tables = [
        [line for line in block.splitlines() if line.startswith("|")]
        for block in render(card).split("\n\n")
    ]
    assert sum(bool(table) for table in tables) == 5
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) <= 1


def test_texts_from_outside_stay_text(card: ModelCard) -> None:
    hostile = "<script>alert(1)</script> | [x](javascript:alert(1)) `code` **bold**\n# title"
    from markdown_it import MarkdownIt

    text = render(replace(card, name=hostile, candidate=hostile, code_version=hostile))
    assert "<script" not in text
    assert "\n# title" not in text
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert "alert(1)" in page
    for markup in ("<script", "<a ", "<code", "<h1>title"):
        assert markup not in page
