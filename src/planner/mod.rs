//! The planner: forecasts, prices and events in, decisions out. Pure: no I/O and no clock, so that
//! a plan can be made again from its inputs and gives the same answer.
//!
//! ```text
//! forecasts (quantiles) ─┐
//! calendar ──────────────┼─► score of each site ─► triggers, commitments ─► decisions ─► review
//! prices, shapes ────────┤                              ▲
//! nodes, quota, room ────┴─ filters, reservations ──────┘
//! ```

mod calendar;
mod commitment;
mod distribution;
mod foresight;
mod opening;
mod place;
mod plan;
mod policy;
mod prices;
mod relief;
pub mod replay;
mod score;
mod shape;
mod unit;
mod upkeep;

pub use calendar::{Calendar, Event, EventKind, Occurrence};
pub use commitment::{Bin, Commitment, Commitments, Outcome, Review};
pub use distribution::Distribution;
pub use foresight::Foresight;
pub use place::{Ask, Choice, Limits, NodeView, Rejection, Reservations, Terms, choose};
pub use plan::{
    Action, Decision, Held, Input, Outlook, Plan, SiteView, Subject, Trigger, Way, plan,
};
pub use policy::{Mode, Policy};
pub use prices::{Prices, Shape, SitePrices};
pub use relief::{Pressure, Relief};
pub use score::{Move, Score, Urgency, WINDOWS, Windows};
pub use shape::{Need, Recommendation, recommend};
pub use unit::{Bandwidth, Bytes, Invalid, Money, Seconds, UnixTime};
