#!/usr/bin/env python3
"""Throughput, and CPU time per request of all six nodes, on loopback: the figures of ARCHITECTURE.md.

Needs wrk and a release build. Usage: examples/measure.py KVNODE [mem|interval|always]
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

KVNODE, MODE = sys.argv[1], (sys.argv[2:] or ["mem"])[0]
NODES = [f"127.10.0.{i}:8090" for i in range(2, 8)]
PUT = """
local n = 0
request = function()
  n = n + 1
  return wrk.format("PUT", "/kvs/key-" .. (n % 5000), {}, '{"value":"' .. string.rep("x", 100) .. '"}')
end
"""


def start(folder, index, address):
    env = {"SOCKET_ADDRESS": address, "LISTEN_ADDRESS": address, "VIEW": ",".join(NODES), "SHARD_COUNT": "2"}
    env["LOG_LEVEL"] = "warn"
    if MODE != "mem":
        env.update(DATA_DIR=f"{folder}/{index}", FSYNC=MODE)
    return subprocess.Popen([KVNODE], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_ready(address):
    for _ in range(500):
        try:
            urllib.request.urlopen(f"http://{address}/ready")
            return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"{address} is not ready")


def cpu_us(process):
    """User and system time so far; the kernel counts in ticks of 10 ms."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return sum(map(int, fields[11:13])) * 10_000


def load(name, processes, arguments):
    before = [cpu_us(process) for process in processes]
    said = subprocess.run(["wrk", "-t1", "-d5s", "--latency", *arguments], capture_output=True, text=True).stdout
    count = int(re.search(r"(\d+) requests in", said).group(1))
    each = [round((cpu_us(p) - b) / count, 1) for p, b in zip(processes, before)]
    bad = re.search(r"Non-2xx.*", said)
    p99 = re.search(r"99%\s+(\S+)", said).group(1)
    print(f"{name:32} {count / 5:8.0f}/s  {sum(each):6.0f} us CPU  per node {each}  p99 {p99}  {bad.group() if bad else ''}")


with tempfile.TemporaryDirectory() as folder:
    processes = [start(folder, index, address) for index, address in enumerate(NODES)]
    try:
        for address in NODES:
            wait_ready(address)
        script = pathlib.Path(folder, "put.lua")
        script.write_text(PUT)
        for connections in (16, 64):
            c = f"-c{connections}"
            load(f"PUT {c} any key at alice", processes, [c, "-s", str(script), f"http://{NODES[0]}"])
            load(f"GET {c} at a node elsewhere", processes, [c, f"http://{NODES[0]}/kvs/key-1"])
            load(f"GET {c} at a replica", processes, [c, f"http://{NODES[3]}/kvs/key-1"])
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
