"""What TRL offers for data is here by the same names, with the same arguments and defaults."""

import inspect

import pytest

import tuneline
import tuneline.chat_templates
import tuneline.data

trl = pytest.importorskip("trl")

EVERYWHERE = [
    "apply_chat_template",
    "extract_prompt",
    "is_conversational",
    "is_conversational_from_value",
    "maybe_apply_chat_template",
    "maybe_convert_to_chatml",
    "maybe_extract_prompt",
    "maybe_unpair_preference_dataset",
    "pack_dataset",
    "prepare_multimodal_messages",
    "unpair_preference_dataset",
]
TEMPLATES = ["clone_chat_template", "get_training_chat_template", "supports_tool_calling"]
FURTHER = ["has_generation_markers", "is_chat_template_prefix_preserving", "is_chat_template_stop_token_trained"]


def arguments_of(function):
    known = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in known if p.kind is not p.VAR_KEYWORD]


@pytest.mark.parametrize("name", EVERYWHERE + TEMPLATES + ["get_dataset"])
def test_functions_take_what_those_of_trl_take(name):
    ours, theirs = getattr(tuneline, name), getattr(trl, name)
    assert arguments_of(ours)[: len(arguments_of(theirs))] == arguments_of(theirs)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_they_are_importable_from_the_data_package_too(name):
    assert getattr(tuneline.data, name) is getattr(tuneline, name)


@pytest.mark.parametrize("name", TEMPLATES + FURTHER)
def test_chat_templates_have_a_package(name):
    from trl import chat_template_utils

    ours = getattr(tuneline.chat_templates, name)
    theirs = arguments_of(getattr(chat_template_utils, name))
    assert arguments_of(ours)[: len(theirs)] == theirs


def test_names_that_are_not_there_are_told():
    for package in (tuneline.data, tuneline.chat_templates):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            package.nothing  # noqa: B018
        assert all(hasattr(package, name) for name in package.__all__)
