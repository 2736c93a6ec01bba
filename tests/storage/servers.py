"""Servers that remotes are tested against, on loopback, each a process that ends with the test."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SSH = """
import asyncio, sys
import asyncssh

class Anyone(asyncssh.SSHServer):
    pass

async def main(port, folder):
    await asyncssh.listen(
        "127.0.0.1", int(port), server_host_keys=[f"{folder}/host"], authorized_client_keys=f"{folder}/authorized",
        server_factory=Anyone, sftp_factory=True,
    )
    print("listens", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass
class Server:
    process: subprocess.Popen
    url: str
    key: Path = Path()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    @staticmethod
    def new_key(path: Path) -> str:
        """Writes a private key, and returns its public one."""
        import asyncssh

        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(path))
        path.chmod(0o600)
        return key.export_public_key().decode()


@contextmanager
def s3_server(port: int, *, bucket: str, key_id: str, secret: str) -> Iterator[Server]:
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(process, f"http://127.0.0.1:{port}")
    try:
        limit = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(server.url, timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, "the S3 server ended"
                assert time.monotonic() < limit, "the S3 server did not answer"
                time.sleep(0.2)
        request = urllib.request.Request(f"{server.url}/{bucket}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        yield server
    finally:
        server.stop()


@contextmanager
def ssh_server(port: int, folder: Path) -> Iterator[Server]:
    folder.mkdir()
    Server.new_key(folder / "host")
    (folder / "authorized").write_text(Server.new_key(folder / "client"))
    command = [sys.executable, "-W", "ignore", "-c", _SSH, str(port), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    server = Server(process, f"ssh://tester@127.0.0.1:{port}", folder / "client")
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "listens"
        yield server
    finally:
        server.stop()
        process.stdout.close()
