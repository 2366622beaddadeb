"""A controller and two nodes on loopback, for the scripts that need a fleet."""

import contextlib
import json
import os
import socket
import subprocess
import time


class Failed(Exception):
    """Something that should have worked did not; says what to look at."""


class Fleet:
    """A controller and the nodes a and b, each with files and ports of its own under one folder."""

    def __init__(self, folder, forerun):
        self.folder = folder
        self.forerun = forerun
        self.processes = {}
        ports = free_ports(7)
        self.controller = f"127.0.0.1:{ports[0]}"
        self.start("controller", ["controller", "--config", self.config("controller", {
            "listen": self.controller, "data": os.path.join(folder, "controller")})])
        wait_until("the controller listens", lambda: accepts_tcp(ports[0]), self.alive)
        for name, (rpc, replication, nbd) in (("a", ports[1:4]), ("b", ports[4:7])):
            self.start(name, ["node", "--config", self.config(name, {
                "name": name, "site": f"site-{name}", "data": self.data(name), "controller": self.controller,
                "listen": f"127.0.0.1:{rpc}", "replication": f"127.0.0.1:{replication}",
                "nbd": f"127.0.0.1:{nbd}"})])
        wait_until("both nodes register",
                   lambda: sum(node["alive"] for node in self.ask("node-list")) == 2, self.alive)

    def data(self, node):
        return os.path.join(self.folder, node)

    def config(self, name, values):
        path = os.path.join(self.folder, f"{name}.toml")
        with open(path, "w") as file:
            file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        return path

    def start(self, name, arguments):
        with open(os.path.join(self.folder, f"{name}.log"), "wb") as log:
            self.processes[name] = subprocess.Popen([self.forerun, *arguments], stdout=log, stderr=log,
                                                    stdin=subprocess.DEVNULL)

    def alive(self):
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise Failed(f"{name} ended with {process.returncode}:\n"
                             f"{tail(os.path.join(self.folder, name + '.log'))}")

    def ask(self, *words):
        """A command of the CLI as its JSON answer: the last line, behind those of its progress."""
        result = subprocess.run([self.forerun, *words, "--controller", self.controller, "--output", "json"],
                                capture_output=True, text=True)
        if result.returncode != 0:
            self.alive()
            raise Failed(f"forerun {' '.join(words)} ended with {result.returncode}: "
                         f"{result.stderr.strip() or result.stdout.strip()}")
        try:
            return json.loads(result.stdout)
        except ValueError:
            return json.loads(result.stdout.strip().splitlines()[-1])

    def stop(self):
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
        for name, process in self.processes.items():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Failed(f"{name} did not stop within 20 s of SIGTERM")


def free_ports(count):
    """Ports that were free a moment ago; all held at once, so that they differ."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
        return ports


def accepts_tcp(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(what, condition, check=lambda: None, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        check()
        with contextlib.suppress(Failed):
            if condition():
                return
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def tail(path, lines=15):
    try:
        with open(path, errors="replace") as file:
            return "".join("   | " + line for line in file.readlines()[-lines:])
    except FileNotFoundError:
        return ""
