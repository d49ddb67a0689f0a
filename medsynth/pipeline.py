"""Recipes from `pipelines/`: verbs in order, each with the options it has on the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from medsynth import api
from medsynth.config import CONFIGS, PIPELINES
from medsynth.errors import ConfigError

VERBS: dict[str, Callable[..., Any]] = {
    "demo": api.demo,
    "index": api.index,
    "train": api.train,
    "sample": api.sample,
    "evaluate": api.evaluate,
}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


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
    """Return the arguments with the names behind `--config` replaced by the paths of their files."""
    resolved = list(arguments)
    for place, argument in enumerate(resolved):
        if argument.startswith("--config="):
            resolved[place] = f"--config={CONFIGS.find(argument.removeprefix('--config='))}"
        elif argument == "--config" and place + 1 < len(resolved):
            resolved[place + 1] = str(CONFIGS.find(resolved[place + 1]))
    return resolved


def parse_verb(parser: ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    """Return the keyword arguments of a verb from command-line arguments."""
    namespace = parser.parse_args(resolve_config(arguments))
    instances = parser.instantiate_classes(namespace)
    return {key: value for key, value in instances.as_dict().items() if key != "config"}


def load_config(name: str, verb: str = "train") -> dict[str, Any]:
    """Return the options in a configuration, by name or path, as keyword arguments of a verb.

    `medsynth.train(**medsynth.load_config("chest_xray_2d"), cohort="cohort.csv", out="run")`
    """
    path = CONFIGS.find(name)
    given = _read_yaml(path)
    parser = verb_parser(verb, exit_on_error=False)
    required = {
        key: "-" for key in ("cohort", "out", "run", "real", "synthetic", "scans", "count") if _takes(verb, key)
    }
    values = _parse_object(parser, required | given, str(path))
    return {key: values[key] for key in given}


def run_recipe(recipe: str, *, out: Path | str, variables: Mapping[str, str] | None = None) -> list[Any]:
    """Run a recipe, by name or path, and return what its verbs returned.

    `{out}` in the recipe stands for the output folder, other names in braces for its variables. Steps that find their
    work done do not repeat it. Raises `ConfigError` for an unknown recipe, verb, option or a variable without a value.
    """
    path = PIPELINES.find(recipe)
    content = _read_yaml(path)
    known = content.get("variables") or {}
    given = dict(variables or {})
    if unknown := sorted(given.keys() - known.keys()):
        raise ConfigError(f"{path.name}: need one of its variables {', '.join(known) or '(none)'}; got {unknown[0]}")
    values = {**known, **given, "out": str(out)}
    if missing := sorted(name for name, value in values.items() if value is None):
        raise ConfigError(f"{path.name}: need a value for {', '.join(missing)}; try --set {missing[0]}=...")
    steps = content.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) and len(step) == 1 for step in steps):
        raise ConfigError(f"{path.name}: need `steps`, a list with one verb each, got {type(steps).__name__}")
    prepared = []
    for step in steps:
        ((verb, options),) = step.items()
        if verb not in VERBS:
            raise ConfigError(f"{path.name}: need one of the verbs {', '.join(VERBS)}; got {verb!r}")
        prepared.append((verb, _step_options(verb, _fill(options or {}, values, path.name), path.name)))
    results = []
    for number, (verb, options) in enumerate(prepared, start=1):
        print(f"\n[{number}/{len(prepared)}] medsynth {verb}", file=sys.stderr, flush=True)
        results.append(VERBS[verb](**options))
    return results


def _step_options(verb: str, options: dict[str, Any], where: str) -> dict[str, Any]:
    name = options.pop("config", None)
    merged = _merge(_read_yaml(CONFIGS.find(name)), options) if name else options
    return _parse_object(verb_parser(verb, exit_on_error=False), merged, f"{where}: {verb}")


def _parse_object(parser: ArgumentParser, options: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        instances = parser.instantiate_classes(parser.parse_object(options))
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: need options of this verb, got a problem: {reason}") from error
    return {key: value for key, value in instances.as_dict().items() if key != "config"}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: need readable YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: need a mapping of options, got {type(content).__name__}")
    return content


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
