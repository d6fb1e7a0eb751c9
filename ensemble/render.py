"""A template's texts, without a tokenizer: the turns of a conversation that ends where the answer starts."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jinja2
import jinja2.meta
import jinja2.sandbox

from ensemble.config import Template
from ensemble.errors import ConfigError, UnaskableError
from ensemble.records import Order, Question
from ensemble.shots import of_group, read_shots

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NUMBERS = tuple(str(n) for n in range(1, 27))
QUESTION_TEXTS = ("instruction", "question", "prefill")  # the texts that see the question's variables

_jinja = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)

Turn = tuple[str, str]  # role (system, user or assistant) and text


class _ShotTurns(NamedTuple):
    hash: bytes  # of the shot's question
    turns: tuple[Turn, Turn]


def labels(template: Template) -> Sequence[str]:
    """What the options are called, in the order in which they are shown. Raises ConfigError."""
    if template.labels == "letters":
        return LETTERS
    if template.labels == "numbers":
        return NUMBERS
    names = template.labels
    assert not isinstance(names, str)
    if not names or not all(name.strip() for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"labels: {list(names)}: give every option a label of its own that is not blank")
    return names


def uses_group(template: Template) -> bool:
    """Whether the prompt depends on the question's group, besides what `Question.hash` covers."""
    if template.shots is not None and template.shots.by_group:
        return True
    try:
        texts = [_jinja.parse(getattr(template, text)) for text in QUESTION_TEXTS]
    except jinja2.TemplateError as e:
        raise ConfigError(f"template: {e}") from None
    return any("group" in jinja2.meta.find_undeclared_variables(text) for text in texts)


class Renderer:
    """The texts of one template."""

    def __init__(self, name: str, template: Template, shown: str) -> None:
        """shown: what a multiple-choice shot is answered with, the option's `label` or its `text`.

        Raises ConfigError.
        """
        self.name, self.template, self._shown = name, template, shown
        try:
            self.labels = labels(template)
            self._parts = {part: _jinja.from_string(getattr(template, part)) for part in (*QUESTION_TEXTS, "answer")}
        except (ConfigError, jinja2.TemplateError) as e:
            raise ConfigError(f"template {name}: {e}") from None

    def turns(self, question: Question, order: Order, text: str, context: str | None, shots: int) -> list[Turn]:
        """Instruction, at most `shots` worked examples, and the question with its options in `order`.

        Raises ConfigError, and PromptError where the template has fewer labels than the question has options.
        """
        values = self._values(question, order, text, context)
        turns = []
        if self.template.instruction and (instruction := self._render("instruction", values)):
            turns.append(("system", instruction))
        for shot in self.shots(question)[:shots]:
            turns.extend(shot)
        turns.append(("user", self._render("question", values)))
        turns.append(("assistant", self._render("prefill", values)))
        return turns

    def shots(self, question: Question) -> list[tuple[Turn, Turn]]:
        """The question's worked examples: never the question itself, which would give its answer away."""
        if self.template.shots is None:
            return []
        found = of_group(self._shots, self.template.shots, question.group)
        return [shot.turns for shot in found if shot.hash != question.hash]

    def answer(self, text: str) -> str:
        """What follows the prompt: an option's label or text, or a shot's gold."""
        return self._render("answer", {"answer": text})

    @property
    def n_shots(self) -> int:
        return self.template.shots.n if self.template.shots else 0

    @cached_property
    def _shots(self) -> dict[str | None, list[_ShotTurns]]:
        assert self.template.shots is not None
        table = read_shots(self.template.shots, self.labels if self._shown == "label" else None)
        return {group: [self._shot(*shot) for shot in shots] for group, shots in table.items()}

    def _shot(self, asked: Question, answer: str) -> _ShotTurns:
        values = self._values(asked, tuple(range(len(asked.choices))), asked.text, asked.context)
        answered = self._render("prefill", values) + self.answer(answer)
        return _ShotTurns(asked.hash, (("user", self._render("question", values)), ("assistant", answered)))

    def _render(self, part: str, values: dict[str, Any]) -> str:
        try:
            return self._parts[part].render(values)
        except jinja2.TemplateError as e:
            known = "answer" if part == "answer" else "text, context, group, choices (label, text)"
            raise ConfigError(f"template {self.name}, {part}: {e}; variables: {known}") from None

    def _values(self, question: Question, order: Order, text: str, context: str | None) -> dict[str, Any]:
        if len(order) > len(self.labels):
            raise UnaskableError(
                f"template {self.name}: {len(order)} options, and only {len(self.labels)} labels "
                f"({', '.join(self.labels)}): add labels, or set labels: letters (26) or numbers"
            )
        choices = [{"label": self.labels[p], "text": question.choices[i]} for p, i in enumerate(order)]
        return {"text": text, "context": context, "group": question.group, "choices": choices}


def join_plain(turns: Sequence[Turn], separator: str) -> str:
    """A conversation as running text: answers follow their questions directly, blocks are set apart."""
    blocks: list[str] = []
    for role, text in turns:
        if role == "assistant":
            blocks[-1] += text
        else:
            blocks.append(text)
    return separator.join(blocks)
