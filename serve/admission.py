"""Who gets in: a bound on what is under way, on what one caller has under way, and on a caller's requests a minute."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.refusals import Busy
from serve.settings import Limits

RETURNS = 25.0  # a second, of callers who were refused: what refusals may cost beside the answers
SOONEST, LONGEST = 1.0, 30.0  # seconds that a caller is asked to wait
CALLERS = 10_000  # whose requests are remembered: the address of a caller without a key is anybody's choice
WINDOW = 60.0


class Admission:
    """Counts questions and prompts, which are what engines work on. Use it in one event loop."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._callers: Counter[str] = Counter()
        self._allowance: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, at which time
        self._places: OrderedDict[str, float] = OrderedDict()  # when the last one comes again; '': of all
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

    def check(self, caller: str, size: int = 1) -> None:
        """Raises Busy where there is no room for so many questions or prompts."""
        limits = self._limits
        if self.closing:
            raise Busy(503, "the server is shutting down: try again", 5.0)
        if self.in_flight + size > limits.in_flight and self.in_flight:
            message = f"{self.in_flight} of {limits.in_flight} questions and prompts are under way: try again"
            raise Busy(503, message, self._later(""))
        if self._callers[caller] + size > limits.key_in_flight and self._callers[caller]:
            message = f"you have {self._callers[caller]} of {limits.key_in_flight} under way: wait for answers"
            raise Busy(429, message, self._later(caller))

    @contextmanager
    def enter(self, caller: str, size: int) -> Iterator[None]:
        """Holds room for so many questions or prompts. Raises Busy where there is none."""
        self.check(caller, size)
        self.in_flight += size
        self._callers[caller] += size
        try:
            yield
        finally:
            self.in_flight -= size
            self._callers[caller] -= size
            if not self._callers[caller]:
                del self._callers[caller]

    def _later(self, caller: str) -> float:
        """Seconds. Those who are refused, and those of a caller who has too many, get places one after another, so that
        they do not come back together and their refusals take little of what the answers need."""
        now = self._clock()
        place = min(max(self._places.pop(caller, 0.0) + 1 / RETURNS, now + SOONEST), now + LONGEST)
        self._places[caller] = place
        while len(self._places) > CALLERS:
            self._places.popitem(last=False)
        return place - now
