"""The step interface of TRL 0.11, for code written against it: one implementation with the trainers under it.

`StepPPOTrainer` takes queries, responses and scores batch by batch, from a loop that the user writes.
`tuneline.PPOConfig` and `tuneline.PPOTrainer` hand over to it where their arguments are of that generation
(`tuneline.classic.dispatch`).
"""
