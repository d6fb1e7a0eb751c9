"""The NeurIPS 2023 LLM Efficiency Challenge's protocol, which HELM's client `neurips/local` speaks.

`/process` becomes a completion of vLLM's application, and its reply what the client expects.
"""

import json
import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from serve.refusals import Refusal


class Process(BaseModel):
    """Only `prompt` is required; `num_samples`, `top_k` and `seed` are the toy server's older names."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[str, Field(min_length=1)]
    max_new_tokens: Annotated[int, Field(ge=1)] = 50
    temperature: Annotated[float, Field(ge=0)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k_per_token: Annotated[int, Field(ge=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    num_return_sequences: Annotated[int, Field(ge=1)] = 1
    echo_prompt: bool = False
    stop_sequences: Annotated[list[str], Field(max_length=16)] = []
    seed: int | None = None


class Token(BaseModel):
    text: str
    logprob: float
    top_logprob: dict[str, float]


class Processed(BaseModel):
    text: str
    tokens: list[Token]
    logprob: float
    request_time: float


class Tokenize(BaseModel):
    model_config = ConfigDict(extra="ignore")

    text: str
    truncation: bool = True
    max_length: Annotated[int, Field(ge=1)] = 2048


class Tokenized(BaseModel):
    tokens: list[int]
    request_time: float


class Decode(BaseModel):
    model_config = ConfigDict(extra="ignore")

    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1_000_000)]


class Decoded(BaseModel):
    text: str
    request_time: float


def completion_of(asked: Process, model: str) -> dict[str, Any]:
    """The body of the completion request. HELM writes 1e-7 for a temperature of zero. Raises Refusal."""
    if asked.num_return_sequences != 1:
        raise Refusal(400, "num_return_sequences: one sequence a request is answered")
    body = {
        "model": model,
        "prompt": asked.prompt,
        "max_tokens": asked.max_new_tokens,
        "temperature": 0.0 if asked.temperature < 1e-5 else asked.temperature,
        "top_p": asked.top_p,
        "stop": [text for text in asked.stop_sequences if text],
        "echo": asked.echo_prompt,
        "logprobs": 1,
        "seed": asked.seed,
    }
    if top_k := asked.top_k_per_token or asked.top_k:
        body["top_k"] = top_k
    return body


def reason(content: bytes) -> str:
    """Why vLLM refused the request."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return "the model refused the request"


def processed(completion: dict[str, Any], seconds: float) -> Processed:
    """What the client expects, from the completion's response."""
    choice = completion["choices"][0]
    found = choice["logprobs"]
    tokens = []
    for text, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        best = {str(key): _finite(lp) for key, lp in (top or {}).items()}
        tokens.append(Token(text=text, logprob=_finite(value), top_logprob=best))
    return Processed(
        text=choice["text"], tokens=tokens, logprob=sum(token.logprob for token in tokens), request_time=seconds
    )


def voted(text: str, scores: list[float], labels: list[str], seconds: float) -> Processed:
    """The reply of a vote: one token, the label, with the options' log-probabilities."""
    tops = {label: round(score, 4) for label, score in zip(labels, scores, strict=True)}
    best = max(scores)
    token = Token(text=text, logprob=best, top_logprob=tops)
    return Processed(text=text, tokens=[token], logprob=best, request_time=seconds)


def _finite(value: float | None) -> float:
    """A prompt's first token has none."""
    return 0.0 if value is None or math.isnan(value) else max(value, -1e4)
