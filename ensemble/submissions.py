"""Forms of submission.json: each takes (question, prediction row) pairs in input order and writes them to one file.

What other submissions say is read here too: as an overlay, whose answers fill what this run does not answer, and by
`ensemble.relative` as a baseline.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ensemble.errors import ConfigError, InputError
from ensemble.names import unknown
from ensemble.questions import LETTERS
from ensemble.records import ChoiceId, Question
from ensemble.rows import iter_rows

Id = int | str
Row = dict[str, Any]


class _Sink:
    """Takes (question, prediction row) pairs one by one and writes them in one submission format."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._rows = file, 0

    def send(self, pair: tuple[Question, Row]) -> None:
        self._write(*pair)
        self._rows += 1

    def _write(self, question: Question, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonlSubmission(_Sink):
    """One line a question: id and answer, in the form in which the input gives gold; null where it failed."""

    def _write(self, question: Question, row: Row) -> None:
        self._file.write(_line(_short_item(question, row)))


class MatsuoSubmission(_Sink):
    """The competition's array: the question as it came, plus `answer`. Something is submitted for every row."""

    def _write(self, question: Question, row: Row) -> None:
        self._file.write(("[\n" if self._rows == 0 else ",\n") + _line(_full_item(question, row))[:-1])

    def close(self) -> None:
        self._file.write("\n]\n" if self._rows else "[]\n")


class LmEvalSubmission(_Sink):
    """lm-evaluation-harness's samples (0.4.13), one line a question, as its `--log_samples` writes them for one task.

    An option's log-likelihood is the ensemble's normalised log-probability (over the options it sums to 1), not a raw
    sum over tokens; where the run has none, 0.0 for the chosen option and -inf for the others; all are -inf where no
    option was chosen. The harness takes the first of the highest, so where rounding or a majority makes that another
    option, the chosen one is set 0.0001 above it: `acc` computed anew is ours, but for questions without an answer
    whose gold is the first option. `is_greedy` is not known and says False. The prompts are not kept: arg_0 and
    prompt_hash are of the question's text alone, without template and shots. `accuracy` is the harness's `acc`; other
    metrics keep their names. Hashes are the harness's. Its tools look for a file of one task that is named
    samples_TASK_DATE.jsonl (see benchmarks/lm_eval_samples.py), and `ensemble.samples` reads this one as it is.
    """

    def _write(self, question: Question, row: Row) -> None:
        doc = _doc(question)
        gold = question.gold if isinstance(question.gold, int) else _written_gold(question)
        target = "" if gold is None else str(gold)
        if question.task == "multiple_choice":
            arguments: list[Row] = [{"arg_0": question.text, "arg_1": f" {choice}"} for choice in question.choices]
            filtered: list[Any] = [[str(score), "False"] for score in _log_likelihoods(question, row)]
            responses = [[response] for response in filtered]
        else:
            arguments = [{"arg_0": question.text, "arg_1": {}}]
            filtered = [row["prediction"] or ""]
            responses = [[row["answer_text"] or filtered[0]]]
        metrics = {"acc" if name == "accuracy" else name: value for name, value in (row["grade"] or {}).items()}
        sample = {
            "doc_id": question.row_index,
            "doc": doc,
            "target": target,
            "arguments": {f"gen_args_{i}": argument for i, argument in enumerate(arguments)},
            "resps": responses,
            "filtered_resps": filtered,
            "filter": "none",
            "metrics": list(metrics),
            "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _sha256(question.text),
            "target_hash": _sha256(target),
        }
        self._file.write(_line(sample | metrics))


class OverlaySubmission(_Sink):
    """Another submission, in its order and form, with this run's answers in place of the other's.

    A row without an answer here (it failed) keeps the other's; rows that the other lacks follow at the end. Memory
    holds the ids, this run's answers and the rows that follow. InputError: see `submission_rows`, `require_common`.
    """

    def __init__(self, file: TextIO, path: Path) -> None:
        super().__init__(file)
        self._path, self._known, self._full = path, set[Id](), False
        for row in submission_rows(path):
            self._full = self._full or "text" in row
            self._known.add(row["id"])
        self._answers: dict[Id, tuple[Any, tuple[ChoiceId, ...] | None]] = {}
        self._others: list[Row] = []
        self._common = False

    def _write(self, question: Question, row: Row) -> None:
        if question.id not in self._known:
            self._others.append((_full_item if self._full else _short_item)(question, row))
            return
        self._common = True
        if row["prediction"] is not None:
            self._answers[question.id] = (row["prediction"], question.choice_ids)

    def close(self) -> None:
        if not self._common:
            require_common(self._path, self._known, [item["id"] for item in self._others])
        with self._path.open("rb") as f:
            array = f.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        start, between, end = ("[\n", ",\n", "\n]\n") if array else ("", "\n", "\n")
        for i, item in enumerate(self._items()):
            self._file.write((between if i else start) + _line(item)[:-1])
        self._file.write(end)

    def _items(self) -> Iterator[Row]:
        for row in submission_rows(self._path):
            if row["id"] in self._answers:
                prediction, ids = self._answers[row["id"]]
                ids = ids or option_ids(row)
                row["answer"] = prediction if isinstance(prediction, str) or not ids else ids[prediction]
            yield row
        yield from self._others


SUBMISSIONS: dict[str, type[_Sink]] = {
    "jsonl": JsonlSubmission,
    "matsuo": MatsuoSubmission,
    "lm_eval": LmEvalSubmission,
}


def open_submission(name: str, file: TextIO, overlay: Path | None = None) -> _Sink:
    """What writes the format `name` to `file`; with an overlay its form counts. Raises ConfigError, InputError."""
    if name not in SUBMISSIONS:
        raise ConfigError(f"submission.format: {unknown('format', name, SUBMISSIONS)}")
    if overlay is None:
        return SUBMISSIONS[name](file)
    if name == "lm_eval":
        raise ConfigError("samples of lm_eval cannot be laid over a submission: --set submission.format=jsonl")
    return OverlaySubmission(file, overlay)


class Answer(NamedTuple):
    """What a submission answers: a text, or an option. ids: of the options that came along, in their order."""

    value: Any
    ids: tuple[ChoiceId, ...] | None

    def prediction(self, question: Question) -> int | str | None:
        """As a run predicts: an option's 0-based index, or the text; None where it is no option, or no text."""
        if question.task != "multiple_choice":
            return None if self.value is None else str(self.value)
        answer, ids = str(self.value), question.choice_ids or self.ids
        names = list(map(str, ids or range(len(question.choices))))
        if ids is None and answer.isalpha():  # gold may be a letter too
            names = list(LETTERS[: len(question.choices)])
        return names.index(answer) if answer in names else None


def read_answers(path: Path) -> dict[Id, Answer]:
    """The answers of a submission by id. Raises InputError: see `submission_rows`."""
    return {row["id"]: Answer(row["answer"], option_ids(row)) for row in submission_rows(path)}


def submission_rows(path: Path) -> Iterator[Row]:
    """The rows of a submission: the competition's array, or lines of id and answer. Raises InputError with the line."""
    for line, row in iter_rows(path):
        if isinstance(row, InputError):
            raise InputError(f"{path}:{line}: {row}")
        if not isinstance(row, dict) or type(row.get("id")) not in (int, str) or "answer" not in row:
            cure = "give the submission.json of a run (jsonl or matsuo), or a file in its form"
            raise InputError(f"{path}:{line}: a submission's row has id and answer, this one does not; {cure}")
        yield row


def require_common(path: Path, known: Mapping[Id, Any] | set[Id], ids: Iterable[Id]) -> None:
    """InputError unless one of the run's `ids` is `known` to the submission in `path`; 1 and "1" are different ids."""
    seen = []
    for question_id in ids:
        if question_id in known:
            return
        seen.append(question_id)
    if {str(x) for x in seen} & {str(x) for x in known}:
        mine, theirs = ("numbers", "strings") if isinstance(seen[0], int) else ("strings", "numbers")
        raise InputError(f'{path}: its ids are {theirs}, the questions\' are {mine} (1 is not "1"): write them alike')
    raise InputError(f"{path}: has no answer to any of the questions: give a submission for the same file")


def option_ids(row: Row) -> tuple[ChoiceId, ...] | None:
    """The choice_ids of a submission's row that has its options with it, as the competition's have."""
    choices = row.get("choices")
    if not isinstance(choices, list) or not all(isinstance(x, dict) and "choice_id" in x for x in choices):
        return None
    return tuple(x["choice_id"] for x in choices)


def _log_likelihoods(question: Question, row: Row) -> list[float]:
    """Per option, the chosen one's before all others. A guess (a prediction without answer_text) is not chosen."""
    chosen = None if row["answer_text"] is None else row["prediction"]
    scores = list(row["scores"] or (0.0 if i == chosen else -math.inf for i in range(len(question.choices))))
    if chosen is not None and scores.index(max(scores)) != chosen:
        scores[chosen] = round(max(scores) + 1e-4, 4)
    return scores


def _short_item(question: Question, row: Row) -> Row:
    prediction = row["prediction"]
    if question.choice_ids is not None and prediction is not None:
        prediction = question.choice_ids[prediction]
    return {"id": question.id, "answer": prediction}


def _full_item(question: Question, row: Row) -> Row:
    item: Row = {"id": question.id, "task_type": question.task, "text": question.text}
    if question.context:
        item["context"] = question.context
    if question.task == "multiple_choice":
        ids = question.choice_ids or tuple(range(1, len(question.choices) + 1))
        item["choices"] = [{"choice_id": i, "text": t} for i, t in zip(ids, question.choices, strict=True)]
        item["answer"] = ids[row["prediction"] or 0]
    else:
        item["answer"] = row["prediction"] or ""
    return item


def _doc(question: Question) -> Row:
    """The question as an input row, with its gold where it has one."""
    doc: Row = {"id": question.id, "task": question.task, "text": question.text}
    if question.context is not None:
        doc["context"] = question.context
    if question.choice_ids is not None:
        pairs = zip(question.choice_ids, question.choices, strict=True)
        doc["choices"] = [{"choice_id": i, "text": text} for i, text in pairs]
    elif question.choices:
        doc["choices"] = list(question.choices)
    if question.gold is not None:
        doc["answer"] = _written_gold(question)
    if question.group is not None:
        doc["group"] = question.group
    return doc


def _written_gold(question: Question) -> Any:
    """As an input row gives it: an index or choice_id, a text, or a list of texts."""
    if isinstance(question.gold, int):
        return question.choice_ids[question.gold] if question.choice_ids else question.gold
    references = list(question.gold or ())
    return references[0] if len(references) == 1 else references or None


def _line(value: Row) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
