"""One script a claim: each measures ours against a plain loop in one run, and prints ratios."""
