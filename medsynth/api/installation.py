"""The verbs about the installation. `medsynth.api` says why annotations are not postponed."""

from pathlib import Path
from typing import TYPE_CHECKING

from medsynth.files import PathLike

if TYPE_CHECKING:
    from medsynth.installation import Diagnosis


def fetch(*, url: str, sha256: str, out: PathLike, progress: bool = True) -> Path:
    """Download a file of weights once, for `--features.weights`; the only command that uses the network.

    The file appears only if its hash is the given one. Weights have their own licence: read the publisher's first.

    Args:
        url: Address of the file, from its publisher.
        sha256: The hash that the publisher states, 64 hexadecimal digits.
        out: Where to write the file.
        progress: Show a progress bar.
    """
    from medsynth.measures.extractors import fetch_weights

    return fetch_weights(url, Path(out), sha256, progress=progress)


def doctor(
    *, out: PathLike = ".", cache_dir: PathLike | None = None, quick: bool = False, progress: bool = True
) -> "Diagnosis":
    """Examine the installation: packages, processor, GPU, room on the disks, and a self-test of about ten seconds.

    Prints text that may be pasted into a report: it holds no name of a user, machine, folder or patient. Leaves with 2 where
    something must not be used as it is (a release with a known hole, a missing package, a self-test that fails).

    Args:
        out: Where results would go; its disk is looked at.
        cache_dir: Folder for the prepared scans, by default `.medsynth_cache` in `out`.
        quick: Leave the self-test out.
        progress: Show a progress bar.
    """
    from medsynth.installation import examine_installation

    cache = Path(cache_dir) if cache_dir is not None else None
    return examine_installation(out=Path(out), cache_dir=cache, quick=quick, progress=progress)
