"""What only the README promises; `test_docs.py` reads its commands, options and links."""

import re
import shlex
from pathlib import Path

from medsynth.config import OPTIONS

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")


def test_there_are_exactly_two_set_up_commands():
    assert re.findall(r"<!-- command: (\w+) -->", README) == ["quickstart", "tests"]
    assert "medsynth run quickstart" in README


def test_the_six_commands_are_shown_in_order():
    commands = re.findall(r"^medsynth .*", README, flags=re.MULTILINE)
    verbs = [shlex.split(command)[1] for command in commands]
    assert verbs == ["index", "train", "sample", "evaluate", "augment", "card"]


def test_every_verb_is_named_on_the_readme_or_on_the_api_page_that_it_links():
    assert "(docs/api.md)" in README
    pages = README + (TOP / "docs" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:medsynth )?(\w+)`", pages)) | set(
        re.findall(r"^medsynth (\w+)", pages, flags=re.MULTILINE)
    )
    assert not OPTIONS.keys() - named
