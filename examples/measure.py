#!/usr/bin/env python3
"""Throughput, and CPU time per request of all six nodes, on loopback: the figures of ARCHITECTURE.md.

Needs wrk and a release build. Usage: examples/measure.py KVNODE [mem|interval|always]
"""

import json
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
  return wrk.format("PUT", "/kvs/" .. string.format("key-%012d", n % KEYS), {}, BODY)
end
"""
BODY = """BODY = '{"value":"' .. string.rep("x", 98) .. '"}'\n"""
REST_SECONDS = 20


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


def rest(processes):
    time.sleep(5)
    before = [cpu_us(process) for process in processes]
    time.sleep(REST_SECONDS)
    each = [round((cpu_us(p) - b) / 1000 / REST_SECONDS, 1) for p, b in zip(processes, before)]
    print(f"at rest: {sum(each):.1f} ms CPU per second, per node {each}")


def resident(process):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{process.pid}/status").read_text()).group(1)) * 1024


def key_count(shard):
    with urllib.request.urlopen(f"http://{NODES[0]}/shard/key-count/{shard}") as answer:
        return json.load(answer)["shard-key-count"]


def first_key_of(shard):
    for number in range(100):
        path = f"/kvs/first-{number:010}"
        body = json.dumps({"value": "x" * 98}).encode()
        urllib.request.urlopen(urllib.request.Request(f"http://{NODES[0]}{path}", body, method="PUT"))
        time.sleep(0.1)
        if key_count(shard) > 0:
            return path
    sys.exit(f"no key of shard {shard}")


def memory(processes, folder):
    """Bytes per key and replica: 16-byte keys, 100-byte values."""
    before = [resident(process) for process in processes]
    script = pathlib.Path(folder, "fill.lua")
    script.write_text("KEYS = 1000000000\n" + BODY + PUT)
    subprocess.run(["wrk", "-t1", "-d20s", "-c64", "-s", str(script), f"http://{NODES[0]}"], stdout=subprocess.DEVNULL)
    time.sleep(5)
    counts = [key_count("s1")] * 3 + [key_count("s2")] * 3
    each = [round((resident(p) - b) / count) for p, b, count in zip(processes, before, counts)]
    print(f"memory: {each} bytes per key and replica, {counts[0]} and {counts[3]} keys")


with tempfile.TemporaryDirectory() as folder:
    processes = [start(folder, index, address) for index, address in enumerate(NODES)]
    try:
        for address in NODES:
            wait_ready(address)
        rest(processes)
        path = first_key_of("s1")
        script = pathlib.Path(folder, "put.lua")
        script.write_text("KEYS = 5000\n" + BODY + PUT)
        for connections in (16, 64):
            c = f"-c{connections}"
            load(f"PUT {c} any key at alice", processes, [c, "-s", str(script), f"http://{NODES[0]}"])
            load(f"GET {c} at a node elsewhere", processes, [c, f"http://{NODES[3]}{path}"])
            load(f"GET {c} at a replica", processes, [c, f"http://{NODES[0]}{path}"])
        memory(processes, folder)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
