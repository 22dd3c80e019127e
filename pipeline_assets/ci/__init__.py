"""Checks of a change and of a deployment, for the workflows and for people before a push.

Which contracts a change breaks, how the asset graph differs, and a smoke test of what was deployed.
"""
