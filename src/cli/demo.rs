//! `forerun demo`.

use super::{Failure, Out, size};
use crate::demo::{Options, run as play};

/// What to play.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Size of the volume
    #[arg(long, default_value = "256M", value_parser = size::parse)]
    size: u64,
    /// I/Os a second that the client makes
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Plans the same I/Os again
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// `forerun demo`.
pub async fn run(args: Args, out: &Out) -> Result<(), Failure> {
    const MIB: u64 = 1 << 20;
    if args.size < 16 * MIB || !args.size.is_multiple_of(MIB) {
        return Err(Failure::usage(
            "demo: use a --size of whole mebibytes, 16M or more",
        ));
    }
    let options = Options {
        size_bytes: args.size,
        rate: args.rate,
        seed: args.seed,
    };
    play(&options, out).await
}
