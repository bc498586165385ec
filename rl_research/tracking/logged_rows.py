"""What segments before this one have logged to W&B."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Logged:
    """The rows and the media that are in a run's segments already."""

    steps: frozenset[int] = frozenset()  # the `global_step` of every row of numbers
    media: frozenset[tuple[str, int]] = frozenset()  # name and `global_step` of each picture and film

    def __or__(self, other: Logged) -> Logged:
        return Logged(self.steps | other.steps, self.media | other.media)
