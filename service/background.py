"""A blocking call in a thread, so that the main thread stays free to look, tell and be stopped."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs `call` at once in a daemon thread, which does not keep the process alive."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._done = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether the call has ended, after waiting at most `seconds`."""
        return self._done.wait(seconds)

    def result(self) -> T:
        """What the call returned; waits for it. Raises what it raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set before `_done`

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001  raised again by `result`
            self._error = error
        self._done.set()
