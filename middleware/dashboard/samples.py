"""Reading a `/metrics` over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Final, Self

from prometheus_client.parser import text_string_to_metric_families

from paceline.errors import PacelineError

TIMEOUT_SECONDS: Final = 5.0
MAX_BYTES: Final = 32 * 1024 * 1024

Labels = Mapping[str, str]


class ScrapeError(PacelineError):
    """A `/metrics` could not be read."""


class Samples:
    """What one look at a `/metrics` has shown.

    Args:
        rows: name of a sample, its labels and its value.
    """

    def __init__(self, rows: Iterable[tuple[str, Labels, float]] = ()) -> None:
        self._by_name: dict[str, list[tuple[Labels, float]]] = {}
        for name, labels, value in rows:
            self._by_name.setdefault(name, []).append((labels, value))

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @classmethod
    def parse(cls, text: str) -> Self:
        """The samples of a page.

        Raises:
            ScrapeError: it is none of Prometheus'.
        """
        try:
            return cls(
                (sample.name, sample.labels, sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            )
        except ValueError as error:
            raise ScrapeError(f"its metrics cannot be read: {error}") from error

    @classmethod
    def joined(cls, parts: Iterable[Samples]) -> Self:
        """The samples of several pages."""
        joined = cls()
        for part in parts:
            for name, rows in part._by_name.items():
                joined._by_name.setdefault(name, []).extend(rows)
        return joined

    def total(self, name: str, **labels: str) -> float:
        """Sum over all label values that are not named; 0 if there is none."""
        return sum(
            value for given, value in self._by_name.get(name, ()) if labels.items() <= given.items()
        )

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sums by some labels; a label that is missing is ""."""
        found: dict[tuple[str, ...], float] = {}
        for given, value in self._by_name.get(name, ()):
            key = tuple(given.get(label, "") for label in labels)
            found[key] = found.get(key, 0.0) + value
        return found


def scrape(url: str, *, admin_key: str = "") -> Samples:
    """Look at ``url/metrics``.

    Raises:
        ScrapeError: nobody answers, or what comes is no page of metrics.
    """
    request = urllib.request.Request(f"{url}/metrics")  # noqa: S310  the configuration's URLs are http(s)
    if admin_key:
        request.add_header("authorization", f"Bearer {admin_key}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310  as above
            text = answer.read(MAX_BYTES).decode("utf-8", "replace")
    except (OSError, urllib.error.HTTPError) as error:
        raise ScrapeError(f"{url}/metrics does not answer: {error}") from error
    return Samples.parse(text)
