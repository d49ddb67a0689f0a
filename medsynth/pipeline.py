"""Recipes from `pipelines/`: verbs in order, each with the options it has on the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from medsynth.api import VERBS
from medsynth.config import CONFIGS, PIPELINES
from medsynth.errors import ConfigError

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_MOST_VALUES = 100_000  # of a file of options; a few references to references make more than memory holds
# The parser would import what these name, and with it run a module: no file may say so.
_IMPORTS = {"class_path", "init_args", "dict_kwargs"}


def verb_parser(verb: str, **settings: Any) -> ArgumentParser:
    """Return the parser of one verb, made from its signature and docstring; `settings` go to `ArgumentParser`."""
    parser = ArgumentParser(**settings)
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="Name of a shipped configuration, or path of a YAML file with options.",
    )
    parser.add_function_arguments(VERBS[verb], as_positional=False, sub_configs=False)
    return parser


def resolve_config(arguments: list[str]) -> list[str]:
    """Return the arguments with the files behind `--config` names, first of all, so that options win wherever they stand."""
    configs, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument.startswith("--config="):
            configs.append(f"--config={CONFIGS.find(argument.removeprefix('--config='))}")
        elif argument == "--config" and (name := next(remaining, None)) is not None:
            configs.append(f"--config={CONFIGS.find(name)}")
        else:
            others.append(argument)
    return configs + others


def parse_verb(parser: ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    """Return the keyword arguments of a verb from command-line arguments; `ConfigError` for what it does not know.

    Lists may be written with bare commas (`--split 0.7,0.15,0.15`), and a switch without a value is true.
    """
    resolved = resolve_config(arguments)
    for argument in resolved:
        if argument.startswith("--config="):
            path = Path(argument.removeprefix("--config="))
            _check_groups(parser, _read_yaml(path), str(path))
    try:
        namespace = parser.parse_args(_complete(parser, resolved))
        instances = parser.instantiate_classes(namespace)
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        # The parser's tips follow on lines of their own.
        raise ConfigError(f"{str(error).strip().splitlines()[0]}; try {parser.prog} --help") from error
    return {key: value for key, value in instances.as_dict().items() if key != "config"}


def _complete(parser: ArgumentParser, arguments: list[str]) -> list[str]:
    """Arguments with lists in brackets and values behind bare switches, as the parser wants them."""
    kinds = {
        option: getattr(action, "_typehint", None) for action in parser._actions for option in action.option_strings
    }
    completed: list[str] = []
    for place, argument in enumerate(arguments):
        option, separator, value = argument.partition("=")
        before = completed[-1] if completed else ""
        if kinds.get(option) is bool and not separator and [*arguments, "--"][place + 1].startswith("--"):
            completed.append(f"{option}=true")
        elif separator and _is_list(kinds.get(option)):
            completed.append(f"{option}={_bracketed(value, kinds[option])}")
        elif _is_list(kinds.get(before)) and not argument.startswith("--"):
            completed.append(_bracketed(argument, kinds[before]))
        else:
            completed.append(argument)
    return completed


def _is_list(kind: Any) -> bool:
    return any(get_origin(part) in (tuple, list, Sequence) for part in (kind, *get_args(kind)))


def _bracketed(value: str, kind: Any) -> str:
    single = get_origin(kind) not in (tuple, list, Sequence) and "," not in value  # a lone number where lists may stand
    return value if single or value.lstrip().startswith("[") else f"[{value}]"


def load_config(name: str, verb: str = "train") -> dict[str, Any]:
    """Return the options in a configuration, by name or path, as keyword arguments of a verb.

    `medsynth.train(**medsynth.load_config("chest_xray_2d"), cohort="cohort.csv", out="run")`
    """
    path = CONFIGS.find(name)
    given = _read_yaml(path)
    parser = verb_parser(verb, exit_on_error=False)
    required = {
        key: "-"
        for key in ("cohort", "out", "run", "real", "synthetic", "scans", "count", "report")
        if _takes(verb, key)
    }
    values = _parse_object(parser, required | given, str(path))
    return {key: values[key] for key in dict.fromkeys(name.split(".")[0] for name in given)}


def describe_recipe(recipe: str) -> str:
    """Return a recipe's description and its variables, for help."""
    content = _read_yaml(PIPELINES.find(recipe))
    variables = ", ".join(
        f"{name}={'...' if value is None else value}" for name, value in _variables(content, recipe).items()
    )
    return f"{content.get('description', '')} {f'Variables: {variables}.' if variables else ''}".strip()


def run_recipe(recipe: str, *, out: Path | str, variables: Mapping[str, str] | None = None) -> list[tuple[str, Any]]:
    """Run a recipe, by name or path, and return its verbs with what they returned.

    Called again, training and sampling continue where they stopped. Raises `ConfigError` as `plan_recipe` does, before the first
    verb runs.
    """
    prepared = plan_recipe(recipe, out=out, variables=variables)
    results = []
    for number, (verb, options) in enumerate(prepared, start=1):
        print(f"\n[{number}/{len(prepared)}] medsynth {verb}", file=sys.stderr, flush=True)
        results.append((verb, VERBS[verb](**options)))
    return results


def plan_recipe(
    recipe: str, *, out: Path | str, variables: Mapping[str, str] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Return the verbs of a recipe, by name or path, each with its keyword arguments; nothing runs.

    `{out}` in the recipe stands for the output folder, other names in braces for its variables. Raises `ConfigError` for an
    unknown recipe, verb or option, a variable without a value, or a training with several processes, whose other processes
    would repeat the whole recipe.
    """
    path = PIPELINES.find(recipe)
    content = _read_yaml(path)
    if unknown_keys := sorted(content.keys() - {"description", "variables", "steps"}):
        raise ConfigError(
            f"{path.name}: need description, variables and steps, got {unknown_keys[0]!r}; try removing it"
        )
    known = _variables(content, path.name)
    given = dict(variables or {})
    if unknown := sorted(given.keys() - known.keys()):
        raise ConfigError(f"{path.name}: need one of its variables {', '.join(known) or '(none)'}; got {unknown[0]}")
    values = {**known, **given, "out": str(out)}
    if missing := sorted(name for name, value in values.items() if value is None):
        raise ConfigError(f"{path.name}: need a value for {', '.join(missing)}; try --set {missing[0]}=...")
    steps = content.get("steps")
    if not isinstance(steps, list) or not steps:
        raise ConfigError(f"{path.name}: need `steps`, a list of verbs with their options, got {steps!r}")
    prepared = []
    for number, step in enumerate(steps, start=1):
        if not isinstance(step, dict) or len(step) != 1 or not isinstance(next(iter(step.values())), dict):
            raise ConfigError(
                f"{path.name}: step {number}: need one verb with its options, got {step!r}; try verb: {{...}}"
            )
        ((verb, options),) = step.items()
        if verb not in VERBS:
            raise ConfigError(f"{path.name}: need one of the verbs {', '.join(VERBS)}; got {verb!r}")
        if verb == "train" and options.get("devices", 1) != 1:
            raise ConfigError(
                f"{path.name}: step {number}: need devices: 1 in a recipe, got {options['devices']}; try the verbs"
            )
        prepared.append((verb, _step_options(verb, _fill(options, values, path.name), path.name)))
    return prepared


def _variables(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    variables = content.get("variables") or {}
    if not isinstance(variables, dict):
        raise ConfigError(f"{where}: need `variables` as names with values, got {type(variables).__name__}")
    return variables


def _step_options(verb: str, options: dict[str, Any], where: str) -> dict[str, Any]:
    name = options.pop("config", None)
    merged = _merge(_read_yaml(CONFIGS.find(name)), options) if name else options
    return _parse_object(verb_parser(verb, exit_on_error=False), merged, f"{where}: {verb}")


def _parse_object(parser: ArgumentParser, options: dict[str, Any], where: str) -> dict[str, Any]:
    _check_groups(parser, options, where)
    try:
        instances = parser.instantiate_classes(parser.parse_object(options))
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: need options of this verb, got a problem: {reason}") from error
    return {key: value for key, value in instances.as_dict().items() if key != "config"}


def _check_groups(parser: ArgumentParser, options: Mapping[Any, Any], where: str, prefix: str = "") -> None:
    """Raise `ConfigError` where a file gives a group of options as anything but a mapping of just these options.

    The parser takes the name of a class as well, imports it, and only then refuses it.
    """
    groups = {action.dest.rsplit(".", 1)[0] for action in parser._actions if "." in action.dest}
    groups |= {group.rsplit(".", 1)[0] for group in groups}
    for key, value in options.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or name == "config" or name.rsplit(".", 1)[-1] in _IMPORTS:
            raise ConfigError(f"{where}: need options of this verb, got {name!r}; try removing it")
        if isinstance(value, Mapping):
            _check_groups(parser, value, where, f"{name}.")
        elif name in groups:
            raise ConfigError(f"{where}: {name}: need options as `name: value`, got {str(value)[:100]!r}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: need readable YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: need a mapping of options, got {type(content).__name__}")
    if _extent(content, {}) > _MOST_VALUES:
        raise ConfigError(f"{path}: need at most {_MOST_VALUES} values, got more by references; try writing them out")
    return content


def _extent(value: Any, known: dict[int, float]) -> float:
    """Return how many values a YAML document has with every reference written out; infinite where one holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")
        children = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_extent(child, known) for child in children)
    return known[id(value)]


def _fill(value: Any, values: Mapping[str, Any], where: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, values, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values, where) for item in value]
    if not isinstance(value, str):
        return value
    if (whole := _PLACEHOLDER.fullmatch(value)) and whole[1] in values:
        return values[whole[1]]

    def replace(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ConfigError(f"{where}: need a known variable in {value!r}, got {match[1]}; try {', '.join(values)}")
        return str(values[match[1]])

    return _PLACEHOLDER.sub(replace, value)


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _takes(verb: str, option: str) -> bool:
    return option in (VERBS[verb].__kwdefaults__ or {}) or option in VERBS[verb].__annotations__
