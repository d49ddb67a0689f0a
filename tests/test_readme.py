"""What only the README promises; `test_docs.py` reads its commands, options and links."""

import re
import shlex
from pathlib import Path

from medsynth.api import VERBS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_there_are_exactly_two_set_up_commands():
    assert re.findall(r"<!-- command: (\w+) -->", README) == ["quickstart", "tests"]
    assert "medsynth run quickstart" in README


def test_the_four_commands_and_every_verb_are_shown():
    commands = re.findall(r"^medsynth .*", README, flags=re.MULTILINE)
    assert [shlex.split(command)[1] for command in commands[:4]] == ["index", "train", "sample", "evaluate"]
    for verb in VERBS:
        assert f"`medsynth {verb}`" in README
