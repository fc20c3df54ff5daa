"""Suites of runs behind a paper's tables: planned, run as far as is needed, and told as report and plots."""
