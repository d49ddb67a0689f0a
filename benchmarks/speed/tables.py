"""The comparison as Markdown: what steps cost, FD-Lite0 over training time, FD-Lite0 over drawing time, and the three claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.speed.score import tolerance

OURS, OURS_PIXEL, DDPM, SLOW = "medsynth", "medsynth-pixel", "monai-ddpm", "DDPM"
TITLES = {
    OURS: "medsynth (Haar stem)",
    OURS_PIXEL: "medsynth (pixel stem)",
    DDPM: "MONAI DDPM / DDIM",
    "monai-rflow": "MONAI rectified flow",
    "diffusers": "diffusers",
    "ddpm-pytorch": "denoising-diffusion-pytorch",
}
Cell = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim with what was measured: `ratio` must reach `wanted`; None where the methods never come to equal FD-Lite0."""

    text: str
    wanted: float
    ratio: float | None
    held: bool
    measured: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def cost_table(cells: Iterable[Cell]) -> str:
    """Return a row for each grid and method: the median over rounds of what a step takes, and memory."""
    groups: dict[tuple[int, int, str], list[Cell]] = {}
    for cell in cells:
        if cell["request"]["kind"] == "cost":
            request = cell["request"]
            groups.setdefault((request["rank"], request["size"], request["method"]), []).append(cell)
    rows = []
    for (rank, size, method), found in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1])):
        grid = f"{size}{'²' if rank == 2 else '³'}"
        if missing := found[0].get("missing"):
            rows.append([grid, TITLES[method], f"not measured: {missing}", *["–"] * 4])
            continue
        drawing = {
            name: statistics.median(cell["drawing_s_a_scan_a_step"][name] for cell in found)
            for name in found[0]["drawing_s_a_scan_a_step"]
        }
        rows.append(
            [
                grid,
                TITLES[method],
                f"{found[0]['parameters'] / 1e6:.2f}",
                f"{1000 * statistics.median(cell['training_s_a_scan'] for cell in found):.1f}",
                f"{max(cell['training_mib'] for cell in found):.0f}",
                "; ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in drawing.items()),
                f"{max(cell['drawing_mib'] for cell in found):.0f}",
            ]
        )
    head = [
        "grid", "method", "weights, million", "training step, ms a scan", "training, MiB", "drawing, ms a scan and step",
        "drawing, MiB",
    ]  # fmt: skip
    return _table(head, rows)


def time_table(cells: Sequence[Cell], size: int) -> str:
    """Return FD-Lite0 of each method's first solver after each training budget, beside real against real."""
    found = _quality(cells, size)
    budgets = sorted({cell["request"]["budget"] for cell in found})
    rows = []
    for method, title in TITLES.items():
        mine = {cell["request"]["budget"]: cell for cell in found if cell["request"]["method"] == method}
        if not mine:
            continue
        if missing := next(iter(mine.values())).get("missing"):
            rows.append([title, f"not measured: {missing}", *["–"] * (len(budgets) - 1)])
            continue
        first = next(iter(mine.values()))["draws"][0]
        row = [f"{title}; {first['solver']}, {first['steps']} steps"]
        for budget in budgets:
            cell = mine.get(budget)
            row.append(
                "–" if cell is None else f"{_figure(cell['draws'][0]['scores'][0])} ({cell['training_s']:.0f} s)"
            )
        rows.append(row)
    measured = [cell for cell in found if "draws" in cell]
    if measured:
        real = measured[0]["draws"][0]["scores"][0]
        held = f"{real['real_median']:.2f} ({real['real_low']:.2f} to {real['real_high']:.2f})"
        rows.append([f"real against real, {real['scans']} scans a side", held, *["–"] * (len(budgets) - 1)])
    return _table(["method and solver", *(f"trained {budget:g} s" for budget in budgets)], rows)


def drawing_table(cells: Sequence[Cell], size: int) -> str:
    """Return seconds a scan and FD-Lite0 of every solver after the longest training."""
    rows = []
    for cell in _longest(_quality(cells, size)).values():
        for draw in cell["draws"]:
            scores = {each["scans"]: _figure(each) for each in draw["scores"]}
            rows.append((cell["request"]["method"], draw, scores))
    sizes = sorted({scans for _, _, scores in rows for scans in scores}, reverse=True)
    body = [
        [
            f"{TITLES[method]}; {draw['solver']}",
            str(draw["steps"]),
            f"{1000 * draw['seconds_a_scan']:.0f}",
            *(scores.get(scans, "–") for scans in sizes),
        ]
        for method, draw, scores in rows
    ]
    head = ["method; solver", "steps", "drawing, ms a scan", *(f"FD-Lite0, {scans} scans a side" for scans in sizes)]
    return _table(head, body)


def claims(cells: Sequence[Cell], size: int) -> list[Claim]:
    """Return the claims that the cells can decide, held or not.

    Two scores are equal where they differ by no more than half the width of the interval of real against real. A drawing claim
    takes the cheapest solver of each side that is at least equal to the target.
    """
    longest = _longest(_quality(cells, size))
    if OURS not in longest:
        return []
    found = []
    slow = [draw for draw in longest.get(DDPM, {"draws": []})["draws"] if draw["solver"] == SLOW]
    if slow:
        found.append(_against_slow(longest[OURS]["draws"], slow[0]))
    peers = {method: cell["draws"] for method, cell in longest.items() if method not in (OURS, OURS_PIXEL)}
    if peers:
        found.append(_against_best(longest[OURS]["draws"], peers))
    if DDPM in longest:
        found.append(_training_time(_quality(cells, size)))
    return found


def _against_slow(ours: list[Cell], slow: Cell) -> Claim:
    score = slow["scores"][-1]
    own = _cheapest(ours, score["scans"], score["value"] + tolerance(score))
    ratio = None if own is None else slow["seconds_a_scan"] / own["seconds_a_scan"]
    return Claim(
        text="at equal FD-Lite0, 50 times fewer seconds a scan than MONAI's 1000-step DDPM",
        wanted=50,
        ratio=ratio,
        held=ratio is not None and ratio >= 50,
        measured=f"{_describe(slow, score['scans'])}, against {_describe(own, score['scans'])}",
    )


def _against_best(ours: list[Cell], peers: dict[str, list[Cell]]) -> Claim:
    scans = max(score["scans"] for draws in peers.values() for draw in draws for score in draw["scores"])
    scored = [
        (score, draw)
        for draws in peers.values()
        for draw in draws
        for score in draw["scores"]
        if score["scans"] == scans
    ]
    best = min((score for score, _ in scored), key=lambda score: score["value"])
    limit = best["value"] + tolerance(best)
    name, peer = min(
        ((method, chosen) for method, draws in peers.items() if (chosen := _cheapest(draws, scans, limit)) is not None),
        key=lambda pair: pair[1]["seconds_a_scan"],
    )
    own = _cheapest(ours, scans, limit)
    ratio = None if own is None else peer["seconds_a_scan"] / own["seconds_a_scan"]
    return Claim(
        text="at equal FD-Lite0, 2 times fewer seconds a scan than the best peer with its best solver",
        wanted=2,
        ratio=ratio,
        held=ratio is not None and ratio >= 2,
        measured=f"{TITLES[name]}: {_describe(peer, scans)}, against {_describe(own, scans)}",
    )


def _training_time(found: Sequence[Cell]) -> Claim:
    curves = {
        method: sorted(
            (cell["training_s"], cell["draws"][0]["scores"][0]["value"])
            for cell in found
            if cell["request"]["method"] == method and "draws" in cell
        )
        for method in (OURS, DDPM)
    }
    target = curves[DDPM][-1][1]
    seconds, own = time_to(curves[DDPM], target), time_to(curves[OURS], target)
    ratio = None if own is None or seconds is None else seconds / own
    earliest = own == curves[OURS][0][0]
    ours = "never" if own is None else f"{'at most ' if earliest else ''}{own:.0f} s"
    return Claim(
        text="a third of the training time of the DDPM peer to its FD-Lite0",
        wanted=3,
        ratio=ratio,
        held=ratio is not None and ratio >= 3,
        measured=f"FD-Lite0 {target:.2f}: MONAI DDPM {seconds:.0f} s, medsynth {ours}",
    )


def time_to(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Return the seconds at which a curve of (seconds, FD) first falls to `target`, between points linear in ln(seconds).

    The first point's seconds if it lies there already; None if no point does.
    """
    before = None
    for seconds, value in curve:
        if value <= target:
            if before is None:
                return seconds
            share = (before[1] - target) / (before[1] - value)
            return math.exp(math.log(before[0]) + share * (math.log(seconds) - math.log(before[0])))
        before = seconds, value
    return None


def _cheapest(draws: list[Cell], scans: int, limit: float) -> Cell | None:
    """Return the draw with the fewest seconds a scan whose score with so many scans is within the limit."""
    fitting = [
        draw for draw in draws if any(score["scans"] == scans and score["value"] <= limit for score in draw["scores"])
    ]
    return min(fitting, key=lambda draw: float(draw["seconds_a_scan"]), default=None)


def _describe(draw: Cell | None, scans: int) -> str:
    if draw is None:
        return "no solver of medsynth that is as close"
    value = next(score["value"] for score in draw["scores"] if score["scans"] == scans)
    name = f"{draw['solver']}, {draw['steps']} steps"
    return f"{name}: {1000 * draw['seconds_a_scan']:.0f} ms a scan, FD-Lite0 {value:.2f} ({scans} scans)"


def _quality(cells: Iterable[Cell], size: int) -> list[Cell]:
    return [cell for cell in cells if cell["request"]["kind"] == "quality" and cell["request"]["size"] == size]


def _longest(found: Iterable[Cell]) -> dict[str, Cell]:
    """Return the cell of the longest training of each method that could be measured, in the order of the table."""
    measured = sorted((cell for cell in found if "draws" in cell), key=lambda cell: cell["request"]["budget"])
    longest = {cell["request"]["method"]: cell for cell in measured}
    return {method: longest[method] for method in TITLES if method in longest}


def _figure(score: dict[str, Any]) -> str:
    return f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
