"""What every report says in words: what was checked, who is trusted with what, and what nobody could check.

Design note: an assumption stands here because the claim would be false without it and no ledger can show it.
"""

from __future__ import annotations

from typing import Final

CHECKS: Final = (
    "the archive has its one canonical form, and every document lies under its own digest",
    "exactly the hospitals whose keys were pinned are there",
    "each ledger's checkpoint is signed by its pinned key, and by nobody who was not pinned",
    "enough pinned witnesses cosigned each checkpoint",
    "each checkpoint is of exactly the entries that are here, and its Merkle root was recomputed from them",
    "every entry was replayed: each step was allowed, each charge and total recomputed, nothing exceeded the budget",
    "the price of every mechanism was computed twice, by our own formulas and by dp-accounting, and both agree",
    "what each ledger enrolled and charged for a study, and in which blocks, is what the signed study says, where that "
    "document is in the bundle; a study without it is marked as not compared",
    "each document in the bundle is named by an entry",
)
TRUST_MODEL: Final = (
    "A patient trusts their own hospital, which adds noise before anything leaves it. For a study in which each "
    "hospital adds the whole noise, the bound holds against whoever sees every released answer: the coordinator, the "
    "other hospitals, the readers of the model. For a study in which hospitals share the noise, it holds against "
    "whoever sees their sum alone, if no more of them collude than the signed study says."
)
ASSUMPTIONS: Final = (
    "The hospital ran the program whose digest it recorded, with the noise it recorded, on one record for each person. "
    "No ledger sees what happens outside it; conformance audits are evidence about the training step, not proof.",
    "The pinned keys are those of the hospitals and witnesses, and at most the pinned number of witnesses lie.",
    "A patient known to several hospitals pays at each of them; their losses add up, and no ledger sees another.",
    "Readmitted and unknown patients are charged as the one who spent most. Which patient is in which block stays in "
    "the hospital, which commits to it by a keyed digest; only who has that key can check it: this report did not.",
    "Who is in a cohort depends on each patient's own record and on public facts only, never on other patients.",
    "What separates the noise that is drawn from the ideal one stays within 1e-9 of the δ above, which is kept back "
    "for it; the program says for how many numbers and steps that is enough (privacy.DELTA_SLACK).",
    "Timing, logs, and files that leave a hospital in any other way than as a release of this ledger tell nothing.",
)
IMPLEMENTATION: Final = (
    "Prices are integers of 1e-9 Rényi divergence, rounded up, from decimal arithmetic of 60 digits: the same on every "
    "machine. The filter compares at one integer order that was fixed before the first charge.",
    "A charge is made before anything is read, and kept whatever happens, unless the work is aborted before it starts.",
    "In this version of fedtwin each patient's clipped contribution is rounded on an integer grid alone, and noise is "
    "a rounded Gaussian on that grid from AES-CTR under a key of the operating system. The digests of the program say "
    "which version made an answer.",
    "Entries hold no number of patients, no sampled count and no statistic of noise that was drawn.",
)
