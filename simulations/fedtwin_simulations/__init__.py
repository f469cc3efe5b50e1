"""Virtual patients and hospitals, public data sets in the hospital's own format, experiments and benchmarks."""
