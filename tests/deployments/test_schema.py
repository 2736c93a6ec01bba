"""What the server keeps of the deployments, and what it refuses."""

from typing import Any

import psutil
import pytest

from tests.deployments.conftest import Line, Server, deployments_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


def test_the_server_knows_the_pipeline_s_schema_and_refuses_a_run_that_breaks_it(line: Line):
    line.deploy()
    with line.server.client() as client:
        deployments = {found.name: found for found in deployments_of(client)}
    assert set(deployments) == {"full-line", "preference-line", "reasoning-line"}
    full = deployments["full-line"]
    assert (full.work_pool_name, full.tags, full.enforce_parameter_schema) == ("tuneline", ["tuneline", "full"], True)
    assert full.concurrency_options.collision_strategy == "ENQUEUE"
    assert full.global_concurrency_limit.limit == 1
    schema = full.parameter_openapi_schema
    config = schema["definitions"]["PipelineConfig"]
    assert config["additionalProperties"] is False
    assert config["required"] == ["name", "model", "prepare"]
    assert schema["definitions"]["EvaluateSection"]["properties"]["temperature"]["minimum"] == 0
    assert "description" in schema["definitions"]["Launch"]["properties"]["num_processes"]
    assert {"config", "settings", "overrides", "force", "parallel"} <= set(schema["properties"])
    with pytest.raises(Exception, match="temperature"):
        line.run("full-line", config=None, settings=toy_settings(evaluate={"temperature": -1}))
    with pytest.raises(Exception, match="temprature"):
        line.run("full-line", config=None, settings=toy_settings(evaluate={"temprature": 1}))
    with pytest.raises(Exception, match="retries"):
        line.run("full-line", retries="many")
    line.run("full-line", config=None, settings=toy_settings(evaluate={"temperature": 0.5}))


def toy_settings(**sections: object) -> dict[str, object]:
    prepare = {"preferences": {"path": "toy.jsonl"}}
    return {"name": "toy", "model": {"name_or_path": "nobody/toy"}, "prepare": prepare, **sections}


def test_the_server_wants_its_password_and_answers_no_other_page(server: Server):
    assert server.ask("/flows/count") in (401, 403, 405)
    assert server.ask("/work_pools/none", password="tuneline:wrong") in (401, 403)
    assert server.ask("/work_pools/none", password=server.password) == 404
    assert server.preflight(origin="http://evil.example") == 400
    assert server.preflight(origin=server.url) == 200
    addresses = {connection.laddr.ip for connection in listening(server)}
    assert addresses == {"127.0.0.1"}


def listening(server: Server) -> list[Any]:
    assert server.process is not None
    top = psutil.Process(server.process.pid)
    found = [c for process in (top, *top.children(recursive=True)) for c in process.net_connections()]
    return [connection for connection in found if connection.status == psutil.CONN_LISTEN]
