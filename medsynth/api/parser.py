"""The parser of a verb, made from its options: the command line, YAML files and the Python API pass through it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from medsynth import files
from medsynth.config import CONFIGS, OPTIONS, build_options, did_you_mean, options_of
from medsynth.config.declared import Option, choices_of, describe_kind
from medsynth.errors import ConfigError

_MOST_BITS, _DIGITS = 1000, re.compile(r"\d{300}")
_WRONG_VALUE = re.compile(r'Parser key "(?P<name>[^"]+)":.*?(?:Got value|Given value): (?P<value>.*)', re.DOTALL)


def verb_parser(verb: str) -> ArgumentParser:
    """Return the parser of a verb; errors are raised, not printed."""
    parser = ArgumentParser(prog=f"medsynth {verb}", exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    for option in options_of(OPTIONS[verb]).values():
        parser.add_argument(
            f"--{option.name}", type=option.kind, default=option.default, required=option.required, help=option.help
        )
    return parser


def parse_arguments(verb: str, arguments: Sequence[str]) -> Any:
    """Return the options of a verb from command-line arguments.

    Options win over the files behind `--config`, wherever they stand. Lists may be written with bare commas
    (`--split 0.7,0.15,0.15`), and a switch without a value is true. Raises `ConfigError` for what the verb does not take.
    """
    known = options_of(OPTIONS[verb])
    files, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config" or argument.startswith("--config="):
            name = argument.partition("=")[2] if "=" in argument else next(remaining, "")
            files.append(CONFIGS.find(name))
        else:
            others.append(argument)
    for path in files:
        content = read_yaml(path)
        check_names(content, known, f"{path}: ")
        refuse_code(content, known, f"{path}: ")
    before = ""
    for argument in others:
        name = argument.partition("=")[0].removeprefix("--")
        before = name if argument.startswith("--") else before
        if _DIGITS.search(argument) and before in known:
            raise ConfigError(f"{before}: need {_need(known[before])}, got hundreds of digits; try fewer")
        if argument.startswith("--") and name not in known and name != "print_config":
            raise ConfigError(
                f"{argument.partition('=')[0]}: medsynth {verb} has no such option"
                f"{did_you_mean(name, known).replace('mean ', 'mean --') or f'; see medsynth {verb} --help all'}"
            )
    parser = verb_parser(verb)
    return _parsed(
        verb, lambda: parser.parse_args([*(f"--config={path}" for path in files), *_complete(others, known)]), ""
    )


def parse_values(verb: str, values: Mapping[str, Any], *, source: str = "") -> Any:
    """Return the options of a verb from nested values; `source` begins error messages, such as `mine.yaml: `.

    Groups may be mappings or their dataclasses. Raises `ConfigError` as `parse_arguments` does.
    """
    known = options_of(OPTIONS[verb])
    plain = {
        key: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for key, value in values.items()
    }
    check_names(plain, known, source)
    # A group that is None has its defaults.
    given = {key: value for key, value in plain.items() if value is not None or key in known}
    return _parsed(verb, lambda: verb_parser(verb).parse_object(_with_lists(given, known)), source)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; `ConfigError` for anything else."""
    try:
        content = files.read_yaml(path)
    except ValueError as error:
        raise ConfigError(f"{path}: need readable YAML, got {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: need a mapping of options, got {type(content).__name__}")
    return content


def _parsed(verb: str, parse: Any, source: str) -> Any:
    try:
        values = parse().as_dict()
    except (ArgumentError, yaml.YAMLError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{source}{_explain(str(error), verb)}") from error
    values.pop("config", None)
    return build_options(OPTIONS[verb], values)


def _explain(message: str, verb: str) -> str:
    """Return the parser's reason as one line: for a wrong value, what the option takes and what it got."""
    known = options_of(OPTIONS[verb])
    found = _WRONG_VALUE.search(message)
    option = known.get(found["name"]) if found else None
    if found and option is not None:
        value = found["value"].strip().partition("\n")[0]
        hint = did_you_mean(value, choices_of(option.kind)) or f"; see medsynth {verb} --help all"
        return f"{option.name}: need {_need(option)}, got {value[:100]!r}{hint}"
    missing = message.rpartition("are required: ")[2] if "are required: " in message else ""
    if missing:
        return f"{missing}: need a value; see medsynth {verb} --help"
    return f"{' '.join(message.split())}; see medsynth {verb} --help"


def _need(option: Option) -> str:
    return describe_kind(option.kind, option.bounds)


def _has_huge(value: Any) -> bool:
    """Return whether a value holds a whole number that no float can: Python refuses to convert it, or to show it."""
    if isinstance(value, list | tuple | Mapping):
        return any(map(_has_huge, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, int) and value.bit_length() > _MOST_BITS


def check_names(values: Mapping[Any, Any], known: Mapping[str, Option], source: str, prefix: str = "") -> None:
    """Raise `ConfigError` for a name that is no option, or a group that is no mapping."""
    groups = {option.group for option in known.values()}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or (name not in known and name not in groups):
            hint = did_you_mean(name, known) or "; see the verb's --help all"
            raise ConfigError(f"{source}{name}: no such option{hint}")
        if name in groups and isinstance(value, Mapping):
            check_names(value, known, source, f"{name}.")
        elif name in groups and value is not None:
            raise ConfigError(f"{source}{name}: need options as `name: value`, got {str(value)[:100]!r}")
        elif name in known and _has_huge(value):
            raise ConfigError(f"{source}{name}: need {_need(known[name])}, got a number of hundreds of digits")


def refuse_code(values: Mapping[Any, Any], known: Mapping[str, Option], source: str, prefix: str = "") -> None:
    """Raise `ConfigError` for a value in a file that names code, which would run: only the user may choose it."""
    for key, value in values.items():
        option = known.get(f"{prefix}{key}")
        if option is not None and option.names_code(value):
            raise ConfigError(
                f"{source}{option.name}: need a built-in name, got {str(value)[:100]!r}, which is code, and no file may choose "
                f"code; if you trust it, give --{option.name} on the command line"
            )
        if option is None and isinstance(value, Mapping):
            refuse_code(value, known, source, f"{prefix}{key}.")


def _with_lists(values: Mapping[str, Any], known: Mapping[str, Option], prefix: str = "") -> dict[str, Any]:
    """Return the values with lists as the parser takes them: tuples become lists, and text with commas becomes one."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        option = known.get(f"{prefix}{key}")
        if isinstance(value, Mapping) and option is None:
            found[key] = _with_lists(value, known, f"{prefix}{key}.")
        elif option is not None and option.is_list and isinstance(value, str):
            found[key] = yaml.safe_load(_bracketed(value, option))
        elif (
            option is not None
            and get_origin(option.kind) is tuple
            and value is not None
            and not isinstance(value, list | tuple)
        ):
            found[key] = [value]
        else:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def _complete(arguments: Sequence[str], known: Mapping[str, Option]) -> list[str]:
    """Return arguments with lists in brackets and values behind bare switches, as the parser wants them."""
    completed: list[str] = []
    for place, argument in enumerate(arguments):
        name, separator, value = argument.removeprefix("--").partition("=")
        option = known.get(name) if argument.startswith("--") else None
        before = known.get(arguments[place - 1].removeprefix("--")) if place and option is None else None
        if option and option.kind is bool and not separator and [*arguments, "--"][place + 1].startswith("--"):
            completed.append(f"{argument}=true")
        elif option and separator and option.is_list:
            completed.append(f"--{name}={_bracketed(value, option)}")
        elif before and before.is_list and not argument.startswith("--"):
            completed.append(_bracketed(argument, before))
        else:
            completed.append(argument)
    return completed


def _bracketed(value: str, option: Option) -> str:
    """Return a list in brackets, text in quotes; a lone value stays as it is where an option takes that, too."""
    kinds = [part for part in (option.kind, *get_args(option.kind)) if get_origin(part) is tuple]
    if value.lstrip().startswith("[") or (option.kind not in kinds and "," not in value):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    numbers = get_args(kinds[0])[0] in (int, float, bool)
    return f"[{', '.join(part if numbers else json.dumps(part) for part in parts)}]"
