"""The circuit breaker of a server elsewhere, on a clock that stands until a test moves it."""

from __future__ import annotations

import pytest

from engines.base import Declaration, EngineUnavailable, Outcome
from engines.remote.breaker import Breaker, CircuitState, choose
from engines.remote.servers import Key, Servers

OPEN_S = 30.0
CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(3, OPEN_S, clock)


def use(breaker: Breaker, *outcomes: Outcome) -> None:
    """Requests one after the other."""
    for outcome in outcomes:
        assert breaker.admits()
        request = breaker.request()
        request.begin()
        request.end(outcome, "it broke")


def opened(breaker: Breaker) -> Breaker:
    use(breaker, *[Outcome.FAILED] * 3)
    return breaker


def half_open(breaker: Breaker, clock: Clock) -> Breaker:
    opened(breaker)
    clock.now_s += OPEN_S
    return breaker


def test_failures_in_a_row_open_it_and_an_answer_between_them_counts_from_anew(breaker: Breaker) -> None:
    use(breaker, Outcome.FAILED, Outcome.FAILED, Outcome.ANSWERED, Outcome.FAILED, Outcome.FAILED)
    assert breaker.state is CLOSED
    use(breaker, Outcome.FAILED)
    assert (breaker.state, breaker.admits(), breaker.retry_after_s) == (OPEN, False, OPEN_S)


def test_what_says_nothing_of_the_server_neither_opens_it_nor_counts_from_anew(breaker: Breaker) -> None:
    use(breaker, Outcome.FAILED, Outcome.FAILED, *[Outcome.ABANDONED] * 9)
    assert breaker.state is CLOSED
    use(breaker, Outcome.FAILED)
    assert breaker.state is OPEN


def test_it_stays_open_until_its_time_is_over(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now_s += OPEN_S - 0.5
    assert (breaker.state, breaker.admits(), breaker.retry_after_s) == (OPEN, False, 0.5)
    clock.now_s += 0.5
    assert (breaker.state, breaker.admits()) == (HALF_OPEN, True)


def test_half_open_one_request_is_let_through_and_no_second(breaker: Breaker, clock: Clock) -> None:
    half_open(breaker, clock).request().begin()
    assert (breaker.state, breaker.admits()) == (HALF_OPEN, False)


@pytest.mark.parametrize(("outcome", "after"), [(Outcome.ANSWERED, CLOSED), (Outcome.FAILED, OPEN)])
def test_the_trial_says_what_comes_next(breaker: Breaker, clock: Clock, outcome: Outcome, after: CircuitState) -> None:
    use(half_open(breaker, clock), outcome)
    assert breaker.state is after
    assert breaker.retry_after_s == (OPEN_S if after is OPEN else 0.0)


def test_a_trial_that_was_abandoned_frees_its_place(breaker: Breaker, clock: Clock) -> None:
    use(half_open(breaker, clock), Outcome.ABANDONED)
    assert (breaker.state, breaker.admits()) == (HALF_OPEN, True)


def test_a_trial_is_over_once_its_answer_begins_and_one_that_breaks_off_then_opens_again(
    breaker: Breaker, clock: Clock
) -> None:
    trial = half_open(breaker, clock).request()
    trial.begin()
    trial.answers()
    assert (breaker.state, breaker.admits()) == (CLOSED, True)
    trial.end(Outcome.FAILED, "it broke off")
    assert breaker.state is OPEN


def test_a_trial_whose_answer_takes_its_time_holds_up_nobody_once_the_server_tells_what_it_has(
    breaker: Breaker, clock: Clock
) -> None:
    trial = half_open(breaker, clock).request()
    trial.begin()
    breaker.hears()
    assert not breaker.admits()  # it may still fail at once
    clock.now_s += 2
    breaker.hears()
    assert (breaker.state, breaker.admits()) == (CLOSED, True)
    trial.end(Outcome.FAILED, "it had begun before")
    assert breaker.state is CLOSED
    use(breaker, Outcome.FAILED)
    assert breaker.state is OPEN


def test_after_a_trial_that_was_answered_to_its_end_failures_are_counted_from_anew(
    breaker: Breaker, clock: Clock
) -> None:
    trial = half_open(breaker, clock).request()
    trial.begin()
    trial.answers()
    trial.end(Outcome.ANSWERED)
    use(breaker, Outcome.FAILED, Outcome.FAILED)
    assert breaker.state is CLOSED


@pytest.mark.parametrize("outcome", list(Outcome))
def test_requests_from_before_it_opened_change_nothing_after(breaker: Breaker, clock: Clock, outcome: Outcome) -> None:
    old = breaker.request()
    old.begin()
    half_open(breaker, clock)
    trial = breaker.request()
    trial.begin()
    old.answers()
    old.end(outcome, "it is long gone")
    assert (breaker.state, breaker.admits(), breaker.running) == (HALF_OPEN, False, 1)
    trial.end(Outcome.ANSWERED)
    assert (breaker.state, breaker.running, breaker.failures) == (CLOSED, 0, 0)


def test_the_closed_one_with_the_fewest_requests_is_chosen_but_a_trial_that_is_due_goes_first(clock: Clock) -> None:
    busy, free, broken = (Breaker(3, OPEN_S, clock) for _ in range(3))
    busy.request().begin()
    opened(broken)
    assert choose([busy, free, broken]) == 1
    clock.now_s += OPEN_S
    assert choose([busy, free, broken]) == 2
    broken.request().begin()
    assert choose([busy, free, broken]) == 1
    assert choose([broken]) is None


def test_one_that_failed_a_moment_ago_is_chosen_last(clock: Clock) -> None:
    shaken, busy = Breaker(3, OPEN_S, clock), Breaker(3, OPEN_S, clock)
    use(shaken, Outcome.FAILED)
    busy.request().begin()
    assert choose([shaken, busy]) == 1
    assert choose([shaken]) == 0
    clock.now_s += 1
    assert choose([shaken, busy]) == 0


def servers(clock: Clock, count: int = 1) -> Servers:
    urls = tuple(f"http://gpu{number}:8000/v1" for number in range(count))
    return Servers("box", Declaration(kind="openai", urls=urls, breaker_failures=3, breaker_open_s=OPEN_S), clock)


def test_when_no_server_takes_requests_each_is_named_with_why_and_when_it_is_tried_again(clock: Clock) -> None:
    both = servers(clock, 2)
    opened(both.all[0].breaker)
    clock.now_s += 10
    opened(both.all[1].breaker)
    with pytest.raises(EngineUnavailable) as caught:
        both.choose(both.all)
    assert caught.value.message == (
        "None of its servers takes requests now (engine 'box'): gpu0:8000 failed 3 times in a row, at last: it broke; "
        "it is tried again in 20 s; gpu1:8000 failed 3 times in a row, at last: it broke; it is tried again in 30 s."
    )
    assert caught.value.retry_after_s == OPEN_S - 10


def test_who_comes_while_the_trial_is_under_way_is_told_to_come_back_soon(clock: Clock) -> None:
    one = servers(clock)
    half_open(one.all[0].breaker, clock).request().begin()
    with pytest.raises(EngineUnavailable, match=r"^Its server takes no requests.* it is being tried with") as caught:
        one.choose(one.all)
    assert caught.value.retry_after_s == 1.0


def test_the_state_of_each_server_is_told(clock: Clock) -> None:
    one = servers(clock)
    opened(one.all[0].breaker)
    clock.now_s += 10
    told = {"host": "gpu0:8000", "state": "open", "failures": 3, "retry_after_s": 20.0, "running": 0}
    assert one.state() == [told | {"error": "it broke"}]


def test_servers_behind_one_host_are_told_apart() -> None:
    urls = ("http://gate:80/a/v1", "http://gate:80/b", "https://far/v1")
    told = Servers("box", Declaration("openai", urls)).state()
    assert [server["host"] for server in told] == ["gate:80/a", "gate:80/b", "far"]


@pytest.mark.parametrize("value", ["", "  ", "sk-tab\there", "schlüssel"])
def test_a_key_that_is_missing_or_none_is_told_by_its_variable_alone(value: str) -> None:
    key = Key.read(Declaration(api_key_env="BOX_KEY"), {"BOX_KEY": value})
    with pytest.raises(EngineUnavailable, match=r"BOX_KEY \(api_key_env\)") as caught:
        key.check("box")
    assert not value.strip() or value not in caught.value.message


def test_a_key_is_sent_and_never_shown() -> None:
    key = Key.read(Declaration(api_key_env="BOX_KEY"), {"BOX_KEY": "sk-secret\n"})
    key.check("box")
    assert key.headers() == {"Authorization": "Bearer sk-secret"}
    assert "secret" not in repr(key)
