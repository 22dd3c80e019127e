"""The model: who will buy again within four weeks, retrained weekly, deployed only if it earned it."""
