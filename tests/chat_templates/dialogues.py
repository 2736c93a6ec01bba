"""Tokenizers of one token a character with the marks of all families, and dialogues to render."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MARKS = [
    *(
        "<bos>",
        "<eos>",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_sep|>",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
    ),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>"),
    *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    *(
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁outputs▁begin｜>",
        "<｜tool▁outputs▁end｜>",
    ),
    *("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>", "<|tool_response|>"),
]

SYSTEM = {"role": "system", "content": "Be brief."}
ASKS = {"role": "user", "content": "One?"}
SAYS = {"role": "assistant", "content": "First."}
GOES_ON = {"role": "user", "content": "Two?"}
SAYS_MORE = {"role": "assistant", "content": "Second."}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string", "description": "What."}, "n": {"type": "integer", "default": 1}},
            "required": ["at"],
        },
    },
}
RICH_TOOL = {
    "type": "function",
    "function": {
        "name": "rich",
        "description": "All kinds\nof types.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "array", "items": {"type": "string"}},
                "b": {"type": "array", "items": {"type": "integer"}, "nullable": True, "default": [1]},
                "c": {"type": "array"},
                "d": {"type": "string", "enum": ["x", "y"], "default": "x"},
                "e": {"type": ["string", "null"]},
                "f": {"oneOf": [{"type": "string", "description": "S."}, {"type": "integer", "default": 3}]},
                "g": {"oneOf": [{"type": "object"}, {"type": "string"}]},
                "h": {"type": "object", "properties": {"k": {"type": "boolean"}, "l": {"type": "object"}}},
                "i": {"type": "array", "items": {"type": ["object", "object"]}},
                "j": {},
                "m": {"type": "string", "nullable": True, "description": "M.", "default": "q"},
            },
            "required": ["a"],
        },
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {"at": "ä", "n": 2}}}
    ],
}
RESULT = {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "seen"}
THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nThat."}
REASONED = {"role": "assistant", "content": "That.", "reasoning_content": "Hm.", "thinking": "Hm."}
REASONED_CALL = {**CALL, "reasoning_content": "Hm.", "thinking": "Hm."}

DIALOGUES = [
    [ASKS],
    [ASKS, SAYS],
    [ASKS, SAYS, GOES_ON],
    [ASKS, SAYS, GOES_ON, SAYS_MORE],
    [{"role": "user", "content": "  x \n"}, {"role": "assistant", "content": "\n y "}],
    [ASKS, THOUGHT, GOES_ON, THOUGHT],
    [ASKS, REASONED, GOES_ON, REASONED],
    [ASKS, CALL],
    [ASKS, CALL, RESULT],
    [ASKS, CALL, RESULT, SAYS],
    [ASKS, {**CALL, "content": "Wait."}, RESULT, RESULT, THOUGHT, GOES_ON],
    [ASKS, REASONED_CALL, RESULT, REASONED_CALL, RESULT, REASONED, GOES_ON, SAYS_MORE],
]


def tokenizer_with(chat_template=None):
    characters = [chr(code) for code in range(32, 127)] + ["\n", "ä"]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(MARKS + characters)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    tokenizer.add_special_tokens({"extra_special_tokens": MARKS[2:]})
    tokenizer.chat_template = chat_template
    return tokenizer


def rendered(template, messages, **options):
    return tokenizer_with(template).apply_chat_template(messages, tokenize=False, **options)
