"""Questions become token ids by the model's own tokenizer; inputs that are too long are cut to the member's budget.

Two records come out: a `ChoicePrompt` (shared prompt and one continuation per option, for scoring) or a `Prompt`
(for generation). Shots are dropped before the question is cut; options never are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ensemble.config import Member, ModelConfig, Template, fingerprint, is_chat
from ensemble.errors import PromptError, TooLongError
from ensemble.records import Order, PromptFacts, Question
from ensemble.render import Renderer, join_plain
from ensemble.tokens import Encoder, beginning

CENTRES = {"head": 0.0, "tail": 1.0}  # of what is cut; `middle` states its own
FAR_TOO_LONG = 12  # characters a token: more than tokenizers put into one on average

Offsets = Sequence[tuple[int, int]]  # the characters of each token, [start, end)


class Prompt(NamedTuple):
    """Token ids, and how the question was made to fit."""

    ids: list[int]
    fitted: PromptFacts

    @property
    def facts(self) -> PromptFacts:
        return _identified(self.fitted, self.ids)


class ChoicePrompt(NamedTuple):
    """`prompt` is shared by all options; `continuations[i]` belongs to option i (by content, not position)."""

    prompt: list[int]
    continuations: list[list[int]]
    fitted: PromptFacts

    @property
    def facts(self) -> PromptFacts:
        """Of one order's prompt the store keeps them; a hash of all 24 would be a fifth of the time to make them."""
        return _identified(self.fitted, self.prompt, self.continuations)


class _Fitted(NamedTuple):
    """A prompt's text, its token ids, and what was left out."""

    text: str
    ids: list[int]
    facts: PromptFacts = PromptFacts()


class Prompter:
    """Token ids of one member's prompts."""

    def __init__(self, member: Member, model: ModelConfig, template: Template, tokenizer: Any) -> None:
        """Raises ConfigError for a template that cannot be used."""
        self._member, self._model, self._tokenizer = member, model, tokenizer
        self._chat = is_chat(model, template)
        cloze = member.scoring is not None and member.scoring.method == "cloze"
        self._renderer = Renderer(member.template, template, shown="text" if cloze else "label")
        self._answers = [self._renderer.answer(label) for label in self._renderer.labels]
        # A chat template writes its own beginning of sequence: adding one more would change the numbers.
        self._begin = [] if self._chat else beginning(tokenizer)
        self._tokens = Encoder(tokenizer)

    def letters(self, question: Question, order: Order) -> ChoicePrompt:
        """One prefill shows the options in `order`; each continuation is the one token of the option's label.

        A label's token depends on what stands before it, so the label is encoded with its whole prompt.
        Raises PromptError where that is not the prompt and one token more, or where two labels are the same token.
        """
        text, prompt, fitted = self._fit(question, order, reserve=1)
        head, tail = self._tokens.split(text)  # the labels differ from the prompt behind the last seam only
        start = self._begin + head
        end = prompt[len(start) :]
        tokens: list[list[int]] = [[] for _ in order]
        for position, option in enumerate(order):
            ids = self._tokens(tail + self._answers[position])
            if not _is_one_more(end, ids):
                raise self._unresolved(text, prompt, position, len(order), start + ids)
            tokens[option] = ids[-1:]
        if len({t[0] for t in tokens}) != len(tokens):
            raise PromptError(
                f"template {self._renderer.name}: {self._member.model} has one token for several of the labels "
                f"{', '.join(self._renderer.labels[: len(order)])}: {self._other_labels()}"
            )
        return ChoicePrompt(prompt, tokens, fitted)

    def cloze(self, question: Question) -> ChoicePrompt:
        """Each continuation is an option's whole text."""
        order = tuple(range(len(question.choices)))
        answers = [self._renderer.answer(choice) for choice in question.choices]
        longest = max(len(self._tokens(answer)) for answer in answers)
        text, ids, fitted = self._fit(question, order, reserve=longest + 2)  # 2: the seam may be split otherwise
        prompt, continuations = self._continuations(text, ids, answers)
        return ChoicePrompt(prompt, continuations, fitted)

    def unconditional(self, question: Question) -> ChoicePrompt:
        """The same continuations after the template's `unconditional` text, without the question."""
        answers = [self._renderer.answer(choice) for choice in question.choices]
        text = self._renderer.template.unconditional
        return ChoicePrompt(*self._continuations(text, self._encode(text), answers), PromptFacts())

    def text(self, question: Question) -> Prompt:
        """A prompt that leaves room for `sampling.max_tokens`."""
        order = tuple(range(len(question.choices)))
        _, ids, fitted = self._fit(question, order, reserve=self._member.sampling.max_tokens)
        return Prompt(ids, fitted)

    def _continuations(self, text: str, prompt: list[int], answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        whole = [self._encode(text + answer) for answer in answers]
        # A tokenizer may merge across the seam ("Answer:" + "..." ), so the prompt is what all options share of it.
        shared = min(_common(prompt, ids) for ids in whole)
        shared = min(shared, *(len(ids) - 1 for ids in whole))
        if shared == 0:
            raise PromptError(f"template {self._renderer.name}: an option needs some text before it; add a question")
        return prompt[:shared], [ids[shared:] for ids in whole]

    def _unresolved(self, text: str, prompt: list[int], position: int, n: int, ids: list[int]) -> PromptError:
        """Why the label at `position` is refused, with a cure that was tried."""
        names = self._renderer.labels[:n]
        shown = self._tokenizer.convert_ids_to_tokens(ids[max(_common(prompt, ids) - 1, 0) :])
        bare = text.rstrip(" ")
        start, cure = self._encode(bare), self._other_labels()
        for before in ("", " "):
            if all(_is_one_more(start, self._encode(bare + before + name)) for name in names):
                cure = f"set the template's answer: '{before}{{{{ answer }}}}'"
                cure += ", and leave out the space that stands before it" if bare != text else ""
        return PromptError(
            f"template {self._renderer.name}: label {names[position]!r} is not one token after the prompt for "
            f"{self._member.model} (it ends in {shown}): {cure}"
        )

    def _other_labels(self) -> str:
        other = "numbers" if self._renderer.template.labels == "letters" else "letters"
        return f"use labels: {other}, or score by cloze"

    def _fit(self, question: Question, order: Order, reserve: int) -> _Fitted:
        """The prompt within the context length, and what was left out for that: shots first, then input."""
        budget = self._model.context_length - reserve
        source = _source(question)
        if len(source) > FAR_TOO_LONG * budget and self._member.cut != "forbid":
            # To encode the whole prompt as well, only to learn by how much it is too long, would double the time.
            offsets = self._offsets(source)
            over = len(offsets) - budget
            if over > 0 and source in self._written(question, order, question.text, question.context, 0):
                return self._cut(question, order, budget, offsets, over)
        total = len(self._renderer.shots(question))
        fitted = self._shown(question, order, question.text, question.context, total)
        if len(fitted.ids) <= budget:
            return fitted
        bare = self._shown(question, order, question.text, question.context, 0) if total else fitted
        if (over := len(bare.ids) - budget) > 0:
            self._allow_cut(over)
            return self._cut(question, order, budget, self._offsets(source), over)
        for shots in range(total - 1, 0, -1):
            fitted = self._shown(question, order, question.text, question.context, shots)
            if len(fitted.ids) <= budget:
                return fitted._replace(facts=PromptFacts(shots_dropped=total - shots))
        return bare._replace(facts=PromptFacts(shots_dropped=total))

    def _allow_cut(self, over: int) -> None:
        if self._member.cut == "forbid":
            raise TooLongError(
                f"the prompt is {over} tokens too long for {self._member.model}'s context of "
                f"{self._model.context_length}, and the member's cut policy is forbid: set cut: tail, head or "
                "middle, lower sampling.max_tokens, or raise context_length"
            )

    def _cut(self, question: Question, order: Order, budget: int, offsets: Offsets, dropped: int) -> _Fitted:
        """The prompt with as few tokens of its source left out as it takes, at least `dropped`, and without shots."""
        source = _source(question)
        while dropped < len(offsets):
            start, end = cut_span(offsets, dropped, CENTRES.get(self._member.cut, self._member.cut_centre))
            kept = source[:start] + source[end:]
            text, context = (question.text, kept) if question.context else (kept, question.context)
            fitted = self._shown(question, order, text, context, 0)
            over = len(fitted.ids) - budget
            if over <= 0:
                shots = len(self._renderer.shots(question))
                return fitted._replace(facts=PromptFacts(0, "", shots, dropped, start, end))
            dropped += over
        raise TooLongError(
            f"template, options and answer leave no room for the input in {self._member.model}'s context of "
            f"{self._model.context_length} tokens: raise context_length or lower sampling.max_tokens"
        )

    def _offsets(self, source: str) -> Offsets:
        offsets: Offsets = self._tokenizer(source, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        return offsets

    def _shown(self, question: Question, order: Order, text: str, context: str | None, shots: int) -> _Fitted:
        prompt = self._written(question, order, text, context, shots)
        return _Fitted(prompt, self._encode(prompt))

    def _written(self, question: Question, order: Order, text: str, context: str | None, shots: int) -> str:
        turns = self._renderer.turns(question, order, text, context, shots)
        if not self._chat:
            return join_plain(turns, self._renderer.template.separator)
        *before, (_, prefill) = turns
        messages = [{"role": role, "content": text} for role, text in before]
        try:
            wrapped = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as e:  # the model's own Jinja: it may raise anything
            raise PromptError(
                f"{self._member.model}'s chat template refuses template {self._renderer.name}: {e}; "
                "set the template's format: plain, or leave out its instruction"
            ) from None
        return str(wrapped) + prefill

    def _encode(self, text: str) -> list[int]:
        """Token ids of a text that begins a sequence."""
        return self._begin + self._tokens(text)


def _source(question: Question) -> str:
    """What may be cut: the context passage where there is one (the question after it is short), else the text."""
    return question.context or question.text


def _is_one_more(prompt: list[int], ids: list[int]) -> bool:
    return len(ids) == len(prompt) + 1 and ids[:-1] == prompt


def cut_span(offsets: Offsets, dropped: int, centre: float) -> tuple[int, int]:
    """The characters (start, end) that `dropped` neighbouring tokens around the fraction `centre` of the text cover.

    offsets: (start, end) characters of each token of the text; 0 < dropped < len(offsets). At centre 0 the first
    tokens go, at 1 the last ones. What is kept are slices of the text, never decoded tokens.
    """
    assert 0 < dropped < len(offsets)
    first = min(max(round(centre * len(offsets) - dropped / 2), 0), len(offsets) - dropped)
    last = first + dropped
    start = 0 if first == 0 else offsets[first - 1][1]
    if last == len(offsets):
        return start, offsets[-1][1]
    return start, max(start, offsets[last][0])  # two tokens may share a character of several bytes


def _identified(facts: PromptFacts, ids: Sequence[int], continuations: Sequence[Sequence[int]] = ()) -> PromptFacts:
    """With the prompt's length and hash; the hash stands in the store beside the semantic key to verify it."""
    digest = fingerprint([list(ids), [list(c) for c in continuations]])[:16]
    return facts._replace(tokens=len(ids), hash=digest)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
