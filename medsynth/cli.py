"""The command line: finds the verb, parses its options, and turns every expected error into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
import textwrap
from collections import Counter
from importlib.metadata import version
from typing import Any

from medsynth.errors import ConfigError, GateError, MedsynthError

# What the verbs are for; `medsynth --help` shows them in this order.
_JOBS = {
    "the whole job": ("run",),
    "scans in": ("demo", "index"),
    "models and synthetic scans": ("train", "distill", "sample", "edit"),
    "proof and hand-over": ("select", "evaluate", "augment", "card"),
    "the installation": ("doctor", "fetch"),
}
_EPILOG = """\
example, on scans of your own:
  medsynth index --scans scans/ --labels labels.csv --out cohort.csv
  medsynth train --config chest_xray_2d --cohort cohort.csv --out run
  medsynth sample --run run --count viral_pneumonia=400,normal=100 --out synthetic
  medsynth evaluate --real cohort.csv --synthetic synthetic --run run --out report
  medsynth augment --real cohort.csv --synthetic synthetic --report report --out augmented/cohort.csv
  medsynth card --synthetic synthetic --report report

`medsynth VERB --help` is the manual page of a verb. Exit codes: 0 done, 2 usage or configuration, 3 data refused, 4 gate
failed, 130 interrupted. Everything that medsynth generates is synthetic and must not be used for diagnosis."""

_EXAMPLES = {
    "demo": "medsynth demo --out phantom --scans 400",
    "index": "medsynth index --scans scans/ --labels labels.csv --columns.label finding --out cohort.csv",
    "train": "medsynth train --config chest_xray_2d --cohort cohort.csv --out run --max_steps 20000",
    "distill": "medsynth distill --run run --cohort cohort.csv --out quick",
    "sample": "medsynth sample --run run --count viral_pneumonia=400,normal=100 --out synthetic --format nifti",
    "edit": "medsynth edit --run run --cohort cohort.csv --donor_class bacterial_pneumonia --target_class viral_pneumonia "
    "--count 400 --out edited",
    "select": "medsynth select --real cohort.csv --synthetic synthetic --run run --out selected --share 0.75",
    "evaluate": "medsynth evaluate --real cohort.csv --synthetic synthetic --run run --out report",
    "augment": "medsynth augment --real cohort.csv --synthetic synthetic --report report --out augmented/cohort.csv",
    "card": "medsynth card --synthetic synthetic --report report --source source.yaml",
    "fetch": "medsynth fetch --url https://... --sha256 ... --out inception.pth",
    "doctor": "medsynth doctor > report.txt",
}
_RUN_SUMMARY = (
    "Run a recipe from end to end; `medsynth run quickstart --out quickstart` needs nothing but this command."
)
_RUN_DESCRIPTION = """\
A recipe is a YAML file with verbs in order, each with the options that it has on the command line. It is checked as a
whole before the first verb runs; run again, it goes on where it stopped."""
_RUN_EXAMPLE = """\
example: medsynth run chest_xray_2d --out work --set scans=chest_xray --set labels=chest_xray/labels.csv"""


def run_command(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        return _dispatch(arguments)
    except MedsynthError as error:
        print(f"medsynth: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"medsynth: {_explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\nmedsynth: interrupted {interrupt}".rstrip(), file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    from medsynth.api import VERBS
    from medsynth.api.manual import ManualFormatter, arrange_manual
    from medsynth.config import CONFIGS
    from medsynth.pipeline import parse_verb, verb_parser
    from medsynth.processes import is_first_process

    summaries = {verb: _first_line(function.__doc__) for verb, function in VERBS.items()} | {"run": _RUN_SUMMARY}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _top_parser(summaries).print_help()
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        print(f"medsynth {version('medsynth-diffusion')}")
        return 0
    if verb == "run":
        return _run(rest)
    if verb not in VERBS:
        print(f"medsynth: {verb}: need one of {', '.join(summaries)}; try medsynth --help", file=sys.stderr)
        return 2
    parser = verb_parser(verb, exit_on_error=False, prog=f"medsynth {verb}", formatter_class=ManualFormatter)
    configurations = CONFIGS.names() if verb == "train" else ()
    arrange_manual(parser, VERBS[verb], example=_EXAMPLES[verb], configurations=configurations)
    result = VERBS[verb](**parse_verb(parser, rest))
    if is_first_process():
        print(_describe(verb, result))
    return _exit_code(verb, result)


def _run(arguments: list[str]) -> int:
    from medsynth.pipeline import run_recipe

    parser = _run_parser(with_recipes=bool({"-h", "--help"} & {*arguments}))
    options = parser.parse_args(arguments)
    variables = {}
    for part in options.set:
        name, separator, value = part.partition("=")
        if not separator:
            raise ConfigError(f"set: need NAME=VALUE, got {part!r}; try --set scans=folder")
        variables[name.strip()] = value.strip()
    results = run_recipe(options.recipe, out=options.out, variables=variables)
    print(_describe(*results[-1]))
    return max(_exit_code(verb, result) for verb, result in results)


def _run_parser(*, with_recipes: bool) -> argparse.ArgumentParser:
    from medsynth.config import PIPELINES
    from medsynth.pipeline import describe_recipe

    recipes = ""
    if with_recipes:
        width = min(110, shutil.get_terminal_size().columns)
        recipes = "\n\nrecipes:\n" + "\n".join(
            textwrap.fill(describe_recipe(name), width, initial_indent=f"  {name:<15}", subsequent_indent=" " * 17)
            for name in PIPELINES.names()
        )
    parser = argparse.ArgumentParser(
        prog="medsynth run",
        description=f"{_RUN_SUMMARY}\n\n{_RUN_DESCRIPTION}{recipes}",
        epilog=_RUN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="Name of a recipe that ships with medsynth, or path of a YAML file.")
    parser.add_argument("--out", required=True, help="Folder for everything that the recipe makes. (required)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="Value of a variable of the recipe; may be repeated.",
    )
    return parser


def _exit_code(verb: str, result: Any) -> int:
    """A privacy gate that fails, or an installation that must not be used, is told by the exit code; the report is there."""
    if verb == "doctor" and result.problems:
        return ConfigError.exit_code
    return GateError.exit_code if verb == "evaluate" and result.gate_failed else 0


def _top_parser(summaries: dict[str, str]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="medsynth",
        usage="medsynth VERB [options]",
        description="Train diffusion models on medical scans, generate scans of rare conditions, and measure what they are "
        f"worth.\n\n{_list_verbs(summaries)}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _list_verbs(summaries: dict[str, str]) -> str:
    """The verbs by what they are for, each with its summary."""
    width = min(110, shutil.get_terminal_size().columns)
    grouped = {verb for verbs in _JOBS.values() for verb in verbs}
    jobs = {**_JOBS, "more": tuple(verb for verb in summaries if verb not in grouped)}
    blocks = []
    for job, verbs in jobs.items():
        lines = [
            textwrap.fill(summaries[verb], width, initial_indent=f"  {verb:<10}", subsequent_indent=" " * 12)
            for verb in verbs
            if verb in summaries
        ]
        blocks += ["\n".join([f"{job}:", *lines])] if lines else []
    return "\n\n".join(blocks)


def _describe(verb: str, result: Any) -> str:
    """What a verb says when it is done."""
    if verb in ("sample", "edit"):
        made = Counter(row.label for row in result.rows)
        counts = ", ".join(f"{count} {label}" for label, count in made.items())
        likeness = " and resembles its donor" if verb == "edit" else ""
        return f"{result.folder / 'cohort.csv'}: {counts}; every scan is synthetic{likeness}"
    if verb == "fetch":
        return f"weights: {result}"
    if verb == "demo":
        return f"{result.summary()}\ncohort: {result.folder / 'cohort.csv'}"
    return result.summary()


def _explain(error: OSError) -> str:
    """One line for what the file system refused."""
    if error.errno == errno.ENOSPC:
        return f"{error.filename or 'disk'}: need free space, got a full disk; try freeing some, then the same command again"
    return f"{error.filename or 'file'}: need a place that can be read or written, got {error.strerror or error}"


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n\n")[0].replace("\n", " ")
