"""Signals while a run trains: each of them asks it to stop and save; a second Ctrl-C quits at once."""

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
import time

# Ctrl-C, `kill` and schedulers, a closed terminal, Slurm's --signal, a limit on CPU time; Windows lacks some.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
COPY_SECONDS = 0.2  # `timeout -s INT` and other launchers send a signal twice, faster than a hand can


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, SIGTERM ...), has saved itself, and can be resumed."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message, signal_number)  # both are `args`, from which a pickle makes it again
        self.signal_number = signal_number

    def __str__(self) -> str:
        return self.args[0]

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: it was asked to stop, and where it did tells nothing."""
        return [str(self)]


class StopRequest:
    """Use as a context; `signal_number` is 0 until somebody asks to stop.

    Python runs its own signal handlers only between two bytecodes of the main thread, which may sit in a
    long computation or compilation. The wake-up socket is written to at once, so a thread listens there.
    Outside the main thread (where Python allows no handlers) this does nothing. A signal that is ignored
    stays ignored (`nohup`, a script's `&`), a handler that is not Python's is left alone, and what is taken
    is given back on leaving.

    Args:
        exit_on_second_ctrl_c: a second Ctrl-C ends the process, as a command may; otherwise it raises
            `KeyboardInterrupt` in the main thread.
        quiet: print nothing.
    """

    def __init__(self, exit_on_second_ctrl_c: bool = False, quiet: bool = False):
        self.signal_number = 0
        self.exit_on_second_ctrl_c, self.quiet = exit_on_second_ctrl_c, quiet
        self._asked = self._quit = False
        self._active = False

    def __enter__(self) -> "StopRequest":
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._received, self._wakeup = socket.socketpair()
            self._wakeup.setblocking(False)
            not_ours = (signal.SIG_IGN, None)  # None: not Python's, which could not put it back
            self._taken = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) not in not_ours}
            for number in self._taken:
                signal.signal(number, self._handle)
            self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
            self._listener = threading.Thread(target=self._listen, name="jaxgpt-signals", daemon=True)
            self._listener.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._active:
            self._active = False
            signal.set_wakeup_fd(-1)
            with contextlib.suppress(OSError, ValueError):  # whoever it belonged to may have closed it
                signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._taken.items():
                signal.signal(number, handler)
            self._wakeup.close()  # ends the thread,
            self._listener.join(1)  # if it is not kept by a stderr that nobody reads

    def _handle(self, number: int, _) -> None:
        """Runs in the main thread, and perhaps late."""
        self.signal_number = self.signal_number or number
        if self._quit:
            self._quit = False
            raise KeyboardInterrupt

    def _listen(self) -> None:
        with self._received:
            while received := self._received.recv(1):
                if received[0] in self._taken:
                    self._ask(received[0])
                elif self._wakeup_before != -1:  # as of an event loop that this program runs
                    with contextlib.suppress(OSError):
                        os.write(self._wakeup_before, received)

    def _ask(self, number: int) -> None:
        """Notes a request. Any signal that comes again is the same request, but for Ctrl-C."""
        self.signal_number = self.signal_number or number
        if not self._asked:
            self._asked, self._since = True, time.monotonic()
            if not self.quiet:
                again = "Ctrl-C again to quit" if self.exit_on_second_ctrl_c else "interrupt again to stop"
                _say(f"stopping and saving after this step ({again} at once)")
        elif number == signal.SIGINT and time.monotonic() - self._since > COPY_SECONDS:
            if self.exit_on_second_ctrl_c:
                _leave(128 + number)
            self._interrupt()
            self._since = time.monotonic()

    def _interrupt(self) -> None:
        """Has `_handle` called in the main thread; a single call may come just before a wait, and not end it."""
        self._quit = True
        while self._quit and self._active:
            interrupt_main()
            time.sleep(0.05)


def interrupt_main() -> None:
    """Does to the main thread what Ctrl-C does, from another one."""
    main = threading.main_thread().ident
    if main and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()  # which ends no wait


def _say(text: str) -> None:
    with contextlib.suppress(Exception):  # nobody may be there to read it, and the request must stand
        below = "\n" if sys.stderr.isatty() else ""  # of the progress line
        sys.stderr.write(f"{below}{text}\n")
        sys.stderr.flush()


def _leave(code: int) -> None:
    with contextlib.suppress(Exception):
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the progress line hides the cursor
    os._exit(code)
