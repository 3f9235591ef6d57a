#!/usr/bin/env python3
"""What grows with what, and how long things take: the figures of ARCHITECTURE.md.

Needs a release build; `paused` and `etcd` need wrk, `etcd` needs etcd (Debian: wrk, etcd-server).
Usage: bench/curves.py TARGET_FOLDER rest|memory KEYS...|restart KEYS...|values BYTES...|visibility|paused|etcd|first-put
"""

import json
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from cluster import QUIET, Cluster, ask, cpu_us, wait_ready

TARGET, WHAT, NUMBERS = sys.argv[1], sys.argv[2], [int(text) for text in sys.argv[3:]]
SECONDS_AT_REST = 30


def percentiles(samples):
    ordered = sorted(samples)
    return [round(ordered[int((len(ordered) - 1) * part)], 2) for part in (0.5, 0.9, 0.99, 1)]


def fill(cluster, keys):
    fixed = ["--mix", "1/0", "--route", "owner", "--connections", 64, "--duration", "1s", "--warmup", "0s"]
    cluster.bench("--keys", keys, "--prepare", *fixed)
    # Until everything has reached everybody, and the replication log is all that is kept beside the data.
    time.sleep(6)


def rest(folder):
    """CPU time of a cluster that nobody talks to."""
    with Cluster(TARGET, folder) as cluster:
        time.sleep(6)
        for _ in range(3):
            before = [cpu_us(process) for process in cluster.processes]
            time.sleep(SECONDS_AT_REST)
            each = [(cpu_us(p) - b) / 1000 / SECONDS_AT_REST for p, b in zip(cluster.processes, before)]
            print(f"at rest: {sum(each):.1f} ms CPU per second, per node {[round(one, 2) for one in each]}")


def memory(folder):
    """Resident bytes per key and replica, and what an operation costs then: 16-byte keys, 100-byte values."""
    for keys in NUMBERS:
        with Cluster(TARGET, folder) as cluster:
            before = cluster.resident()
            fill(cluster, keys)
            counts = cluster.key_counts()
            held = [counts[0]] * 3 + [counts[1]] * 3
            each = [round((now - was) / count) for now, was, count in zip(cluster.resident(), before, held)]
            print(f"{keys} keys: {statistics.mean(each):.0f} bytes per key and replica {each}, {held[0]} and {held[3]} keys")
            for mix, name in (("1/0", "GET"), ("0/1", "PUT")):
                said = cluster.bench("--mix", mix, "--route", "owner", "--connections", 64, "--keys", keys, "--duration", "4s")
                print(f"{keys} keys, {name}: {said['cpu']:.1f} us CPU, {said['rate']:.0f}/s, p99 {said['p99']:.2f} ms")


def restart(folder):
    """How long a node with data on disk takes from its start until it is ready: after SIGTERM, and after SIGKILL."""
    for keys in NUMBERS:
        with tempfile.TemporaryDirectory(dir=folder) as data, Cluster(TARGET, data, "interval") as cluster:
            fill(cluster, keys)
            for name in ("SIGTERM", "SIGKILL"):
                cluster.processes[0].send_signal(getattr(signal, name))
                cluster.processes[0].wait()
                began = time.monotonic()
                cluster.processes[0] = cluster.start(0)
                wait_ready(cluster.nodes[0])
                took = time.monotonic() - began
                print(f"{keys} keys, {cluster.key_counts()[0]} here: ready {took:.2f} s after a start that followed {name}")


def values(folder):
    """What an operation costs as values grow."""
    for size in NUMBERS:
        with Cluster(TARGET, folder) as cluster:
            fixed = ["--value-size", size, "--keys", 200, "--connections", 16, "--duration", "3s", "--warmup", "500ms"]
            for mix, name in (("0/1", "PUT"), ("1/0", "GET")):
                said = cluster.bench("--mix", mix, "--route", "owner", *fixed, *(["--prepare"] if name == "PUT" else []))
                bytes_each = f"{said['rate'] * size / 1e6:8.1f} MB/s"
                print(f"{size:8} bytes {name}: {said['cpu']:8.1f} us CPU, {said['rate']:8.0f}/s {bytes_each}, p99 {said['p99']:.2f} ms")


def keys_of_first_shard(cluster, wanted):
    found, number = [], 0
    count = cluster.key_counts()[0]
    while len(found) < wanted:
        number += 1
        ask(cluster.nodes[0], "PUT", f"/kvs/first-{number}", {"value": "x" * 98})
        time.sleep(0.05)
        now = cluster.key_counts()[0]
        if now > count:
            found.append(f"first-{number}")
        count = now
    return found


def visibility(folder):
    """From a write's begin at one replica until the others answer reads without a context with it, at half the load."""
    with Cluster(TARGET, folder) as cluster:
        fixed = ["--mix", "50/50", "--connections", 64, "--warmup", "300ms"]
        most = cluster.bench(*fixed, "--duration", "3s", "--prepare")["rate"]
        key = keys_of_first_shard(cluster, 1)[0]
        load = threading.Thread(target=lambda: cluster.bench(*fixed, "--duration", "40s", "--rate", most / 2))
        load.start()
        time.sleep(2)
        samples = []
        while load.is_alive() and len(samples) < 1_500:
            value = len(samples)
            began = time.monotonic()
            ask(cluster.nodes[0], "PUT", f"/kvs/{key}", {"value": value})
            for node in cluster.nodes[1:3]:
                while ask(node, "GET", f"/kvs/{key}")[1].get("value") != value:
                    pass
                samples.append((time.monotonic() - began) * 1000)
            time.sleep(random.uniform(0, 0.02))
        load.join()
        print(f"visible at the other replicas, at {most / 2:.0f} operations/s: p50, p90, p99, max {percentiles(samples)} ms, {len(samples)} samples")


def wrk(url, connections, seconds, script):
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", file.name, url]
        said = subprocess.run(command, capture_output=True, text=True).stdout
    if "Non-2xx" in said:
        sys.exit(said)
    number, unit = re.search(r"99%\s+([\d.]+)(\w+)", said).groups()
    return float(re.search(r"Requests/sec:\s+([\d.]+)", said).group(1)), float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def paused(folder):
    """p99 of one shard while all nodes of the other are stopped, against before and after."""
    with Cluster(TARGET, folder) as cluster:
        keys = ",".join(f'"{key}"' for key in keys_of_first_shard(cluster, 20))
        script = f"""local keys, n = {{{keys}}}, 0
            local body = '{{"value":"' .. string.rep("x", 98) .. '"}}'
            request = function()
              n = n + 1
              local path = "/kvs/" .. keys[n % #keys + 1]
              if n % 2 == 0 then return wrk.format("GET", path) end
              return wrk.format("PUT", path, {{}}, body)
            end"""
        ratios, plain = [], []
        for _ in range(7):
            before = wrk(f"http://{cluster.nodes[0]}", 16, 3, script)
            for process in cluster.processes[3:]:
                process.send_signal(signal.SIGSTOP)
            time.sleep(2)
            during = wrk(f"http://{cluster.nodes[0]}", 16, 3, script)
            for process in cluster.processes[3:]:
                process.send_signal(signal.SIGCONT)
            time.sleep(2)
            ratios.append(during[1] / before[1])
            plain.append(before[1])
        print(f"p99 with the other shard paused: x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of {statistics.median(plain):.2f} ms")


def etcd(folder):
    """Durable writes: --fsync always against three etcd, both through HTTP, on the same disk."""
    peers = [f"etcd{i}=http://127.13.0.{i}:2380" for i in (1, 2, 3)]
    processes = []
    for i in (1, 2, 3):
        client, peer = f"http://127.13.0.{i}:2379", f"http://127.13.0.{i}:2380"
        command = ["etcd", "--name", f"etcd{i}", "--data-dir", f"{folder}/etcd{i}", "--initial-cluster", ",".join(peers)]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        processes.append(subprocess.Popen(command, **QUIET))
    try:
        with Cluster(TARGET, folder, "always") as cluster:
            time.sleep(3)
            leader = next(i for i in (1, 2, 3) if is_leader(f"127.13.0.{i}:2379"))
            theirs = """local n = 0
                local value = "eHh4" .. string.rep("eHh4", 32)
                request = function()
                  n = n + 1
                  local key = string.format("a2V5LTAw%08d", n % 5000)
                  return wrk.format("POST", "/v3/kv/put", {}, '{"key":"' .. key .. '","value":"' .. value .. '"}')
                end"""
            routes = ("one:" + cluster.nodes[0], "spread", "owner")
            rounds = []
            for _ in range(7):
                ours = [cluster.bench("--mix", "0/100", "--connections", 64, "--keys", 5000, "--route", route, "--duration", "3s") for route in routes]
                before = sum(map(cpu_us, processes))
                rate, p99 = wrk(f"http://127.13.0.{leader}:2379", 64, 3, theirs)
                rounds.append((ours, {"rate": rate, "p99": p99, "cpu": (sum(map(cpu_us, processes)) - before) / (rate * 3)}))

            def tell(name, results, compared=""):
                rate, p99, cpu = (statistics.median(result[what] for result in results) for what in ("rate", "p99", "cpu"))
                print(f"{name}: {rate:.0f} durable writes/s, p99 {p99:.1f} ms, {cpu:.0f} us of CPU each{compared}")

            print("64 connections, a write of 100 bytes on the disks of a majority")
            tell("etcd, at its leader", [other for _, other in rounds])
            for index, route in enumerate(routes):
                ratios = [ours[index]["rate"] / other["rate"] for ours, other in rounds]
                compared = f": x{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
                tell(f"kvnode, {route}", [ours[index] for ours, _ in rounds], compared)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def is_leader(address):
    _, said = ask(address, "POST", "/v3/maintenance/status", {})
    return said["leader"] == said["header"]["member_id"]


def first_put(folder):
    """From `kvctl cluster up` to the first answered PUT, with processes."""
    times = []
    kvctl = pathlib.Path(TARGET, "kvctl").resolve()
    for number in range(5):
        env = {**os.environ, "XDG_STATE_HOME": f"{folder}/{number}", "KVCTL_NAME": f"curves{number}"}
        began = time.monotonic()
        up = [kvctl, "cluster", "up", "--runtime", "local", "--subnet", "10.79.0.0/16"]
        subprocess.run(up, env=env, check=True, **QUIET)
        answered, _ = ask("127.79.0.2:8090", "PUT", "/kvs/first", {"value": 1})
        times.append(time.monotonic() - began)
        subprocess.run([kvctl, "cluster", "down", "--yes"], env=env, check=True, **QUIET)
        assert answered == 201
    print(f"cluster up to the first PUT answered: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")


PARTS = {"rest": rest, "memory": memory, "restart": restart, "values": values, "visibility": visibility}
PARTS |= {"paused": paused, "etcd": etcd, "first-put": first_put}
with tempfile.TemporaryDirectory() as folder:
    PARTS[WHAT](folder)
