"""Failures that a retry can't mend. Whatever isn't one of these is taken for transient."""


class PermanentError(Exception):
    """Trying again won't help: somebody has to mend the data, the contract or the settings."""
