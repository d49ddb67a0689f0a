"""Nearest neighbours by Euclidean distance, in blocks, so that memory does not grow with either set."""

from __future__ import annotations

import numpy as np
import torch

from medsynth.errors import DataError

Array = np.ndarray | torch.Tensor

# Single precision ranks the candidates, double precision measures these few and has the last word.
_CANDIDATES = 4


def nearest_distances(
    queries: Array, references: Array, *, among: np.ndarray | None = None, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Return the Euclidean distance of each query to its nearest reference, and the index of that reference.

    `queries` is `(Q, ...)`, `references` is `(R, ...)` (arrays, memory maps or tensors; items are flattened), of which
    only those at the indices `among` count, if given. At most `block` items of each are held as float32 at a time, on the
    device of `queries`; the distances are evaluated in float64 from differences, so an exact copy has distance 0. Returns
    float64 `(Q,)` and int64 `(Q,)`. `DataError` if there is no reference, or if the items differ in size.
    """
    members = np.arange(len(references)) if among is None else np.asarray(among)
    if len(members) == 0:
        raise DataError("references: need at least one scan to compare with, got none")
    if tuple(queries.shape[1:]) != tuple(references.shape[1:]):
        raise DataError(
            f"references: need scans of shape {tuple(queries.shape[1:])} like the queries, "
            f"got {tuple(references.shape[1:])}; try one grid for both"
        )
    device = queries.device if isinstance(queries, torch.Tensor) else torch.device("cpu")
    # Distances do not change when both sets move; near the origin the expanded square loses fewer digits.
    centre = _pick(references, members[:block], device).mean(dim=0)
    distances = np.empty(len(queries), dtype=np.float64)
    indices = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), block):
        rows = _flat(queries[start : start + block], device)
        candidates = _candidates(rows - centre, references, members, centre, block)
        exact = np.stack([_distances(rows, _pick(references, chosen, device)) for chosen in candidates.T], axis=1)
        best = exact.argmin(axis=1)[:, None]
        distances[start : start + len(rows)] = np.take_along_axis(exact, best, axis=1)[:, 0]
        indices[start : start + len(rows)] = np.take_along_axis(candidates, best, axis=1)[:, 0]
    return distances, indices


def _candidates(
    centred: torch.Tensor, references: Array, members: np.ndarray, centre: torch.Tensor, block: int
) -> np.ndarray:
    """Return the indices `(q, k)` of the few references that single precision finds nearest to each query."""
    best = torch.empty(len(centred), 0, device=centred.device)
    chosen = torch.empty(len(centred), 0, dtype=torch.int64, device=centred.device)
    for start in range(0, len(members), block):
        found = members[start : start + block]
        others = _pick(references, found, centred.device) - centre
        # |q - r|² without |q|², which does not change the order
        squares = torch.addmm(others.square().sum(dim=1), centred, others.T, alpha=-2)
        columns = torch.from_numpy(found.astype(np.int64)).to(centred.device).expand(len(centred), -1)
        best, chosen = torch.cat([best, squares], dim=1), torch.cat([chosen, columns], dim=1)
        best, order = best.topk(min(_CANDIDATES, best.shape[1]), dim=1, largest=False)
        chosen = chosen.gather(1, order)
    return chosen.cpu().numpy()


def _pick(array: Array, indices: np.ndarray, device: torch.device) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return _flat(array[torch.from_numpy(indices).to(array.device)], device)
    return _flat(array[indices], device)


def _flat(items: Array, device: torch.device) -> torch.Tensor:
    if isinstance(items, torch.Tensor):
        rows = items.detach().to(device=device, dtype=torch.float32)
    else:
        rows = torch.from_numpy(np.array(items, dtype=np.float32)).to(device)
    return rows.reshape(len(rows), -1)


def _distances(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    distances: np.ndarray = (first.double() - second.double()).square().sum(dim=1).sqrt().cpu().numpy()
    return distances
