"""The page on reliability names tests that exist, every promise and every fault."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
PAGE = (TOP / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


def test_tests_are_named():
    assert len(NAMED) > 50


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda part: part or "whole file")
def test_the_named_test_exists(file, name):
    path = TOP / file
    assert path.is_file()
    functions = {
        node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
    }
    assert not name or name in functions


def rows(section):
    """First cells of the table below a heading."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [int(number) for number in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)]


def test_every_promise_and_every_fault_has_a_row_with_a_test():
    assert rows("Promises") == list(range(1, 9))
    assert rows("Faults and bad inputs") == list(range(1, 31))
    for line in PAGE.splitlines():
        if re.match(r"\| \d+ \|", line) and "not there yet" not in line:
            assert "`tests/" in line or "promise" in line or "table of faults" in line, line


def test_every_fault_at_the_command_line_is_on_the_page():
    source = (TOP / "tests" / "test_faults.py").read_text(encoding="utf-8")
    for name in re.findall(r"^def (test_fault_\w+)", source, flags=re.MULTILINE):
        assert f"tests/test_faults.py::{name}" in PAGE, name
