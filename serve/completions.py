"""OpenAI's protocol for the ensemble: a multiple-choice prompt is answered by the vote, any other by one model.

Members speak it themselves (vLLM's application). The ensemble has no log-probabilities of a text of its own, so it
refuses `echo` and `logprobs`.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from serve.refusals import Refusal

CHAT = "/v1/chat/completions"


def prompt_of(path: str, body: dict[str, Any]) -> str | None:
    """The one text that the request asks about: the prompt, or the last message where a person wrote it; None where it
    is several prompts, token ids or anything but text."""
    if path != CHAT:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        return prompt if isinstance(prompt, str) else None
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    content = last.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = parts[0] if len(parts) == len(content) == 1 else None
    return content if isinstance(content, str) else None


def size_of(path: str, body: dict[str, Any], limit: int, max_tokens: int) -> int:
    """How many texts are asked for. Raises Refusal where they are too many or too long."""
    for key in ("n", "max_tokens", "max_completion_tokens"):  # vLLM would read "9999" and 1e4 as numbers too
        if type(body.get(key)) not in (int, type(None)):
            raise Refusal(400, f"{key} must be a whole number")
    prompt, n = body.get("prompt"), body.get("n")
    several = path != CHAT and isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    count = (len(prompt) if several and isinstance(prompt, list) else 1) * max(1, n or 1)
    if count > limit:
        raise Refusal(400, f"{count} texts in one request, at most {limit} are answered: send them in several")
    for key in ("max_tokens", "max_completion_tokens"):
        if (asked := body.get(key) or 0) > max_tokens:
            raise Refusal(400, f"{key} is {asked}, at most {max_tokens} are written")
    return count


def check_ensemble(body: dict[str, Any]) -> None:
    """Raises Refusal for what a vote does not have."""
    for key in ("echo", "logprobs", "prompt_logprobs", "top_logprobs"):
        if body.get(key):
            raise Refusal(400, f"{key}: a vote has none; ask one of its models for it")


def reply(path: str, model: str, text: str, prompt_tokens: int) -> dict[str, Any]:
    """A whole response with one text."""
    chat = path == CHAT
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "stop"}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "total_tokens": prompt_tokens + 1}
    return _head(path, model) | {"choices": [choice], "usage": usage}


def stream(path: str, model: str, text: str) -> Iterator[bytes]:
    """The same as server-sent events."""
    head = _head(path, model)
    if path == CHAT:
        head["object"] += ".chunk"
        deltas = [({"role": "assistant", "content": ""}, None), ({"content": text}, None), ({}, "stop")]
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": why} for delta, why in deltas]
    else:
        choices = [{"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}]
    for choice in choices:
        yield b"data: " + json.dumps(head | {"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _head(path: str, model: str) -> dict[str, Any]:
    kind, name = ("chatcmpl", "chat.completion") if path == CHAT else ("cmpl", "text_completion")
    return {"id": f"{kind}-{uuid.uuid4().hex}", "object": name, "created": int(time.time()), "model": model}
