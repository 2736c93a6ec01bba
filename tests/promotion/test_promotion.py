"""Versions, aliases, decisions and rollbacks in a real registry: MLflow's SQLite file, and a server on loopback."""

import json
import subprocess
import sys

import pytest

from stages.tracking import CHALLENGER
from tasks.promotion import promote, try_to_promote
from tasks.registry import CHAMPION, Move, Registry, RegistryError, standing
from tasks.rollback import roll_back
from tests.promotion.conftest import ToyLine
from tests.servers import mlflow_server
from tuneline.errors import TunelineError

# SQLite connections that MLflow leaves to the collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """`mlflow server` on the toys' store."""
    store = f"sqlite:///{tmp_path}/checkout/mlflow.db"
    with mlflow_server(store, tmp_path / "server.log") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        yield


def alias(registry, name):
    try:
        return registry.by_alias("toy", name).version
    except RegistryError:
        return None


def check_promotion_and_rollback(toys: ToyLine) -> None:
    """The life of a line's model: first, refused, better, taken back."""
    registry = Registry(toys.path)
    first = promote(toys.path)
    assert (first.version, first.alias_moved, alias(registry, CHAMPION)) == ("1", True, "1")
    assert promote(toys.path) is None  # decided already

    toys.repro("dpo.launch.timeout_hours=0.45")  # worse
    worse = promote(toys.path)
    assert (worse.version, worse.alias_moved, worse.regressed) == ("2", False, True)
    assert (alias(registry, CHAMPION), alias(registry, CHALLENGER)) == ("1", "2")
    assert worse.metrics[0].difference == pytest.approx(-0.05)
    tags = registry.version("toy", "2").tags
    assert tags["promotion.verdict"] == "refused"
    assert json.loads(tags["promotion.table"])[0]["name"] == "accuracy"
    assert tags["dvc.path"] == "models/dpo"
    assert len(tags["lock.sha256"]) == 64

    toys.repro("dpo.launch.timeout_hours=0.7")
    better = promote(toys.path)
    assert (better.version, better.alias_moved, better.champion) == ("3", True, "1")
    assert (alias(registry, CHAMPION), alias(registry, CHALLENGER)) == ("3", None)
    assert toys.decision["metrics"][0]["name"] == "accuracy"
    assert toys.decision["held_out_digest"] == tags["evaluation.digest"]

    move = roll_back(toys.path, why="it is rude", by="ann")
    assert (move.version, move.before, alias(registry, CHAMPION)) == ("1", "3", "1")
    assert registry.version("toy", "3").tags["rollback.why"] == "it is rude"
    again = promote(toys.path, again=True)
    assert not again.alias_moved
    assert "taken back by ann" in again.reasons[0]
    assert [(move.kind, move.version) for move in registry.history("toy")] == [
        ("promotion", "1"),
        ("promotion", "3"),
        ("rollback", "1"),
    ]
    with pytest.raises(RegistryError, match="first champion of toy"):
        roll_back(toys.path)
    roll_back(toys.path, to="3", why="it is polite after all")
    assert alias(registry, CHAMPION) == "3"
    with pytest.raises(RegistryError, match=r"no version 9 of toy; it has versions 1, 2, 3"):
        roll_back(toys.path, to="9")


def test_a_version_is_registered_compared_promoted_and_taken_back_in_a_file(toys: ToyLine):
    check_promotion_and_rollback(toys)


@pytest.mark.slow
def test_a_version_is_registered_compared_promoted_and_taken_back_on_a_server(toys: ToyLine, server):
    check_promotion_and_rollback(toys)


def test_the_first_version_is_champion_only_where_the_config_says_so(toys: ToyLine):
    toys.repro("promotion.first=false")
    decision = promote(toys.path)
    assert not decision.alias_moved
    assert not decision.regressed
    assert "`tuneline rollback --to 1`" in decision.reasons[0]
    registry = Registry(toys.path)
    assert (alias(registry, CHAMPION), alias(registry, CHALLENGER)) == (None, "1")
    roll_back(toys.path, to="1", why="looked at")
    assert alias(registry, CHAMPION) == "1"


def test_a_champion_of_other_items_is_refused_where_its_bytes_are_gone(toys: ToyLine):
    promote(toys.path)
    champion = Registry(toys.path).champion("toy")
    toys.repro("dpo.launch.timeout_hours=0.7", "evaluate.max_new_tokens=7")  # asked otherwise
    cache = toys.path / ".dvc" / "cache" / "files" / "md5"
    listed = cache / champion.md5[:2] / champion.md5[2:]
    (entry,) = json.loads(listed.read_text())
    (cache / entry["md5"][:2] / entry["md5"][2:]).unlink()
    decision = promote(toys.path)
    assert not decision.alias_moved
    assert "cannot be compared with version 1: DVC's cache lacks 1 of its 1 files" in decision.reasons[0]


def test_an_evaluation_of_another_model_decides_nothing(toys: ToyLine):
    (toys.path / "params.yaml").write_text((toys.path / "params.yaml").read_text().replace("0.5", "0.6"))
    command = [sys.executable, "-m", "dvc", "repro", "-q", "-s", "dpo"]
    subprocess.run(command, cwd=toys.path, env=toys.env, check=True)
    with pytest.raises(TunelineError, match="the last evaluation is of another models/dpo"):
        promote(toys.path)


@pytest.mark.parametrize(("policy", "chosen"), [("sft", "sft"), ("best", "dpo"), ("last", "dpo")])
def test_which_policy_is_a_candidate_is_configured(toys: ToyLine, policy, chosen):
    toys.repro(f"promotion.policy={policy}")
    assert promote(toys.path).policy == chosen
    assert Registry(toys.path).champion("toy").tags["dvc.path"] == f"models/{chosen}"


def test_what_goes_wrong_with_mlflow_costs_the_run_nothing_and_is_told(toys: ToyLine, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    with pytest.raises(RegistryError, match="Start that server") as raised:
        promote(toys.path)
    assert "secret" not in str(raised.value)
    assert try_to_promote(toys.path) is None
    assert toys.decision["alias_moved"] is False
    assert "MLflow at http://" in toys.decision["reasons"][0]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert try_to_promote(toys.path).alias_moved  # an error is no decision


def test_the_alias_does_not_move_under_somebody_who_decided_on_another_champion(toys: ToyLine):
    promote(toys.path)
    toys.repro("dpo.launch.timeout_hours=0.7")
    registry = Registry(toys.path)
    first = registry.champion("toy")
    second = registry.register("toy", "toy", "", {**first.tags, "dvc.md5": "0" * 32 + ".dir"})
    with pytest.raises(RegistryError, match="somebody moved the alias"):
        registry.move_champion(second, None, by="ann", why="", kind="promotion")


def test_rollbacks_go_further_back_and_never_forth():
    def moves(*steps):
        return [Move(version, before, "", "", "", kind) for kind, version, before in steps]

    p, r = "promotion", "rollback"
    assert standing(moves((p, "1", ""), (p, "3", "1"), (p, "5", "3"))) == ["1", "3", "5"]
    assert standing(moves((p, "1", ""), (p, "3", "1"), (p, "5", "3"), (r, "3", "5"))) == ["1", "3"]
    assert standing(moves((p, "1", ""), (p, "3", "1"), (r, "1", "3"), (p, "6", "1"))) == ["1", "6"]
    assert standing(moves((p, "4", "2"))) == ["2", "4"]  # 2 was set by other means
    assert standing(moves((p, "1", ""), (r, "7", "1"))) == ["1", "7"]
    assert standing(moves((p, "1", ""), (p, "2", "1"), (p, "3", "2"), (p, "4", "2"))) == ["1", "2", "4"]  # 3 failed


def failing(call, when):
    """A method of MLflow's client that fails for some arguments."""

    def method(self, *arguments):
        if when in arguments:
            raise ConnectionError("the server is gone")
        return call(self, *arguments)

    return method


def test_a_move_that_fails_is_none_and_one_that_was_made_is_told_though_its_tags_fail(toys: ToyLine, monkeypatch):
    from mlflow import MlflowClient as Client

    promote(toys.path)
    toys.repro("dpo.launch.timeout_hours=0.7")
    with monkeypatch.context() as patch:
        patch.setattr(Client, "set_registered_model_alias", failing(Client.set_registered_model_alias, CHAMPION))
        assert try_to_promote(toys.path) is None
    assert toys.decision["alias_moved"] is False
    registry = Registry(toys.path)
    assert (alias(registry, CHAMPION), len(registry.history("toy"))) == ("1", 2)
    with pytest.raises(RegistryError, match="first champion"):  # not to the version that never was champion
        roll_back(toys.path)
    with monkeypatch.context() as patch:
        patch.setattr(Client, "set_model_version_tag", failing(Client.set_model_version_tag, "promotion.verdict"))
        assert "do not say so" in try_to_promote(toys.path).reasons[-1]
    assert toys.decision["alias_moved"] is True
    assert alias(registry, CHAMPION) == "2"
    assert roll_back(toys.path).version == "1"


def test_commands_decide_go_back_and_show_the_history(toys: ToyLine):
    assert "version 1 (dpo) is champion" in toys.call("promote")
    toys.repro("dpo.launch.timeout_hours=0.3")
    assert "refused" in toys.call("promote", exit_code=1)
    toys.call("rollback", "--to", "2", "--reason", "a trial")
    shown = toys.call("champion")
    assert "toy@champion: version 2" in shown
    assert "a trial" in shown
    toys.configure("promotion=null")
    assert "add a section `promotion:`" in toys.call("promote", exit_code=2)
