//! Random runs with fresh seeds for a while: `soak --hours N`, N a fraction or more. The last line
//! says how many seeds were run and the verdict; the exit code is 1 if one failed.
#![allow(clippy::print_stdout)]

use sim::hunt;
use sim::swarm::{Swarm, Tally};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let hours = match args.as_slice() {
        [flag, hours] if flag == "--hours" => hours.parse::<f64>().ok(),
        _ => None,
    };
    let Some(hours) = hours.filter(|h| *h > 0.0 && *h < 1e4) else {
        println!("usage: soak --hours N");
        return ExitCode::from(2);
    };
    let until = Instant::now() + Duration::from_secs_f64(hours * 3600.0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // Nobody has run these before, and the next soak begins elsewhere.
    let first = now.unwrap_or_default().as_secs() * 1000;
    let (mut seeds, mut failed, mut sum) = (0, 0, Tally::default());
    while Instant::now() < until {
        let swarm = Swarm::of(first + seeds);
        seeds += 1;
        match hunt::run(&swarm) {
            Ok(tally) => sum.add(&tally),
            Err(why) => {
                failed += 1;
                println!("{}", hunt::report(&swarm, &why));
            }
        }
    }
    let verdict = if failed == 0 { "ALL PASSED" } else { "FAILED" };
    println!(
        "{verdict}: {seeds} seeds from {first} in {hours} h, {failed} failed; {} answers, {} crashes, \
         {} commits, {} hand-overs",
        sum.answers, sum.crashes, sum.commits, sum.handovers
    );
    ExitCode::from(u8::from(failed > 0))
}
