//! The planner replayed over weeks that have happened: real VM series, a calendar, sites with
//! prices. Four ways to keep copies meet the same demand, and are compared.
//!
//! Each VM has a home node. When the demand of the VMs at home passes the node's capacity, VMs must
//! leave until it no longer does; when the node goes into maintenance, all must. They come back when
//! that is over. A VM that leaves lands on a *warm* copy if the target lacks at most one per cent of
//! its disk; otherwise everything it lacks has to be sent first, and perhaps a node made.
//!
//! | keeper | what it keeps |
//! |---|---|
//! | no forecast | nothing: a copy is made when it is needed |
//! | most recent target | a copy wherever a VM has been last, for ever |
//! | Forerun | what [`super::plan()`] decides from forecasts and the calendar |
//! | oracle | knows every departure: begins just in time, keeps a copy between two departures if that is cheaper |

mod forecaster;
mod forerun;
mod keeper;
mod oracle;
mod run;
mod world;

pub use self::forerun::Forerun;
pub use forecaster::{Forecaster, Recent};
pub use keeper::{Keeper, MostRecent, Nothing};
pub use oracle::Oracle;
pub use run::{Departure, Tally, run};
pub use world::{HomeNode, Vm, World};

#[cfg(test)]
mod tests;
