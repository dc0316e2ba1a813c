"""What a run tells: rank 0 writes its journal and speaks to the outside, the others are silent."""

import contextlib
from collections.abc import Callable

from service.errors import CheckpointError
from service.training.history import unwritable
from service.training.journal import Event, Journal


class Telling:
    """Says nothing before it has a `journal`, which other ranks than 0 never have.

    outside: hears each line as it is written. error: why one could not be written, which ends the
    run at the next agreement.
    """

    def __init__(self, outside: Callable[[Event], None]) -> None:
        self._outside = outside
        self.journal: Journal | None = None
        self.error: CheckpointError | None = None

    def tell(self, event: Event) -> None:
        """Writes a journal line and tells the outside; from any thread."""
        if self.journal is None:
            return
        try:
            self.journal.append(event)
        except OSError as error:
            self.error = unwritable(error)
        self._outside(event)

    def close(self) -> None:
        if self.journal is not None:
            # What could not be written has been told by then: `error` says so.
            with contextlib.suppress(OSError):
                self.journal.close()
