"""Errors a user can meet, and the exit codes they end with.

    CrossReidError
    ├── ConfigError        a setting is unknown, missing or out of range
    ├── DataError          a file, record, label or caption is not what it must be
    ├── SamplerError       the identities cannot fill the batches that were asked for
    ├── ModelError         a backbone, weight file or parameter group does not fit
    ├── RunError           a run name is taken, unknown, or belongs to another config
    ├── CheckpointError    a checkpoint is incomplete, damaged or of another schema
    ├── ClusterError       the cluster is too small, unreachable or refuses the token
    └── NonFiniteError     a loss or gradient became NaN or infinite

Every message says what was found, what was expected, where, and what to try. Each class takes one
message, so that errors pickle across processes.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means; 1 is left to unforeseen failures."""

    OK = 0
    USER_ERROR = 2
    NO_GO = 3
    PAUSED = 4
    NON_FINITE = 5
    INTERRUPTED = 130


class CrossReidError(Exception):
    """A mistake or condition that the user can act on; shown as one message without a traceback."""

    exit_code = ExitCode.USER_ERROR


class ConfigError(CrossReidError):
    """A setting is unknown, missing, contradictory or out of range."""


class DataError(CrossReidError):
    """A data set, record, label or caption is not what it must be."""


class SamplerError(CrossReidError):
    """The identities cannot fill the PK batches that were asked for."""


class ModelError(CrossReidError):
    """A backbone, weight file, freeze pattern or parameter group does not fit the model."""


class RunError(CrossReidError):
    """A run name is taken, unknown, or belongs to another config."""


class CheckpointError(CrossReidError):
    """A checkpoint is incomplete, damaged, or of another schema or config."""


class ClusterError(CrossReidError):
    """The cluster is too small for the run, unreachable, or refuses the token."""


class NonFiniteError(CrossReidError):
    """A loss or gradient became NaN or infinite; the parameters were not updated with it."""

    exit_code = ExitCode.NON_FINITE
