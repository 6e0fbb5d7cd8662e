"""Suites of programs whose results are graded: what `crucible bench` runs."""
