#!/usr/bin/python3
"""Runs inside the guest: writes, syncs and checks records for as long as the host wants.

Every record carries its slot and its sequence, and the rest of it follows from them, so that a lost,
stale, torn or misplaced write shows. The sequence of each slot's last durable write is kept in memory:
whatever is read must be exactly that one. Every few records a small file is made, synced and renamed,
so that the file system's journal works too.

It talks to the host in lines over the second serial port. To the host: JSON, one event a line
(`ready`, `progress`, `report`). From the host: `mark` (forget the longest I/O so far) and `finish`.
"""

import errno
import hashlib
import json
import mmap
import os
import random
import re
import select
import struct
import subprocess
import termios
import time
import tty

RECORD = 4096
SLOTS = 8192  # 32 MiB: more than the guest's memory would hide from the disk with O_DIRECT anyway
FOLDER = "/var/lib/forerun-workload"
HEADER = struct.Struct("<8sIIQ")
MAGIC = b"FORERUN1"
SMALL_FILES = 64
KERNEL_COMPLAINTS = re.compile(rb"I/O error|EXT4-fs (error|warning)|blk_update_request|JBD2: .*[Ee]rror|Remounting filesystem read-only")


def record(slot, sequence):
    header = HEADER.pack(MAGIC, slot, RECORD, sequence)
    return header + hashlib.shake_128(header).digest(RECORD - len(header))


class Timing:
    """How long the guest's I/O took: in all, and since the host's last mark."""

    def __init__(self):
        self.ios = 0
        self.errors = 0
        self.longest = 0.0
        self.longest_since_mark = 0.0

    def of(self, operation, *arguments):
        began = time.monotonic()
        try:
            return operation(*arguments)
        except OSError as error:
            self.errors += 1
            tell(event="error", errno=errno.errorcode.get(error.errno, error.errno), what=operation.__name__)
            return None
        finally:
            took = time.monotonic() - began
            self.ios += 1
            self.longest = max(self.longest, took)
            self.longest_since_mark = max(self.longest_since_mark, took)


control = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
tty.setraw(control, termios.TCSANOW)


def tell(**event):
    line = json.dumps(event).encode() + b"\n"
    while line:
        line = line[os.write(control, line):]


class Records:
    def __init__(self, timing):
        self.timing = timing
        self.path = os.path.join(FOLDER, "records")
        self.buffer = mmap.mmap(-1, RECORD)  # page-aligned, as O_DIRECT wants it
        self.durable = [0] * SLOTS
        self.sequence = 0
        self.mismatches = 0
        with open(self.path, "wb") as file:
            for slot in range(SLOTS):
                file.write(record(slot, 0))
            file.flush()
            os.fsync(file.fileno())
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def write(self, slot):
        self.sequence += 1
        self.buffer[:] = record(slot, self.sequence)
        written = self.timing.of(os.pwritev, self.direct, [self.buffer], slot * RECORD)
        if written == RECORD:
            self.timing.of(os.fdatasync, self.direct)
            self.durable[slot] = self.sequence

    def check(self, slot):
        if self.timing.of(os.preadv, self.direct, [self.buffer], slot * RECORD) != RECORD:
            return
        if self.buffer[:] != record(slot, self.durable[slot]):
            self.mismatches += 1
            magic, said_slot, _, sequence = HEADER.unpack(self.buffer[: HEADER.size])
            tell(event="mismatch", slot=slot, wanted=self.durable[slot], magic=magic.hex(),
                 found_slot=said_slot, found=sequence)


class SmallFiles:
    """Creates, syncs and renames: the work that goes through the file system's journal."""

    def __init__(self, timing):
        self.timing = timing
        self.folder = os.path.join(FOLDER, "files")
        os.makedirs(self.folder, exist_ok=True)
        self.digests = {}
        self.mismatches = 0

    def write(self, turn):
        name = f"file-{turn % SMALL_FILES}"
        content = random.randbytes(random.randrange(1, 20000))
        path = os.path.join(self.folder, name)
        with open(path + ".new", "wb") as file:
            file.write(content)
            file.flush()
            self.timing.of(os.fsync, file.fileno())
        os.rename(path + ".new", path)
        folder = os.open(self.folder, os.O_RDONLY)
        self.timing.of(os.fsync, folder)
        os.close(folder)
        self.digests[name] = hashlib.sha256(content).digest()

    def check(self):
        for name, digest in self.digests.items():
            with open(os.path.join(self.folder, name), "rb") as file:
                if hashlib.sha256(file.read()).digest() != digest:
                    self.mismatches += 1
                    tell(event="mismatch", file=name)


def commands():
    """What the host has said since the last look."""
    pending = b""
    while select.select([control], [], [], 0)[0]:
        pending += os.read(control, 256)
    return pending.decode(errors="replace").split()


def kernel_complaints():
    log = subprocess.run(["dmesg"], capture_output=True, check=True).stdout
    lines = [line.decode(errors="replace") for line in log.splitlines() if KERNEL_COMPLAINTS.search(line)]
    return lines


def main():
    os.makedirs(FOLDER, exist_ok=True)
    timing = Timing()
    records = Records(timing)
    files = SmallFiles(timing)
    tell(event="ready", records=SLOTS)
    turn = 0
    told = time.monotonic()
    finish = False
    while not finish:
        turn += 1
        records.write(random.randrange(SLOTS))
        records.check(random.randrange(SLOTS))
        if turn % 32 == 0:
            files.write(turn // 32)
        now = time.monotonic()
        if now - told >= 1.0:
            told = now
            tell(event="progress", ios=timing.ios, errors=timing.errors,
                 longest_ms=round(timing.longest_since_mark * 1000, 2))
        for command in commands():
            if command == "mark":
                tell(event="marked", longest_ms=round(timing.longest_since_mark * 1000, 2))
                timing.longest_since_mark = 0.0
            finish = finish or command == "finish"

    # Everything once more from the disk, not from the guest's memory.
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3\n")
    longest, longest_since_mark = timing.longest, timing.longest_since_mark
    for slot in range(SLOTS):
        records.check(slot)
    files.check()
    complaints = kernel_complaints()
    tell(event="report", ios=timing.ios, errors=timing.errors, writes=records.sequence,
         mismatches=records.mismatches + files.mismatches, records_checked=SLOTS,
         files_checked=len(files.digests), kernel_complaints=complaints,
         longest_ms=round(longest * 1000, 2), longest_since_mark_ms=round(longest_since_mark * 1000, 2))
    os.close(records.direct)
    subprocess.run(["systemctl", "--no-block", "poweroff"], check=True)


main()
