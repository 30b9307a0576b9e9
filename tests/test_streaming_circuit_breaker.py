"""The circuit breaker, its clock in the test's hands."""

from streaming.circuit_breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(3, 10.0, clock)
    for _ in range(3):
        assert breaker.admit()
        breaker.failed()
    assert breaker.state == "open"
    return breaker


def test_only_failures_in_a_row_open_it() -> None:
    breaker = CircuitBreaker(3, 10.0, Clock())
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.state == "ok"
    assert breaker.wait_seconds == 0
    for _ in range(3):
        breaker.failed()
    assert not breaker.admit()
    assert breaker.wait_seconds == 10


def test_half_open_lets_one_probe_through_and_its_success_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 9.9
    assert not breaker.admit()
    clock.now += 0.1
    assert breaker.state == "half-open"
    assert breaker.admit()
    assert not breaker.admit()
    assert breaker.state == "half-open"
    breaker.succeeded()
    assert breaker.wait_seconds == 0
    assert breaker.admit()
    breaker.failed()
    assert breaker.admit()


def test_a_probe_that_fails_opens_it_anew() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 10
    assert breaker.admit()
    clock.now += 5
    breaker.failed()
    assert breaker.state == "open"
    assert breaker.wait_seconds == 10


def test_a_probe_that_is_given_up_makes_room_for_the_next_and_a_slow_one_does_after_a_while() -> (
    None
):
    clock = Clock()
    breaker = opened(clock)
    clock.now += 10
    assert breaker.admit()
    breaker.left()
    assert breaker.admit()
    assert not breaker.admit()
    clock.now += 10
    assert breaker.admit()


def test_late_failures_of_what_began_before_do_not_keep_it_open() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 9
    breaker.failed()
    assert breaker.wait_seconds == 1


def test_zero_failures_never_open_it() -> None:
    breaker = CircuitBreaker(0, 10.0, Clock())
    for _ in range(100):
        breaker.failed()
    assert breaker.state == "ok"
    assert breaker.admit()
