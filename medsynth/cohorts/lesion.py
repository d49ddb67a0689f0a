"""The lesions of the phantom: drawn for a place in a lung, and laid into its tissue at points of any rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsynth.cohorts.painting import Painting
from medsynth.cohorts.thorax import Points, Waves

NORMAL, SOLID, RARE = "normal", "solid_nodule", "ground_glass"
DIAMETERS = {SOLID: (6.0, 30.0), RARE: (10.0, 40.0)}  # mm
DENSITIES = {SOLID: (30.0, 80.0), RARE: (-650.0, -350.0)}  # HU


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesion:
    """A solid nodule or a ground-glass opacity: a dented disc in a slice, a dented ball in a volume."""

    label: str
    centre: tuple[float, float, float]  # x, y, z in millimetres of the scanner
    diameter: float
    density: float
    side: str
    depth: float  # millimetres from the centre to the edge of the lung
    outline: np.ndarray | tuple[Waves, Waves]  # of a disc (K, 3): order, depth, phase; of a ball: lobes and spikes
    rough: Waves
    softness: float  # width of the edge as a share of the radius
    frayed: float  # roughness of the edge as a share of the radius

    @property
    def attributes(self) -> dict[str, float | str]:
        """What is true of the lesion; `place`, of a ball, is `subpleural` where it reaches the edge of the lung or nearly so."""
        known: dict[str, float | str] = {"diameter_mm": self.diameter, "density_hu": self.density, "side": self.side}
        if isinstance(self.outline, tuple):
            known["place"] = "subpleural" if self.depth <= 0.5 * self.diameter + 2 else "inner"
        return known


def draw_disc(label: str, *, side: str, scanner: Points, depth: np.ndarray, random: np.random.Generator) -> Lesion:
    """Draw a lesion that fits into one lung, at one of the points of a slice; `depth` is theirs in millimetres, 0 outside."""
    diameter, density, deep = _draw_size(label, depth, random)
    place = random.choice(deep)
    orders = np.arange(2, 8)
    height = (0.07 if label == SOLID else 0.17) / (orders - 1) ** 0.6
    depths = height * random.normal(size=len(orders))
    outline = np.stack([orders, depths, random.uniform(0, 2 * np.pi, len(orders))], axis=1)
    return _finish(label, diameter, density, side, scanner, depth, place, outline, random)


def draw_ball(label: str, *, side: str, scanner: Points, depth: np.ndarray, random: np.random.Generator) -> Lesion:
    """Draw a lesion of a volume as `draw_disc` does; where there is room for it, four in ten lie at the edge of the lung."""
    diameter, density, deep = _draw_size(label, depth, random)
    edge = np.flatnonzero((depth.ravel() > 0.3 * diameter) & (depth.ravel() <= 0.5 * diameter))
    at_edge = random.random() < 0.4 and len(edge) > 0
    place = random.choice(edge if at_edge else deep)
    coarse, spiky = (0.10, 0.09) if label == SOLID else (0.14, 0.06)
    outline = (
        Waves.draw(random, length=2.2, height=coarse),
        Waves.draw(random, length=0.75, height=spiky * float(random.beta(1.2, 1.5))),
    )
    return _finish(label, diameter, density, side, scanner, depth, place, outline, random)


def _draw_size(label: str, depth: np.ndarray, random: np.random.Generator) -> tuple[float, float, np.ndarray]:
    """Return diameter, density and the (flat) indices of the points that are deep enough in the lung."""
    smallest, largest = DIAMETERS[label]
    diameter = smallest + (largest - smallest) * float(
        random.beta(1.9, 2.1) if label == SOLID else random.beta(2.4, 1.8)
    )
    thinnest, densest = DENSITIES[label]
    density = thinnest + (densest - thinnest) * float(
        random.beta(1.0, 1.0) if label == SOLID else random.beta(2.4, 1.6)
    )
    diameter = round(max(smallest, min(diameter, 1.7 * float(depth.max()))), 1)
    deep = np.flatnonzero(depth.ravel() >= min(1.15 * diameter / 2 + 2, 0.98 * float(depth.max())))
    return diameter, round(density, 0), deep


def _finish(
    label: str,
    diameter: float,
    density: float,
    side: str,
    scanner: Points,
    depth: np.ndarray,
    place: int,
    outline: np.ndarray | tuple[Waves, Waves],
    random: np.random.Generator,
) -> Lesion:
    return Lesion(
        label=label,
        centre=(float(scanner.x.flat[place]), float(scanner.y.flat[place]), float(scanner.z.flat[place])),
        diameter=diameter,
        density=density,
        side=side,
        depth=float(depth.flat[place]),
        outline=outline,
        rough=Waves.draw(random, length=max(7.0, 0.45 * diameter), height=1.0),
        softness=float(random.uniform(0.35, 0.55)),
        frayed=0.0 if label == SOLID else 0.07,
    )


def outline_lesion(lesion: Lesion, scanner: Points, painting: Painting) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the lesion's edge and its mask.

    The mask is of the size of a disc, in a volume of a ball, of the lesion's diameter, to half a pixel.
    """
    x, y, z = (axis - middle for axis, middle in zip((scanner.x, scanner.y, scanner.z), lesion.centre, strict=True))
    radius = np.sqrt(x * x + y * y + z**2)
    if isinstance(lesion.outline, tuple):
        away = np.maximum(radius, 1e-6)
        sphere = Points(x=x / away, y=y / away, z=z / away)
        outline = 1 + sum(waves.at(sphere) for waves in lesion.outline)
    else:
        angle = np.arctan2(y, x)
        outline = 1 + sum(depth * np.cos(order * angle + phase) for order, depth, phase in lesion.outline)
    radius = radius / np.maximum(outline, 0.4)
    radius += lesion.frayed * lesion.diameter / 2 * lesion.rough.at(scanner)
    allowed = (painting.lungs > 0.5) & ((painting.points.x > 0) == (lesion.side == "left"))
    ordered = np.sort(radius[allowed])
    across = lesion.diameter / scanner.voxel
    size = np.pi / 6 * across**3 if x.ndim == 3 else np.pi / 4 * across**2
    count = min(max(1, round(size)), len(ordered) - 1)
    edge = (ordered[count - 1] + ordered[count]) / 2
    return radius - edge, allowed & (radius < edge)


def lay_haze(tissue: np.ndarray, lesion: Lesion, scanner: Points, distance: np.ndarray, mask: np.ndarray) -> None:
    """Lay a ground-glass opacity into lung tissue (HU), before its vessels are laid over it."""
    share = _edge(distance / (lesion.softness * lesion.diameter / 2))
    uneven = 0.6 * tissue + 18 * lesion.rough.at(scanner)
    # Without its own mean, which would move the density away from the stated one (the lung is denser at the back).
    uneven -= (uneven * share * mask).sum() / (share * mask).sum()
    tissue += share * (lesion.density + uneven - tissue)


def lay_nodule(tissue: np.ndarray, lesion: Lesion, scanner: Points, distance: np.ndarray) -> None:
    """Lay a solid nodule over lung tissue (HU) and vessels."""
    tissue += scanner.cover(distance) * (lesion.density + 4 * lesion.rough.at(scanner) - tissue)


def _edge(distance: np.ndarray) -> np.ndarray:
    """Return a smooth fall from 1 to 0 while the distance goes from -0.5 to 0.5."""
    share = np.clip(0.5 - distance, 0, 1)
    return share * share * (3 - 2 * share)
