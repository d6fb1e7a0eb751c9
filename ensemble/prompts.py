"""Questions become token ids: templates, shots, chat wrapping, and inputs that are cut to the member's budget.

Two records come out: a `ChoicePrompt` (shared prompt and one continuation per option, for scoring) or a plain
list of token ids (for generation). Shots are dropped before the question is cut; options never are.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.sandbox

from ensemble.config import ROOT, Member, ModelConfig, Shots, Template, fingerprint, is_chat
from ensemble.errors import ConfigError, PromptError, TooLongError
from ensemble.records import Order, PromptFacts, Question

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CENTRES = {"head": 0.0, "tail": 1.0}  # of what is cut; `middle` states its own
PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
NUMBERS = [str(n) for n in range(1, 27)]

_jinja = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class Prompt(NamedTuple):
    """Token ids, and how the question was made to fit."""

    ids: list[int]
    facts: PromptFacts


class ChoicePrompt(NamedTuple):
    """`prompt` is shared by all options; `continuations[i]` belongs to option i (by content, not position)."""

    prompt: list[int]
    continuations: list[list[int]]
    facts: PromptFacts


def labels(template: Template) -> Sequence[str]:
    return LETTERS if template.labels == "letters" else NUMBERS


class Renderer:
    """Texts of one template, without a tokenizer: messages of a conversation that ends where the answer starts."""

    def __init__(self, name: str, template: Template, shown: str) -> None:
        """shown: what a multiple-choice shot is answered with, the option's `label` or its `text`."""
        self.name, self.template, self._shown = name, template, shown
        fields = ("instruction", "question", "answer", "prefill")
        try:
            self._parts = {field: _jinja.from_string(getattr(template, field)) for field in fields}
        except jinja2.TemplateError as e:
            raise ConfigError(f"template {name}: {e}") from None

    def turns(
        self, question: Question, order: Order, text: str, context: str | None, shots: int
    ) -> list[tuple[str, str]]:
        """(role, text) pairs: instruction, shots, and the question with its options in `order`."""
        values = self._values(question, order, text, context)
        turns = [("system", self._render("instruction", values))] if self.template.instruction else []
        for asked, gold in self._shots[:shots]:
            values_shot = self._values(asked, tuple(range(len(asked.choices))), asked.text, asked.context)
            turns.append(("user", self._render("question", values_shot)))
            turns.append(("assistant", self._render("prefill", values_shot) + self.answer(gold)))
        turns.append(("user", self._render("question", values)))
        turns.append(("assistant", self._render("prefill", values)))
        return turns

    def answer(self, text: str) -> str:
        return self._render("answer", {"answer": text})

    @property
    def n_shots(self) -> int:
        return len(self._shots)

    @cached_property
    def _shots(self) -> list[tuple[Question, str]]:
        if self.template.shots is None:
            return []
        return read_shots(self.template.shots, labels(self.template) if self._shown == "label" else None)

    def _render(self, part: str, values: dict[str, Any]) -> str:
        try:
            return self._parts[part].render(values)
        except jinja2.TemplateError as e:
            known = "text, context, choices (label, text), answer"
            raise ConfigError(f"template {self.name}, {part}: {e}; variables: {known}") from None

    def _values(self, question: Question, order: Order, text: str, context: str | None) -> dict[str, Any]:
        names = labels(self.template)
        choices = [{"label": names[p], "text": question.choices[i]} for p, i in enumerate(order)]
        return {"text": text, "context": context, "choices": choices}


class Prompter:
    """Token ids of one member's prompts, by the model's own tokenizer."""

    def __init__(self, member: Member, model: ModelConfig, template: Template, tokenizer: Any) -> None:
        self._member, self._model, self._tokenizer = member, model, tokenizer
        self._chat = is_chat(model, template)
        cloze = member.scoring is not None and member.scoring.method == "cloze"
        self._renderer = Renderer(member.template, template, shown="text" if cloze else "label")

    def letters(self, question: Question, order: Order) -> ChoicePrompt:
        """One prefill shows the options in `order`; each continuation is the one token of the option's label."""
        names = labels(self._renderer.template)[: len(order)]
        text, fitted = self._fit(question, order, reserve=1)
        prompt = self._encode(text)
        tokens: list[list[int]] = [[] for _ in order]
        for position, option in enumerate(order):
            ids = self._encode(text + self._renderer.answer(names[position]))
            if ids[: len(prompt)] != prompt or len(ids) != len(prompt) + 1:
                shown = self._tokenizer.convert_ids_to_tokens(ids[len(prompt) - 1 :])
                raise PromptError(
                    f"template {self._renderer.name}: label {names[position]!r} is not one token after the prompt for "
                    f"{self._member.model} (it ends in {shown}): change the template's answer (for example from "
                    "'{{ answer }}' to ' {{ answer }}'), its labels, or score by cloze"
                )
            tokens[option] = ids[len(prompt) :]
        if len({t[0] for t in tokens}) != len(tokens):
            raise PromptError(
                f"template {self._renderer.name}: {self._member.model} has one token for several of the labels "
                f"{', '.join(names)}: use labels: {'numbers' if names[0] == 'A' else 'letters'}, or score by cloze"
            )
        return ChoicePrompt(prompt, tokens, _identified(fitted, prompt, tokens))

    def cloze(self, question: Question) -> ChoicePrompt:
        """Each continuation is an option's whole text."""
        order = tuple(range(len(question.choices)))
        answers = [self._renderer.answer(choice) for choice in question.choices]
        text, fitted = self._fit(question, order, reserve=max(len(self._encode(a, False)) for a in answers) + 2)
        prompt, continuations = self._continuations(text, answers)
        return ChoicePrompt(prompt, continuations, _identified(fitted, prompt, continuations))

    def unconditional(self, question: Question) -> ChoicePrompt:
        """The same continuations after the template's `unconditional` text, without the question."""
        answers = [self._renderer.answer(choice) for choice in question.choices]
        return ChoicePrompt(*self._continuations(self._renderer.template.unconditional, answers), PromptFacts())

    def text(self, question: Question) -> Prompt:
        """A prompt that leaves room for `sampling.max_tokens`."""
        order = tuple(range(len(question.choices)))
        text, fitted = self._fit(question, order, reserve=self._member.sampling.max_tokens)
        ids = self._encode(text)
        return Prompt(ids, _identified(fitted, ids))

    def _continuations(self, text: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        whole = [self._encode(text + answer) for answer in answers]
        # A tokenizer may merge across the seam ("Answer:" + "..." ), so the prompt is what all options share of it.
        prompt = self._encode(text)
        shared = min(_common(prompt, ids) for ids in whole)
        shared = min(shared, *(len(ids) - 1 for ids in whole))
        if shared == 0:
            raise PromptError(f"template {self._renderer.name}: an option needs some text before it; add a question")
        return prompt[:shared], [ids[shared:] for ids in whole]

    def _fit(self, question: Question, order: Order, reserve: int) -> tuple[str, PromptFacts]:
        """The prompt's text within the context length, and what was left out for that."""
        budget = self._model.context_length - reserve
        over = 0
        for shots in range(self._renderer.n_shots, -1, -1):
            text = self._wrap(self._renderer.turns(question, order, question.text, question.context, shots))
            over = len(self._encode(text)) - budget
            if over <= 0:
                return text, PromptFacts(shots_dropped=self._renderer.n_shots - shots)
        if self._member.cut == "forbid":
            raise TooLongError(
                f"the prompt is {over} tokens too long for {self._member.model}'s context of "
                f"{self._model.context_length}, and the member's cut policy is forbid: set cut: tail, head or "
                "middle, lower sampling.max_tokens, or raise context_length"
            )
        return self._cut(question, order, budget, over)

    def _cut(self, question: Question, order: Order, budget: int, over: int) -> tuple[str, PromptFacts]:
        # The context passage is cut where there is one (the question after it is short), else the text.
        source = question.context or question.text
        offsets = self._tokenizer(source, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        dropped = over
        while dropped < len(offsets):
            start, end = cut_span(offsets, dropped, CENTRES.get(self._member.cut, self._member.cut_centre))
            kept = source[:start] + source[end:]
            text, context = (question.text, kept) if question.context else (kept, None)
            prompt = self._wrap(self._renderer.turns(question, order, text, context, 0))
            over = len(self._encode(prompt)) - budget
            if over <= 0:
                return prompt, PromptFacts(
                    shots_dropped=self._renderer.n_shots, cut_tokens=dropped, cut_start=start, cut_end=end
                )
            dropped += over
        raise TooLongError(
            f"template, options and answer leave no room for the input in {self._member.model}'s context of "
            f"{self._model.context_length} tokens: raise context_length or lower sampling.max_tokens"
        )

    def _wrap(self, turns: Sequence[tuple[str, str]]) -> str:
        if not self._chat:
            return join_plain(turns, self._renderer.template.separator)
        *before, (_, prefill) = turns
        messages = [{"role": role, "content": text} for role, text in before]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as e:  # the model's own Jinja: it may raise anything
            raise PromptError(
                f"{self._member.model}'s chat template refuses template {self._renderer.name}: {e}; "
                "set the template's format: plain, or leave out its instruction"
            ) from None
        return str(text) + prefill

    def _encode(self, text: str, special: bool | None = None) -> list[int]:
        # A chat template writes its own beginning of sequence: adding one more would change the numbers.
        add = not self._chat if special is None else special
        return list(self._tokenizer(text, add_special_tokens=add)["input_ids"])


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The model's own tokenizer as transformers loads it."""
    try:
        plain = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] in PLAIN_TOKENIZERS
    except (OSError, ValueError, KeyError):
        plain = False
    if plain:  # the same object without the way through all model classes, which costs 10 s and imports torch
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def join_plain(turns: Sequence[tuple[str, str]], separator: str) -> str:
    """A conversation as running text: answers follow their questions directly, blocks are set apart."""
    blocks: list[str] = []
    for role, text in turns:
        if role == "assistant":
            blocks[-1] += text
        else:
            blocks.append(text)
    return separator.join(blocks)


def cut_span(offsets: Sequence[tuple[int, int]], dropped: int, centre: float) -> tuple[int, int]:
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


def read_shots(shots: Shots, names: Sequence[str] | None) -> list[tuple[Question, str]]:
    """(question, answer text) of the first `n` rows; options answer by `names`, or by text. Raises ConfigError."""
    from ensemble.questions import parse_question

    rows = _shot_rows(shots)
    if len(rows) < shots.n:
        raise ConfigError(f"{shots.file}: {len(rows)} rows for {shots.n} shots; lower shots.n or add rows")
    pairs = []
    for i, row in enumerate(rows[: shots.n]):
        try:
            question = parse_question(row, i, shots.file, i + 1)
        except ValueError as e:
            raise ConfigError(f"{shots.file}, row {i + 1}: {e}") from None
        if question.gold is None:
            raise ConfigError(f"{shots.file}, row {i + 1}: a shot needs a gold answer")
        gold = (names or question.choices)[question.gold] if isinstance(question.gold, int) else question.gold[0]
        pairs.append((question, str(row.get("solution", gold))))
    return pairs


def shots_fingerprint(template: Template) -> str:
    """Digest of the shots that are shown, "" where there are none."""
    return fingerprint(_shot_rows(template.shots)[: template.shots.n]) if template.shots else ""


def _shot_rows(shots: Shots) -> list[dict[str, Any]]:
    path = next((p for p in (Path(shots.file), ROOT / shots.file) if p.is_file()), None)
    if path is None:
        raise ConfigError(f"shots.file: no such file: {shots.file}; give it from the working directory or the project")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as e:
        raise ConfigError(f"{path}: not JSON lines: {e}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: every line is a question row in braces")
    return rows


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
