"""Sites as network namespaces: a home with a cable to each, as fast as tc's token bucket lets it be."""

import os
import subprocess


class Net:
    def __init__(self, sites):
        self.names = {site: f"fr{os.getpid()}-{site}"[:15] for site in sites}
        self.home = sites[0]
        self.addresses = {}

    def ip(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    def inside(self, site, *words):
        return ["ip", "netns", "exec", self.names[site], *words]

    def make(self, rates):
        """`rates`: megabits a second by site."""
        for name in self.names.values():
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        home = self.names[self.home]
        for number, (site, rate) in enumerate(rates.items(), 1):
            name = self.names[site]
            self.ip("-n", home, "link", "add", site, "type", "veth", "peer", "name", "out", "netns", name)
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
        for name in self.names.values():
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in found.stdout.split():
                try:
                    os.kill(int(pid), 9)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
