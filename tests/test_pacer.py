"""Updates are timed, and a call makes as many of them as fit into a moment."""

from types import SimpleNamespace

import pytest

from jaxgpt.training import pacer
from jaxgpt.training.pacer import CALL_SECONDS, TIMED_STEPS, Pacer


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves `clock.now`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pacer, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_the_time_of_an_update_is_the_mean_of_those_since_the_last_restart(clock):
    timer = Pacer(1000, 200, 500)
    timer.restart(4)
    clock.now += 10
    assert timer.step_seconds(9) == 2
    timer.restart(9)
    clock.now += 3
    assert timer.step_seconds(10) == 3


def test_the_first_call_makes_one_update_and_the_next_as_many_as_fit(clock):
    timer = Pacer(1000, 200, 500)
    timer.restart(0)
    assert timer.steps_to_go(0) == 1
    clock.now += CALL_SECONDS / 20
    timer.step_seconds(1)
    assert timer.steps_to_go(1) == 20
    assert timer.steps_to_go(190) == 10  # up to the row
    assert timer.steps_to_go(995) == 5  # up to the end
    clock.now += 100 * CALL_SECONDS
    timer.step_seconds(2)
    assert timer.steps_to_go(2) == 1  # one at least


def test_a_forecast_waits_for_a_few_updates_of_this_process(clock):
    timer = Pacer(1000, 200, 500)
    assert not timer.can_tell(100)
    timer.restart(100)
    assert [timer.can_tell(100 + n) for n in range(TIMED_STEPS + 1)] == [False] * TIMED_STEPS + [True]
    timer.restart(150)
    assert timer.can_tell(150)
