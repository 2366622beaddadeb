"""A guest that checks everything: writes to a volume over NBD all the time, remembers what was
acknowledged, reads it back, and keeps the longest time that one request took."""

import os
import random
import socket
import struct
import threading
import time

BLOCK = 4096
REQUEST, REPLY = 0x25609513, 0x67446698
READ, WRITE, FLUSH = 0, 1, 3
# A guest that waits longer than this is told that its disk is gone.
PATIENCE = 60


class Nbd:
    """The smallest client that the protocol allows: one request at a time."""

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self.take(16)
        flags = struct.unpack(">H", self.take(2))[0]
        self.socket.sendall(struct.pack(">I", flags & 3))
        name = export.encode()
        info = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">QII", 0x49484156454F5054, 7, len(info)) + info)
        self.size = None
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            body = self.take(length)
            if kind == 3 and struct.unpack(">H", body[:2])[0] == 0:
                self.size = struct.unpack(">Q", body[2:10])[0]
            elif kind == 1:
                return
            elif kind & 0x80000000:
                raise OSError(f"the node refused export {export}: {body.decode(errors='replace')}")

    def take(self, count):
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise OSError("the node closed the connection")
            data += part
        return bytes(data)

    def ask(self, kind, offset=0, length=0, data=b""):
        self.socket.sendall(struct.pack(">IHHQQI", REQUEST, 0, kind, 1, offset, length) + data)
        magic, error, _ = struct.unpack(">IIQ", self.take(16))
        if magic != REPLY or error:
            raise OSError(error, f"request {kind} at {offset} failed: {os.strerror(error)}")
        return self.take(length) if kind == READ else b""


class Guest(threading.Thread):
    """Hot at one end of the disk, as disks are; every fifth request reads back and compares."""

    def __init__(self, path, export, rate, seed):
        super().__init__(daemon=True)
        self.disk = Nbd(path, export)
        self.rate, self.random = rate, random.Random(seed)
        self.written = {}
        self.requests = self.compared = self.bytes = 0
        self.slowest = []
        self.error = None
        self.ending = False

    def fill(self):
        """Data all over, so that a baseline is one."""
        chunk = 1 << 20
        for offset in range(0, self.disk.size, chunk):
            self.disk.ask(WRITE, offset, chunk, self.random.randbytes(chunk))
        self.disk.ask(FLUSH)

    def run(self):
        try:
            blocks = self.disk.size // BLOCK
            began = time.monotonic()
            while not self.ending:
                # a tenth of the disk takes nine writes of ten
                hot = self.random.random() < 0.9
                block = self.random.randrange(blocks // 10) if hot else self.random.randrange(blocks)
                at = time.monotonic()
                if self.requests % 5 == 4 and block in self.written:
                    found = self.disk.ask(READ, block * BLOCK, BLOCK)
                    self.compared += 1
                    if found != self.content(block):
                        raise OSError(f"block {block} is not what was acknowledged")
                else:
                    self.written[block] = self.random.getrandbits(64)
                    self.disk.ask(WRITE, block * BLOCK, BLOCK, self.content(block))
                    self.bytes += BLOCK
                self.requests += 1
                self.slowest.append((time.monotonic() - at, time.time()))
                ahead = began + self.requests / self.rate - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)
        except OSError as error:
            self.error = str(error)

    def content(self, block):
        return struct.pack(">QQ", block, self.written[block]) * (BLOCK // 16)

    def goes_on(self, moment):
        """Whether a request that began after a moment of the clock has ended: those before it are all counted."""
        return any(ended - took > moment for took, ended in self.slowest[-1:])

    def stall_since(self, moment, until=float("inf")):
        """The longest request, in milliseconds, that ended after a moment of the clock, and before another."""
        return 1e3 * max((took for took, ended in self.slowest if moment <= ended < until), default=0)

    def finish(self):
        """Compare every block that was ever written."""
        self.ending = True
        self.join(PATIENCE)
        if self.error is None:
            # a request for each block would take a round trip each
            span = max(1, (1 << 20) // BLOCK)
            for first in sorted({block // span * span for block in self.written}):
                found = self.disk.ask(READ, first * BLOCK, span * BLOCK)
                for block in range(first, first + span):
                    at = (block - first) * BLOCK
                    if block in self.written and found[at:at + BLOCK] != self.content(block):
                        self.error = f"block {block} is not what was acknowledged"
                        return self.error
                    self.compared += block in self.written
        return self.error
