#!/usr/bin/env bash
# The main job on real chest radiographs. First argument: a folder with images/ and labels.csv (path,label,patient_id,split);
# second: an output folder outside the repository or one that git ignores. Resumes when called again.
#   benchmarks/chest_xray_2d.sh ../chest_xray runs/chest_xray
set -euo pipefail
scans=$1
out=$2
medsynth run chest_xray_2d --out "$out" --set "scans=$scans" --set "labels=$scans/labels.csv"
python -m benchmarks.solver_error --run "$out/run" --out "$out/solver_error.json"
