"""Help in two tiers: `medsynth VERB --help` shows what most people need, `--help all` every option."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import Any, Literal, get_args, get_origin, get_type_hints

from medsynth.config import CONFIGS, OPTIONS, options_of
from medsynth.config.declared import Option, group_of, manual_of, split_default, typed

_WIDEST = 110


def format_help(verb: str, *, everything: bool = False) -> str:
    """Return the help of a verb: summary, options and an example; `everything` adds the description and all options."""
    cls = OPTIONS[verb]
    known = options_of(cls)
    summary, paragraphs = manual_of(cls)
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    needed = " ".join(f"--{option.name} {metavar(option)}" for option in known.values() if option.required)
    parser = argparse.ArgumentParser(
        prog=f"medsynth {verb}",
        usage=textwrap.fill(
            f"medsynth {verb} {needed} [options]".replace("  ", " "),
            width - 7,
            subsequent_indent=" " * 16,
            break_on_hyphens=False,
        ),
        description="\n\n".join(textwrap.fill(part, width) for part in [summary, *paragraphs]),
        epilog=_epilog(verb, len(known) - len(cls.basic), everything, width),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=width),
        add_help=False,
    )
    shown = list(known.values()) if everything else [known[name] for name in cls.basic]
    titles = _titles(cls)
    # A short page needs no headings.
    groups = {title: parser.add_argument_group(title) for title in titles.values()} if everything else {}
    plain = parser.add_argument_group("options")
    for option in shown:
        (groups[titles[option.group]] if everything and option.group else plain).add_argument(
            f"--{option.name}", metavar=metavar(option), help=_text(option, everything)
        )
    shipped = f", or a shipped one: {', '.join(CONFIGS.names())}" if verb == "train" else ""
    config_help = f"YAML file with options of this verb{shipped}. Options on the command line win."
    plain.add_argument("--config", metavar="FILE", help=config_help)
    if everything:
        plain.add_argument("--print_config", action="store_true", help="Print all options as YAML and exit.")
        parser._action_groups.sort(key=lambda group: group is not plain)
    return parser.format_help()


def metavar(option: Option) -> str:
    """Return what stands for the value of an option in help: `N`, `NUMBER`, `PATH`, `a|b`, or the option's own name."""
    return _metavar(option.kind, option.name)


def _metavar(kind: Any, name: str) -> str:
    parts = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is Literal:
        return "|".join(map(str, parts))
    if get_origin(kind) is tuple:
        inner = [part for part in parts if part is not Ellipsis]
        one = _metavar(inner[0], name)
        return ",".join([one] * len(inner)) if len(inner) > 1 else f"{one},..."
    if kind is bool or bool in parts:
        return "true|false"
    names = {getattr(part, "__name__", "") for part in (parts or [kind])}
    if "Path" in names:
        return "PATH"
    if names == {"int"}:
        return "N"
    if names & {"int", "float"} and "str" not in names:
        return "NUMBER"
    if len(parts) == 1:
        return _metavar(parts[0], name)
    return name.rsplit(".", 1)[-1].upper()


def _titles(cls: type) -> dict[str, str]:
    """Return a heading for each group of options, the first sentence of its docstring."""
    hints = {field: kind for field, kind in get_type_hints(cls).items() if group_of(kind) is not None}
    return {field: f"{field}: {manual_of(group_of(kind) or cls)[0].rstrip('.')}" for field, kind in hints.items()}


def _text(option: Option, everything: bool) -> str:
    """Return the help of an option with its default, and with its range where everything is shown."""
    text, stated = split_default(option.help)
    default = "required" if option.required else f"default: {stated or typed(option.default)}"
    default += f"; {option.bounds}" if everything and option.bounds else ""
    shown = option.required or stated or typed(option.default)
    return f"{text} ({default})".replace("%", "%%") if shown else text.replace("%", "%%")


def _epilog(verb: str, hidden: int, everything: bool, width: int) -> str:
    example = f"example:\n  {OPTIONS[verb].example}"
    if len(example) - 9 > width:
        example = example.replace(" --out ", " \\\n    --out ")
    more = f"{hidden} more options: medsynth {verb} --help all" if hidden > 0 and not everything else ""
    return "\n\n".join(part for part in (example, more) if part)
