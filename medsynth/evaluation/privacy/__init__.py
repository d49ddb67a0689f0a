"""The privacy gate: does a synthetic set copy patients, and would we have noticed?"""

from medsynth.evaluation.privacy.gate import check_privacy_options, score_privacy
from medsynth.evaluation.privacy.result import Copy, PrivacyResult

__all__ = ["Copy", "PrivacyResult", "check_privacy_options", "score_privacy"]
