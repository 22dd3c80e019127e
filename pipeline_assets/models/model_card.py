"""The model card: what a model is for, what it learnt from, how good it is and what its limits are.

After Mitchell et al. (2019), "Model Cards for Model Reporting".
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from pipeline_assets import markdown
from pipeline_assets.models.evaluation import METRICS, Estimate, Evaluation
from pipeline_assets.models.gate import Finding
from pipeline_assets.models.rules import RULES
from pipeline_assets.models.snapshots import FEATURES, HORIZON, Window


@dataclass(frozen=True)
class ModelCard:
    """The contents of a card."""

    name: str
    """The registered name, such as `dev.purchase_propensity`."""
    candidate: str
    week: date
    training: Window
    holdout: Window
    evaluation: Evaluation
    baseline: Evaluation
    slices: Mapping[str, Evaluation]
    validation: Mapping[str, Mapping[str, float]]
    findings: Sequence[Finding]
    code_version: str
    """The Git commit."""


def render(card: ModelCard) -> str:
    """The card in Markdown, which is also safe as HTML; all texts are escaped."""
    training, holdout = card.training, card.holdout
    compared = [("model", card.evaluation), ("BG/NBD", card.baseline), *card.slices.items()]
    sections = [
        f"# {markdown.escape(card.name)}, week of {card.week}",
        f"The probability that a customer buys again within {HORIZON.days} days, for every customer "
        f"with a completed order. Chosen candidate: **{markdown.escape(card.candidate)}**. Code: "
        f"{markdown.escape(card.code_version)}.",
        "## Intended use",
        "To rank customers and to expect their number, for offers and reminders that do no harm where "
        "they are wrong. Not for decisions about a person such as credit, prices or access.",
        "## Data",
        _table(
            ("", "training", "holdout"),
            [
                ("history from", training.first_purchase, holdout.first_purchase),
                ("cutoffs", _dates(training.cutoffs), _dates(holdout.cutoffs)),
                ("labels closed on", training.closes, holdout.closes),
                ("rows", f"{training.rows:,}", f"{holdout.rows:,}"),
                ("bought", _share(training), _share(holdout)),
                ("SHA-256 of the content", training.content_hash, holdout.content_hash),
            ],
        ),
        "A customer is a number and a history of orders; nothing else of the person is known to the "
        "model. Features:",
        _table(("feature", "what it is"), FEATURES.items()),
        "## How good it is",
        "On the holdout, whose labels closed after everything that the model has seen; 95% bootstrap "
        "intervals over customers. BG/NBD is the baseline, fitted at the holdout's cutoff.",
        _table(
            ("", *(_name(name, found) for name, found in compared)),
            [
                (title, *(_estimate(found[metric]) for _, found in compared))
                for metric, title in METRICS.items()
            ],
        ),
        "## The gate",
        _table(
            ("rule", "what it says", "", ""),
            [
                (finding.name, RULES[finding.name], _verdict(finding), finding.advice)
                for finding in card.findings
            ],
        ),
        "## How it was chosen",
        "Candidates learnt from the older training snapshots and were compared on the newest ones, "
        "whose labels came after; the lowest log loss won and learnt from all. The holdout had no say.",
        _table(
            ("candidate", *(METRICS[metric] for metric in _validated(card))),
            [
                (name, *(f"{scores[metric]:.4f}" for metric in _validated(card)))
                for name, scores in card.validation.items()
            ],
        ),
        "## Limits",
        "- The season isn't known to it: after a change of the shop's rate of sales it predicts too many "
        "or too few buyers until the change has reached its training weeks; the calibration says how many.\n"
        "- Of customers with one purchase it knows little more than when that was.\n"
        "- An order counts by its newest status: an old order refunded since is missing from all snapshots "
        "computed later.\n"
        "- Spend in several currencies is added up in average orders of each; prices that differ between "
        "currencies are taken as equal.",
    ]
    return "\n\n".join(sections) + "\n"


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| "
        + " | ".join(str(cell) if cell == "---" else markdown.escape(cell) for cell in line)
        + " |"
        for line in lines
    )


def _name(name: str, evaluation: Evaluation) -> str:
    return f"{name} ({evaluation.customers:,})"


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ({estimate.lower:.4f} to {estimate.upper:.4f})"


def _dates(days: Sequence[date]) -> str:
    return f"{days[0]} to {days[-1]} ({len(days)})" if len(days) > 1 else str(days[0])


def _share(window: Window) -> str:
    return (
        "-" if window.buyers is None else f"{window.buyers:,} ({window.buyers / window.rows:.2%})"
    )


def _verdict(finding: Finding) -> str:
    return "passed" if finding.passed else "FAILED" if finding.severity == "error" else "warning"


def _validated(card: ModelCard) -> list[str]:
    return [
        metric for metric in METRICS if all(metric in each for each in card.validation.values())
    ]
