"""A cable between two namespaces on which everything takes a while: many kernels come without netem.

    delay.py HOME DEVICE FAR DEVICE MILLISECONDS

Each end is a tun device; what comes out of one goes into the other after the time given. Says "ready" when
both are there.
"""

import collections
import ctypes
import fcntl
import os
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
TUN_WITHOUT_HEADER = 0x1001
CLONE_NEWNET = 0x40000000
# a packet is at most this
LARGEST = 65536
# of packets under way in one direction: beyond it a cable of this length would drop too
UNDER_WAY = 4096


def end(namespace, device):
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"enter namespace {namespace}")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), TUN_WITHOUT_HEADER))
    return tun


def main():
    home, near, far, out, milliseconds = sys.argv[1:]
    one, other = end(home, near), end(far, out)
    delay = float(milliseconds) / 1000
    print("ready", flush=True)
    to = {one: other, other: one}
    waiting = {one: collections.deque(), other: collections.deque()}
    while True:
        dues = [queue[0][0] for queue in waiting.values() if queue]
        pause = max(0.0, min(dues) - time.monotonic()) if dues else None
        for tun in select.select([one, other], [], [], pause)[0]:
            try:
                while True:
                    packet = os.read(tun, LARGEST)
                    if len(waiting[to[tun]]) < UNDER_WAY:
                        waiting[to[tun]].append((time.monotonic() + delay, packet))
            except BlockingIOError:
                pass
            except OSError:  # the device is not up yet
                time.sleep(0.01)
        now = time.monotonic()
        for tun, queue in waiting.items():
            while queue and queue[0][0] <= now:
                try:
                    os.write(tun, queue.popleft()[1])
                except OSError:
                    pass  # as a cable that is not plugged in


main()
