"""What needs no server: the file of deployments, the flow's schema, the server's settings, GPUs, regressions."""

import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.serving import password_file, print_client_env, server_settings
from flows.settings import apply_settings
from stages.launch import gpus_of_machine, num_gpus
from stages.loading import load_config
from stages.schema import Launch, PipelineConfig
from tests.deployments.conftest import CLIENT, DEPLOY, POOL, ROOT, SERVER, WORKER
from tests.test_configs import OVERRIDES, ROWS
from tuneline.errors import ConfigError

# What Prefect's imports leave behind.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("command", [SERVER, CLIENT, POOL, DEPLOY, WORKER])
def test_the_page_tells_the_commands_that_these_tests_type(command: str):
    assert command in (ROOT / "docs" / "deployments.md").read_text()


def deployments() -> list[dict[str, Any]]:
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment["name"])
def test_every_deployment_has_a_config_that_is_valid_a_schedule_tags_and_the_pool(deployment: dict[str, Any]):
    parameters = deployment["parameters"]
    path = ROOT / parameters["config"]
    load_config(path, [*OVERRIDES.get(path.stem, []), *parameters.get("overrides", [])], root=ROOT)
    assert [schedule["cron"] for schedule in deployment["schedules"]]
    assert "tuneline" in deployment["tags"]
    assert deployment["work_pool"]["name"] == "tuneline"
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


def test_the_flow_s_parameters_carry_the_pipeline_s_schema():
    from flows.align import align

    schema = align.parameters.model_dump()
    config = schema["definitions"]["PipelineConfig"]
    assert set(config["properties"]) == set(PipelineConfig.model_fields)
    assert all(schema["properties"][name].get("description") for name in schema["properties"])
    assert schema["required"] == []


def test_settings_of_a_run_are_checked_as_those_of_a_file_are():
    from flows.align import _chosen_settings

    prepare = {"preferences": {"path": str(ROWS)}}
    given = {"name": "toy", "model": {"name_or_path": "nobody/toy"}, "prepare": prepare}
    settings = PipelineConfig.model_validate(given)
    chosen = _chosen_settings(None, settings, ["dpo.training.beta=0.2"], ROOT)
    assert chosen is not None
    assert chosen.dpo.training == {"beta": 0.2}
    wrong = PipelineConfig.model_validate({**given, "dpo": {"training": {"betta": 0.2}}})
    with pytest.raises(ConfigError, match=r"(?s)the settings of this run: 1 setting is wrong.*betta.*did you mean"):
        _chosen_settings(None, wrong, [], ROOT)
    with pytest.raises(ConfigError, match="both given"):
        _chosen_settings("configs/quickstart.yaml", settings, [], ROOT)
    with pytest.raises(ConfigError, match="neither is given"):
        _chosen_settings(None, None, ["seed=1"], ROOT)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    apply_settings(tmp_path)
    yield tmp_path / ".prefect"
    os.environ.clear()
    os.environ.update(before)


def test_the_password_is_its_owner_s_alone_and_is_in_no_command(home: Path, capsys: pytest.CaptureFixture[str]):
    file = password_file()
    password = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(password.removeprefix("tuneline:")) >= 32
    assert password_file().read_text() == password
    print_client_env(4300)
    shown = capsys.readouterr().out
    assert "export PREFECT_API_URL=http://127.0.0.1:4300/api\n" in shown
    assert f"cat {home}/auth" in shown
    assert password not in shown
    settings = server_settings(4300, password)
    assert settings["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4300"
    assert settings["PREFECT_SERVER_API_AUTH_STRING"] == password


def test_a_stage_takes_as_many_gpus_as_it_has_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_of_machine() == 0
    assert num_gpus(Launch(num_processes=2), tmp_path) == 0
    assert num_gpus(Launch(num_processes=2, gpus=3), tmp_path) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert gpus_of_machine() == 2
    assert num_gpus(Launch(num_processes=2), tmp_path) == 2
    assert num_gpus(Launch(num_processes=2, gpus=0), tmp_path) == 0
    (tmp_path / "two_hosts.yaml").write_text("num_processes: 16\nnum_machines: 2\n")
    assert num_gpus(Launch(config_file="two_hosts.yaml"), tmp_path) == 8


def test_a_regression_is_told_of_once_and_only_where_there_was_a_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tasks import regression

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(regression, "emit_event", lambda name, **given: told.append({"event": name, **given}))
    now = datetime.now(UTC)

    def tell(since: datetime = now - timedelta(minutes=1), **decision: Any) -> bool:
        path = tmp_path / "reports" / "promotion.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(decision))
        return regression.tell_of_regression(tmp_path, "toy", "run", since)

    assert not regression.tell_of_regression(tmp_path, "toy", "run", now)
    assert tell(version="8", champion="7", alias_moved=False, reasons=["worse"])
    assert not tell(version="8", champion="7", alias_moved=True, reasons=[])
    assert not tell(version="1", champion=None, alias_moved=False, reasons=["no gain"])
    assert not tell(version="8", champion="7", alias_moved=False, since=now + timedelta(minutes=1))
    assert [one["payload"]["reasons"] for one in told] == [["worse"]]
