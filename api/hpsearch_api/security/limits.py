"""How much a client may ask for, and how often."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace

from hpsearch.errors import InvalidInput, TooMany, TooMuch


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server allows; ``hpsearch serve --limit NAME=VALUE`` sets one.

    Attributes:
        body: bytes of a request's body.
        studies: in the store.
        trials: of one study, over all of its stages.
        metrics: named numbers in one report.
        steps: highest step of a report, so also the steps that are kept of a trial.
        rate: requests of one token in a second; twice as many at once.
        failures: requests with a wrong token, or none, from one address in a second; twice as many at once.
        streams: event streams open at a time.
        body_seconds: until a request's body must be there.
        header_seconds: until a request's head must be there.
    """

    body: int = 16 * 2**20
    studies: int = 10_000
    trials: int = 1_000_000
    metrics: int = 1000
    steps: int = 10_000_000
    rate: int = 5000
    failures: int = 10
    streams: int = 1000
    body_seconds: int = 60
    header_seconds: int = 20

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Limits:
        """From texts such as ``rate=100``. Raises InvalidInput for an unknown name or a number below 1."""
        names = [field.name for field in fields(cls)]
        limits = cls()
        for text in texts:
            name, _, value = text.partition("=")
            if name not in names or not value.isascii() or not value.isdigit() or not 1 <= int(value[:16]) <= 10**15:
                raise InvalidInput(
                    f"--limit {text}: give NAME=NUMBER with a whole number from 1; names are {', '.join(names)}"
                )
            limits = replace(limits, **{name: int(value)})
        return limits

    def check_trials(self, n_trials: int) -> None:
        """Raise TooMuch if a study would have so many trials."""
        if n_trials > self.trials:
            raise TooMuch(f"the study would have {n_trials} trials", self.trials, "trials")

    def check_studies(self, n_studies: int) -> None:
        """Raise TooMany if there are so many studies already."""
        if n_studies >= self.studies:
            raise TooMany(f"there are {n_studies} studies", self.studies, "studies", retry_seconds=60)

    def check_report(self, step: int | None, n_metrics: int) -> None:
        """Raise TooMuch if a report holds too many numbers, or its step is too high."""
        if n_metrics > self.metrics:
            raise TooMuch(f"a report has {n_metrics} metrics", self.metrics, "metrics")
        if step is not None and step > self.steps:
            raise TooMuch(f"a report is of the step {step}", self.steps, "steps")

    def described(self) -> dict[str, int]:
        """Every limit by its name."""
        return asdict(self)


class Rates:
    """Token buckets by key: ``rate`` in a second on average, twice as many at once.

    Args:
        rate: ≥ 1.
        most: keys that are remembered; of more the one longest unused is forgotten, which fills its bucket.
    """

    def __init__(self, rate: int, *, most: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = 2.0 * rate
        self._most = most
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, and when that was

    def take(self, key: str) -> float:
        """Take one: 0 if there was one left, else the seconds until there is."""
        left = self._left(key)
        if left < 1.0:
            return (1.0 - left) / self._rate
        self._buckets[key] = (left - 1.0, self._clock())
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0

    def wait(self, key: str) -> float:
        """Seconds until one can be taken; takes none."""
        return max(0.0, (1.0 - self._left(key)) / self._rate)

    def _left(self, key: str) -> float:
        now = self._clock()
        left, at = self._buckets.get(key, (self._burst, now))
        return min(self._burst, left + (now - at) * self._rate)
