"""Stop signals: a flag here, a decision of all ranks in the training loop."""

from __future__ import annotations

import os
import signal
from types import FrameType

# What schedulers warn with, and what people and process managers send.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
STOPPED_STATUS = 75  # EX_TEMPFAIL: try again later


class StopRequest:
    """Notes the first stop signal of this process; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._process = os.getpid()
        for number in SIGNALS:
            signal.signal(number, self._note)

    @property
    def name(self) -> str:
        """The signal's name, or nothing."""
        return signal.Signals(self.signal).name if self.signal else ""

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        # A loader worker forked from this process inherits the handler, not the duty.
        if os.getpid() != self._process:
            return
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
