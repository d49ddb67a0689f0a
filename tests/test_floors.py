"""Imports go down, never up or sideways: the floors of the house."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medsynth"
FLOORS = [
    {"errors", "seeds", "config", "files", "versions", "processes"},
    {"scans", "measures"},
    {"cohorts"},
    {"diffusion"},
    {"networks"},
    {"runs", "sets"},
    {"training", "generation", "evaluation"},
    {"reporting"},
    {"installation"},
    {"api"},
    {"pipeline"},
    {"cli"},
    {"__main__", "__init__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# The maths stays free of files.
FORBIDDEN = {"diffusion": {"scans", "cohorts"}, "networks": {"scans", "cohorts"}, "measures": {"scans", "cohorts"}}
# Within the ground floor the order is: errors, files, then the others.
GROUND = {room: {"errors"} for room in ("seeds", "files", "versions", "processes")}
GROUND |= {"errors": set(), "config": {"errors", "files"}}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> list[tuple[int, str]]:
    """Rooms of medsynth that a file imports anywhere, also inside functions and type-checking blocks, with line numbers."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide floors"
            names = [node.module or ""]
            if node.module == "medsynth":
                names = [f"medsynth.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(node.lineno, name.split(".")[1]) for name in names if name.startswith("medsynth.")]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_there_are_files_and_every_room_has_a_floor():
    assert len(FILES) > 30
    assert {room_of(path) for path in FILES} <= FLOOR.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    for line, other in imported_rooms(path):
        where = f"{path.relative_to(PACKAGE.parent)}:{line} imports {other}"
        if room in GROUND:
            assert other in GROUND[room] | {room}, where
        elif other != room:
            assert FLOOR[other] < FLOOR[room], where
        assert other not in FORBIDDEN.get(room, set()), where


def test_the_house_stays_small():
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES) < 28_000


FRONT = [
    "errors.py",
    "seeds.py",
    "files.py",
    "pipeline.py",
    "cli.py",
    "__init__.py",
    "__main__.py",
]


@pytest.mark.parametrize(
    "path",
    [
        *(PACKAGE / name for name in FRONT),
        *(PACKAGE / "config").glob("*.py"),
        *(PACKAGE / "api").glob("*.py"),
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_front_of_the_house_loads_no_heavy_package(path):
    """At module level; bodies and type-checking blocks may."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
    assert not names & {"torch", "monai", "lightning", "numpy", "scipy", "skimage", "matplotlib", "nibabel"}
