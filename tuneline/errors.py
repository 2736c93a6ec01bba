"""The errors that a user can cause. Each reaches the terminal as one message, not as a traceback."""


class TunelineError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(TunelineError):
    """A setting that is unknown, of the wrong type, or that contradicts another."""


class DataError(TunelineError):
    """A file, row or column that is not what the step needs."""


class ModelError(TunelineError):
    """A model, tokenizer or adapter that cannot do what was asked of it."""


class StageError(TunelineError):
    """A stage of the pipeline that failed, with its name and the end of its log."""


class RolloutError(TunelineError):
    """A rollout engine that cannot be reached, timed out, or gave an answer that is not one."""


class RewardError(TunelineError):
    """A reward function that raised, hung or gave values that are none."""
