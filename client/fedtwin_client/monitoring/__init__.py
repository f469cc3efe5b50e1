"""Warnings from what is observed and what twins expect: scores, rules, and the life of an alert."""
