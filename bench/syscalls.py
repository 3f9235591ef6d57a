#!/usr/bin/env python3
"""What an operation asks of the system, summed over all six nodes: calls and switches by perf, user and system time by /proc.

Needs a release build, and perf with its tracepoints (root). Usage: bench/syscalls.py TARGET_FOLDER [mem|interval|always]
"""

import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import cluster

TARGET, MODE = sys.argv[1], (sys.argv[2:] or ["mem"])[0]
CALLS = ("epoll_wait", "recvfrom", "sendto", "writev", "write")
EVENTS = [f"syscalls:sys_enter_{call}" for call in CALLS] + ["raw_syscalls:sys_enter", "sched:sched_switch"]
KINDS = {
    "GET at a replica": ("1/0", "owner"),
    "GET at a node of another shard": ("1/0", "elsewhere"),
    "PUT at a replica": ("0/1", "owner"),
    "PUT at a node of another shard": ("0/1", "elsewhere"),
}
SECONDS = 3


def ticks(nodes):
    """User and system time so far, in hundredths of a second."""
    fields = [pathlib.Path(f"/proc/{node.pid}/stat").read_text().rsplit(")", 1)[1].split() for node in nodes]
    return [sum(int(each[at]) for each in fields) for at in (11, 12)]


def measure(six, mix, route, connections):
    load = ("--mix", mix, "--route", route, "--connections", connections, "--keys", 5000, "--warmup", "0s")
    load += ("--duration", f"{SECONDS}s")
    before, plain = ticks(six.processes), six.bench(*load)
    user, system = (10_000 * (now - was) / (plain["rate"] * SECONDS) for now, was in zip(ticks(six.processes), before))
    with tempfile.NamedTemporaryFile("r") as told:
        pids = ",".join(str(node.pid) for node in six.processes)
        perf = subprocess.Popen(["perf", "stat", "-x", ",", "-e", ",".join(EVENTS), "-p", pids, "-o", told.name])
        time.sleep(0.5)
        counted = six.bench(*load)
        perf.send_signal(signal.SIGINT)
        perf.wait()
        rows = [line.split(",") for line in told if line[:1].isdigit()]
    counts = {row[2].split("enter_")[-1].split(":")[-1]: float(row[0]) / (counted["rate"] * SECONDS) for row in rows}
    counts["calls"], counts["switches"] = counts.pop("sys_enter"), counts.pop("sched_switch")
    return user, system, counts


with tempfile.TemporaryDirectory() as folder, cluster.Cluster(TARGET, folder, MODE) as six:
    six.bench("--mix", "1/1", "--route", "spread", "--keys", 5000, "--duration", "500ms", "--prepare")
    for name, (mix, route) in KINDS.items():
        for connections in (16, 64):
            user, system, counts = measure(six, mix, route, connections)
            each = ", ".join(f"{what} {count:.2f}" for what, count in counts.items())
            print(f"{connections} connections  {name}: {user:.1f} us user, {system:.1f} us system; {each}", flush=True)
