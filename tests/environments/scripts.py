"""Conversations that are played from a script: what the policy says is looked up in the text before."""

from __future__ import annotations

import json
from functools import cache

from tuneline.models.tiny import make_tokenizer
from tuneline.rollout.protocol import Sampling
from tuneline.rollout.scripted import ScriptedEngine

# Hermes' notation with the tools' schemas in the prompt, one token a character.
TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def tokenizer():
    made = make_tokenizer()
    made.chat_template = TEMPLATE
    return made


def sampling(max_new_tokens=400, **settings):
    return Sampling(max_new_tokens=max_new_tokens, stop_token_ids=(tokenizer().eos_token_id,), **settings)


def ids_of(text):
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def text_of(ids):
    return tokenizer().decode(ids)


def call(tool, /, **arguments):
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"


def policy(speak):
    """An engine whose policy says `speak(dialogue so far as text)`, and ends its turn."""
    return ScriptedEngine(
        lambda prompt, seed: ids_of(speak(text_of(prompt)) + "<|end|>"), logprobs=lambda prompt, ids: [-0.5] * len(ids)
    )


def turns(*texts):
    """A policy that says these one after the other in each conversation."""
    return policy(lambda dialogue: texts[dialogue.count("<|assistant|>") - 1])


def user(text):
    return [{"role": "user", "content": text}]


def tool_outputs(rollout):
    return [message["content"] for message in rollout.messages if message["role"] == "tool"]
