import dataclasses

import pytest
import yaml

import medsynth
from medsynth import config, pipeline
from medsynth.api.parser import parse_arguments, parse_values
from medsynth.config import CONFIGS, PIPELINES, options_of
from medsynth.errors import ConfigError
from medsynth.pipeline import load_config, run_recipe


@pytest.mark.parametrize("name", CONFIGS.names())
def test_shipped_configurations_are_whole(name):
    """Every option of `medsynth train` that decides about the weights stands in the file, and parses to itself."""
    content = yaml.safe_load(CONFIGS.find(name).read_text())
    options = parse_values("train", {"cohort": "-", "out": "-", **load_config(name)})
    groups = {"grid", "intensity", "network", "noise", "augment", "optimiser", "monitor"}
    assert groups | {"max_steps", "batch_size", "balance", "label_dropout", "precision"} <= content.keys()
    for group in groups:
        parsed = getattr(options, group)
        assert {field.name for field in dataclasses.fields(parsed)} - {"tensorboard"} == content[group].keys(), group
        for key, value in content[group].items():
            held = getattr(parsed, key)
            assert (list(held) if isinstance(held, tuple) else held) == value, (group, key)


def test_groups_may_be_dictionaries_or_dataclasses():
    base = {"cohort": "c.csv", "out": "run"}
    plain = parse_values("train", {**base, "network": {"channels": [32, 64], "levels": 2}, "seed": 3})
    typed = parse_values("train", {**base, "network": config.NetworkOptions(channels=(32, 64), levels=2), "seed": 3})
    assert plain == typed
    assert plain.network == config.NetworkOptions(channels=(32, 64), levels=2)
    assert isinstance(plain, config.Loading)


def test_a_group_without_a_default_stays_absent_until_one_of_its_options_is_given():
    base = {"real": "a", "synthetic": "b", "out": "c"}
    assert parse_values("evaluate", base).grid is None
    assert parse_values("evaluate", {**base, "grid": {"size": 32}}).grid == config.GridOptions(size=32)
    assert parse_arguments("evaluate", ["--real", "a", "--synthetic", "b", "--out", "c", "--grid.size", "32"]).grid == (
        config.GridOptions(size=32)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_stepz: 3", "max_stepz: no such option; did you mean max_steps?"),
        ("network: {chanels: [32]}", r"network.chanels: no such option; did you mean network.channels\?"),
        ("max_steps: many", "max_steps: need a whole number from 1 to 100,000,000, got 'many'"),
        ("precision: 16-mixed", "precision: need one of 32-true, bf16-mixed, got '16-mixed'; did you mean bf16-mixed"),
        ("network: 3", "network: need options as `name: value`, got '3'"),
        ("network: {class_path: os.system}", "network.class_path: no such option"),
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
        (["--keep", "viral=40/10,a: b=3/1"], "keep", ("viral=40/10", "a: b=3/1")),
        (["--skip_bad"], "skip_bad", True),
        (["--skip_bad", "--seed", "3"], "skip_bad", True),
        (["--skip_bad", "false"], "skip_bad", False),
    ],
)
def test_lists_with_commas_and_bare_switches(arguments, key, expected):
    assert getattr(parse_arguments("index", ["--scans", "a", "--out", "b", *arguments]), key) == expected


def test_a_size_may_be_one_number_or_several():
    for text, size in (("64", 64), ("64,32", (64, 32)), ("[64,32]", (64, 32))):
        options = parse_arguments("train", ["--cohort", "a", "--out", "b", "--grid.size", text])
        assert options.grid.size == size


def test_options_win_over_the_configuration_wherever_they_stand():
    base = ["--cohort", "a", "--out", "b"]
    for arguments in (
        ["--max_steps", "7", *base, "--config", "chest_xray_2d"],
        ["--config=chest_xray_2d", *base, "--max_steps", "7"],
    ):
        options = parse_arguments("train", arguments)
        assert options.max_steps == 7
        assert options.precision == "bf16-mixed"


@pytest.mark.parametrize("verb", config.OPTIONS)
def test_every_default_is_valid(verb):
    """The parser takes the defaults of every option as values."""
    known = options_of(config.OPTIONS[verb])
    needed = {name: "1" for name, option in known.items() if option.required}
    options = parse_values(verb, needed)
    for name, option in known.items():
        held = options
        for part in name.split("."):
            held = getattr(held, part) if held is not None else None
        if not option.required:
            assert held == option.default, name


def recipe(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize(
    ("content", "variables", "message"),
    [
        ({"steps": [{"trian": {}}]}, {}, "'trian' is no verb; did you mean train?"),
        ({"steps": "demo"}, {}, "need `steps`"),
        ({"steps": []}, {}, "need `steps`"),
        ({"steps": [{"demo": {}, "index": {}}]}, {}, "step 1: need one verb"),
        ({"steps": ["demo"]}, {}, "step 1: need one verb"),
        ({"steps": [{"train": {"devices": 2}}]}, {}, "step 1: a recipe trains in one process, got devices 2"),
        ({"variables": ["a"], "steps": []}, {}, "need `variables` as names with values"),
        ({"variabels": {}, "steps": []}, {}, "got 'variabels'"),
        ({"steps": [{"demo": {"out": "{where}"}}]}, {}, "'{where}' names an unknown variable where"),
        ({"variables": {"scans": None}, "steps": []}, {}, "need a value for scans"),
        ({"variables": {"scans": None}, "steps": []}, {"scan": "x"}, "has no variable scan, only scans; did you mean"),
        ({"steps": [{"demo": {"out": "{out}", "scan": 3}}]}, {}, "demo: scan: no such option; did you mean scans?"),
    ],
)
def test_mistakes_in_a_recipe_are_named_before_anything_runs(tmp_path, content, variables, message):
    with pytest.raises(ConfigError, match=message):
        run_recipe(recipe(tmp_path, content), out=tmp_path / "out", variables=variables)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PIPELINES.names())
def test_every_shipped_recipe_parses(name, tmp_path):
    """Options of all verbs are known and typed, variables are filled in, and what comes out is judged."""
    content = yaml.safe_load(PIPELINES.find(name).read_text())
    needed = {key: "somewhere" for key, value in (content.get("variables") or {}).items() if value is None}
    steps = pipeline.plan_recipe(name, out=tmp_path, variables=needed)
    assert [verb for verb, _ in steps] == [next(iter(step)) for step in content["steps"]]
    assert "evaluate" in [verb for verb, _ in steps]
    assert all("{" not in str(getattr(options, "out", "")) for _, options in steps)


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


CODE = {"features": {"extractor": "mine:features"}}


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module in the working directory that leaves a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("from pathlib import Path\nPath('sprung').touch()\nfeatures = encode = None\n")
    yield
    assert not (tmp_path / "sprung").exists(), "code ran"


@pytest.mark.parametrize(
    ("verb", "content", "name"),
    [
        ("evaluate", CODE, "features.extractor"),
        ("evaluate", {"features.extractor": "mine:features"}, "features.extractor"),
        ("train", {"condition": {"text": "note", "text_encoder": "mine:encode"}}, "condition.text_encoder"),
    ],
)
def test_a_configuration_names_no_code(verb, content, name, trap, tmp_path, capsys):
    from medsynth.cli import run_command

    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(content))
    words = {"evaluate": ["--real", "a", "--synthetic", "b"], "train": ["--cohort", "a"]}[verb]
    assert run_command([verb, *words, "--out", "out", "--config", "./theirs.yaml"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "theirs.yaml: " in said
    if "." not in next(iter(content)):
        assert f"{name}: need a built-in name, got 'mine:" in said
        assert f"give --{name} on the command line" in said
        with pytest.raises(ConfigError, match="no file may choose code"):
            load_config("./theirs.yaml", verb)


def test_the_user_may_name_code(trap):
    arguments = ["--real", "a", "--synthetic", "b", "--out", "c"]
    assert parse_arguments("evaluate", [*arguments, "--features.extractor", "m:f"]).features.extractor == "m:f"
    assert parse_values("evaluate", {"real": "a", "synthetic": "b", "out": "c", "features": {"extractor": "m:f"}})


@pytest.mark.parametrize("name", ["lite0", "inception", "radimagenet"])
def test_a_file_may_name_what_is_built_in(name, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"features:\n  extractor: {name}\n")
    assert load_config(str(tmp_path / "mine.yaml"), "evaluate") == {"features": {"extractor": name}}


EVALUATE = {"real": "a", "synthetic": "{out}/b", "out": "{out}/c"}


@pytest.mark.parametrize(
    ("content", "variables"),
    [
        ({"steps": [{"evaluate": EVALUATE | CODE}]}, {}),
        (
            {
                "variables": {"x": "mine:features"},
                "steps": [{"evaluate": EVALUATE | {"features": {"extractor": "{x}"}}}],
            },
            {},
        ),
        (
            {"variables": {"x": None}, "steps": [{"evaluate": EVALUATE | {"features": {"extractor": "mine:{x}"}}}]},
            {"x": "features"},
        ),
        ({"steps": [{"evaluate": EVALUATE | {"config": "./theirs.yaml"}}]}, {}),
        ({"variables": {"x": None}, "steps": [{"evaluate": EVALUATE | {"config": "{x}"}}]}, {"x": "./theirs.yaml"}),
    ],
)
def test_a_recipe_names_no_code(content, variables, trap, tmp_path):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(CODE))
    with pytest.raises(ConfigError, match=r"features\.extractor: need a built-in name"):
        run_recipe(recipe(tmp_path, content), out=tmp_path / "out", variables=variables)


def test_what_the_user_sets_is_the_users(trap, tmp_path):
    content = {"variables": {"x": None}, "steps": [{"evaluate": EVALUATE | {"features": {"extractor": "{x}"}}}]}
    ((_, options),) = pipeline.plan_recipe(recipe(tmp_path, content), out=tmp_path / "out", variables={"x": "m:f"})
    assert options.features.extractor == "m:f"


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ({"demo": {"out": "/tmp/elsewhere"}}, "demo: out: need a place below"),
        ({"demo": {"out": "~/elsewhere"}}, "demo: out: need a place below"),
        ({"demo": {"out": "elsewhere"}}, "demo: out: need a place below"),
        ({"demo": {"out": "{out}/../elsewhere"}}, "demo: out: need a place below"),
        ({"demo": {"out": "{out}-2"}}, "demo: out: need a place below"),
        ({"demo": {"out": "{out}/link/phantom"}}, "demo: out: need a place below"),
        ({"demo": {"out": "{theirs}"}}, "demo: out: need a place below"),
        (
            {"index": {"scans": "a", "out": "{out}/c.csv", "cache_dir": "/var/tmp"}},
            "index: cache_dir: need a place below",
        ),
        ({"card": {"synthetic": "elsewhere"}}, "card: synthetic: need a place below"),
        ({"card": {"synthetic": "{out}/set", "out": "elsewhere"}}, "card: out: need a place below"),
        ({"index": {"scans": "https://example.org/a", "out": "{out}/c.csv"}}, "got the URL 'https://example.org/a'"),
        ({"evaluate": EVALUATE | {"features": {"weights": "s3://x/w"}}}, "got the URL 's3://x/w'"),
    ],
)
def test_a_recipe_writes_below_its_folder_and_fetches_nothing(step, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path, target_is_directory=True)
    path = recipe(tmp_path, {"variables": {"theirs": None}, "steps": [step]})
    with pytest.raises(ConfigError, match=named):
        run_recipe(path, out=out, variables={"theirs": str(tmp_path / "theirs")})
    assert {each.name for each in tmp_path.iterdir()} == {"out", "recipe.yaml"}
