"""Whoever asks a run to stop is heard, and gets the process back as it was."""

import hashlib
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.training import signals
from jaxgpt.training.signals import Interrupted, StopRequest

ROOT = Path(__file__).parent.parent

if sys.platform == "win32":
    pytest.skip("Windows sends no signals to itself", allow_module_level=True)

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU]


@pytest.fixture(autouse=True)
def nothing_stays():
    """Every test leaves handlers and wake-up as they were."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGUSR2)}
    yield
    assert signal.set_wakeup_fd(-1) == -1
    assert {number: signal.getsignal(number) for number in before} == before


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def wait_until(condition) -> None:
    """The listening thread may take a moment."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


@pytest.fixture
def later(monkeypatch):
    """`later()` waits until another Ctrl-C is no copy any more."""
    monkeypatch.setattr(signals, "COPY_SECONDS", 0.02)
    return lambda: time.sleep(0.05)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_every_signal_asks_to_stop(number):
    with StopRequest() as stop:
        assert stop.signal_number == 0
        send(number)
        wait_until(lambda: stop.signal_number == number)


@pytest.mark.parametrize("number", [n for n in SIGNALS if n != signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_that_comes_again_is_the_same_request(number, later, capsys):
    with StopRequest() as stop:
        send(number)
        wait_until(lambda: stop.signal_number == number)
        for again in (number, signal.SIGTERM, signal.SIGUSR1):
            later()
            send(again)
        later()
        assert stop.signal_number == number
    assert capsys.readouterr().err.count("stopping and saving after this step") == 1


def test_a_launchers_copy_of_ctrl_c_is_the_same_request():
    with StopRequest() as stop:
        send(signal.SIGINT, signal.SIGINT)
        wait_until(lambda: stop.signal_number == signal.SIGINT)
        time.sleep(0.05)


def test_a_second_ctrl_c_raises_in_a_library(later):
    with StopRequest() as stop:
        send(signal.SIGINT)
        wait_until(lambda: stop.signal_number)
        later()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
            time.sleep(10)


def test_a_second_ctrl_c_ends_a_command():
    script = """
import os, signal, time
from jaxgpt.training.signals import COPY_SECONDS, StopRequest
with StopRequest(exit_on_second_ctrl_c=True):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(2 * COPY_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "stopping and saving after this step (Ctrl-C again to quit at once)\n"


def test_a_request_is_heard_during_a_computation_that_handles_no_signals():
    heard = []

    def ask(stop):
        send(signal.SIGTERM)
        wait_until(lambda: stop.signal_number)
        heard.append(not computed)

    computed = []
    with StopRequest() as stop:
        thread = threading.Thread(target=ask, args=[stop])
        thread.start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # a second or so without a bytecode
        computed.append(True)
        thread.join()
    assert heard == [True]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_what_was_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)  # as nohup and a script's & do
    try:
        with StopRequest() as stop:
            assert signal.getsignal(number) == signal.SIG_IGN
            send(number, signal.SIGTERM)
            wait_until(lambda: stop.signal_number)
            assert stop.signal_number == signal.SIGTERM
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    real, taken = signal.getsignal, []
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGINT else real(number))
    with StopRequest():
        taken = [number for number in SIGNALS if real(number) != signal.SIG_DFL]
        assert real(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGTERM in taken


def test_handlers_are_given_back_after_an_error():
    def mine(*_): ...

    before = signal.signal(signal.SIGUSR1, mine)
    try:
        with pytest.raises(RuntimeError), StopRequest():
            raise RuntimeError
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_event_loop_still_hears_its_own_signals():
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    ours.settimeout(10)
    signal.set_wakeup_fd(theirs.fileno())
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with StopRequest() as stop:
            send(signal.SIGTERM)
            wait_until(lambda: stop.signal_number)
            send(signal.SIGUSR2)
            assert ours.recv(9) == bytes([signal.SIGUSR2])
        send(signal.SIGUSR2)
        assert ours.recv(9) == bytes([signal.SIGUSR2])
    finally:
        assert signal.set_wakeup_fd(-1) == theirs.fileno()
        signal.signal(signal.SIGUSR2, before)
        ours.close()
        theirs.close()


def test_an_event_loop_that_has_gone_is_no_error():
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    with StopRequest():
        ours.close()
        theirs.close()


def test_outside_the_main_thread_nothing_is_taken():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.signal_number))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, 0)]


def test_quiet_prints_nothing(capsys):
    with StopRequest(quiet=True) as stop:
        send(signal.SIGINT)
        wait_until(lambda: stop.signal_number)
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stream", ["closed", None])
def test_a_closed_stderr_silences_nobody(stream, monkeypatch, later):
    if stream:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with StopRequest() as stop:
        send(signal.SIGTERM)
        wait_until(lambda: stop.signal_number)
        later()
        with pytest.raises(KeyboardInterrupt):  # so the thread listens on
            send(signal.SIGINT)
            time.sleep(10)


@pytest.mark.parametrize("error", [Interrupted("stopped", 15), jaxgpt.UserError("wrong"), jaxgpt.Diverged("nan")])
def test_errors_survive_a_process_pool(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
