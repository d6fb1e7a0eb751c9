"""What the endpoint's description says of requests and refusals, in OpenAPI's terms."""

from typing import Any

from pydantic import BaseModel


def request_body(wanted: dict[str, Any] | type[BaseModel]) -> dict[str, Any]:
    """Of a route whose body is read by the route itself, within the limits."""
    schema = wanted if isinstance(wanted, dict) else wanted.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


QUESTION: dict[str, Any] = {
    "type": "object",
    "required": ["text"],
    "properties": {
        "id": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer"}]},
        "task": {"enum": ["multiple_choice", "summarization", "generation", "math"]},
        "text": {"type": "string", "minLength": 1},
        "context": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 2, "maxItems": 26},
        "answer": {"description": "Gold: an index, a letter, a choice_id; or a text or several."},
        "group": {"type": "string"},
    },
}
QUESTIONS: dict[str, Any] = {
    "type": "object",
    "required": ["questions"],
    "properties": {
        "questions": {"type": "array", "items": QUESTION, "minItems": 1},
        "stream": {"type": "boolean", "description": "NDJSON, a result a line as they finish."},
        "model": {"type": "string", "description": "The ensemble's name, if any: no member answers alone here."},
    },
    "additionalProperties": False,
}
SOLVE: dict[str, Any] = {"anyOf": [QUESTION, QUESTIONS]}
COMPLETION: dict[str, Any] = {
    "type": "object",
    "description": "As OpenAI's; see vLLM's documentation for its further fields.",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the message says what to change"},
    401: {"description": "no such API key"},
    403: {"description": "no keys are set, and the request comes from another machine"},
    404: {"description": "no such model"},
    408: {"description": "the body did not arrive"},
    413: {"description": "the body is too large"},
    429: {"description": "too many requests of this caller: see Retry-After"},
    503: {"description": "overloaded, or an engine is starting: see Retry-After"},
    504: {"description": "the answer took too long"},
}
