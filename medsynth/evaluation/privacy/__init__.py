"""The privacy gate: does a synthetic set copy patients, and would we have noticed?"""

from medsynth.evaluation.privacy.gate import score_privacy
from medsynth.evaluation.privacy.membership import MembershipResult, score_membership
from medsynth.evaluation.privacy.nearness import GateSettings
from medsynth.evaluation.privacy.result import Copy, PrivacyResult
