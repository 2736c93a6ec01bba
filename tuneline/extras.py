"""What code written against TRL imports from `trl.extras`."""

from tuneline.classic.best_of_n import BestOfNSampler

__all__ = ["BestOfNSampler"]
