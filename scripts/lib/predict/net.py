"""Sites as network namespaces: a home with a cable to each, as fast as tc's token bucket lets it be and as
long as our own relay makes it."""

import os
import subprocess
import sys

# connects to where nobody listens: the refusal takes a round trip; prints the median of nine
ROUND_TRIP = """
import socket, sys, time
def once():
    begun = time.monotonic()
    try: socket.create_connection((sys.argv[1], 9), 5).close()
    except ConnectionRefusedError: pass
    return 1000 * (time.monotonic() - begun)
print(sorted(once() for _ in range(9))[4])
"""


class Net:
    def __init__(self, sites):
        self.names = {site: f"fr{os.getpid()}-{site}"[:15] for site in sites}
        self.home = sites[0]
        self.addresses = {}
        self.relays = []

    def ip(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    def inside(self, site, *words):
        return ["ip", "netns", "exec", self.names[site], *words]

    def cable(self, home, site, name, milliseconds):
        """Between home and a site, with this round trip."""
        relay = os.path.join(os.path.dirname(os.path.abspath(__file__)), "delay.py")
        words = [sys.executable, "-B", relay, home, site, name, "out", str(milliseconds / 2)]
        running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.relays.append(running)
        if running.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the cable to {site} could not be laid: is there a /dev/net/tun?")

    def round_trip(self, site):
        """As measured, in milliseconds."""
        words = self.inside(self.home, sys.executable, "-c", ROUND_TRIP, self.addresses[site][1])
        return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    def make(self, rates, round_trips):
        """`rates`: megabits a second by site; `round_trips`: milliseconds."""
        for name in self.names.values():
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        home = self.names[self.home]
        for number, (site, rate) in enumerate(rates.items(), 1):
            name = self.names[site]
            self.cable(home, site, name, round_trips[site])
            self.ip("-n", home, "addr", "add", f"10.88.{number}.1/24", "dev", site)
            self.ip("-n", name, "addr", "add", f"10.88.{number}.2/24", "dev", "out")
            self.ip("-n", home, "link", "set", site, "up")
            self.ip("-n", name, "link", "set", "out", "up")
            self.ip("-n", name, "route", "add", "default", "via", f"10.88.{number}.1")
            self.addresses[site] = (f"10.88.{number}.1", f"10.88.{number}.2")
            for where, device in ((self.home, site), (site, "out")):
                subprocess.run(self.inside(where, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate",
                                           f"{rate}mbit", "burst", "256k", "latency", "100ms"),
                               check=True, capture_output=True, text=True)
        # an address of home that every site reaches
        self.ip("-n", home, "addr", "add", "10.88.0.1/32", "dev", "lo")
        self.addresses[self.home] = ("10.88.0.1", "10.88.0.1")

    def remove(self):
        for relay in self.relays:
            relay.kill()
            relay.wait()
        for name in self.names.values():
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in found.stdout.split():
                try:
                    os.kill(int(pid), 9)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
