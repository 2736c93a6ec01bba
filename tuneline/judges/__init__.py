"""Judges: what says which of several completions is better, or whether one is right.

The interface is TRL's: `judge(prompts, completions, shuffle_order=True)`, a verdict a prompt, -1 where there is none.
"""

from tuneline.judges.base import (
    BaseBinaryJudge,
    BaseJudge,
    BasePairwiseJudge,
    BaseRankJudge,
    ComparingJudge,
)
from tuneline.judges.binary import AllTrueJudge
from tuneline.judges.functions import FunctionJudge, RandomPairwiseJudge, RandomRankJudge, ScriptedJudge
from tuneline.judges.models import RewardModelJudge
from tuneline.judges.rewards import JudgedRewards
from tuneline.judges.servers import OpenAIPairwiseJudge, UrlPairwiseJudge

__all__ = [
    "AllTrueJudge",
    "BaseBinaryJudge",
    "BaseJudge",
    "BasePairwiseJudge",
    "BaseRankJudge",
    "ComparingJudge",
    "FunctionJudge",
    "JudgedRewards",
    "OpenAIPairwiseJudge",
    "RandomPairwiseJudge",
    "RandomRankJudge",
    "RewardModelJudge",
    "ScriptedJudge",
    "UrlPairwiseJudge",
]
