"""Configs: defaults, merging, overrides, and errors that name the cure."""

import re

import pytest

from ensemble.config import ROOT, RunConfig, fingerprint
from ensemble.errors import ConfigError
from ensemble.load import load_config
from ensemble.plan import make_plan

DEMO = ROOT / "configs/demo.yaml"


def test_the_demo_reaches_every_task_with_one_model():
    config = load_config(DEMO)
    assert set(config.tasks) == {"multiple_choice", "summarization", "generation", "math"}
    assert list(config.models) == ["smollm2_gptq"]
    assert config.tasks["multiple_choice"].members[0].scoring.method == "cloze"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=7", lambda c: c.seed == 7),
        ("store.path=/tmp/x", lambda c: c.store.path == "/tmp/x"),
        ("submission.format=matsuo", lambda c: c.submission.format == "matsuo"),
        ("tasks.math.members.0.sampling.max_tokens=9", lambda c: c.tasks["math"].members[0].sampling.max_tokens == 9),
        ("tasks.math.members.0.sampling.stop=[a, b]", lambda c: c.tasks["math"].members[0].sampling.stop == ("a", "b")),
        ("models.smollm2_gptq.engine.max_num_seqs=8", lambda c: c.models["smollm2_gptq"].engine.max_num_seqs == 8),
        ("templates.cloze.unconditional=So", lambda c: c.templates["cloze"].unconditional == "So"),
        ("models.smollm2_gptq.engine.env.A=b", lambda c: c.models["smollm2_gptq"].engine.env == {"A": "b"}),
    ],
)
def test_overrides_reach_every_part(override, read):
    assert not read(load_config(DEMO))
    assert read(load_config(DEMO, [override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=7", "unknown key 'sed'; did you mean 'seed'?"),
        ("store.pth=x", "store: unknown key 'pth'; did you mean 'path'? available: flush_seconds, path"),
        ("tasks.math.members.0.sampling.max_token=9", "sampling: unknown key 'max_token'; did you mean 'max_tokens'?"),
        (
            "tasks.multiple_choice.members.0.scoring={method: letter, ordrs: full}",
            "tasks.multiple_choice.members.0.scoring: unknown key 'ordrs'; did you mean 'orders'? available: debias, ",
        ),
        ("models.store={source: {pth: x}}", "models.store.source: unknown key 'pth'; did you mean 'path'?"),
        ("models.store.sourc=x", "models.store: unknown key 'sourc'; did you mean 'source'?"),
        ("tasks.math.members.0.modell=x", "members.0: unknown key 'modell'; did you mean 'model'?"),
        (
            "tasks.math.members.0.model=smolm2",
            "unknown model 'smolm2'; did you mean 'smollm2'? available: openorca_stx, smollm2, ",
        ),
        ("tasks.math.members.0.template=cloz", "unknown template 'cloz'; did you mean 'cloze'?"),
        ("tasks.math.members.3.model=x", "'3' is not an index of a list of 1"),
        ("tasks.math.members=[]", "tasks.math.members: "),
        ("seed=high", "seed: Input should be a valid integer (given: 'high')"),
        ("tasks.math.members.0.sampling.top_p=2", "top_p: Input should be less than or equal to 1"),
        ("tasks.math.members.0.scoring={method: cloze}", "tasks.math.members.0.scoring is only for multiple_choice"),
        ("tasks.multiple_choice.members.0.scoring=null", "needs scoring: {method: letter | cloze | generate}"),
        ("tasks.sums={members: []}", "tasks.sums"),
        ("seed", "write it as key.key=value"),
        ("seed.x=1", "'seed' is a value, not a section"),
        ("models.smollm2.source={path: a, hub: b}", "name exactly one of hub, path, package"),
        ("models.smollm2.engine.hardware=L4", "set device: cuda (or cpu) too"),
        ("models.smollm2.engine.replicas=0", "models.smollm2.engine.replicas"),
        ("models.smollm2.engine.kv_cache_dtype=int4", "engine.kv_cache_dtype: Input should be 'auto' or 'fp8'"),
        (
            "models.smollm2_gptq.engine.enable_chunked_prefill=false",
            "set engine.max_num_batched_tokens to 2048 or more, or leave engine.enable_chunked_prefill out",
        ),
        ("ray.gpus=0", "ray.gpus: Input should be greater than or equal to 1"),
        ("ray.stage_actors=none", "ray.stage_actors"),
        (
            "tasks.multiple_choice.members=[{model: smollm2, template: cloze, scoring: {method: generate}}, "
            "{model: smollm2, template: cloze, scoring: {method: cloze}}]",
            "generate gives no log-probabilities to average",
        ),
        ("submission.format=xml", "submission.format: Input should be 'matsuo', 'jsonl' or 'lm_eval'"),
    ],
)
def test_errors_name_the_place_and_the_cure(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(DEMO, [override])
    assert "\n" not in str(caught.value)


def test_a_batch_of_a_whole_input_needs_no_chunks():
    section = "models.smollm2_gptq.engine"
    config = load_config(DEMO, [f"{section}={{enable_chunked_prefill: false, max_num_batched_tokens: 2048}}"])
    assert config.models["smollm2_gptq"].engine.enable_chunked_prefill is False


@pytest.mark.parametrize(
    ("engine", "same"),
    [
        ("max_num_seqs=7", True),
        ("max_num_batched_tokens=512", True),
        ("gpu_memory_utilization=0.5", True),
        ("enable_chunked_prefill=true", True),
        ("kv_cache_dtype=auto", True),
        ("kv_cache_dtype=fp8", False),
    ],
)
def test_what_changes_no_number_keeps_what_is_stored(engine, same):
    def keys(*overrides):
        plan = make_plan(load_config(DEMO, overrides), ["math"], lambda model: "files")
        return [planned.key for planned in plan.tasks["math"]]

    assert (keys(f"models.smollm2_gptq.engine.{engine}") == keys()) == same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "a config is a YAML mapping"),
        ("{}", "tasks: missing; add it"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_file_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean '.*configs/demo.yaml'"):
        load_config(ROOT / "configs/dem.yaml")


def test_models_and_templates_stand_beside_the_run_config(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.yaml").write_text("{source: {path: /m}, context_length: 99}")
    (tmp_path / "run.yaml").write_text(
        "tasks: {generation: {members: [{model: mine, template: inline}]}}\n"
        "templates: {inline: {question: '{{ text }}'}}\n"
        "models: {mine: {context_length: 100}}\n"
    )
    config = load_config(tmp_path / "run.yaml")
    assert config.models["mine"].context_length == 100
    assert config.models["mine"].source.path == "/m"
    assert config.templates["inline"].question == "{{ text }}"


def test_every_shipped_model_and_template_is_valid():
    for section, key in (("models", "model"), ("templates", "template")):
        for path in (ROOT / "configs" / section).glob("*.yaml"):
            config = load_config(DEMO, [f"tasks.generation.members.0.{key}={path.stem}"])
            assert path.stem in getattr(config, section)


def test_a_resolved_config_reads_back_as_itself():
    config = load_config(DEMO)
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert fingerprint(again) == fingerprint(config)
    assert fingerprint(load_config(DEMO, ["seed=1"])) != fingerprint(config)


def test_the_documentation_is_generated_from_the_records():
    from pipelines.docs import page

    assert (ROOT / "docs/config.md").read_text(encoding="utf-8") == page(), "run python pipelines/docs.py"
