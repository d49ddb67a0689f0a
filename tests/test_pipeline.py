import dataclasses

import pytest
import yaml

import medsynth
from medsynth import config, pipeline
from medsynth.config import CONFIGS, PIPELINES
from medsynth.errors import ConfigError
from medsynth.pipeline import load_config, run_recipe


@pytest.mark.parametrize("name", CONFIGS.names())
def test_shipped_configurations_are_whole(name):
    """Every option of `medsynth train` that decides about the weights stands in the file, and parses to itself."""
    content = yaml.safe_load(CONFIGS.find(name).read_text())
    options = load_config(name)
    groups = {"grid", "intensity", "network", "noise", "balance", "augment", "optimiser", "monitor"}
    assert groups | {"max_steps", "batch_size", "label_dropout", "precision"} <= content.keys()
    for group in groups:
        parsed = options[group]
        assert {field.name for field in dataclasses.fields(parsed)} - {"tensorboard"} == content[group].keys(), group
        for key, value in content[group].items():
            held = getattr(parsed, key)
            assert (list(held) if isinstance(held, tuple) else held) == value, (group, key)


def test_config_options_are_typed(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("network: {channels: [32, 64], levels: 2}\nseed: 3\n")
    options = load_config(str(path))
    assert options == {"network": config.NetworkOptions(channels=(32, 64), levels=2), "seed": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_stepz: 3", "max_stepz"),
        ("network: {chanels: [32]}", "chanels"),
        ("max_steps: many", "max_steps"),
        ("- a list", "need a mapping"),
        ("a: [1", "need readable YAML"),
    ],
)
def test_mistakes_in_a_configuration_are_named(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(str(path))
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "key", "expected"),
    [
        (["--split", "0.6,0.2,0.2"], "split", (0.6, 0.2, 0.2)),
        (["--split=[0.6,0.2,0.2]"], "split", (0.6, 0.2, 0.2)),
        (["--columns.attributes", "age"], "columns", config.ColumnOptions(attributes=("age",))),
        (["--columns.attributes=age,sex"], "columns", config.ColumnOptions(attributes=("age", "sex"))),
        (["--skip_bad"], "skip_bad", True),
        (["--skip_bad", "--seed", "3"], "skip_bad", True),
        (["--skip_bad", "false"], "skip_bad", False),
    ],
)
def test_lists_with_commas_and_bare_switches(arguments, key, expected):
    parser = pipeline.verb_parser("index", exit_on_error=False)
    parsed = pipeline.parse_verb(parser, ["--scans", "a", "--out", "b", *arguments])
    assert parsed[key] == expected


def test_a_size_may_be_one_number_or_several():
    parser = pipeline.verb_parser("train", exit_on_error=False)
    for text, size in (("64", 64), ("64,32", (64, 32)), ("[64,32]", (64, 32))):
        parsed = pipeline.parse_verb(parser, ["--cohort", "a", "--out", "b", "--grid.size", text])
        assert parsed["grid"].size == size


def test_options_win_over_the_configuration_wherever_they_stand():
    parser = pipeline.verb_parser("train", exit_on_error=False)
    base = ["--cohort", "a", "--out", "b"]
    for arguments in (
        ["--max_steps", "7", *base, "--config", "chest_xray_2d"],
        ["--config=chest_xray_2d", *base, "--max_steps", "7"],
    ):
        parsed = pipeline.parse_verb(parser, arguments)
        assert parsed["max_steps"] == 7
        assert parsed["precision"] == "bf16-mixed"


def recipe(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize(
    ("content", "variables", "message"),
    [
        ({"steps": [{"fly": {}}]}, {}, "need one of the verbs demo"),
        ({"steps": "demo"}, {}, "need `steps`"),
        ({"steps": []}, {}, "need `steps`"),
        ({"steps": [{"demo": {}, "index": {}}]}, {}, "step 1: need one verb"),
        ({"steps": ["demo"]}, {}, "step 1: need one verb"),
        ({"variables": ["a"], "steps": []}, {}, "need `variables` as names with values"),
        ({"variabels": {}, "steps": []}, {}, "got 'variabels'"),
        ({"steps": [{"demo": {"out": "{where}"}}]}, {}, "need a known variable in '{where}'"),
        ({"variables": {"scans": None}, "steps": []}, {}, "need a value for scans"),
        ({"variables": {"scans": None}, "steps": []}, {"scan": "x"}, "need one of its variables scans; got scan"),
        ({"steps": [{"demo": {"out": "{out}", "scan": 3}}]}, {}, "recipe.yaml: demo.*scan"),
    ],
)
def test_mistakes_in_a_recipe_are_named_before_anything_runs(tmp_path, content, variables, message):
    with pytest.raises(ConfigError, match=message):
        run_recipe(recipe(tmp_path, content), out=tmp_path / "out", variables=variables)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PIPELINES.names())
def test_every_shipped_recipe_parses(name, monkeypatch, tmp_path):
    """All verbs replaced by recorders: their options are known and typed, and what comes out is judged."""
    calls = []
    recorders = {verb: lambda verb=verb, **options: calls.append((verb, options)) for verb in pipeline.VERBS}
    prepare, verbs = pipeline._step_options, dict(pipeline.VERBS)
    monkeypatch.setattr(pipeline, "VERBS", dict(pipeline.VERBS))

    def prepare_then_record(verb, options, where):
        pipeline.VERBS[verb] = verbs[verb]  # a recipe may have a verb twice
        prepared = prepare(verb, options, where)
        pipeline.VERBS[verb] = recorders[verb]
        return prepared

    monkeypatch.setattr(pipeline, "_step_options", prepare_then_record)
    content = yaml.safe_load(PIPELINES.find(name).read_text())
    needed = {key: "somewhere" for key, value in (content.get("variables") or {}).items() if value is None}
    run_recipe(name, out=tmp_path, variables=needed)
    assert [verb for verb, _ in calls] == [next(iter(step)) for step in content["steps"]]
    assert "evaluate" in [verb for verb, _ in calls]
    assert all("{" not in str(options.get("out")) for _, options in calls)


def test_recipe_runs_its_steps_in_order(tmp_path, tiny_cohort, tiny_config):
    steps = [
        {"train": {"config": str(tiny_config), "cohort": "{cohort}", "out": "{out}/run", "progress": False}},
        {"sample": {"run": "{out}/run", "count": "bright=2", "out": "{out}/synthetic", "progress": False}},
    ]
    name = recipe(tmp_path, {"variables": {"cohort": None}, "steps": steps})
    (_, run), (_, synthetic) = run_recipe(name, out=tmp_path / "out", variables={"cohort": str(tiny_cohort)})
    assert run.steps == 12
    assert len(synthetic.rows) == 2
    assert medsynth.load_run(tmp_path / "out" / "run").fingerprint == run.fingerprint
