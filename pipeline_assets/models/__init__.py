"""The model of who buys again within four weeks: retrained weekly, deployed only if it passes its gate."""
