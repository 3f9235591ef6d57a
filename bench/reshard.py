#!/usr/bin/env python3
"""A reshard from 2 to 3 shards and back under load, with a seventh node: the figures of ARCHITECTURE.md.

Clients write and read with causal contexts the whole time and check what they read.
Needs a release build. Usage: bench/reshard.py TARGET_FOLDER KEYS...
Exit 1 if any client read something older than it had seen, or an acknowledged key is gone.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

import cluster

TARGET, SIZES = sys.argv[1], [int(text) for text in sys.argv[2:]] or [10_000]
NODES = [f"127.10.0.{i}:8090" for i in range(2, 9)]
CLIENTS = 6


def start(folder, address, view, **more):
    env = {"SOCKET_ADDRESS": address, "LISTEN_ADDRESS": address, "VIEW": ",".join(view), "LOG_LEVEL": "warn", **more}
    if os.environ.get("KEEP_ON_DISK"):
        env["DATA_DIR"] = f"{folder}/{address}"
    return subprocess.Popen([f"{TARGET}/kvnode"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Client:
    """One session: a connection to one node at a time, and the context."""

    def __init__(self, nodes):
        self.nodes, self.at, self.token, self.connection = nodes, 0, None, None

    def ask(self, method, path, **body):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.nodes[self.at % len(self.nodes)], timeout=1000)
        headers = {"X-Causal-Metadata": self.token} if self.token else {}
        try:
            self.connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = self.connection.getresponse()
            text = answer.read()
        except OSError:
            self.connection = None
            self.at += 1
            return 0, {}
        said = json.loads(text)
        self.token = said.get("causal-metadata", self.token)
        return answer.status, said


def wait_ready(addresses):
    for address in addresses:
        while Client([address]).ask("GET", "/ready")[0] != 200:
            time.sleep(0.02)


def fill(keys):
    fixed = ["--mix", "1/0", "--route", "owner", "--connections", 64, "--duration", "100ms", "--warmup", "0s"]
    cluster.bench(TARGET, NODES[:6], "--keys", keys, "--value-size", 100, "--prepare", *fixed)


class Load(threading.Thread):
    """A session that writes keys of its own and reads them back at other nodes."""

    def __init__(self, index):
        super().__init__()
        self.client, self.index, self.stop = Client(NODES[:6]), index, False
        self.took_ms, self.errors, self.offences, self.latest = [], [], [], {}

    def run(self):
        number = 0
        while not self.stop:
            number += 1
            key = f"/kvs/own-{self.index}-{number % 500}"
            self.client.connection, self.client.at = None, number
            began = time.monotonic()
            status, said = self.client.ask("PUT", key, value=number)
            self.took_ms.append((time.monotonic() - began) * 1000)
            if status not in (200, 201):
                self.errors.append((status, said))
                continue
            self.latest[key] = number
            self.client.connection, self.client.at = None, number + 3
            status, said = self.client.ask("GET", key)
            if status != 200:
                (self.offences if status == 404 else self.errors).append((status, said))
            elif said["value"] != number:
                self.offences.append((key, number, said))


def counts():
    client = Client([NODES[1]])
    ids = client.ask("GET", "/shard/ids")[1]["shard-ids"]
    return {one: client.ask("GET", f"/shard/key-count/{one}")[1]["shard-key-count"] for one in ids}


def latencies(loads):
    """The 99th percentile and the longest of the writes since the last call, in ms, and how many they were."""
    taken = []
    for load in loads:
        # The session may be adding to its list: what it adds later belongs to the next call.
        count = len(load.took_ms)
        taken += load.took_ms[:count]
        del load.took_ms[:count]
    taken.sort()
    return round(taken[int((len(taken) - 1) * 0.99)], 1), round(taken[-1], 1), len(taken)


def cpu_and_bytes(processes):
    """CPU time of all nodes in s, and bytes through the loopback device."""
    ticks = 0
    for process in processes:
        fields = open(f"/proc/{process.pid}/stat").read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    line = next(line for line in open("/proc/net/dev") if line.strip().startswith("lo:"))
    return ticks / os.sysconf("SC_CLK_TCK"), int(line.split()[1])


def reshard(count, loads, processes):
    quiet = latencies(loads)
    began, (cpu, moved) = time.monotonic(), cpu_and_bytes(processes)
    asked = Client([NODES[2]])
    status, said = asked.ask("PUT", "/shard/reshard", **{"shard-count": count})
    took = time.monotonic() - began
    assert status == 200, said
    cpu, moved = (after - before for after, before in zip(cpu_and_bytes(processes), (cpu, moved)))
    while asked.ask("GET", "/shard/reshard")[1]["phase"] != "done":
        time.sleep(0.02)
    settled = time.monotonic() - began
    told = asked.ask("GET", "/shard/reshard")[1]
    p99, longest, writes = latencies(loads)
    return {
        "served after s": round(took, 2),
        "settled after s": round(settled, 2),
        "p99 of writes ms": f"{p99}, before {quiet[0]}: x{p99 / quiet[0]:.1f}",
        "longest ms": f"{longest}, before {quiet[1]}",
        "writes/s": round(writes / settled),
        "fetched": told.get("keys"),
        "cores busy until served": round(cpu / took, 2),
        "MB/s on loopback": round(moved / took / 1e6),
    }


bad = False
for keys in SIZES:
    with tempfile.TemporaryDirectory() as folder:
        processes = [start(folder, address, NODES[:6], SHARD_COUNT="2") for address in NODES[:6]]
        try:
            wait_ready(NODES[:6])
            fill(keys)
            processes.append(start(folder, NODES[6], NODES))
            wait_ready(NODES[6:])
            loads = [Load(index) for index in range(CLIENTS)]
            [load.start() for load in loads]
            time.sleep(2)
            before = sum(counts().values())
            for count in (3, 2):
                figures = reshard(count, loads, processes)
                print(f"{keys} keys, to {count} shards: {figures}", flush=True)
                time.sleep(3)
            for load in loads:
                load.stop = True
            [load.join() for load in loads]
            errors = [error for load in loads for error in load.errors]
            offences = [offence for load in loads for offence in load.offences]
            wanted = keys + sum(len(load.latest) for load in loads)
            deadline = time.monotonic() + 5
            while sum(counts().values()) != wanted and time.monotonic() < deadline:
                time.sleep(0.1)
            print(f"  errors {errors[:3]} ({len(errors)}), stale or lost {offences[:3]} ({len(offences)})")
            print(f"  keys {counts()}, wanted {wanted}")
            bad |= bool(offences) or sum(counts().values()) != wanted
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
sys.exit(bad)
