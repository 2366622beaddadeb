#!/usr/bin/env python3
"""Boots the guest from a volume and judges what it saw.

    run.py --disk FOLDER --server serve|nodes|qemu-nbd

    serve      `forerun serve` alone: boot, work, shut down
    nodes      a controller and two nodes: import the disk on a, boot, seed to b, cut over, shut down
    qemu-nbd   the same with QEMU's own server, to tell a guest's own trouble from the server's

The guest runs `workload.py`. Its second serial port is a unix socket here: events come in as JSON
lines, `mark` and `finish` go out. The verdict needs no I/O error and no mismatch in the guest, a clean
shutdown, and a clean `e2fsck -fn` of the image afterwards.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from fleet import Failed, Fleet, tail  # noqa: E402 (its folder has just been named)

# Longer than any cutover may take: until then QEMU waits for the server and the guest sees no error.
RECONNECT_SECONDS = 60
# An emulated processor on a busy two-core machine boots Debian in well under this.
BOOT_SECONDS = 240
FINISH_SECONDS = 180
VOLUME = "guest"


def say(text):
    print(f"   {text}", flush=True)


class Server:
    """A process that offers the image over NBD on a unix socket."""

    def __init__(self, kind, image, folder, forerun):
        self.socket = os.path.join(folder, "nbd.sock")
        self.log = os.path.join(folder, f"{kind}.log")
        self.image = image
        command = {
            "serve": [forerun, "serve", image, "--socket", self.socket],
            "qemu-nbd": ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", self.socket, image],
        }[kind]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not accepts(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{' '.join(command)} does not serve: see {self.log}\n{tail(self.log)}")
            time.sleep(0.02)

    def uri_options(self):
        return f"server.type=unix,server.path={self.socket}"

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise Failed(f"the server did not stop within 20 s of SIGTERM: see {self.log}")


def accepts(path):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
            return True
        except OSError:
            return False


def uri_options(fleet):
    """QEMU's -blockdev options for the volume at its owner."""
    uri = urllib.parse.urlsplit(fleet.ask("attach", VOLUME)["uris"][0])
    export = urllib.parse.unquote(uri.path.lstrip("/"))
    if uri.scheme == "nbd+unix":
        path = urllib.parse.parse_qs(uri.query)["socket"][0]
        return f"server.type=unix,server.path={path},export={export}"
    return f"server.type=inet,server.host={uri.hostname},server.port={uri.port},export={export}"


class Guest:
    """A QEMU process that boots from the export, and the control channel to its workload."""

    def __init__(self, disk, nbd, folder, accel):
        self.console = os.path.join(folder, "console.log")
        control = os.path.join(folder, "control.sock")
        self.log = os.path.join(folder, "qemu.log")
        command = [
            "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-m", "512", "-smp", "2",
            "-accel", accel, "-cpu", "max",
            "-kernel", os.path.join(disk, "vmlinuz"), "-initrd", os.path.join(disk, "initrd"),
            "-append", "root=/dev/vda rw console=ttyS0 loglevel=4 panic=1 mitigations=off random.trust_cpu=on",
            "-blockdev", f"driver=nbd,node-name=disk,{nbd},"
                         f"reconnect-delay={RECONNECT_SECONDS},open-timeout=10,cache.direct=on",
            "-device", "virtio-blk-pci,drive=disk,serial=guest",
            "-serial", f"file:{self.console}",
            "-chardev", f"socket,id=control,path={control},server=on,wait=off", "-serial", "chardev:control",
        ]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.control = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.control.connect(control)
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"QEMU did not start:\n{tail(self.log)}")
                time.sleep(0.05)
        self.arrived = threading.Condition()
        self.events = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        with self.control.makefile("rb") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # what the serial port said before the workload opened it
                with self.arrived:
                    self.events.append(event)
                    self.arrived.notify_all()

    def send(self, word):
        self.control.sendall(word.encode() + b"\n")

    def wait(self, kind, seconds, after=0):
        """The first event of a kind behind the `after`th event of any kind."""
        deadline = time.monotonic() + seconds
        with self.arrived:
            while True:
                for event in self.events[after:]:
                    if event["event"] == kind:
                        return event
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self.arrived.wait(0.5)):
                    raise Failed(f"the guest did not say `{kind}` within {seconds} s; its console ended with\n"
                                 f"{tail(self.console)}{tail(self.log)}")
                self.arrived.wait(min(left, 0.5))

    def mark(self):
        """Starts a new window; returns the longest I/O of the one before, in milliseconds."""
        seen = len(self.events)
        self.send("mark")
        return self.wait("marked", 60, after=seen)["longest_ms"]

    def finish(self):
        """Has the guest check everything and shut down; returns its report."""
        self.send("finish")
        report = self.wait("report", FINISH_SECONDS)
        try:
            code = self.process.wait(90)
        except subprocess.TimeoutExpired:
            raise Failed(f"the guest did not shut down; its console ended with\n{tail(self.console)}")
        if code != 0:
            raise Failed(f"QEMU ended with {code}:\n{tail(self.log)}")
        return report

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def judge(report, image):
    problems = []
    if report["errors"]:
        problems.append(f"the guest saw {report['errors']} I/O errors")
    if report["mismatches"]:
        problems.append(f"{report['mismatches']} of its records do not hold what it had synced")
    problems += [f"the guest's kernel complained: {line}" for line in report["kernel_complaints"]]
    if not report["writes"]:
        problems.append("the guest wrote nothing")
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True,
                             env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "LC_ALL": "C"})
    if checked.returncode != 0:
        problems.append(f"e2fsck -fn {image} ended with {checked.returncode}:\n{checked.stdout[-2000:]}")
    if problems:
        raise Failed("\n   ".join(problems))


def boot(options, nbd, folder, running):
    began = time.monotonic()
    guest = Guest(options.disk, nbd, folder, options.accel)
    running.append(guest.kill)
    guest.wait("ready", BOOT_SECONDS)
    say(f"the guest is up after {time.monotonic() - began:.0f} s")
    guest.mark()
    return guest


def tell(report, image):
    judge(report, image)
    say(f"guest: {report['ios']} I/Os, {report['writes']} records written and synced, 0 errors; "
        f"{report['records_checked']} records and {report['files_checked']} files checked, 0 mismatches; "
        "e2fsck clean")


def serve_alone(options, image, folder, running):
    server = Server(options.server, image, folder, options.forerun)
    running.append(server.stop)
    guest = boot(options, server.uri_options(), folder, running)
    time.sleep(options.seconds)
    longest = guest.mark()
    report = guest.finish()
    server.stop()
    tell(report, image)
    say(f"longest I/O in {options.seconds} s: {longest} ms")


def move(options, image, folder, running):
    fleet = Fleet(folder, options.forerun)
    running.append(fleet.stop)
    fleet.ask("volume", "import", VOLUME, "--path", image, "--node", "a")
    guest = boot(options, uri_options(fleet), folder, running)
    time.sleep(options.seconds)
    before = guest.mark()

    began = time.monotonic()
    fleet.ask("replica", "add", VOLUME, "--to", "b", "--consistency", "bounded=1s")
    say(f"seeded to b in {time.monotonic() - began:.1f} s while the guest wrote")
    seeding = guest.mark()

    began = time.monotonic()
    fleet.ask("cutover", VOLUME, "--to", "b")
    took = time.monotonic() - began
    # The guest goes on through the old owner, which forwards.
    guest.wait("progress", 60, after=len(guest.events))
    around = guest.mark()
    shown = fleet.ask("volume", "show", VOLUME)
    shown = shown[0] if isinstance(shown, list) else shown
    if shown["owner"] != "b":
        raise Failed(f"after the cutover the owner is {shown['owner']!r}, not b")
    say(f"cut over to b in {took:.1f} s, generation {shown['generation']}")
    time.sleep(options.seconds)
    after = guest.mark()

    report = guest.finish()
    fleet.stop()
    tell(report, os.path.join(fleet.data("b"), "volumes", VOLUME, "image"))
    say(f"longest guest I/O: {before} ms before, {seeding} ms while seeding, "
        f"{around} ms around the cutover, {after} ms after it")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--disk", required=True, help="the folder that build-image.sh made")
    parser.add_argument("--forerun", default="forerun", help="the forerun program")
    parser.add_argument("--server", choices=["nodes", "serve", "qemu-nbd"], default="nodes")
    parser.add_argument("--accel", default="tcg,thread=multi", help="QEMU's -accel")
    parser.add_argument("--seconds", type=int, default=10, help="how long the guest works in each phase")
    options = parser.parse_args()

    folder = tempfile.mkdtemp(prefix="forerun-guest.")
    running = []
    try:
        image = os.path.join(folder, "root.ext4")
        subprocess.run(["cp", "--sparse=always", os.path.join(options.disk, "root.ext4"), image], check=True)
        (move if options.server == "nodes" else serve_alone)(options, image, folder, running)
        passed = True
    except (Failed, subprocess.CalledProcessError) as failure:
        print(f"FAILED: {failure}\n   logs: {folder}", file=sys.stderr)
        passed = False
    finally:
        for stop in reversed(running):
            try:
                stop()
            except Failed as failure:
                print(f"   {failure}", file=sys.stderr)
    if passed:
        shutil.rmtree(folder)
    sys.exit(0 if passed else 1)


main()
