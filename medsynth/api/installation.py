"""The verbs about the installation. `medsynth.api` says why annotations are not postponed."""

from pathlib import Path

from medsynth.files import PathLike


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
