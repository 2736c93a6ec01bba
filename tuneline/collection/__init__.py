"""Preference collection: pairs of completions, who prefers which, and what is learned from it.

`pairs` makes them from sampled completions, `labelling` asks a verifier, a reward model or a judge, `web` shows them to
people, `store` keeps every label, `agreement` says how far annotators agree, and `export` writes preference data.
"""
