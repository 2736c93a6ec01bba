"""Chat templates for training: those of the common families of models, with marks around what the assistant says.

Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneline.chat_templates.checks import (
        is_chat_template_prefix_preserving,
        is_chat_template_stop_token_trained,
        supports_tool_calling,
    )
    from tuneline.chat_templates.families import FAMILIES, Family, get_training_chat_template, recognise
    from tuneline.chat_templates.masking import masking_template
    from tuneline.chat_templates.responses import add_response_schema
    from tuneline.data.rendering import has_generation_markers
    from tuneline.models.loading import clone_chat_template

_HOME_OF = {
    "FAMILIES": "tuneline.chat_templates.families",
    "Family": "tuneline.chat_templates.families",
    "add_response_schema": "tuneline.chat_templates.responses",
    "clone_chat_template": "tuneline.models.loading",
    "get_training_chat_template": "tuneline.chat_templates.families",
    "has_generation_markers": "tuneline.data.rendering",
    "is_chat_template_prefix_preserving": "tuneline.chat_templates.checks",
    "is_chat_template_stop_token_trained": "tuneline.chat_templates.checks",
    "masking_template": "tuneline.chat_templates.masking",
    "recognise": "tuneline.chat_templates.families",
    "supports_tool_calling": "tuneline.chat_templates.checks",
}

__all__ = [
    "FAMILIES",
    "Family",
    "add_response_schema",
    "clone_chat_template",
    "get_training_chat_template",
    "has_generation_markers",
    "is_chat_template_prefix_preserving",
    "is_chat_template_stop_token_trained",
    "masking_template",
    "recognise",
    "supports_tool_calling",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tuneline.chat_templates' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME_OF[name]), name)
