"""The command line: finds the verb, parses its options, and turns every expected error into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import sys
import textwrap
from collections import Counter
from importlib.metadata import version
from typing import Any

from medsynth.errors import ConfigError, GateError, MedsynthError

# What the verbs are for; `medsynth --help` shows them in this order.
_JOBS = {
    "everything at once": ("run",),
    "your scans": ("demo", "index"),
    "models and synthetic scans": ("train", "distill", "sample", "edit"),
    "evaluation and hand-over": ("evaluate", "augment", "card"),
    "the installation": ("configs", "doctor", "completion"),
}
_EPILOG = """\
example, with your own scans:
  medsynth index --scans scans/ --labels labels.csv --out cohort.csv
  medsynth train --config chest_xray_2d --cohort cohort.csv --out run
  medsynth sample --run run --count viral_pneumonia=400,normal=100 --out synthetic
  medsynth evaluate --real cohort.csv --synthetic synthetic --run run --out report
  medsynth augment --real cohort.csv --synthetic synthetic --report report --out augmented/cohort.csv
  medsynth card --synthetic synthetic --report report --source our_scans.yaml

Help on a verb: medsynth VERB --help, with every option: medsynth VERB --help all.
Exit codes: 0 done, 2 usage or configuration, 3 data refused, 4 gate failed, 130 interrupted.
Everything that medsynth generates is synthetic and must not be used for diagnosis."""
_OTHERS = {
    "run": "Run a recipe from end to end, such as `medsynth run quickstart --out quickstart`.",
    "configs": "List the configurations of `medsynth train` and the recipes of `medsynth run`.",
    "completion": "Print what makes your shell complete verbs and options: `source <(medsynth completion)`.",
}
_RUN_MORE = """\
A recipe is a YAML file with verbs in order, each with the options that it has on the command line. The whole file is checked
before the first verb runs. The same command continues an interrupted recipe."""
_RUN_EXAMPLE = """\
example:
  medsynth run chest_xray_2d --out work --set scans=chest_xray --set labels=chest_xray/labels.csv"""
# How torch reports it, on a CPU and on a GPU.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
_COMPLETION = """\
# bash; zsh: put `autoload -U +X bashcompinit && bashcompinit` before it
complete -o default -C "medsynth --complete" medsynth"""


def run_command(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        return _dispatch(arguments)
    except MedsynthError as error:
        print(f"medsynth: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 0
    except OSError as error:
        print(f"medsynth: {_explain(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        print("medsynth: memory: need more than is free; try a smaller grid, batch_size or network", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\nmedsynth: interrupted {interrupt}".rstrip(), file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    from medsynth.config import OPTIONS, did_you_mean

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _top_parser().print_help()
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        print(f"medsynth {version('medsynth-diffusion')}")
    elif verb == "--complete":
        print("\n".join(_complete(os.environ.get("COMP_LINE", ""), rest)))
    elif verb == "completion":
        print(_COMPLETION)
    elif verb == "configs":
        print(_list_files())
    elif verb == "run":
        return _run(rest)
    elif verb not in OPTIONS:
        hint = did_you_mean(verb, [*OPTIONS, *_OTHERS]) or "; see medsynth --help"
        raise ConfigError(f"{verb}: no such verb{hint}")
    elif {"-h", "--help"} & {*rest}:
        from medsynth.api.manual import format_help

        print(format_help(verb, everything="all" in rest), end="")
    else:
        return _run_verb(verb, rest)
    return 0


def _run_verb(verb: str, arguments: list[str]) -> int:
    from medsynth.api import run_verb
    from medsynth.api.parser import parse_arguments
    from medsynth.processes import is_first_process

    result = run_verb(verb, parse_arguments(verb, arguments))
    if is_first_process():
        print(_describe(verb, result))
    return _exit_code(verb, result)


def _run(arguments: list[str]) -> int:
    from medsynth.pipeline import run_recipe

    options = run_parser().parse_args(arguments)
    variables = {}
    for part in options.set:
        name, separator, value = part.partition("=")
        if not separator:
            raise ConfigError(f"set: need NAME=VALUE, got {part!r}; try --set scans=folder")
        variables[name.strip()] = value.strip()
    results = run_recipe(options.recipe, out=options.out, variables=variables)
    print(
        "\n".join(["", *dict.fromkeys(_describe(*result) for result in results if result[0] in ("evaluate", "card"))])
    )
    return max(_exit_code(verb, result) for verb, result in results)


def run_parser() -> argparse.ArgumentParser:
    """Return the parser of `medsynth run`."""
    parser = argparse.ArgumentParser(
        prog="medsynth run",
        description=f"{_OTHERS['run']}\n\n{_RUN_MORE}\n\nRecipes: see medsynth configs.",
        epilog=_RUN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="Name of a shipped recipe, or path of a YAML file.")
    parser.add_argument("--out", required=True, help="Folder for all results. (required)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="Value of a variable of the recipe; repeatable.",
    )
    return parser


def _exit_code(verb: str, result: Any) -> int:
    """Return 4 where the privacy gate failed (the report is written) and 2 for an installation that must not be used."""
    if verb == "doctor" and result.problems:
        return ConfigError.exit_code
    return GateError.exit_code if verb == "evaluate" and result.gate_failed else 0


def _top_parser() -> argparse.ArgumentParser:
    from medsynth.config import OPTIONS
    from medsynth.config.declared import manual_of

    summaries = {verb: manual_of(cls)[0] for verb, cls in OPTIONS.items()} | _OTHERS
    width = min(110, shutil.get_terminal_size().columns)
    text = (
        "Train diffusion models on medical scans, generate scans of rare conditions, and measure what they are worth."
    )
    for job, verbs in _JOBS.items():
        text += f"\n\n{job}:"
        for verb in verbs:
            entry = textwrap.fill(summaries[verb], width, initial_indent=f"  {verb:<11}", subsequent_indent=" " * 13)
            text += f"\n{entry}"
    return argparse.ArgumentParser(
        prog="medsynth",
        usage="medsynth VERB [options]",
        description=text,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )


def _list_files() -> str:
    """Return the shipped configurations and recipes, a line each."""
    from medsynth.config import CONFIGS, PIPELINES
    from medsynth.pipeline import describe_recipe

    lines = ["configurations (medsynth train --config NAME):"]
    for name in CONFIGS.names():
        first = CONFIGS.find(name).read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"  {name:<15} {first.removeprefix('#').strip()}")
    lines += ["", "recipes (medsynth run NAME --out FOLDER --set NAME=VALUE):"]
    lines += [f"  {name:<15} {describe_recipe(name)}" for name in PIPELINES.names()]
    return "\n".join(lines)


def _complete(line: str, words: list[str]) -> list[str]:
    """Return what the word under the cursor can become, as bash's `complete -C` asks: verbs, options, shipped names, choices."""
    from medsynth.config import CONFIGS, OPTIONS, PIPELINES, options_of
    from medsynth.config.declared import choices_of

    typed = line.split()
    current, before = (words[1], words[2]) if len(words) == 3 else ("", "")
    verb = typed[1] if len(typed) > 1 else ""
    if before == "medsynth":
        candidates = [*OPTIONS, *_OTHERS]
    elif verb == "run":
        candidates = ["--out", "--set"] if current.startswith("-") else PIPELINES.names() if before == "run" else []
    elif before == "--config":
        candidates = CONFIGS.names()
    elif verb in OPTIONS:
        known = options_of(OPTIONS[verb])
        option = known.get(before.removeprefix("--"))
        wants_value = option is not None and not current.startswith("-")
        candidates = (
            choices_of(option.kind) if option and wants_value else [f"--{name}" for name in known] + ["--config"]
        )
    else:
        candidates = []
    return [each for each in candidates if each.startswith(current)]


def _describe(verb: str, result: Any) -> str:
    """Return what a verb says when it is done: one sentence of result, and the next command."""
    if verb in ("sample", "edit"):
        counts = ", ".join(f"{count} {label}" for label, count in Counter(row.label for row in result.rows).items())
        likeness = " and resembles its donor" if verb == "edit" else ""
        return (
            f"{result.folder / 'cohort.csv'}: {counts}; every scan is synthetic{likeness}\n"
            f"next: medsynth evaluate --real cohort.csv --synthetic {result.folder} --run RUN --out report"
        )
    if verb == "demo":
        cohort = result.folder / "cohort.csv"
        return f"{result.table()}\nnext: medsynth train --config phantom_2d --cohort {cohort} --out run"
    return str(result.summary())


def _explain(error: OSError) -> str:
    """Return one line for what the file system refused."""
    if error.errno == errno.ENOSPC:
        return f"{error.filename or 'disk'}: the disk is full; free some space, then repeat the command"
    return f"{error.filename or 'file'}: cannot be read or written: {error.strerror or error}"
