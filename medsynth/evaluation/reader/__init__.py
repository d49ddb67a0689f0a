"""The reader study: people look at real and synthetic scans, blinded and shuffled, and say which is which."""

from medsynth.evaluation.reader.answers import Answer, read_answers
from medsynth.evaluation.reader.key import KEY_FILE, Case, StudyKey, find_key
from medsynth.evaluation.reader.result import ReaderResult
from medsynth.evaluation.reader.scoring import score_files
from medsynth.evaluation.reader.selection import ReaderStudy, check_reader_study, plan_study, select_cases

__all__ = [
    "KEY_FILE",
    "Answer",
    "Case",
    "ReaderResult",
    "ReaderStudy",
    "StudyKey",
    "check_reader_study",
    "find_key",
    "plan_study",
    "read_answers",
    "score_files",
    "select_cases",
]
