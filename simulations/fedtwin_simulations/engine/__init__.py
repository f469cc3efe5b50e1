"""Many hospitals on one machine: the coordinator's own ServerApp, the hospitals' own ClientApp, nothing waited for.

`simulation` runs a study; `site_data` says where patients come from, `site_tasks` plays hospitals one by one or
`together`, `workers` plays them in processes, `memory` says beforehand what it takes.
"""
