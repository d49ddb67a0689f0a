"""The downstream gain: what a classifier of the rare class gains from a synthetic set, or that it gains nothing."""

from medsynth.evaluation.downstream.experiment import Settings
from medsynth.evaluation.downstream.gain import DownstreamResult, check_downstream, score_downstream
from medsynth.evaluation.downstream.task import make_task

__all__ = ["DownstreamResult", "Settings", "check_downstream", "make_task", "score_downstream"]
