"""Forms of submission.json: each takes (question, prediction row) pairs in input order and writes them to one file."""

import json
from typing import Any, TextIO

from ensemble.records import Question


class _Sink:
    """Takes (question, prediction row) pairs one by one and writes them in one submission format."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._rows = file, 0

    def send(self, pair: tuple[Question, dict[str, Any]]) -> None:
        self._write(*pair)
        self._rows += 1

    def _write(self, question: Question, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlSubmission(_Sink):
    """One line a question: id and answer, in the form in which the input gives gold; null where it failed."""

    def _write(self, question: Question, row: dict[str, Any]) -> None:
        prediction = row["prediction"]
        if question.choice_ids is not None and prediction is not None:
            prediction = question.choice_ids[prediction]
        self._file.write(json.dumps({"id": question.id, "answer": prediction}, ensure_ascii=False) + "\n")


class MatsuoSubmission(_Sink):
    """The competition's array: the question as it came, plus `answer`. Something is submitted for every row."""

    def _write(self, question: Question, row: dict[str, Any]) -> None:
        item: dict[str, Any] = {"id": question.id, "task_type": question.task, "text": question.text}
        if question.context:
            item["context"] = question.context
        if question.task == "multiple_choice":
            ids = question.choice_ids or tuple(range(1, len(question.choices) + 1))
            item["choices"] = [{"choice_id": i, "text": t} for i, t in zip(ids, question.choices, strict=True)]
            item["answer"] = ids[row["prediction"] or 0]
        else:
            item["answer"] = row["prediction"] or ""
        self._file.write(("[\n" if self._rows == 0 else ",\n") + json.dumps(item, ensure_ascii=False))

    def close(self) -> None:
        self._file.write("\n]\n" if self._rows else "[]\n")


SUBMISSIONS: dict[str, type[_Sink]] = {"jsonl": JsonlSubmission, "matsuo": MatsuoSubmission}
