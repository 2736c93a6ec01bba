"""Results go to a remote and come back: a local folder, S3 (moto's server), SSH (a server in Python)."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.storage import StorageError, pull, push
from tests.flows.checkouts import Checkout
from tests.lineage.checkouts import git
from tests.ports import free_port
from tests.storage.servers import Server, s3_server, ssh_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
SECRET = "wJalrXUtnFEMI7K7MDENGbPxRfiCYEXAMPLEKEY"
KEY_ID = "testing-key-id"


def dvc(checkout: Checkout, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, cwd=checkout.path, env=checkout.env, check=True, capture_output=True)


def clone_of(checkout: Checkout, path: Path) -> Checkout:
    git(checkout.path, "clone", "-q", str(checkout.path), str(path))
    return replace(checkout, path=path)


def with_remote(checkout: Checkout, url: str) -> Checkout:
    dvc(checkout, "remote", "add", "-d", "store", url)
    git(checkout.path, "commit", "-qam", "A remote")
    return checkout


def objects(remote: Path) -> list[Path]:
    return [path for path in (remote / "files").rglob("*") if path.is_file()]


def test_a_fresh_clone_pulls_and_has_nothing_to_train(traced: Checkout, tmp_path: Path):
    with_remote(traced, str(tmp_path / "remote"))
    assert "objects are on store" in traced.call("push")
    fresh = clone_of(traced, tmp_path / "fresh")
    assert "objects of store are here" in fresh.call("pull")
    assert "Nothing to do: all 5 stages are up to date" in fresh.call("run", "toy.yaml")
    assert fresh.tries("prepare") == 0
    assert "All matches" in fresh.call("verify")


def test_an_object_that_the_remote_lost_or_has_half_is_sent_again(traced: Checkout, tmp_path: Path):
    with_remote(traced, str(tmp_path / "remote"))
    assert push(traced.path).num_mended == 0
    lost, half = [path for path in objects(tmp_path / "remote") if path.suffix != ".dir"][:2]
    whole = half.read_bytes()
    lost.unlink()
    half.chmod(0o644)
    half.write_bytes(whole[:7])
    assert push(traced.path).num_mended == 2
    assert lost.is_file()
    assert half.read_bytes() == whole
    assert push(traced.path).num_mended == 0


@pytest.mark.slow
def test_other_bytes_on_the_remote_get_neither_into_the_cache_nor_into_the_checkout(traced: Checkout, tmp_path: Path):
    with_remote(traced, str(tmp_path / "remote"))
    push(traced.path)
    wrong = next(path for path in objects(tmp_path / "remote") if path.suffix != ".dir")
    wrong.chmod(0o644)
    wrong.write_bytes(bytes(wrong.stat().st_size))
    fresh = clone_of(traced, tmp_path / "fresh")
    with pytest.raises(StorageError, match="other bytes than it should for 1 objects"):
        pull(fresh.path)
    assert not list((fresh.path / ".dvc/cache").rglob(wrong.name))
    assert not (fresh.path / "models").exists()


def test_a_remote_that_is_not_there_is_one_message_and_costs_nothing(traced: Checkout, tmp_path: Path):
    with pytest.raises(StorageError, match="`dvc remote add -d store"):
        push(traced.path)
    dvc(traced, "remote", "add", "other", str(tmp_path))
    with pytest.raises(StorageError, match="there are other"):
        push(traced.path)
    with pytest.raises(StorageError, match="There is no DVC remote stor; there are other"):
        push(traced.path, "stor")
    (tmp_path / "file").touch()
    dvc(traced, "remote", "add", "-d", "store", str(tmp_path / "file"))
    shown = traced.call("push", exit_code=2)
    assert "could not push with the remote store" in shown
    assert "lies whole in the checkout" in shown
    assert "Traceback" not in shown


@pytest.fixture
def s3() -> Iterator[Server]:
    with s3_server(free_port(), bucket="store", key_id=KEY_ID, secret=SECRET) as server:
        yield server


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[Server]:
    with ssh_server(free_port(), tmp_path / "ssh") as server:
        yield server


@pytest.mark.slow
def test_s3_by_credentials_of_the_environment_that_stay_there(traced: Checkout, tmp_path: Path, s3: Server):
    with_remote(traced, "s3://store/line")
    dvc(traced, "remote", "modify", "store", "endpointurl", s3.url)
    git(traced.path, "commit", "-qam", "Where the remote is")
    traced.env |= {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    assert "objects are on store" in traced.call("push")
    shown = traced.call("run", "toy.yaml", "--set", "dpo.launch.timeout_hours=2", "--push")
    assert "objects are on store" in shown
    git(traced.path, "commit", "-qam", "Another run")
    fresh = clone_of(traced, tmp_path / "fresh")
    fresh.call("pull")
    assert "Nothing to do" in fresh.call("run", "toy.yaml", "--set", "dpo.launch.timeout_hours=2")
    for root in (traced.path, fresh.path, Path(traced.env["PREFECT_HOME"])):
        holders = [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
        assert not holders
    s3.stop()
    shown = traced.call("push", exit_code=2)
    assert "could not push" in shown
    assert SECRET not in shown


@pytest.mark.slow
def test_s3_without_credentials_says_how_to_give_them(traced: Checkout, tmp_path: Path, s3: Server):
    with_remote(traced, "s3://store/line")
    dvc(traced, "remote", "modify", "store", "endpointurl", s3.url)
    traced.env |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    shown = traced.call("push", exit_code=2)
    assert "AWS_ACCESS_KEY_ID" in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_ssh_by_a_key_that_only_config_local_names(traced: Checkout, tmp_path: Path, ssh: Server):
    with_remote(traced, f"{ssh.url}{tmp_path}/over-ssh")
    traced.env["HOME"] = str(tmp_path)
    dvc(traced, "remote", "modify", "--local", "store", "keyfile", str(ssh.key))
    assert "objects are on store" in traced.call("push")
    half = next(path for path in objects(tmp_path / "over-ssh") if path.suffix != ".dir")
    whole = half.read_bytes()
    half.chmod(0o644)
    half.write_bytes(whole[:3])
    assert "1 that were lost or half there were sent again" in traced.call("push")
    assert half.read_bytes() == whole
    fresh = clone_of(traced, tmp_path / "fresh")
    dvc(fresh, "remote", "modify", "--local", "store", "keyfile", str(ssh.key))
    fresh.call("pull")
    assert "Nothing to do" in fresh.call("run", "toy.yaml")
    other = tmp_path / "other-key"
    ssh.new_key(other)
    dvc(traced, "remote", "modify", "--local", "store", "keyfile", str(other))
    (half.parent / half.name).unlink()
    shown = traced.call("push", exit_code=2)
    assert "config.local" in shown
    assert "Traceback" not in shown
