"""What stage actors are given to do."""

from typing import NamedTuple


class Part(NamedTuple):
    """Some questions of a block, in the order in which to answer them; `rows` None: all, the longest first."""

    block: str
    rows: list[int] | None = None
