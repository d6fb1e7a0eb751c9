"""Who gets in: a bound on what is under way, on what one caller has under way, and on a caller's requests a minute."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.refusals import Busy
from serve.settings import Limits

CALLERS = 10_000  # whose requests are remembered: the address of a caller without a key is anybody's choice
WINDOW = 60.0


class Admission:
    """Counts questions and prompts, which are what engines work on. Use it in one event loop."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._callers: Counter[str] = Counter()
        self._allowance: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, at which time
        self.in_flight = 0
        self.closing = False

    def knock(self, caller: str) -> None:
        """Counts a request. Raises Busy where the caller has had its share of this minute."""
        rate = self._limits.per_minute
        if not rate:
            return
        left, then = self._allowance.pop(caller, (float(rate), self._clock()))
        now = self._clock()
        left = min(float(rate), left + (now - then) * rate / WINDOW)
        self._allowance[caller] = (left - 1 if left >= 1 else left), now
        while len(self._allowance) > CALLERS:
            self._allowance.popitem(last=False)
        if left < 1:
            raise Busy(
                429, f"more than {rate} requests a minute: wait, or ask for a higher limit", (1 - left) * 60 / rate
            )

    @contextmanager
    def enter(self, caller: str, size: int) -> Iterator[None]:
        """Holds room for so many questions or prompts. Raises Busy where there is none."""
        limits = self._limits
        if self.closing:
            raise Busy(503, "the server is shutting down: try again", 5.0)
        if self.in_flight + size > limits.in_flight and self.in_flight:
            raise Busy(503, f"{self.in_flight} of {limits.in_flight} questions and prompts are under way: try again")
        if self._callers[caller] + size > limits.key_in_flight and self._callers[caller]:
            raise Busy(429, f"you have {self._callers[caller]} of {limits.key_in_flight} under way: wait for answers")
        self.in_flight += size
        self._callers[caller] += size
        try:
            yield
        finally:
            self.in_flight -= size
            self._callers[caller] -= size
            if not self._callers[caller]:
                del self._callers[caller]
