"""`tuneline chat`: what it says, scores, remembers and saves."""

import io
import json

import pytest
from rich.console import Console

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.rows import character_tokenizer
from tuneline.cli.chat import Conversation, chat, model_folder
from tuneline.cli.main import main
from tuneline.cli.speaker import ChatSettings, Speaker
from tuneline.errors import ConfigError, ModelError
from tuneline.rewards.models import RewardModel

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def speaker(name="tiny", template=None, seed=0, **sizes):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    return Speaker(name, tiny_causal_lm(seed=seed, **sizes), tokenizer)


def conversation(*speakers, **settings):
    out = io.StringIO()
    settings = ChatSettings(**{"max_new_tokens": 5, "seed": 3, **settings})
    return Conversation(list(speakers), settings, Console(file=out, highlight=False, width=200)), out


def test_an_answer_is_shown_piece_by_piece_as_it_is_given_back():
    shown = []
    answer = speaker().ask("hello", ChatSettings(max_new_tokens=8, seed=1, temperature=1.0), show=shown.append)
    assert "".join(shown) == answer.text
    assert answer.num_tokens == 8
    assert answer.is_cut_off


def test_a_seed_draws_the_same_answer_and_temperature_0_needs_none():
    sampled = ChatSettings(max_new_tokens=12, seed=1, temperature=1.0)
    assert speaker().ask("a", sampled).text == speaker().ask("a", sampled).text
    greedy = ChatSettings(max_new_tokens=12, temperature=0)
    assert speaker().ask("a", greedy).text == speaker().ask("a", greedy).text


def test_a_model_with_a_template_remembers_and_one_without_does_not():
    chatting, plain = speaker(template=TEMPLATE), speaker()
    for text in ("one", "two"):
        for each in (chatting, plain):
            each.ask(text, ChatSettings(max_new_tokens=2))
    assert [m["role"] for m in chatting.messages] == ["user", "assistant"] * 2
    assert plain.messages == []


def test_the_score_is_the_reward_models_of_the_whole_conversation():
    talker = speaker(template=TEMPLATE)
    scorer = RewardModel(tiny_reward_model(), talker.tokenizer)
    talker.reward_model = scorer
    settings = ChatSettings(max_new_tokens=6, seed=0, temperature=1.0)
    answers = [talker.ask(text, settings) for text in ("one", "two")]
    (expected,) = scorer([talker.messages[:3]], [talker.messages[3:]])
    assert answers[1].score == pytest.approx(expected, abs=1e-6)
    assert answers[0].score != pytest.approx(expected, abs=1e-4)


def test_an_interrupted_answer_ends_and_the_conversation_goes_on():
    talker = speaker(template=TEMPLATE)
    pieces = []

    def show(text):
        pieces.append(text)
        if len(pieces) == 1:
            raise KeyboardInterrupt  # as Ctrl-C does, wherever the program is

    answer = talker.ask("one", ChatSettings(max_new_tokens=50, seed=0, temperature=1.0), show=show)
    assert answer.is_cut_off
    assert 0 < answer.num_tokens < 50
    assert len(talker.messages) == 2


def test_a_conversation_that_fills_the_model_is_said_before_it_is_read():
    talker = speaker(max_position_embeddings=16)
    with pytest.raises(ConfigError, match=r"has 20 tokens, and tiny reads at most 16; /clear"):
        talker.ask("x" * 20, ChatSettings(max_new_tokens=5))
    assert talker.ask("x" * 14, ChatSettings(max_new_tokens=5, seed=0)).num_tokens <= 2


def test_a_question_that_one_model_cannot_answer_is_remembered_by_none():
    talk, out = conversation(speaker("long", TEMPLATE), speaker("short", TEMPLATE, max_position_embeddings=64))
    talk.talk(iter(["one", "x" * 60]))
    assert "short reads at most 64" in out.getvalue()
    asked = [[m["content"] for m in one.messages if m["role"] == "user"] for one in talk.speakers]
    assert asked == [["one"], ["one"]]
    talk.talk(iter(["/undo"]))
    assert [one.messages for one in talk.speakers] == [[], []]


def test_commands_change_what_is_remembered():
    talk, _ = conversation(speaker(template=TEMPLATE))
    talk.talk(iter(["/system be kind", "one", "two", "/undo"]))
    (only,) = talk.speakers
    assert [m["content"] for m in only.messages if m["role"] != "assistant"] == ["be kind", "one"]
    talk.talk(iter(["/retry"]))
    assert [m["content"] for m in only.messages if m["role"] == "user"] == ["one"]
    talk.talk(iter(["/clear"]))
    assert only.messages == [{"role": "system", "content": "be kind"}]


def test_settings_are_changed_and_wrong_ones_refused_in_one_line():
    talk, out = conversation(speaker())
    wrong = ["/set top_p=2", "/set tempratur=1", "/set seed=x", "/nothing", "/set seed=["]
    talk.talk(iter(["/set temperature=0.5", *wrong]))
    assert talk.settings.temperature == 0.5
    lines = out.getvalue().splitlines()
    assert "temperature=0.5" in lines[0]
    assert "top_p=2.0 must lie in (0, 1]" in lines[1]
    assert "NAME is one of" in lines[2]
    assert "'x' is no whole number" in lines[3]
    assert "/nothing is not known" in lines[4]
    assert "'[' is no whole number" in lines[5]
    talk.talk(iter(["/set temperature=1e-1", "/set seed="]))
    assert (talk.settings.temperature, talk.settings.seed) == (0.1, None)


def test_a_saved_conversation_has_every_turn_of_every_model(tmp_path):
    talk, out = conversation(speaker("first"), speaker("second", seed=1))
    file = tmp_path / "talk.jsonl"
    talk.talk(iter(["one", "two", f"/save {file}", f"/save {file}", "/quit", "three"]))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["model"] for row in rows] == ["first", "second"]
    assert [m["content"] for m in rows[0]["messages"]][::2] == ["one", "two"]
    assert "File exists" in out.getvalue()


def test_the_command_talks_over_standard_input(tmp_path, monkeypatch, capsys):
    talker = speaker()
    talker.model.save_pretrained(tmp_path / "model")
    talker.tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\\\nc\n"))
    assert main(["chat", str(tmp_path / "model"), "--max-new-tokens", "3", "--seed", "1"]) == 0
    assert "tokens" in capsys.readouterr().out
    assert main(["chat", str(tmp_path)]) == 2
    assert "holds no model" in capsys.readouterr().err


def test_a_stage_of_the_line_is_named_by_its_name(tmp_path):
    (tmp_path / "models" / "dpo").mkdir(parents=True)
    with pytest.raises(ModelError, match="that stage is off"):
        model_folder("dpo", tmp_path)
    (tmp_path / "models" / "dpo" / "config.json").write_text("{}")
    assert model_folder("dpo", tmp_path) == str(tmp_path / "models" / "dpo")
    assert model_folder("org/dpo", tmp_path) == "org/dpo"


def test_a_system_prompt_needs_a_template():
    talk, out = conversation(speaker())
    talk.talk(iter(["/system be kind"]))
    assert "has no chat template" in out.getvalue()


def test_what_cannot_be_loaded_is_one_error(tmp_path):
    with pytest.raises(ModelError, match="cannot load the model"):
        chat([str(tmp_path / "absent")], settings=ChatSettings())
