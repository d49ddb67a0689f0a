"""The README's commands exist as it writes them."""

import re
import shlex
from pathlib import Path

import pytest

from medsynth.api import VERBS
from medsynth.config import CONFIGS
from medsynth.pipeline import parse_verb, verb_parser

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("medsynth ")
]


def test_there_are_exactly_two_set_up_commands():
    assert re.findall(r"<!-- command: (\w+) -->", README) == ["quickstart", "tests"]
    assert "medsynth run quickstart" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command):
    _, verb, *arguments = shlex.split(command)
    parsed = parse_verb(verb_parser(verb, exit_on_error=False), arguments)
    assert parsed["out"]


def test_the_four_commands_and_every_verb_are_shown():
    assert [shlex.split(command)[1] for command in COMMANDS[:4]] == ["index", "train", "sample", "evaluate"]
    for verb in VERBS:
        assert f"`medsynth {verb}`" in README


def test_named_configurations_ship():
    for name in re.findall(r"--config (\w+)", README):
        assert name in CONFIGS.names()
