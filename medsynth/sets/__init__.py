"""The synthetic set on disk: its files, rows and provenance, opened and written in one place.

A set is a folder with `cohort.csv` and `provenance.json`; sets of other generators may lack the provenance. Every row says
`synthetic=1`. Rows of medsynth also have `seed`, `run` (16 digits of the run's fingerprint), `method` (`sample` or `edit`), and
where they apply `donor`, `region_from`, `observed_from` (row numbers of a real cohort), `contains_real_pixels`, `text`, and the
attributes the scan was conditioned on. `hash_set` is the hash of all of it.
"""

from medsynth.sets.opening import (
    COHORT_FILE,
    DONOR_DIGITS,
    PROVENANCE_FILE,
    SET_FORMAT,
    find_cohort_file,
    generator_of,
    grid_of,
    hash_set,
    holds_real_pixels,
    made_by_medsynth,
    names_donor,
    open_real,
    open_synthetic,
    read_provenance,
    real_pixel_rows,
    resume_set,
)
from medsynth.sets.writing import scan_stem, set_row, write_augmented, write_scans
