"""The records that flow from step to step: plain, frozen, cheap to pickle."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Task = Literal["multiple_choice", "summarization", "generation", "math"]
TASKS: tuple[Task, ...] = ("multiple_choice", "summarization", "generation", "math")

ChoiceId = int | str
Gold = int | tuple[str, ...]  # multiple choice: 0-based index; text tasks: one or several references
Order = tuple[int, ...]  # order[p] = index of the option that is shown at position p
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Question:
    """One valid row of the input.

    `hash` is 16 bytes over what a model could be shown (task, text, context, option texts):
    neither id, group nor gold take part, so scores are shared by files that only number rows otherwise.
    """

    row_index: int
    file: str
    line: int
    id: int | str
    task: Task
    text: str
    context: str | None = None
    choices: tuple[str, ...] = ()
    choice_ids: tuple[ChoiceId, ...] | None = None
    gold: Gold | None = None
    group: str | None = None
    hash: bytes = b""


class RowError(NamedTuple):
    """A row that could not be read or answered, with its place and the cure in the message."""

    file: str
    line: int | None
    id: int | str | None
    type: str
    message: str


class PromptFacts(NamedTuple):
    """How a question was shown to a model.

    tokens: length of the prompt; of several orders, of the first one's. hash: 16 hex digits over its token ids and
        its continuations. shots_dropped: worked examples left out because the prompt would have been too long.
    cut_tokens: of the cut source (the context where there is one, else the text) that were left out;
    cut_start, cut_end: their characters, source[cut_start:cut_end]; 0, 0 where nothing was cut.
    """

    tokens: int = 0
    hash: str = ""
    shots_dropped: int = 0
    cut_tokens: int = 0
    cut_start: int = 0
    cut_end: int = 0


NO_PROMPT = PromptFacts()


@dataclass(frozen=True, slots=True)
class Score:
    """What one member's model says about the options of one question.

    logprobs: float32 [orders, options], natural log of the probability of each option (by content, not by
        position) before any normalisation: of its letter (`letter`) or of its whole text (`cloze`).
    tokens: int32 [options], how many tokens each option's continuation has (1 for letters).
    unconditional: float32 [options], the same texts without the question (cloze with PMI), else None.
    """

    orders: tuple[Order, ...]
    logprobs: FloatArray
    tokens: npt.NDArray[np.int32]
    unconditional: FloatArray | None = None
    prompt: PromptFacts = NO_PROMPT


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated text, the `index`-th of its question under `seed`.

    finish: vLLM's reason, `stop`, or `length` where max_tokens ended it.
    """

    text: str
    tokens: int
    finish: str
    seed: int
    index: int
    prompt: PromptFacts = NO_PROMPT


@dataclass(frozen=True, slots=True)
class Decision:
    """The ensemble's answer to one question; everything in it can be rebuilt from scores and samples.

    prediction: 0-based option index, or the text (for math the final number); None where no member's
        text could be parsed into an answer.
    scores: per option the normalised log-probability (they sum to 1 in probability), None for text.
    votes: per option how many (member, order) pairs put it first, None for text.
    near_tie: whether the winner's margin is within what other hardware or batching may change.
    flip_rate: share of the pairs of a member's orders that choose different options, mean over members; None where no
        member was asked in two orders. circular: the option that all cyclic orders of all members choose, -1 where
        they do not agree, None where no member was asked for its whole cycle. doubt: of adaptive voting, the
        estimated probability that all orders would choose another option; None without it.
    samples: the texts it was elected from, where there were several.
    partial: whether the plan wants more than was said by the deadline.
    """

    prediction: int | str | None
    answer_text: str | None
    confidence: float | None
    scores: tuple[float, ...] | None
    votes: tuple[int, ...] | None
    orders_used: int
    members: tuple[str, ...]
    near_tie: bool = False
    letter_mass: float | None = None
    flip_rate: float | None = None
    circular: int | None = None
    doubt: float | None = None
    samples: tuple[str, ...] = ()
    partial: bool = False
    prompt: PromptFacts = NO_PROMPT
