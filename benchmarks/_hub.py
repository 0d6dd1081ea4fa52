"""The hub emulator as a process of its own, for benchmarks."""

import os
import pathlib
import signal
import subprocess
import sys


class Hub:
    """A running emulator, without knobs, that keeps its state in a folder."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.child = subprocess.Popen(
            [sys.executable, "-m", "kvedge", "hub", "emulate", "--dir", folder],
            stdout=subprocess.PIPE,
            text=True,
        )
        words = self.child.stdout.readline().replace(",", "").split()
        self.https_port, self.mqtt_port = (int(word) for word in words if word.isdigit())
        self.connection = (self.folder / "service.connection").read_text()
        self.ca = self.folder / "pki" / "ca.crt"

    def rss_kib(self):
        text = pathlib.Path(f"/proc/{self.child.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:"))

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(30)
