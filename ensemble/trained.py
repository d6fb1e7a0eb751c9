"""Whether a model is asked in the form of the prompts that it was trained on: other forms cost accuracy, silently.

A model's file says what it was trained on in `trained_on` (per task a template); a local folder of a model says it for
all tasks in `quorum_prompt.yaml`, a template record.
"""

import json
from collections.abc import Collection, Iterator
from itertools import zip_longest
from pathlib import Path

from pydantic import ValidationError

from ensemble.config import ROOT, Member, ModelConfig, RunConfig, Template, is_chat
from ensemble.errors import ConfigError
from ensemble.load import read_yaml
from ensemble.names import unknown
from ensemble.plan import member_name
from ensemble.records import Question, Task
from ensemble.render import Renderer, join_plain, labels

PROMPT_FILE = "quorum_prompt.yaml"
SHOWN = 40  # characters of a line in a warning


def prompt_warnings(config: RunConfig, tasks: Collection[str]) -> list[str]:
    """One line for each member of `tasks` whose prompts differ from those its model was trained on.

    No model is loaded. Raises ConfigError where a template that is named cannot be read.
    """
    return [
        f"{member_name(member)}: the model was trained on prompts of template {name!r}; this one {found}: "
        f"set template: {name}, or expect less of it"
        for task, plan in config.tasks.items()
        if task in tasks
        for member in plan.members
        if member.samples is None
        for name, trained in _trained_on(config, task, config.models[member.model])
        if (found := _difference(config, task, member, trained))
    ]


def _trained_on(config: RunConfig, task: Task, model: ModelConfig) -> Iterator[tuple[str, Template]]:
    """At most one: the template and what a member would name it."""
    name = model.trained_on.get(task)
    file = Path(model.source.path or "") / PROMPT_FILE
    if name is not None:
        yield name, config.templates.get(name) or _read(_template_file(name))
    elif model.source.path and file.is_file():
        yield str(file), _read(file)


def _template_file(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = ROOT / "configs/templates"
    if not (file := folder / f"{name}.yaml").is_file():
        raise ConfigError(f"trained_on: {unknown('template', name, (path.stem for path in folder.glob('*.yaml')))}")
    return file


def _read(file: Path) -> Template:
    try:
        return Template.model_validate_json(json.dumps(read_yaml(file)))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{file}: {where}: {first['msg']}; write it as a file of configs/templates") from None


def _difference(config: RunConfig, task: Task, member: Member, trained: Template) -> str:
    """What the member's prompts do otherwise, "" where they are the same."""
    asked, model = config.templates[member.template], config.models[member.model]
    if is_chat(model, asked) != is_chat(model, trained):
        is_so, was = ("chat turns", "running text")[:: 1 if is_chat(model, asked) else -1]
        return f"writes {is_so} instead of {was}"
    cloze = member.scoring is not None and member.scoring.method == "cloze"
    for question in _specimens(task, min(len(labels(asked)), len(labels(trained)))):
        lines = [_lines(template, question, is_chat(model, asked), cloze) for template in (asked, trained)]
        for n, (this, other) in enumerate(zip_longest(*lines), 1):
            if this != other:
                return f"differs from line {n} on, {_brief(this)} instead of {_brief(other)}"
    shots, before = (template.shots.n if template.shots else 0 for template in (asked, trained))
    if shots != before:
        return f"shows {shots} worked examples instead of {before}"
    return ""


def _specimens(task: Task, most: int) -> Iterator[Question]:
    """A question of the task without and with a context; most: options for which there are labels."""
    choices = ("red", "green", "blue", "black")[:most] if task == "multiple_choice" else ()
    for context in (None, "A passage."):
        yield Question(0, "", 0, 0, task, "A question.", context, choices, group="a_group", hash=b"specimen")


def _lines(template: Template, question: Question, chat: bool, cloze: bool) -> list[str]:
    """The whole prompt with one worked example (the question itself) and the answer, line by line."""
    renderer = Renderer("", template.model_copy(update={"shots": None}), "text" if cloze else "label")
    order = tuple(range(len(question.choices)))
    *before, asked, (role, prefill) = renderer.turns(question, order, question.text, question.context, 0)
    names = question.choices if cloze else renderer.labels
    answered = (role, prefill + renderer.answer(names[0] if question.choices else "An answer."))
    turns = [*before, asked, answered, asked, answered]
    text = "\n".join(f"{who}: {what}" for who, what in turns) if chat else join_plain(turns, template.separator)
    return text.split("\n")


def _brief(line: str | None) -> str:
    if line is None:
        return "nothing more"
    return repr(line) if len(line) <= SHOWN else f"{line[:SHOWN]!r}..."
