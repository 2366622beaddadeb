//! Events that are known beforehand: scheduled maintenance and traffic spikes, once or recurring.
//!
//! ```toml
//! [[event]]
//! name = "rack 7 power"
//! kind = "maintenance"             # everything on the named nodes or site must be elsewhere
//! nodes = ["a7"]                   # or: site = "east"
//! at = 2026-11-22T02:00:00Z
//! lasts = "2h"
//! every = "1w"                     # optional; a fixed period, so UTC and no daylight saving
//! until = 2027-03-01T00:00:00Z     # optional
//! probability = 0.9                # optional: how likely it is to happen, 1 if not said
//!
//! [[event]]
//! name = "ticket sale"
//! kind = "spike"
//! site = "east"
//! at = 2026-11-27T18:00:00Z
//! lasts = "90m"
//! load = 1.6                       # demand times this while it lasts
//! ```

use super::unit::{Invalid, Seconds, UnixTime};
use serde::{Deserialize, Serialize};

/// What an event does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// Nothing may run there while it lasts.
    Maintenance,
    /// Demand grows while it lasts.
    Spike,
}

/// An event and its repetitions.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What people call it.
    pub name: String,
    /// What it does.
    pub kind: EventKind,
    /// The nodes that it touches; empty means the whole site.
    pub nodes: Vec<String>,
    /// The site that it touches, if it is not about single nodes.
    pub site: Option<String>,
    /// When it first begins.
    pub at: UnixTime,
    /// How long it lasts.
    pub lasts: Seconds,
    /// How often it comes again.
    pub every: Option<Seconds>,
    /// The last moment at which a repetition may begin.
    pub until: Option<UnixTime>,
    /// How likely it is to happen.
    pub probability: f64,
    /// What demand is multiplied with.
    pub load: f64,
}

/// One time that an event happens.
#[derive(Clone, Debug, PartialEq)]
pub struct Occurrence<'a> {
    /// The event.
    pub event: &'a Event,
    /// Beginning.
    pub start: UnixTime,
    /// End.
    pub end: UnixTime,
}

/// Known events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calendar {
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCalendar {
    #[serde(default)]
    event: Vec<RawEvent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEvent {
    name: String,
    kind: EventKind,
    #[serde(default)]
    nodes: Vec<String>,
    site: Option<String>,
    at: toml::value::Datetime,
    lasts: String,
    every: Option<String>,
    until: Option<toml::value::Datetime>,
    #[serde(default = "one")]
    probability: f64,
    #[serde(default = "one")]
    load: f64,
}

fn one() -> f64 {
    1.0
}

/// A shorter period is a mistake in the table, and would make a look-ahead long.
const PERIOD_MIN: Seconds = Seconds(60);

impl Calendar {
    /// Read a calendar.
    ///
    /// # Errors
    /// It is no TOML, or an event names neither nodes nor a site, has no offset in its time, a
    /// length or period that is none, or a probability or load that makes no sense.
    pub fn parse(toml: &str) -> Result<Calendar, Invalid> {
        let raw: RawCalendar =
            toml::from_str(toml).map_err(|e| Invalid(format!("calendar: {e}")))?;
        let events = raw.event.into_iter().map(|e| {
            let name = e.name.clone();
            Event::from_raw(e).map_err(|why| Invalid(format!("calendar, event {name:?}: {why}")))
        });
        Ok(Calendar {
            events: events.collect::<Result<_, _>>()?,
        })
    }

    /// A calendar of these events.
    #[must_use]
    pub fn of(events: Vec<Event>) -> Calendar {
        Calendar { events }
    }

    /// Its events.
    #[must_use]
    pub fn into_events(self) -> Vec<Event> {
        self.events
    }

    /// Everything that is under way at some moment of `from..until`, earliest first.
    #[must_use]
    pub fn between(&self, from: UnixTime, until: UnixTime) -> Vec<Occurrence<'_>> {
        let mut all: Vec<Occurrence<'_>> = self
            .events
            .iter()
            .flat_map(|e| e.between(from, until))
            .collect();
        all.sort_by_key(|o| o.start);
        all
    }
}

impl Event {
    fn from_raw(raw: RawEvent) -> Result<Event, String> {
        if raw.nodes.is_empty() == raw.site.is_none() {
            return Err("name either nodes or a site".into());
        }
        if !(0.0..=1.0).contains(&raw.probability) {
            return Err(format!("probability {} is not in 0 to 1", raw.probability));
        }
        if !raw.load.is_finite() || raw.load <= 0.0 {
            return Err(format!("load {} is no factor", raw.load));
        }
        let every = raw.every.as_deref().map(length).transpose()?;
        if every.is_some_and(|p| p < PERIOD_MIN) {
            return Err("it comes again more often than once a minute".into());
        }
        Ok(Event {
            name: raw.name,
            kind: raw.kind,
            nodes: raw.nodes,
            site: raw.site,
            at: moment(&raw.at)?,
            lasts: length(&raw.lasts)?,
            every,
            until: raw.until.as_ref().map(moment).transpose()?,
            probability: raw.probability,
            load: raw.load,
        })
    }

    /// Whether it touches the node, which stands at the site.
    #[must_use]
    pub fn touches(&self, node: &str, site: &str) -> bool {
        self.nodes.iter().any(|n| n == node) || self.site.as_deref() == Some(site)
    }

    fn between(&self, from: UnixTime, until: UnixTime) -> impl Iterator<Item = Occurrence<'_>> {
        // the first repetition that has not ended before `from`
        let skip = match self.every {
            Some(p) => from.since(self.at.after(self.lasts)).0 / p.0,
            None => 0,
        };
        let last = self.until.map_or(until, |u| u.min(until));
        let count = if self.every.is_some() { u64::MAX } else { 1 };
        (skip..count)
            .map_while(move |i| {
                let offset = self.every.map_or(0, |p| p.0).checked_mul(i)?;
                let start = UnixTime(self.at.0.checked_add(offset)?);
                (start < until && start <= last).then(|| Occurrence {
                    event: self,
                    start,
                    end: start.after(self.lasts),
                })
            })
            .filter(move |o| o.end > from)
    }
}

/// `90s`, `15m`, `2h`, `3d`, `1w`.
fn length(text: &str) -> Result<Seconds, String> {
    let bad = || format!("{text:?} is no length of time: write 90s, 15m, 2h, 3d or 1w");
    let (number, unit) = text
        .trim()
        .split_at_checked(text.trim().len().wrapping_sub(1))
        .ok_or_else(bad)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(bad()),
    };
    let number: u64 = number.trim().parse().map_err(|_| bad())?;
    number.checked_mul(unit).map(Seconds).ok_or_else(bad)
}

fn moment(t: &toml::value::Datetime) -> Result<UnixTime, String> {
    let (Some(date), Some(time), Some(offset)) = (t.date, t.time, t.offset) else {
        return Err(format!(
            "{t} lacks a date, a time or an offset: write 2026-11-22T02:00:00Z"
        ));
    };
    let offset = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes) * 60,
    };
    let days = days_since_1970(
        i64::from(date.year),
        i64::from(date.month),
        i64::from(date.day),
    );
    let seconds = days * 86_400
        + i64::from(time.hour) * 3_600
        + i64::from(time.minute) * 60
        + i64::from(time.second)
        - offset;
    u64::try_from(seconds)
        .map(UnixTime)
        .map_err(|_| format!("{t} lies before 1970"))
}

/// Days since 1970 in the Gregorian calendar: whole years, whole months, days. March begins the year so that the
/// leap day is its last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400);
    let before_month = (153 * m + 2) / 5; // months from March are 31 30 31 30 31, twice and a bit
    365 * y + leap_days + before_month + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WEEKLY: &str = r#"
        [[event]]
        name = "patch"
        kind = "maintenance"
        nodes = ["a1"]
        at = 2026-11-22T02:00:00Z
        lasts = "2h"
        every = "1w"
        until = 2026-12-10T00:00:00Z
    "#;
    const FIRST: u64 = 1_795_312_800; // date -ud '2026-11-22 02:00' +%s

    #[test]
    fn a_weekly_event_comes_again_until_it_ends() {
        let c = Calendar::parse(WEEKLY).unwrap();
        let starts: Vec<u64> = c
            .between(UnixTime(0), UnixTime(FIRST * 2))
            .iter()
            .map(|o| o.start.0)
            .collect();
        assert_eq!(starts, [FIRST, FIRST + 604_800, FIRST + 2 * 604_800]);
    }

    #[test]
    fn what_has_begun_and_not_ended_counts() {
        let c = Calendar::parse(WEEKLY).unwrap();
        assert_eq!(
            c.between(UnixTime(FIRST + 7_199), UnixTime(FIRST + 7_300))
                .len(),
            1
        );
        assert_eq!(
            c.between(UnixTime(FIRST + 7_200), UnixTime(FIRST + 7_300))
                .len(),
            0
        );
        assert_eq!(c.between(UnixTime(FIRST - 10), UnixTime(FIRST)).len(), 0);
    }

    #[test]
    fn an_offset_is_honoured_and_its_absence_refused() {
        let west = WEEKLY.replace("02:00:00Z", "00:30:00-01:30");
        let c = Calendar::parse(&west).unwrap();
        assert_eq!(
            c.between(UnixTime(0), UnixTime(FIRST + 1))[0].start,
            UnixTime(FIRST)
        );
        let e = Calendar::parse(&WEEKLY.replace("02:00:00Z", "02:00:00")).unwrap_err();
        assert!(e.to_string().contains("offset"), "{e}");
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, says) in [
            ("nodes = [\"a1\"]", "", "either nodes or a site"),
            ("\"2h\"", "\"2 moons\"", "length of time"),
            ("\"1w\"", "\"0s\"", "more often"),
            ("kind = \"maintenance\"", "kind = \"party\"", "party"),
        ] {
            let e = Calendar::parse(&WEEKLY.replace(from, to)).unwrap_err();
            assert!(e.to_string().contains(says), "{e}");
        }
    }

    proptest! {
        #[test]
        fn looking_ahead_in_two_halves_finds_the_same_as_in_one(
            from in FIRST - 1_000_000..FIRST + 3_000_000, a in 0u64..2_000_000, b in 0u64..2_000_000,
        ) {
            let c = Calendar::parse(WEEKLY).unwrap();
            let (mid, end) = (UnixTime(from + a), UnixTime(from + a + b));
            let mut parts: Vec<u64> = c.between(UnixTime(from), mid).iter()
                .chain(&c.between(mid, end)).map(|o| o.start.0).collect();
            parts.dedup();
            let whole: Vec<u64> = c.between(UnixTime(from), end).iter().map(|o| o.start.0).collect();
            prop_assert_eq!(parts, whole);
        }
    }
}
