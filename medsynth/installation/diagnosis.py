"""`medsynth doctor`: everything together, as text that may be pasted into a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsynth.installation.findings import Findings, without_names
from medsynth.installation.packages import (
    check_extras,
    check_packages,
    check_python,
    installed_packages,
    required_packages,
)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found, part by part; with any of its `problems` medsynth should not be used."""

    parts: tuple[Findings, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What stops medsynth, as `need, got, try`."""
        return tuple(problem for part in self.parts for problem in part.problems)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing and stops nothing."""
        return tuple(note for part in self.parts for note in part.notes)

    def summary(self) -> str:
        """Return all of it as text, without a name of user, machine or folder."""
        width = max(len(name) for part in self.parts for name, _ in part.facts)
        blocks = []
        for part in self.parts:
            blocks.append("\n".join([part.title, *(f"  {name:<{width}}  {text}" for name, text in part.facts)]))
        verdict = [f"problem: {text}" for text in self.problems] + [f"note: {text}" for text in self.notes]
        blocks.append("\n".join(verdict or ["nothing is wrong with this installation"]))
        return "\n\n".join(blocks)


def examine_installation(
    *, out: Path, cache_dir: Path | None = None, quick: bool = False, progress: bool = True
) -> Diagnosis:
    """Examine packages, machine and folders, then run the self-test unless `quick`.

    `out` is where results would go, `cache_dir` where prepared scans would (default: `.medsynth_cache` in `out`). With a problem
    in the packages nothing of them is imported: a bad release may be one that does harm.
    """
    installed, required = installed_packages(), required_packages()
    parts = [check_python(), check_packages(installed, required), check_extras(installed, required)]
    if not any(part.problems for part in parts):
        parts += _examine_machine(out, out / ".medsynth_cache" if cache_dir is None else cache_dir)
    if any(part.problems for part in parts):
        parts.append(Findings(title="self-test", facts=(("skipped", "because of what is wrong"),)))
    elif quick:
        parts.append(Findings(title="self-test", facts=(("skipped", "as asked"),)))
    else:
        from medsynth.installation.selftest import run_self_test

        parts.append(run_self_test(progress=progress))
    return Diagnosis(parts=tuple(parts))


def _examine_machine(out: Path, cache: Path) -> list[Findings]:
    try:
        from medsynth.installation import machine
    except (ImportError, OSError) as error:  # a library of torch that does not load is an OSError
        problem = f"torch: need one that can be imported, got {without_names(error)}; try installing it again"
        return [Findings(title="processor", facts=(("torch", "cannot be imported"),), problems=(problem,))]
    return [machine.check_processor(), machine.check_gpu(), machine.check_folders(out, cache)]
