"""Tests mirror the packages; `contracts/` holds suites for Protocols, `e2e/` real processes."""
