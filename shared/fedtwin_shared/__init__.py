"""Vocabulary that every party may know: studies, rosters, signals, privacy, rounds. No patient, no torch."""
