"""The files that ship with the package, found from a wheel, an editable install and a checkout alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medsynth.config.declared import did_you_mean
from medsynth.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A folder of files that ships with medsynth: `configs`, `pipelines` or `data_cards`.

    In a wheel these folders lie inside the package, in a checkout (also an editable install) beside it.
    """

    folder: Literal["configs", "pipelines", "data_cards"]
    suffixes: tuple[str, ...] = field(default=(".yaml", ".yml"))

    def directory(self) -> Path:
        """Return where the files lie; `ConfigError` if the installation lacks them."""
        package = Path(__file__).parents[1]
        for candidate in (package / self.folder, package.parent / self.folder):
            if candidate.is_dir():
                return candidate
        raise ConfigError(
            f"{self.folder}: need the folder that ships with medsynth, got none; try reinstalling medsynth"
        )

    def names(self) -> list[str]:
        """Return the names that `find` accepts, sorted."""
        return sorted(path.stem for path in self.directory().iterdir() if path.suffix in self.suffixes)

    def find(self, name: str) -> Path:
        """Return the file for `name`: a path if it has a suffix or a folder in it, else the shipped file of that name.

        Raises `ConfigError` with the known names if there is no such file.
        """
        given = Path(name)
        if given.suffix in self.suffixes or len(given.parts) > 1:
            if given.is_file():
                return given
            raise ConfigError(f"{name}: there is no such file; need a path, or one of {', '.join(self.names())}")
        for suffix in self.suffixes:
            shipped = self.directory() / f"{name}{suffix}"
            if shipped.is_file():
                return shipped
        raise ConfigError(
            f"{name}: need one of {', '.join(self.names())}, or the path of a .yaml file"
            f"{did_you_mean(name, self.names())}"
        )


CONFIGS = Shipped(folder="configs")
PIPELINES = Shipped(folder="pipelines")
