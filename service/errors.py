"""Errors a user can meet, and the exit codes they end with.

    CrossReidError
    ├── ConfigError        a setting is unknown, missing or out of range
    ├── DataError          a file, record, label or caption is not what it must be
    │   ├── LabelRangeError    a label lies outside [0, number of classes)
    │   └── LabelGapError      a class number has no rows
    ├── SamplerError       the identities cannot fill the batches that were asked for
    ├── ModelError         a backbone, weight file or parameter group does not fit
    │   └── FrozenLayerError   a layer with random weights would never learn
    ├── RunError           a run name is taken, unknown, or belongs to another config
    ├── CheckpointError    a checkpoint cannot be had or written, or is of another run or schema
    │   ├── DamagedCheckpointError   something of it is missing or not as it was written
    │   └── StoreError         their store cannot be reached or refuses
    ├── ClusterError       the cluster is too small, unreachable or refuses the token
    │   ├── LostRankError      a rank of a running training hangs or has ended
    │   └── LostContactError   a job that was followed may still run
    ├── WatchError         Prometheus, Alertmanager or a page of theirs cannot be had
    └── NonFiniteError     a loss or gradient became NaN or infinite

Every message says what was found, what was expected, where, and what to try. Each class takes one
message, so that errors pickle across processes; LostRankError takes the ranks too.
"""

from enum import IntEnum

from service.causes import Cause


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

    exit_code: int = ExitCode.USER_ERROR
    cause = Cause.NONE
    """The named cause, where `crossreid explain` has a page on it."""

    @property
    def name(self) -> str:
        """The cause, or the kind of error where it has none: for labels and tables."""
        return type(self).__name__ if self.cause is Cause.NONE else str(self.cause)


class ConfigError(CrossReidError):
    """A setting is unknown, missing, contradictory or out of range."""


class DataError(CrossReidError):
    """A data set, record, label or caption is not what it must be."""


class LabelRangeError(DataError):
    """A label lies outside [0, number of classes)."""

    cause = Cause.LABELS_OUT_OF_RANGE


class LabelGapError(DataError):
    """A class number has no rows, so the number of classes is wrong."""

    cause = Cause.LABELS_GAPPED


class SamplerError(CrossReidError):
    """The identities cannot fill the PK batches that were asked for."""


class ModelError(CrossReidError):
    """A backbone, weight file, freeze pattern or parameter group does not fit the model."""


class FrozenLayerError(ModelError):
    """A layer with random weights is frozen, so it would stay random."""

    cause = Cause.FROZEN_RANDOM_LAYER


class RunError(CrossReidError):
    """A run name is taken, unknown, or belongs to another config."""


class StillWrittenError(RunError):
    """A process of an earlier attempt still has the run's lock."""


class CheckpointError(CrossReidError):
    """A checkpoint cannot be had or written, or is of another schema or config."""


class DamagedCheckpointError(CheckpointError):
    """Something of a checkpoint is missing or not as it was written, so an older one must serve."""


class StoreError(CheckpointError):
    """The store of checkpoints cannot be reached or refuses; some time later it may not."""


class ClusterError(CrossReidError):
    """The cluster is too small for the run, unreachable, or refuses the token."""


class LostRankError(ClusterError):
    """A rank of a running training hangs or has ended; another try goes on from the checkpoint.

    ranks: those that did not answer; empty when that is not known.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message, ranks)
        self.ranks = ranks

    def __str__(self) -> str:
        return self.args[0]


class LostContactError(ClusterError):
    """The cluster stayed away while a job was followed, which may still run: its end is not known,
    so the exit code is none that a job ends with by itself."""

    exit_code = 1


class WatchError(CrossReidError):
    """Prometheus or Alertmanager is missing, too old, unreachable, or has nothing to show."""


class NonFiniteError(CrossReidError):
    """A loss or gradient became NaN or infinite; the parameters were not updated with it."""

    exit_code = ExitCode.NON_FINITE
    cause = Cause.NON_FINITE
