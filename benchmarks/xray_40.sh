#!/usr/bin/env bash
# X-ray-40: what a synthetic set is worth where 40 viral patients are known. First argument: a folder with images/ and labels.csv
# (path,label,patient_id,split); second: an output folder outside the repository or one that git ignores. Resumes when called again.
#   benchmarks/xray_40.sh ../chest_xray runs/xray_40
set -euo pipefail
scans=$1
out=$2
index() { medsynth index --scans "$scans" --labels "$scans/labels.csv" "$@"; }
[ -e "$out/all/cohort.csv" ] || index --out "$out/all/cohort.csv"
[ -e "$out/cohort.csv" ] || index --keep viral_pneumonia=40/10 --out "$out/cohort.csv"
medsynth train --config chest_xray_2d --cohort "$out/cohort.csv" --out "$out/run"
medsynth sample --run "$out/run" --count 300 --out "$out/synthetic"
# Exit code 4, a gate that fails, is a result here.
medsynth evaluate --real "$out/cohort.csv" --synthetic "$out/synthetic" --run "$out/run" --out "$out/report" \
  --ceiling "$out/all/cohort.csv" --downstream.learning_curve 10,20,40,80,160,320 || [ $? -eq 4 ]
python -m benchmarks.downstream_table "$out/report/report.json"
