"""The privacy ledger: an append-only log that witnesses cosign, what its entries mean, and how an auditor checks it."""
