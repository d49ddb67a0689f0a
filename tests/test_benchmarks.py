"""Every benchmark imports and has a manual page that names its options."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(file.relative_to(TOP).with_suffix("").parts)
    for folder in ("benchmarks", "tests/slow")
    for file in (TOP / folder).rglob("*.py")
    if not file.name.startswith(("__", "test_"))
)
README = (TOP / "benchmarks" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_and_shows_its_options(name, monkeypatch, capsys):
    module = importlib.import_module(name)
    if not hasattr(module, "main") or name == "benchmarks.speed.cells":  # which takes its request as JSON
        return
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
    # Its own command stands in its first lines.
    assert f"python -m {name}" in (module.__doc__ or "")


def test_the_readme_lists_every_command():
    commands = [
        name for name in MODULES if name.startswith("benchmarks.") and hasattr(importlib.import_module(name), "main")
    ]
    for name in commands:
        path = name.removeprefix("benchmarks.").replace(".", "/") + ".py"
        assert f"`{path}`" in README or name == "benchmarks.speed.cells", path
    for path in (TOP / "benchmarks" / "results").glob("*.json"):
        assert '"commit": "' in path.read_text(encoding="utf-8"), path.name
