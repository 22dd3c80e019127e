"""The names of the model's assets and of the table that it learns from.

Kept apart from the code behind them: definitions, status and command need them and must load nothing heavy.
"""

SNAPSHOTS, TRAINED, EVALUATED = "training_snapshots", "trained_model", "model_evaluation"
DEPLOYED, PREDICTIONS = "deployed_model", "purchase_predictions"

ORDERS = "transactions"
"""The contract of the table that the model learns from. Where it isn't registered, there is no model."""
