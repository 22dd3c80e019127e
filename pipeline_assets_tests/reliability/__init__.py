"""Attacks on the pipelines, and the oracles that judge the results; `docs/reliability.md` lists them."""
