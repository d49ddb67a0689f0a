"""The notebook and the snippets of the API page run from top to bottom, with fewer steps."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    first = notebook.cells[1]
    assert "scans, steps = 240, 500" in first.source
    first.source = first.source.replace("scans, steps = 240, 500", "scans, steps = 60, 4")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nbclient.NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) >= 2, "scans show themselves"
    assert sum("text/html" in data for data in shown) >= 3, "cohort, run and set show themselves"
    assert not [output for output in outputs if output.output_type == "error"]


def test_the_committed_notebook_was_executed_and_names_no_machine():
    text = (DOCS / "notebook.ipynb").read_text(encoding="utf-8")
    assert text.count('"image/png"') >= 2
    assert not re.search(r"/home/|/root/|/tmp/|/Users/", text)


def test_the_snippets_of_the_api_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    small = (
        page.replace("scans=200", "scans=60")
        .replace('"max_steps": 600', '"max_steps": 2')
        .replace("max_steps=10", "max_steps=2")
    )
    small = small.replace("[:100]", "[:20]").replace("[100:200]", "[20:40]")
    assert small != page
    space: dict[str, object] = {}
    for number, source in enumerate(re.findall(r"^```python\n(.*?)^```", small, flags=re.DOTALL | re.MULTILINE)):
        exec(compile(source, f"api.md, snippet {number}", "exec"), space)
    assert len(space["made"]) == 8
    assert abs(float(sum(each.scan.array.mean() for each in space["made"])) / 8 - 0.2) < 0.02


def test_every_public_name_stands_on_the_api_page():
    import medsynth

    page = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = [name for name in medsynth.__all__ if f"`{name}`" not in page and f"medsynth.{name}" not in page]
    assert not missing
