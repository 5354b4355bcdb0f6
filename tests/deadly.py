"""A stream that kills its run: how tests interrupt training between two segments."""

import dataclasses
from typing import Any


class KilledError(Exception):
    """The exception with which a test kills a run."""


@dataclasses.dataclass(frozen=True)
class Deadly:
    """A stream, until the run wants a certain segment of it.

    Attributes:
        stream: the stream.
        segment: number of the segment that kills the run.
    """

    stream: Any
    segment: int

    @property
    def batch_size(self):
        return self.stream.batch_size

    @property
    def ends(self):
        return self.stream.ends

    def fingerprint(self):
        return self.stream  # a run that resumes has the stream itself

    def plan(self, seed, segment):
        if segment == self.segment:
            raise KilledError
        return self.stream.plan(seed, segment)
