"""Public data sets rewritten into the hospitals' own file format.

Design note: every run on a public set passes through the hospital's own reader, so a rewriter here changes names and
units and splits patients over hospitals, and nothing else: implausible values stay in for the reader to quarantine.
Each set's module has the same two verbs, `write_hospitals(source, target, parts=…)` and a function that deals patients
into parts or folds for a benchmark. The sets are not part of the product; `source` is the folder that holds one.
"""
