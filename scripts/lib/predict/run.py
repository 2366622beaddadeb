"""The demonstration of scripts/demo-predict."""

import argparse
import datetime
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from guest import Guest
from net import Net

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# One second of the demonstration stands for so many of the world.
COMPRESSED = 150
# A sample of five minutes takes so long.
STEP = 2
DAY = 288
VOLUME, SIZE = "db", 192 << 20
SITES = ["home", "east", "west", "north"]
RATES = {"east": 400, "west": 200, "north": 200}
# round trips to home, in milliseconds
ROUND_TRIPS = {"east": 4, "west": 18, "north": 80}
# Storage of a GiB for a month, egress of a GiB, a shape and its hour: hours of the world, times COMPRESSED, since an
# hour of the demonstration is as many.
SOLD = {"home": (7.5, 0.0, "h2", 15.0), "east": (15.0, 0.02, "e2", 45.0), "west": (7.5, 0.09, "w2", 15.0),
        "north": (3.0, 0.01, "n2", 6.0)}
PRICES = 'version = "demo-predict"\ncurrency = "EUR"\n' + "".join(f"""
[sites.{site}]
storage_gib_month = {month}
egress_gib = {egress}
shapes = [{{ name = "{shape}", cpus = 256, memory_gib = 4096, storage_gib = 500, hour = {hour} }}]
""" for site, (month, egress, shape, hour) in SOLD.items())
POLICY = """
open_score = 1.0
value_of_second = 0.05
utilisation_limit = 1.0
utilisation_probability = 1.0     # the score alone decides
expected_stay_seconds = 30
expected_hold_seconds = 120
minimum_hold_seconds = 90     # past the event: what is given up before it is paid for twice
idle_seconds = 8
event_margin_seconds = 0
latency_ms_limit = 50.0
"""
SITE = """
[[site]]
name = "{name}"
address = "{address}"
netns = "{netns}"
controller = "{controller}"
latency_ms = {latency}
bandwidth_mib = {bandwidth}
provision_seconds = 15
"""


class Failed(Exception):
    pass


def load(sample, noise):
    """A VM host's load as a share of its processors: quiet nights, a working day, a nightly job that takes more
    than there is."""
    hour = sample % DAY / DAY * 24
    day = 0.35 + 0.15 * math.sin((hour - 9) / 24 * 2 * math.pi)
    job = 0.75 if 20 <= hour < 21.5 else 0.0
    return max(0.02, day + job + noise.gauss(0, 0.03))


class Series(threading.Thread):
    """Plays the series: five days at once, then a sample every STEP seconds."""

    def __init__(self, path, first):
        super().__init__(daemon=True)
        noise = random.Random(7)
        self.path, self.values = path, [load(i, noise) for i in range(first)]
        self.noise, self.ending = noise, False
        self.write()

    def write(self):
        rows = "".join(f"{i * STEP},{value:.4f},0.4\n" for i, value in enumerate(self.values))
        with open(self.path + ".new", "w") as file:
            file.write("timestamp,cpu,memory\n" + rows)
        os.replace(self.path + ".new", self.path)

    def run(self):
        began, first = time.monotonic(), len(self.values)
        while not self.ending:
            due = first + int((time.monotonic() - began) / STEP)
            while len(self.values) < due:
                self.values.append(load(len(self.values), self.noise))
                self.write()
            time.sleep(0.2)


class Demo:
    def __init__(self, forerun, terraform):
        self.forerun = os.path.abspath(forerun)
        self.terraform = shutil.which(terraform)
        self.folder = tempfile.mkdtemp(prefix="forerun-predict-")
        self.net = Net(SITES)
        self.processes = []
        self.began = time.time()
        self.story = []

    def path(self, name):
        return os.path.join(self.folder, name)

    def say(self, text):
        line = (time.time() - self.began, text)
        self.story.append(line)
        print(f"{line[0]:6.1f} s  {text}", file=sys.stderr, flush=True)

    def put(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def daemon(self, name, *words):
        log = open(self.path(name + ".log"), "ab")
        self.processes.append(subprocess.Popen(self.net.inside("home", self.forerun, *words), stdout=log,
                                               stderr=log, stdin=subprocess.DEVNULL))

    def ask(self, *words):
        done = subprocess.run(self.net.inside("home", self.forerun, *words, "--controller", self.controller,
                                              "--output", "json"), capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"forerun {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        try:
            return json.loads(done.stdout)
        except ValueError:
            return [json.loads(line) for line in done.stdout.splitlines()]

    def until(self, what, condition, seconds):
        end = time.monotonic() + seconds
        while True:
            try:
                found = condition()
                if found:
                    return found
            except Failed as error:
                found = error
            if getattr(self, "guest", None) and self.guest.error:
                raise Failed(f"the guest: {self.guest.error}")
            if time.monotonic() > end:
                raise Failed(f"not within {seconds} s: {what}. {found or ''}")
            time.sleep(0.25)

    def owner(self):
        return self.ask("volume", "list")[0]["owner"]

    def start(self):
        self.net.make(RATES, ROUND_TRIPS)
        self.round_trips = {site: self.net.round_trip(site) for site in RATES}
        home = self.net.addresses["home"][0]
        self.controller = f"{home}:7400"
        # the nightly job begins two minutes from now, when the maintenance has begun: it raises the score, and
        # what moves the disk is the maintenance
        first = DAY * 5 + int(20 / 24 * DAY) - 62
        self.series = Series(self.path("a.csv"), first)
        sites = "".join(SITE.format(name=site, address=self.net.addresses[site][1], netns=self.net.names[site],
                                    controller=f"{self.net.addresses[site][0]}:7400", latency=latency,
                                    bandwidth=bandwidth)
                        for site, latency, bandwidth in ((s, ROUND_TRIPS[s], mib) for s, mib in
                                                                 (("east", 12), ("west", 6), ("north", 6))))
        config = self.put("controller.toml", f"""
listen = "0.0.0.0:7400"
data = "{self.path('controller')}"
allow_plaintext = true
prices = "{self.put('prices.toml', PRICES)}"
[provision]
terraform = "{self.terraform}"
register_seconds = 60
retry_seconds = 1
hour = 100.0
[planning]
mode = "auto"
period_seconds = {STEP}
day_seconds = {DAY * STEP}
policy = "{self.put('policy.toml', POLICY)}"
[[planning.series]]
node = "a"
metric = "cpu"
column = "cpu"
csv = "{self.path('a.csv')}"
[[planning.series]]
node = "a"
metric = "memory"
column = "memory"
csv = "{self.path('a.csv')}"
""" + sites)
        self.daemon("controller", "controller", "--config", config)
        node = self.put("a.toml", f"""
name = "a"
site = "home"
data = "{self.path('a')}"
controller = "{self.controller}"
allow_plaintext = true
listen = "{home}:7401"
replication = "{home}:7402"
nbd = "{home}:7403"
""")
        self.daemon("a", "node", "--config", node)
        self.until("node a is there", lambda: self.ask("node-list"), 60)
        self.ask("volume", "create", VOLUME, "--size", str(SIZE), "--node", "a")
        self.guest = Guest(self.path("a/nbd.sock"), VOLUME, 200, 11)
        self.guest.fill()
        self.guest.start()
        self.series.start()
        self.say(f"a VM host at home, its disk of {SIZE >> 20} MiB on node a, a guest that writes and checks; "
                 f"one second stands for {COMPRESSED}")

    def predicted(self):
        begins = time.time() + 110
        at = datetime.datetime.fromtimestamp(int(begins), datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.ask("calendar", "add", "power", "--kind", "maintenance", "--node", "a", "--at", at, "--lasts", "15s")
        self.say("maintenance of node a is in the calendar, in 110 s")
        seen = {}

        def commits():
            plan = self.ask("plan")
            for decision in plan["decisions"]:
                line = decision["line"]
                score = float(line.rsplit("= ", 1)[1]) if "= " in line else None
                if decision["subject"] == "a" and score is not None and \
                        (not seen or abs(score - seen["score"]) > 0.5):
                    seen["score"] = score
                    self.say(f"score of {line}")
            return plan["commitments"].get("a") and plan

        plan = self.until("the plan begins something", commits, 110)
        kept = plan["commitments"]["a"]
        decided = kept["since"]
        line = next(d["line"] for d in plan["decisions"] if d["subject"] == "a")
        self.say(f"decided {begins - decided:.0f} s before the maintenance: {line}")
        for site, outlook in next(d["sites"] for d in plan["decisions"] if d["subject"] == "a").items():
            if "filtered" in outlook:
                self.say(f"no choice: {site}: {outlook['filtered']['why']}")
            elif site != kept["site"]:
                self.say(f"worse: {site}: {outlook['possible']['score']['total']:.4f}")
        node = self.until("Terraform makes the node", lambda: self.there(kept["site"]), 90)
        made = time.time()
        self.say(f"Terraform has made {node['name']} at {kept['site']}, shape {node['shape']}")
        copy = self.until("the baseline is there", self.consistent, 120)
        seeded = time.time()
        seed_bytes = copy["seed_bytes_sent"]
        self.say(f"its copy is consistent after {seeded - made:.1f} s of seeding beside the guest")
        behind = copy["lag_bytes"]

        def leaves():
            nonlocal behind
            left = self.owner() == node["name"]
            found = None if left else self.consistent()
            behind = found["lag_bytes"] if found else behind
            return left

        self.until("the disk is at the new node", leaves, 210)
        cutover = self.last_cutover()
        moved = cutover["ended"]
        self.until("the guest goes on", lambda: self.guest.goes_on(moved), 60)
        quiet = self.guest.stall_since(seeded, cutover["started"])
        stall = self.guest.stall_since(cutover["started"])
        self.say(f"the disk is at {node['name']}, {begins - moved:.1f} s before the maintenance; its copy lacked "
                 f"{behind >> 10} KiB; longest request of the guest {stall:.1f} ms (before that {quiet:.1f} ms)")
        self.until("the disk comes home", lambda: self.owner() == "a", 120)
        self.say("the maintenance is over, so is the nightly job, and the disk is at home again")
        self.until("the idle node goes", lambda: not self.there(kept["site"]), 150)
        gone = time.time()
        self.say(f"{node['name']} was idle and is destroyed")
        return {"site": kept["site"], "line": line, "p": kept["p"], "decided_before_s": begins - decided,
                "provision_s": made - decided, "seed_s": seeded - made, "seed_bytes": seed_bytes,
                "cutover_s": cutover["seconds"], "cutover_bytes": behind,
                "frozen_ms": cutover["frozen_ms"], "stall_ms": stall, "stall_before_ms": quiet,
                "at_new_node_before_event_s": begins - moved, "node_s": gone - made,
                "cost": self.cost(kept["site"], gone - made, seed_bytes + behind)}

    def cost(self, site, seconds, sent):
        """Of a node for a time, and of what was sent to it."""
        _, egress, _, hour = SOLD[site]
        return hour * seconds / 3600 + egress * sent / (1 << 30)

    def there(self, site):
        return next((n for n in self.ask("node-list") if n["site"] == site and n["alive"]), None)

    def consistent(self):
        return next((r for r in self.ask("replica", "list", VOLUME) if r["state"].startswith("consistent")), None)

    def last_cutover(self):
        done = [o for o in self.ask("operation", "list") if o["command"] == "cutover" and o.get("cutover")]
        last = max(done, key=lambda o: o["started_unix_ms"])
        started, ended = last["started_unix_ms"] / 1e3, last["ended_unix_ms"] / 1e3
        return {"started": started, "ended": ended, "seconds": ended - started,
                "frozen_ms": last["cutover"]["frozen_ms"]}

    def unpredicted(self, site):
        """The same move when nobody saw it coming: everything happens after the event."""
        began = time.time()
        self.ask("provision", "grow", "--site", site, "--shape", SOLD[site][2], "--node", "late")
        made = time.time()
        self.ask("replica", "add", VOLUME, "--to", "late", "--rate", "6M")
        copy = self.until("the copy is consistent", self.consistent, 150)
        seeded = time.time()
        self.ask("cutover", VOLUME, "--to", "late")
        ended = time.time()
        cutover = self.last_cutover()
        self.until("the guest goes on", lambda: self.guest.goes_on(ended), 60)
        self.say(f"without prediction the same move took {ended - began:.1f} s: node {made - began:.1f}, "
                 f"copy {seeded - made:.1f}, cutover {ended - seeded:.1f}")
        return {"total_s": ended - began, "provision_s": made - began, "seed_s": seeded - made,
                "cutover_s": ended - seeded, "seed_bytes": copy["seed_bytes_sent"],
                "frozen_ms": cutover["frozen_ms"], "stall_ms": self.guest.stall_since(seeded),
                "cost": self.cost(site, ended - made, copy["seed_bytes_sent"])}

    def end(self):
        # nobody ends the cleaning up
        for number in INTERRUPTS:
            signal.signal(number, signal.SIG_IGN)
        if getattr(self, "series", None):
            self.series.ending = True
        for process in self.processes:
            process.kill()
        self.net.remove()
        for process in self.processes:
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--output", choices=["table", "json"], default="table")
    options.add_argument("--terraform", default="terraform")
    options.add_argument("--forerun", required=True)
    options = options.parse_args()
    demo = Demo(options.forerun, options.terraform)
    for number in INTERRUPTS:
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        demo.start()
        predicted = demo.predicted()
        review = demo.ask("plan", "--review")["review"]
        decisions = [e["text"] for e in demo.ask("events") if e["kind"].startswith("plan-")]
        late = demo.unpredicted(predicted["site"])
        error = demo.guest.finish()
        report = {"compressed": COMPRESSED, "round_trips_ms": {site: {"laid": ROUND_TRIPS[site], "measured": ms}
                                                                   for site, ms in demo.round_trips.items()},
                  "decisions": decisions, "predicted": predicted, "unpredicted": late,
                  "review": review, "guest": {"requests": demo.guest.requests, "compared": demo.guest.compared,
                                              "bytes_written": demo.guest.bytes, "error": error}}
        show(report, options.output)
        return 1 if error else 0
    except Failed as error:
        print(f"demo-predict failed: {error}", file=sys.stderr)
        for folder, _, names in os.walk(demo.folder):
            for log in (os.path.join(folder, name) for name in names if name.endswith(".log")):
                print(f"==> {log[len(demo.folder) + 1:]}", file=sys.stderr, flush=True)
                subprocess.run(["tail", "-n", "12", log], stdout=sys.stderr)
        return 1
    finally:
        demo.end()


def show(report, output):
    if output == "json":
        print(json.dumps(report))
        return
    p, late, review, guest = (report[k] for k in ("predicted", "unpredicted", "review", "guest"))
    trips = ", ".join(f"{site} {ms['measured']:.1f} ms ({ms['laid']} laid)"
                      for site, ms in report["round_trips_ms"].items())
    print(f"\nOne second stood for {report['compressed']}. Round trips as measured: {trips}; rates by tc tbf."
          "\n\nDecisions")
    for text in report["decisions"]:
        print(f"  {text}")
    print(f"\nForecast against outcome: the decision said {p['p']:.3f}, and the event came. {review['count']} "
          f"predictions judged, Brier {review['brier']:.3f} (0 is perfect, 0.25 a coin)")
    for fifth in review["calibration"]:
        print(f"  {fifth['count']:3} said {fifth['said']:6.1%} on average: it happened after {fifth['happened']:6.1%}")
    print("\n                         with prediction   without")
    for what, key, unit, scale in (
            ("node made in", "provision_s", "s", 1), ("copy seeded in", "seed_s", "s", 1),
            ("cutover", "cutover_s", "s", 1), ("frozen", "frozen_ms", "ms", 1),
            ("longest request", "stall_ms", "ms", 1), ("seeded", "seed_bytes", "MiB", 1 << 20)):
        print(f"  {what:<20}    {p[key] / scale:8.1f} {unit:<3}     {late[key] / scale:8.1f} {unit}")
    print(f"  event to disk there     {max(0, -p['at_new_node_before_event_s']):8.1f} s       "
          f"{late['total_s']:8.1f} s")
    print(f"\n  The disk was away {p['at_new_node_before_event_s']:.1f} s before the maintenance began, and "
          f"{p['cutover_bytes'] >> 10} KiB were left for the cutover."
          "\n  The cutover itself is the same either way: what prediction saves is the wait before it.")
    print(f"  With prediction node and traffic cost {p['cost']:.3f} EUR: the node stood {p['node_s']:.0f} s, until "
          f"nobody needed it.\n  Without, {late['cost']:.3f} EUR by the time that the disk was there, and the node "
          "stands on.")
    print(f"  guest: {guest['requests']} requests, {guest['compared']} blocks compared, "
          f"{guest['error'] or 'all as acknowledged'}")


if __name__ == "__main__":
    sys.exit(main())
