"""Checks of a change and of a deployment, as the workflows and a person before a push ask for them.

Contracts that a change breaks, how the asset graph differs, a smoke test of what was deployed.
"""
