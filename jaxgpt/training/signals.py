"""Ctrl-C and SIGTERM while a run is on: the first asks it to stop and save, the second quits at once."""

import os
import signal
import socket
import sys
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Use as a context; `signal_number` is 0 until somebody asks to stop.

    Python runs its own signal handlers only between two bytecodes of the main thread, which may sit in a
    long computation or compilation. The wake-up socket is written to at once, so a thread listens there.
    Outside the main thread (where Python allows no handlers) this does nothing.
    """

    def __init__(self):
        self.signal_number = 0

    def __enter__(self) -> "StopRequest":
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self._theirs = theirs
            self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            self._wakeup_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        if self._active:
            signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._theirs.close()  # ends the thread

    def _listen(self) -> None:
        with self._ours:
            while received := self._ours.recv(1):
                if received[0] not in SIGNALS:
                    continue
                if self.signal_number:
                    if sys.stdout.isatty():
                        os.write(1, b"\x1b[?25h\n")  # the progress line hides the cursor
                    os._exit(128 + received[0])
                self.signal_number = received[0]
                os.write(2, b"\nstopping and saving after this step (again to quit at once)\n")
