"""Six nodes as processes on loopback, and the load generator, for the measuring scripts beside this file."""

import http.client
import json
import pathlib
import subprocess
import sys
import time

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Cluster:
    """`mode`: mem (nothing on disk), or what --fsync takes."""

    def __init__(self, target, folder, mode="mem", network=11, nodes=6, shards=2, **env):
        self.target, self.folder, self.mode = pathlib.Path(target), folder, mode
        self.nodes = [f"127.{network}.0.{i}:8090" for i in range(2, 2 + nodes)]
        self.env = {"VIEW": ",".join(self.nodes), "SHARD_COUNT": str(shards), "LOG_LEVEL": "warn", **env}
        self.processes = []

    def __enter__(self):
        self.processes = [self.start(index) for index in range(len(self.nodes))]
        for address in self.nodes:
            wait_ready(address)
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def start(self, index):
        address = self.nodes[index]
        env = {**self.env, "SOCKET_ADDRESS": address, "LISTEN_ADDRESS": address}
        if self.mode != "mem":
            env.update(DATA_DIR=f"{self.folder}/{self.mode}-{index}", FSYNC=self.mode)
        return subprocess.Popen([self.target / "kvnode"], env=env, **QUIET)

    def bench(self, *arguments):
        return bench(self.target, self.nodes, *arguments)

    def resident(self):
        """Bytes in memory of each node."""
        return [status(process.pid, "VmRSS") * 1024 for process in self.processes]

    def key_counts(self):
        """Keys of each shard, as its first node tells."""
        shards = ask(self.nodes[0], "GET", "/shard/ids")[1]["shard-ids"]
        return [ask(self.nodes[0], "GET", f"/shard/key-count/{one}")[1]["shard-key-count"] for one in shards]


def status(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def cpu_us(process):
    """User and system time so far, of all threads."""
    tasks = pathlib.Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) // 1000


def ask(address, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request(method, path, json.dumps(body) if body is not None else None, headers or {})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text.startswith(b"{") else {}


def wait_ready(address, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if ask(address, "GET", "/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.005)
    sys.exit(f"{address} is not ready")


def bench(target, urls, *arguments):
    """A report of `kvctl bench`."""
    command = [pathlib.Path(target) / "kvctl", "--output", "json", "bench", "--url", ",".join(urls), *map(str, arguments)]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        sys.exit(f"{command}: {said.stderr}")
    report = json.loads(said.stdout)
    if report["errors"]:
        sys.exit(f"errors: {report['errors']}")
    return {
        "cpu": report["cpu"]["servers-us"],
        "rate": report["per-second"],
        "p50": report["latency-us"]["all"]["p50"] / 1000,
        "p99": report["latency-us"]["all"]["p99"] / 1000,
    }
