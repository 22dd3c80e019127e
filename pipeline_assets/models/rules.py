"""The rules that a model must pass before it may be deployed: name -> sentence.

Kept apart from the code that applies them: definitions need a check for each and must load nothing heavy.
"""

GATE_RULES: dict[str, str] = {
    "auc_sufficient": "The model tells buyers from others well enough.",
    "precision_over_base_rate": "Average precision is a multiple of what chance reaches.",
    "precision_over_baseline": "Average precision isn't below a BG/NBD refitted at the cutoff.",
    "not_worse_than_champion": "On the same holdout the champion isn't better by more than a margin.",
    "calibrated": "As many customers bought as were predicted, within bounds.",
    "no_leakage": "Every training label was closed at the holdout's cutoff.",
}
"""Rules on a model's scores; `gate.judge` returns a finding for each, in this order."""

SMOKE = "loads_and_scores"
RULES: dict[str, str] = {
    SMOKE: (
        "The very files that would be deployed are those that were registered, are made of trusted "
        "types only, load, and score every customer of the holdout between 0 and 1."
    ),
    **GATE_RULES,
}
"""All rules: first the one on the model's files, then those on its scores."""
