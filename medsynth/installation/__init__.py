"""The state of an installation: packages, machine, disk space, and a self-test of a few seconds."""

from medsynth.installation.diagnosis import Diagnosis, examine_installation
