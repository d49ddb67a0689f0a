"""The command line: finds the verb, parses its options, and turns every expected error into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import inspect
import os
import sys
from collections import Counter
from importlib.metadata import version
from typing import Any

from medsynth.errors import GateError, MedsynthError

_EPILOG = """\
example:
  medsynth index --scans scans/ --labels labels.csv --out cohort.csv
  medsynth train --config chest_xray_2d --cohort cohort.csv --out run
  medsynth sample --run run --count viral_pneumonia=400,normal=100 --out synthetic
  medsynth evaluate --real cohort.csv --synthetic synthetic --run run --out report
  medsynth augment --real cohort.csv --synthetic synthetic --report report --out augmented/cohort.csv

`medsynth VERB --help` lists the options of a verb. Exit codes: 0 done, 2 usage or configuration, 3 data refused, 4 gate
failed, 130 interrupted. Everything that medsynth generates is synthetic and must not be used for diagnosis."""

_EXAMPLES = {
    "demo": "medsynth demo --out phantom --scans 400",
    "index": "medsynth index --scans scans/ --labels labels.csv --columns.label finding --out cohort.csv",
    "train": "medsynth train --config chest_xray_2d --cohort cohort.csv --out run --max_steps 20000",
    "sample": "medsynth sample --run run --count viral_pneumonia=400,normal=100 --out synthetic --format nifti",
    "edit": "medsynth edit --run run --cohort cohort.csv --donor_class bacterial_pneumonia --target_class viral_pneumonia "
    "--count 400 --out edited",
    "evaluate": "medsynth evaluate --real cohort.csv --synthetic synthetic --run run --out report",
    "augment": "medsynth augment --real cohort.csv --synthetic synthetic --report report --out augmented/cohort.csv",
    "fetch": "medsynth fetch --url https://... --sha256 ... --out inception.pth",
}
_RUN_SUMMARY = (
    "Run a recipe from end to end; `medsynth run quickstart --out quickstart` needs nothing but this command."
)


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
    from medsynth.pipeline import parse_verb, verb_parser

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
    parser = verb_parser(
        verb,
        exit_on_error=False,
        prog=f"medsynth {verb}",
        description=(inspect.getdoc(VERBS[verb]) or "").split("\n\nArgs:")[0],
        epilog=f"example: {_EXAMPLES[verb]}",
    )
    result = VERBS[verb](**parse_verb(parser, rest))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(_describe(verb, result))
    return _exit_code(verb, result)


def _run(arguments: list[str]) -> int:
    from medsynth.config import PIPELINES
    from medsynth.errors import ConfigError
    from medsynth.pipeline import run_recipe

    parser = argparse.ArgumentParser(prog="medsynth run", description=_RUN_SUMMARY)
    parser.add_argument(
        "recipe", help=f"Name of a shipped recipe ({', '.join(PIPELINES.names())}) or path of a YAML file."
    )
    parser.add_argument("--out", required=True, help="Folder for everything that the recipe makes.")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="Value of a variable of the recipe; may be repeated.",
    )
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


def _exit_code(verb: str, result: Any) -> int:
    """A privacy gate that fails is told by the exit code; the report is written all the same."""
    return GateError.exit_code if verb == "evaluate" and result.gate_failed else 0


def _top_parser(summaries: dict[str, str]) -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {verb:<10} {summary}" for verb, summary in summaries.items())
    return argparse.ArgumentParser(
        prog="medsynth",
        usage="medsynth VERB [options]",
        description="Train diffusion models on medical scans, generate scans of rare conditions, and measure what they are "
        f"worth.\n\nverbs:\n{verbs}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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
