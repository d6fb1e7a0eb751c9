"""The `openai` package against a running endpoint: models, completions, log-probabilities, chat, stream, ensemble.

.venv/bin/python examples/openai_client.py --base-url http://127.0.0.1:8000

Without --model and --ensemble: the first of each that the endpoint lists.
"""

import argparse
import os

from openai import OpenAI

PROMPT = "The capital of France is"
QUESTION = "Question: Where does a river usually end?\nA. in a cave\nB. in the sea\nC. on a roof\nD. in a tree\nAnswer:"


def models(client: OpenAI) -> list[str]:
    names = [model.id for model in client.models.list()]
    print(f"models     {', '.join(names)}")
    return names


def completion(client: OpenAI, model: str) -> None:
    reply = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    print(f"completion {PROMPT!r} -> {reply.choices[0].text!r} ({reply.choices[0].finish_reason})")


def log_probabilities(client: OpenAI, model: str) -> None:
    """Of the prompt's tokens and of one more; the first has none, because nothing stands before it."""
    reply = client.completions.create(model=model, prompt=PROMPT, max_tokens=1, temperature=0, logprobs=1, echo=True)
    found = reply.choices[0].logprobs
    if found is None or not found.tokens or not found.token_logprobs:
        raise SystemExit("logprobs were asked for, and the reply has none")
    # The first is null in the reply, which the package's own type does not allow for.
    values: list[float | None] = list(found.token_logprobs)
    for token, value in zip(found.tokens, values, strict=True):
        print(f"logprobs   {token!r:12} {'-' if value is None else f'{value:.3f}'}")


def chat(client: OpenAI, model: str, text: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=16, temperature=0
    )
    print(f"chat       {model}: {reply.choices[0].message.content!r}")


def streamed_chat(client: OpenAI, model: str, text: str) -> None:
    """A piece per event; the pieces are printed with a bar between them."""
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=16, temperature=0, stream=True
    )
    print(f"streamed   {model}: ", end="", flush=True)
    for event in stream:
        for choice in event.choices:
            print(choice.delta.content or "", end="|", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="without /v1")
    parser.add_argument("--key", default=os.environ.get("KEY", "none"), help="API key; or the variable KEY")
    parser.add_argument("--model", help="a model of the endpoint")
    parser.add_argument("--ensemble", help="an ensemble of the endpoint (ensemble:NAME)")
    options = parser.parse_args()
    client = OpenAI(base_url=f"{options.base_url.rstrip('/')}/v1", api_key=options.key, timeout=300)
    names = models(client)
    ensembles = [name for name in names if name.startswith("ensemble:")]
    model = options.model or next(name for name in names if name not in ensembles)
    completion(client, model)
    log_probabilities(client, model)
    chat(client, model, "Name a colour.")
    streamed_chat(client, model, "Name a colour.")
    for ensemble in [options.ensemble] if options.ensemble else ensembles[:1]:
        chat(client, ensemble, QUESTION)
        streamed_chat(client, ensemble, QUESTION)


if __name__ == "__main__":
    main()
