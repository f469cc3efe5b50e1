"""Research questions as TOML: many cases, each under several seeds, on virtual hospitals, ending in a table and plots.

A *campaign* is a file (`specification`). A *trial* is one case under one seed (`trials`): a study over virtual
hospitals (`learning`) or an attack on what a hospital releases (`attacks`). `findings` sums trials up.
"""
