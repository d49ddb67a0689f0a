"""Recipes from `pipelines/`: verbs in order, each with the options that it has on the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medsynth.api import VERBS, run_verb
from medsynth.api.parser import check_names, parse_values, read_yaml, refuse_code
from medsynth.config import CONFIGS, OPTIONS, PIPELINES, did_you_mean, options_of
from medsynth.config.declared import Option
from medsynth.errors import ConfigError
from medsynth.files import one_writer

_URL = re.compile(r"[a-z][a-z0-9+.\-]+://", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


def load_config(name: str, verb: str = "train") -> dict[str, Any]:
    """Return the options in a configuration, by name or path, as keywords of a verb.

    `medsynth.train(**medsynth.load_config("chest_xray_2d"), cohort="cohort.csv", out="run")`
    """
    path = CONFIGS.find(name)
    given = read_yaml(path)
    known = options_of(OPTIONS[verb])
    check_names(given, known, f"{path}: ")
    refuse_code(given, known, f"{path}: ")
    missing = {option.name: "1" for option in known.values() if option.required and option.name not in given}
    parse_values(verb, missing | given, source=f"{path}: ")
    return given


def describe_recipe(recipe: str) -> str:
    """Return a recipe's description and its variables, for help."""
    content = read_yaml(PIPELINES.find(recipe))
    variables = ", ".join(
        f"{name}={'...' if value is None else value}" for name, value in _variables(content, recipe).items()
    )
    return f"{content.get('description', '')} {f'Variables: {variables}.' if variables else ''}".strip()


def run_recipe(recipe: str, *, out: Path | str, variables: Mapping[str, str] | None = None) -> list[tuple[str, Any]]:
    """Run a recipe, by name or path, and return its verbs with their results.

    Called again, training and sampling continue where they stopped. Raises `ConfigError` as `plan_recipe` does, before the first
    verb runs.
    """
    prepared = plan_recipe(recipe, out=out, variables=variables)
    results = []
    with one_writer(out):
        for number, (verb, options) in enumerate(prepared, start=1):
            print(f"\n[{number}/{len(prepared)}] medsynth {verb}", file=sys.stderr, flush=True)
            results.append((verb, run_verb(verb, options)))
    return results


def plan_recipe(recipe: str, *, out: Path | str, variables: Mapping[str, str] | None = None) -> list[tuple[str, Any]]:
    """Return the verbs of a recipe, by name or path, each with its options; nothing runs.

    `{out}` in the recipe stands for the output folder, other names in braces for its variables. Raises `ConfigError` for an
    unknown recipe, verb or option, a variable without a value, a training with several processes, each of which would repeat
    the whole recipe, and for what no file may choose: code, URLs, and places to write outside of `out`.
    """
    path = PIPELINES.find(recipe)
    content = read_yaml(path)
    sections = ("description", "variables", "steps")
    if unknown := sorted(content.keys() - set(sections)):
        raise ConfigError(f"{path.name}: need description, variables and steps, got {unknown[0]!r}; remove it")
    known = _variables(content, path.name)
    given = dict(variables or {})
    if unknown := sorted(given.keys() - known.keys()):
        raise ConfigError(
            f"{path.name}: has no variable {unknown[0]}, only {', '.join(known) or 'none'}{did_you_mean(unknown[0], known)}"
        )
    values = {**known, **given, "out": str(out)}
    if missing := sorted(name for name, value in values.items() if value is None):
        raise ConfigError(f"{path.name}: need a value for {', '.join(missing)}; try --set {missing[0]}=...")
    steps = content.get("steps")
    if not isinstance(steps, list) or not steps:
        raise ConfigError(f"{path.name}: need `steps`, a list of verbs with their options, got {steps!r}")
    return [
        _plan_step(step, f"{path.name}: step {number}", values, {*given}) for number, step in enumerate(steps, start=1)
    ]


def _plan_step(step: Any, where: str, values: Mapping[str, Any], given: set[str]) -> tuple[str, Any]:
    """Return verb and options of a step; `given` are the variables whose values the user chose."""
    if not isinstance(step, dict) or len(step) != 1 or not isinstance(next(iter(step.values())), dict):
        raise ConfigError(f"{where}: need one verb with its options, got {step!r}; try verb: {{...}}")
    ((verb, options),) = step.items()
    if verb not in VERBS:
        raise ConfigError(f"{where}: {verb!r} is no verb{did_you_mean(str(verb), VERBS) or '; see medsynth --help'}")
    if options.get("devices", 1) != 1 and verb in ("train", "distill"):
        raise ConfigError(f"{where}: a recipe trains in one process, got devices {options['devices']}; call the verbs")
    source, known = f"{where}: {verb}: ", options_of(OPTIONS[verb])
    refuse_code(_fill(options, {**values, **dict.fromkeys(given)}, where), known, source)
    filled = _fill(options, values, where)
    if url := next((text for text in _texts(filled) if _URL.match(text)), None):
        raise ConfigError(f"{source}need files on this machine, got the URL {url[:100]!r}; download it first")
    if name := filled.pop("config", None):
        file = CONFIGS.find(str(name))
        refuse_code(content := read_yaml(file), known, f"{file}: ")
        filled = _merge(content, filled)
    parsed = parse_values(verb, filled, source=source)
    _check_places(parsed, known, source, Path(values["out"]))
    return verb, parsed


def _check_places(options: Any, known: Mapping[str, Option], source: str, out: Path) -> None:
    """Raise `ConfigError` if a verb would write outside of `out`."""
    written = {name: getattr(options, name) for name, option in known.items() if option.is_written}
    if written.get("out", "") is None and hasattr(options, "synthetic"):  # a card goes to its set
        written["synthetic"] = options.synthetic
    for name, place in written.items():
        if place is not None and not Path(place).resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"{source}{name}: need a place below {out}, where a recipe may write, got {str(place)[:200]!r}; try "
                f"{{out}}/{Path(place).name}"
            )


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in the options of a step."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def _variables(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    variables = content.get("variables") or {}
    if not isinstance(variables, dict):
        raise ConfigError(f"{where}: need `variables` as names with values, got {type(variables).__name__}")
    return variables


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
            raise ConfigError(f"{where}: {value!r} names an unknown variable {match[1]}; try {', '.join(values)}")
        return str(values[match[1]])

    return _PLACEHOLDER.sub(replace, value)


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
