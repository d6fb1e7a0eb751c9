"""Samples of lm-evaluation-harness (`--log_samples`, 0.4.13): what a model said elsewhere, as a member's scores.

A line is one document under one filter: `doc`, `arguments` {gen_args_i: {arg_0: prompt, arg_1: continuation}} with one
request per option, `resps` with [log-likelihood, is_greedy] as strings per request and repeat. A run's submission.json
of the format lm_eval has the same form.

Content decides which row belongs to a question: neither `doc_id` nor an id is proof, and neither is the question's text
in a prompt, where it may be another one's worked example. A row fits a question if all of this holds (white space
counts as one blank):
- a string of the row's `doc` equals the question's text, and the prompt shows it;
- the options are the question's, in its order: either the continuations are their texts (cloze), or the continuations
  are labels (A, B, .. or 1, 2, ..) and behind these the prompt lists strings of `doc` (letters);
- where the question has a context, a string of `doc` equals it.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ensemble.errors import InputError
from ensemble.files import location
from ensemble.questions import LETTERS, MAX_CHOICES
from ensemble.read import find_inputs
from ensemble.records import TASKS, FloatArray, Question, Score
from ensemble.rows import iter_rows

NAMES = ("samples_*.jsonl", "submission.json")  # what is read of a folder
IMPOSSIBLE = -1e4  # stands for -inf, as in ensemble.engine
ROUNDING = 0.01  # a log-likelihood is at most 0, but for this
DIGEST = 8  # bytes: among a million strings two share one once in 40 million files

Row = dict[str, Any]


class _Known(NamedTuple):
    """id: of the document. strings: digests of its other strings, joined.

    logprobs: float32 [options]; unconditional: the same without the question (the harness's acc_mutual_info).
    """

    id: Any
    strings: bytes
    logprobs: FloatArray
    unconditional: FloatArray | None

    def has(self, text: str) -> bool:
        wanted = _digest(_plain(text))
        return any(self.strings[i : i + DIGEST] == wanted for i in range(0, len(self.strings), DIGEST))


class SamplesFile:
    """The rows of samples files by their content, about 1 kB each; pickles.

    fingerprint: 32 hex digits over documents, prompts, options and log-likelihoods; not over names and metrics.
    """

    def __init__(self, spec: str) -> None:
        """spec: a file, a glob, or a folder (the NAMES in it), local, s3:// or gs://.

        Of rows with the same document in one file (filters) the first counts. Left out are rows of our text tasks, and
        rows that give no option any probability, as the submission has for a question that failed.
        Raises InputError with file, line and cure where a row is damaged, holds texts or no valid number; where two
        files have the same document, since nothing tells which run is meant; and where no row can be used.
        """
        self._known: dict[bytes, list[_Known]] = {}
        digest = hashlib.blake2b(digest_size=16)
        seen: dict[bytes, Path] = {}
        for path, line, row in _rows(spec):
            try:
                requests = _requests(row)
                if requests is None:
                    continue
                values = _values(requests, row["resps"])
                document = _digest(json.dumps(row["doc"], sort_keys=True))
                if first := seen.get(document):
                    if first != path:
                        raise InputError(f"{first} has the same document: name the files of one run and task only")
                    continue
            except InputError as e:
                raise InputError(f"{path}:{line}: {e}") from None
            seen[document] = path
            digest.update(document + json.dumps([requests, values]).encode())
            self._add(row["doc"], requests, values)
        self.fingerprint = digest.hexdigest()
        if not self._known:
            cure = "run a task of output_type multiple_choice over a file of questions in Quorum's form"
            raise InputError(f"{spec}: no row whose prompt shows a text of its document and the options; {cure}")

    def _add(self, doc: Row, requests: Sequence[tuple[str, str]], values: Sequence[float]) -> None:
        n = _options(requests)
        if max(values[:n]) <= IMPOSSIBLE:
            return
        strings = {_plain(text) for text in _strings({k: v for k, v in doc.items() if k != "id"})}
        prompt, continuations = _plain(requests[0][0]), [_plain(text) for _, text in requests[:n]]
        options = _listed(prompt, continuations, sorted(strings, key=len, reverse=True)) or continuations
        logprobs = np.array(values, dtype=np.float32)
        row = _Known(
            doc.get("id"),
            b"".join(sorted(map(_digest, strings))),
            logprobs[:n],
            logprobs[n:] if len(requests) > n else None,
        )
        for text in strings.difference(options):
            if text in prompt:
                self._known.setdefault(_key(text, options), []).append(row)

    def scores(self, questions: Sequence[Question]) -> list[Score | None]:
        """Per question the one order that was asked, with the summed log-likelihoods and, as they are unknown, one
        token per option. None where no row fits, or where several documents do and neither the question's id nor its
        group tells which is meant."""
        return [self._score(question) for question in questions]

    def _score(self, question: Question) -> Score | None:
        rows = self._known.get(_key(_plain(question.text), [_plain(choice) for choice in question.choices]), [])
        if question.context:
            rows = [row for row in rows if row.has(question.context)]
        rows = [row for row in rows if row.id == question.id] or rows
        if question.group is not None:
            rows = [row for row in rows if row.has(str(question.group))] or rows
        if len({row.strings for row in rows}) != 1:
            return None
        n = len(question.choices)
        return Score(
            orders=(tuple(range(n)),),
            logprobs=rows[0].logprobs.reshape(1, n),
            tokens=np.ones(n, dtype=np.int32),
            unconditional=rows[0].unconditional,
        )


def _rows(spec: str) -> Iterator[tuple[Path, int, Row]]:
    """The rows with their places. Raises InputError for what is no object of JSON."""
    paths = find_inputs(spec)
    if location(spec).is_dir():
        paths = [path for path in paths if any(fnmatch(path.name, name) for name in NAMES)]
    if not paths:
        raise InputError(f"{spec}: the folder holds no {' or '.join(NAMES)}; name the file, or run with --log_samples")
    for path in paths:
        for line, row in iter_rows(path):
            if isinstance(row, InputError):
                raise InputError(f"{path}:{line}: {row}")
            if not isinstance(row, dict):
                raise InputError(f"{path}:{line}: {_no_samples()}")
            yield path, line, row


def _no_samples() -> InputError:
    cure = "give a samples_*.jsonl of lm_eval --log_samples, or a submission.json of submission.format=lm_eval"
    return InputError(f"the row is none of lm-evaluation-harness's samples; {cure}")


def _requests(row: Row) -> list[tuple[str, str]] | None:
    """(prompt, continuation) per request, checked: one for each option, and those without the question behind them.

    None for a row of one of our text tasks.
    """
    doc, arguments, responses = row.get("doc"), row.get("arguments"), row.get("resps")
    if not isinstance(doc, dict) or not isinstance(arguments, dict) or not isinstance(responses, list):
        raise _no_samples()
    if doc.get("task", doc.get("task_type")) in set(TASKS) - {"multiple_choice"}:
        return None
    given = [arguments.get(f"gen_args_{i}") for i in range(len(arguments))]
    pairs = [(a.get("arg_0"), a.get("arg_1")) if isinstance(a, dict) else (None, None) for a in given]
    requests = [(prompt, text) for prompt, text in pairs if isinstance(prompt, str) and isinstance(text, str)]
    if len(requests) < len(pairs):
        raise InputError(
            "holds no log-likelihoods of options (a generate_until task writes texts): "
            "run a task of output_type multiple_choice"
        )
    n = _options(requests)
    if not 2 <= n <= MAX_CHOICES or len(responses) != len(requests):
        have = f"{n} option{'s' * (n != 1)} in {len(requests)} requests and {len(responses)} responses"
        raise InputError(f"has {have}; a row has one of each for 2 to {MAX_CHOICES} options: make the file again")
    if len({prompt for prompt, _ in requests[:n]}) > 1:
        raise InputError("its options stand in the prompts; run a task whose doc_to_choice gives texts or letters")
    return requests


def _options(requests: Sequence[tuple[str, str]]) -> int:
    """How many options the requests ask for: half of them where each text is asked for without a prompt too."""
    half = len(requests) // 2
    return half if requests[half:] == [("", text) for _, text in requests[:half]] else len(requests)


def _values(requests: Sequence[tuple[str, str]], responses: Sequence[Any]) -> list[float]:
    """The log-likelihood of each request's first repeat. Raises InputError for what is none."""
    values = []
    for (_, text), response in zip(requests, responses, strict=True):
        try:
            value = float(response[0][0])
        except (IndexError, KeyError, TypeError, ValueError):
            value = math.nan
        if not value <= ROUNDING:  # NaN too
            given = json.dumps(response)[:60]
            cure = "run the model again, in another dtype if it answers NaN"
            raise InputError(f"the log-likelihood of {text.strip()[:40]!r} is no number up to 0 in {given}; {cure}")
        values.append(max(value, IMPOSSIBLE))
    return values


def _listed(prompt: str, labels: Sequence[str], texts: Sequence[str]) -> list[str] | None:
    """The texts that stand behind the labels where the prompt last lists them, as in `A. ice B. iron`.

    texts: what may stand there, the longest first. None where the labels are none, or no list has them all.
    """
    labels = [re.sub(r"\W", "", label) for label in labels]
    numbers = [str(i + 1) for i in range(len(labels))]
    if labels not in (list(LETTERS[: len(labels)]), list(LETTERS[: len(labels)].lower()), numbers):
        return None
    starts = [match.end() for match in re.finditer(rf"(?<!\w){labels[0]}(?=\W)", prompt)]
    return next((found for at in reversed(starts) if (found := _behind(prompt, at, labels[1:], texts))), None)


def _behind(prompt: str, at: int, labels: Sequence[str], texts: Sequence[str]) -> list[str] | None:
    """The text behind a label that ends `at`, and those behind the following labels."""
    for gap in range(1, 4):
        start = at + gap
        if re.search(r"\w", prompt[at:start]):
            return None
        for text in texts:
            if not text or not prompt.startswith(text, start):
                continue
            end = start + len(text)
            if not labels:
                if not re.match(r"\w", prompt[end : end + 1]):
                    return [text]
            elif match := re.compile(rf"\W{{1,4}}{labels[0]}(?=\W)").match(prompt, end):
                rest = _behind(prompt, match.end(), labels[1:], texts)
                if rest:
                    return [text, *rest]
    return None


def _strings(value: Any) -> Iterator[str]:
    """All strings in a value of JSON, but for keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST).digest()


def _key(text: str, options: Sequence[str]) -> bytes:
    return hashlib.blake2b(json.dumps([text, *options]).encode(), digest_size=16).digest()
