"""Multi-turn rollouts: tools, environments and texts with tools, on any rollout engine."""

from tuneline.environments.calling import ConcurrentCalls
from tuneline.environments.exchange import Counts
from tuneline.environments.interaction import Interaction, Interactions
from tuneline.environments.loop import Conversations, run_conversations
from tuneline.environments.members import Environment, Responder, environment_tools
from tuneline.environments.parsing import Reply, ReplyParser, ToolCall
from tuneline.environments.pool import EnvironmentPool
from tuneline.environments.step import StepEnvironment, Stepping, StepResult
from tuneline.environments.text import TextEnvironment, TextHistory, TextRun

__all__ = [
    "ConcurrentCalls",
    "Conversations",
    "Counts",
    "Environment",
    "EnvironmentPool",
    "Interaction",
    "Interactions",
    "Reply",
    "ReplyParser",
    "Responder",
    "StepEnvironment",
    "StepResult",
    "Stepping",
    "TextEnvironment",
    "TextHistory",
    "TextRun",
    "ToolCall",
    "environment_tools",
    "run_conversations",
]
