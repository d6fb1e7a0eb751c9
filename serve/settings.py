"""What an endpoint is told besides its run config: the arguments of `serve.app:build`, checked like every config."""

from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from ensemble.config import Record
from ensemble.errors import ConfigError
from ensemble.validation import problems

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Limits(Record):
    """What one request and all of them together may take; more is refused at once, with the cure in the message."""

    body_bytes: Count = Field(2_000_000, description="Of a request; more is answered by 413.")
    characters: Count = Field(
        200_000, description="Of one question: more than models read is cut anyway, and costs time to cut."
    )
    questions: Count = Field(256, description="In one request.")
    prompts: Count = Field(64, description="In one completion request, and n of each.")
    max_tokens: Count = Field(4096, description="That a completion may ask for.")
    in_flight: Count = Field(256, description="Questions and prompts under way at a time; more are answered by 503.")
    key_in_flight: Count = Field(256, description="The same for one API key (or address); more are answered by 429.")
    per_minute: Annotated[int, Field(ge=0)] = Field(0, description="Requests of one key in a minute; 0: any number.")
    seconds: Seconds = Field(300.0, description="For a whole request; then it is ended with 504.")
    body_seconds: Seconds = Field(30.0, description="For a request's body to arrive; then 408.")


class Replicas(Record):
    """Engines of a model: so many, or by load between two numbers."""

    min: Annotated[int, Field(ge=0)] = Field(1, description="Kept running.")
    max: Count = Field(1, description="Started under load.")
    ongoing: Count = Field(64, description="Calls under way for each replica that autoscaling aims at.")

    @model_validator(mode="after")
    def ordered(self) -> "Replicas":
        if self.min > self.max:
            raise ValueError("min is larger than max")
        return self


class Listen(Record):
    host: str = Field("127.0.0.1", description="Address.")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="Port.")


class Settings(Record):
    """Of the whole endpoint."""

    config: str = Field("configs/demo.yaml", description="Run config whose ensemble is served.")
    set: list[str] = Field([], description="Changes of the run config: KEY=VALUE, as for solve.py --set.")
    name: str | None = Field(None, description="The ensemble's: `ensemble:NAME`; left out: the config file's stem.")
    default_model: str | None = Field(None, description="Of requests that name none; left out: the ensemble.")
    keys: str | None = Field(
        None, description="File of API keys, a line `NAME KEY` each; left out: only this machine is answered."
    )
    limits: Limits = Field(Limits(), description="What is refused.")
    replicas: dict[str, Replicas] = Field({}, description="Per model; left out: one engine.")
    gateways: Count = Field(1, description="Processes that take requests; limits hold for each of them.")
    listen: Listen | None = Field(
        None, description="Where the gateways themselves listen, besides Serve's proxy: for a server on one machine."
    )


def read_settings(arguments: object) -> Settings:
    """Raises ConfigError with the key that is wrong."""
    try:
        return Settings.model_validate(arguments)
    except ValidationError as e:
        raise ConfigError("; ".join(f"serve: {problem}" for problem in problems(e, Settings))) from None
