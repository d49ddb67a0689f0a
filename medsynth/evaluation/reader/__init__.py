"""The reader study: people look at real and synthetic scans, blinded and shuffled, and say which is which."""

from medsynth.evaluation.reader.scoring import ReaderResult, score_files
from medsynth.evaluation.reader.study import KEY_FILE, ReaderStudy, check_reader_study, find_key, plan_study

__all__ = ["KEY_FILE", "ReaderResult", "ReaderStudy", "check_reader_study", "find_key", "plan_study", "score_files"]
