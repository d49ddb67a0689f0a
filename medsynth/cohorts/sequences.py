from medsynth.cohorts.channels import are_channels, parse_channels
from medsynth.cohorts.manifest import MASK, PATH

__all__ = ["MASK", "PATH", "are_channels", "parse_channels"]
