"""What every benchmark prints beside its figures: machine, load, versions."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time

import kvedge


def machine():
    """Return what the figures depend on."""
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_1_5_15": [round(value, 2) for value in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "kvedge": kvedge.__version__,
    }


def timed(argv, *, runs=1, env=None, cwd=None, check=True):
    """Run a command several times; return its wall times in seconds."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        done = subprocess.run(
            argv, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, check=False
        )
        times.append(time.perf_counter() - began)
        if check and done.returncode:
            sys.stderr.write(done.stdout.decode() + done.stderr.decode())
            raise SystemExit(f"{argv[0]} exited {done.returncode}")
    return times


def median_ms(times):
    """Return the median of seconds in milliseconds."""
    return round(statistics.median(times) * 1000, 1)


def judged(figures, limits):
    """Return each figure with its limit and whether it is kept.

    Args:
        figures: what was measured; a figure inside another has both names with a dot between.
        limits: name to ("<=" or ">=", limit).
    """
    found = {}
    for name, (sign, limit) in limits.items():
        value = figures
        for part in name.split("."):
            value = value[part]
        kept = value <= limit if sign == "<=" else value >= limit
        found[name] = {"figure": value, "target": f"{sign} {limit:g}", "pass": kept}
    return found


def emit(name, before, figures):
    """Print one JSON object."""
    print(
        json.dumps(
            {
                "bench": name,
                **figures,
                "machine": {**before, "load_after": machine()["load_1_5_15"]},
            },
            indent=2,
        )
    )
